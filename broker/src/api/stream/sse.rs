//! The server-sent events of `/v4/code/suggestions`.

use bytes::{Bytes, BytesMut};
use duo_contract::frame::Summary;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Serialize;

use super::{Encoder, Ending, Unreadable, chunk, content_type, end_of, spaced};
use crate::prompt::answer::Formatter;
use crate::request::ExchangeError;

/// The editors' language server reads events only under this header.
const STREAMING_FORMAT: HeaderName = HeaderName::from_static("x-streaming-format");
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What `stream_start` says.
#[derive(Debug, Clone, Serialize)]
pub(in crate::api) struct Start {
    pub(in crate::api) metadata: StartMetadata,
}

#[derive(Debug, Clone, Serialize)]
pub(in crate::api) struct StartMetadata {
    pub(in crate::api) model: StartModel,
    pub(in crate::api) timestamp: i64,
    pub(in crate::api) enabled_feature_flags: Vec<String>,
    pub(in crate::api) region: &'static str,
}

#[derive(Debug, Clone, Serialize)]
pub(in crate::api) struct StartModel {
    pub(in crate::api) engine: &'static str,
    pub(in crate::api) name: String,
}

#[derive(Serialize)]
struct Chunk<'a> {
    choices: [Choice<'a>; 1],
}

#[derive(Serialize)]
struct Choice<'a> {
    delta: Delta<'a>,
    index: u32,
}

#[derive(Serialize)]
struct Delta<'a> {
    content: &'a str,
}

/// `stream_start`, `content_chunk` …, `stream_end`.
#[derive(Debug)]
pub(in crate::api) struct Events {
    start: Option<Start>,
    formatter: Option<Formatter>,
}

impl Events {
    /// Events of text as it is, or in a form of its own.
    pub(in crate::api) fn new(start: Start, formatter: Option<Formatter>) -> Self {
        Self {
            start: Some(start),
            formatter,
        }
    }

    fn begin(&mut self, out: &mut BytesMut) {
        if let Some(start) = self.start.take() {
            event("stream_start", &start, out);
        }
    }
}

impl Encoder for Events {
    fn chunk(&mut self, line: &[u8], out: &mut BytesMut) -> Result<(), Unreadable> {
        self.begin(out);
        let Some(text) = chunk::text(line)? else {
            return Ok(());
        };
        match &mut self.formatter {
            Some(formatter) => content(&formatter.push(&text), out),
            None => content(&text, out),
        }
        Ok(())
    }

    fn end(&mut self, summary: &Summary, out: &mut BytesMut) -> Result<(), Unreadable> {
        self.begin(out);
        if let Some(formatter) = &mut self.formatter {
            content(&formatter.finish(end_of(summary))?, out);
        }
        event("stream_end", &(), out);
        Ok(())
    }

    fn fail(&mut self, _: &ExchangeError, _: &mut BytesMut) -> Ending {
        Ending::Cut
    }

    fn ping(&self) -> Option<Bytes> {
        let now = duo_process::clock::now();
        Some(format!(": ping - {} {}+00:00\r\n\r\n", now.date(), now.time()).into())
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = content_type(super::raw::CONTENT_TYPE);
        headers.insert(STREAMING_FORMAT, HeaderValue::from_static("sse"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(BUFFERING, HeaderValue::from_static("no"));
        headers
    }
}

fn content(text: &str, out: &mut BytesMut) {
    if text.is_empty() {
        return;
    }
    let choice = Choice {
        delta: Delta { content: text },
        index: 0,
    };
    event("content_chunk", &Chunk { choices: [choice] }, out);
}

fn event(name: &str, value: &impl Serialize, out: &mut BytesMut) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\r\ndata: ");
    spaced::write(value, out);
    out.extend_from_slice(b"\r\n\r\n");
}
