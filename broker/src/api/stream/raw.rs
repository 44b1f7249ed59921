//! Bare text, labelled as server-sent events as GitLab's gateway labels it.

use bytes::BytesMut;
use duo_contract::frame::Summary;
use http::HeaderMap;

use super::{Encoder, Ending, Unreadable, chunk, content_type, end_of};
use crate::prompt::answer::Formatter;
use crate::request::ExchangeError;

/// The label of raw text streams.
pub(in crate::api) const CONTENT_TYPE: &str = "text/event-stream; charset=utf-8";

/// The model's text: byte by byte, or in a form of its own.
#[derive(Debug, Default)]
pub(in crate::api) struct RawText {
    formatter: Option<Formatter>,
}

impl RawText {
    /// In a form of its own.
    pub(in crate::api) fn formatted(formatter: Formatter) -> Self {
        Self {
            formatter: Some(formatter),
        }
    }
}

impl Encoder for RawText {
    fn chunk(&mut self, line: &[u8], out: &mut BytesMut) -> Result<(), Unreadable> {
        let Some(text) = chunk::text(line)? else {
            return Ok(());
        };
        match &mut self.formatter {
            Some(formatter) => out.extend_from_slice(formatter.push(&text).as_bytes()),
            None => out.extend_from_slice(text.as_bytes()),
        }
        Ok(())
    }

    fn end(&mut self, summary: &Summary, out: &mut BytesMut) -> Result<(), Unreadable> {
        if let Some(formatter) = &mut self.formatter {
            out.extend_from_slice(formatter.finish(end_of(summary))?.as_bytes());
        }
        Ok(())
    }

    fn fail(&mut self, _: &ExchangeError, _: &mut BytesMut) -> Ending {
        Ending::Cut
    }

    fn headers(&self) -> HeaderMap {
        content_type(CONTENT_TYPE)
    }
}
