//! JSON on one line with a blank after `:` and `,`, as GitLab's gateway writes
//! it in streams and as its clients have learned to read it.

use std::io;

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde_json::ser::Formatter;

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Appends `value`.
pub(in crate::api) fn write(value: &impl Serialize, out: &mut BytesMut) {
    let mut serializer = serde_json::Serializer::with_formatter(out.writer(), Spaced);
    value
        .serialize(&mut serializer)
        .expect("our own shapes serialise into memory");
}
