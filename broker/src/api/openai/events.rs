//! The server-sent events of OpenAI's streams.

use bytes::BytesMut;
use duo_contract::frame::Summary;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use memchr::memmem;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::api::error::{ApiError, openai_object};
use crate::api::stream::{Encoder, Ending, Unreadable, content_type, raw};
use crate::request::ExchangeError;

const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Chunks as the model server wrote them, and `[DONE]` after a good end only.
#[derive(Debug)]
pub(super) struct Events {
    wants_usage: bool,
}

impl Events {
    /// Usage at the end of the stream only for clients that asked for it.
    pub(super) fn new(wants_usage: bool) -> Self {
        Self { wants_usage }
    }
}

impl Encoder for Events {
    fn chunk(&mut self, line: &[u8], out: &mut BytesMut) -> Result<(), Unreadable> {
        if self.wants_usage || !is_usage_alone(line) {
            event(line, out);
        }
        Ok(())
    }

    fn end(&mut self, _: &Summary, out: &mut BytesMut) -> Result<(), Unreadable> {
        event(b"[DONE]", out);
        Ok(())
    }

    fn fail(&mut self, error: &ExchangeError, out: &mut BytesMut) -> Ending {
        let object = openai_object(&ApiError::Exchange(error.clone()));
        event(object.to_string().as_bytes(), out);
        Ending::Told
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = content_type(raw::CONTENT_TYPE);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(BUFFERING, HeaderValue::from_static("no"));
        headers
    }
}

fn event(line: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(line);
    out.extend_from_slice(b"\n\n");
}

/// Is it the chunk that we asked for and the client did not?
fn is_usage_alone(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Chunk {
        choices: Vec<IgnoredAny>,
        usage: Option<IgnoredAny>,
    }
    memmem::find(line, b"\"usage\"").is_some()
        && serde_json::from_slice(line)
            .is_ok_and(|chunk: Chunk| chunk.choices.is_empty() && chunk.usage.is_some())
}
