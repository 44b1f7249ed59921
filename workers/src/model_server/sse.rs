//! Server-sent events from bytes: splits on lines, never on HTTP chunks.
//!
//! Yields the data of each event as it came. Comments and other fields are
//! left out; the lines of a longer event are joined by a space, since the data
//! is JSON and a frame keeps one event a line.

use bytes::{Bytes, BytesMut};

/// Most bytes of one event.
const MOST_EVENT_BYTES: usize = 8 << 20;

/// An event is over the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the model server is over {MOST_EVENT_BYTES} bytes")]
pub struct TooLong;

/// What is read of a stream but not yet an event.
#[derive(Debug, Default)]
pub struct EventReader {
    /// The begun line.
    rest: BytesMut,
    data: Data,
}

/// The data lines of the begun event.
#[derive(Debug, Default)]
enum Data {
    #[default]
    None,
    /// One, as it came.
    Line(Bytes),
    /// Several, joined.
    Lines(BytesMut),
}

impl Data {
    fn add(&mut self, line: Bytes) {
        let mut lines = match std::mem::take(self) {
            Data::None => {
                *self = Data::Line(line);
                return;
            }
            Data::Line(first) => BytesMut::from(&first[..]),
            Data::Lines(lines) => lines,
        };
        lines.extend_from_slice(b" ");
        lines.extend_from_slice(&line);
        *self = Data::Lines(lines);
    }

    fn take(&mut self) -> Option<Bytes> {
        match std::mem::take(self) {
            Data::None => None,
            Data::Line(line) => Some(line),
            Data::Lines(lines) => Some(lines.freeze()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Data::None => 0,
            Data::Line(line) => line.len(),
            Data::Lines(lines) => lines.len(),
        }
    }
}

impl EventReader {
    /// Takes bytes as they came and appends the data of each event they complete.
    ///
    /// # Errors
    /// An event grows over the limit.
    pub fn push(&mut self, bytes: Bytes, events: &mut Vec<Bytes>) -> Result<(), TooLong> {
        let searched = self.rest.len();
        let mut bytes = if searched == 0 {
            bytes
        } else {
            self.rest.extend_from_slice(&bytes);
            // Nothing else holds it, so that it can grow on without a copy where the line has no end yet.
            std::mem::take(&mut self.rest).freeze()
        };
        let mut from = searched;
        while let Some(end) = memchr::memchr(b'\n', &bytes[from..]) {
            let line = bytes.split_to(from + end + 1);
            self.line(&line.slice(..line.len() - 1), events);
            from = 0;
        }
        self.rest = bytes
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        if self.rest.len() + self.data.len() > MOST_EVENT_BYTES {
            return Err(TooLong);
        }
        Ok(())
    }

    /// The body has ended: what is there counts, even without its blank line.
    pub fn finish(&mut self, events: &mut Vec<Bytes>) {
        if !self.rest.is_empty() {
            let line = self.rest.split().freeze();
            self.line(&line, events);
        }
        events.extend(self.data.take());
    }

    fn line(&mut self, line: &Bytes, events: &mut Vec<Bytes>) {
        let line = match line.strip_suffix(b"\r") {
            Some(stripped) => line.slice_ref(stripped),
            None => line.clone(),
        };
        if line.is_empty() {
            events.extend(self.data.take());
        } else if let Some(data) = line.strip_prefix(b"data:") {
            let data = line.slice_ref(data.strip_prefix(b" ").unwrap_or(data));
            self.data.add(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<Bytes> {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for part in parts {
            reader
                .push(Bytes::copy_from_slice(part), &mut events)
                .expect("short");
        }
        reader.finish(&mut events);
        events
    }

    const STREAM: &[u8] =
        b": hello\n\ndata: {\"a\":1}\n\ndata:{\"b\":\r\ndata: 2}\r\n\r\nevent: x\nid: 7\n\n\
        : ping\ndata: {\"c\":\"\xc3\xa4\"}\n\ndata: [DONE]\n\n";

    #[test]
    fn comments_and_other_fields_are_left_out() {
        assert_eq!(
            events([STREAM]),
            [
                &b"{\"a\":1}"[..],
                b"{\"b\": 2}",
                "{\"c\":\"\u{e4}\"}".as_bytes(),
                b"[DONE]"
            ]
        );
    }

    #[test]
    fn an_event_without_its_blank_line_counts_at_the_end() {
        assert_eq!(events([&b"data: x\n"[..]]), [&b"x"[..]]);
        assert_eq!(events([&b"data: x"[..]]), [&b"x"[..]]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        let part = Bytes::from(vec![b'x'; 1 << 20]);
        let pushed = (0..9).try_for_each(|_| reader.push(part.clone(), &mut events));
        assert_eq!(pushed, Err(TooLong));
    }

    /// Far above what it takes, far below what it would take to copy what is there for every piece that comes.
    const SOON: std::time::Duration = std::time::Duration::from_secs(10);

    #[test]
    fn a_piece_of_a_long_line_costs_no_more_than_itself() {
        let began = std::time::Instant::now();
        let part = Bytes::from_static(b"data: 0123456789");
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for _ in 0..(6 << 20) / part.len() {
            reader.push(part.clone(), &mut events).expect("short");
            assert!(began.elapsed() < SOON);
        }
        reader.finish(&mut events);
        assert_eq!(events[0].len(), (6 << 20) - "data: ".len());
    }

    #[test]
    fn a_line_of_a_long_event_costs_no_more_than_itself() {
        let began = std::time::Instant::now();
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for _ in 0..2 << 20 {
            reader
                .push(Bytes::from_static(b"data:x\n"), &mut events)
                .expect("short");
            assert!(began.elapsed() < SOON);
        }
        reader.finish(&mut events);
        assert_eq!(events[0].len(), (4 << 20) - 1);
    }

    proptest! {
        #[test]
        fn any_split_yields_the_same_events(mut cuts in proptest::collection::vec(0..STREAM.len(), 0..12)) {
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts {
                parts.push(&STREAM[from..cut]);
                from = cut;
            }
            parts.push(&STREAM[from..]);
            prop_assert_eq!(events(parts), events([STREAM]));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            events([&bytes[..]]);
        }
    }
}
