//! Bare text, labelled as server-sent events as GitLab's gateway labels it.

use bytes::BytesMut;
use duo_contract::frame::Summary;
use http::HeaderMap;

use super::fence::Fences;
use super::{Encoder, Ending, Unreadable, chunk, content_type};
use crate::request::ExchangeError;

/// The label of raw text streams.
pub(in crate::api) const CONTENT_TYPE: &str = "text/event-stream; charset=utf-8";

/// The model's text, byte by byte or without the lines of Markdown fences.
#[derive(Debug, Default)]
pub(in crate::api) struct RawText {
    fences: Option<Fences>,
}

impl RawText {
    /// Without the lines of Markdown fences.
    pub(in crate::api) fn without_fences() -> Self {
        Self {
            fences: Some(Fences::default()),
        }
    }
}

impl Encoder for RawText {
    fn chunk(&mut self, line: &[u8], out: &mut BytesMut) -> Result<(), Unreadable> {
        let Some(text) = chunk::text(line)? else {
            return Ok(());
        };
        match &mut self.fences {
            Some(fences) => out.extend_from_slice(fences.push(&text).as_bytes()),
            None => out.extend_from_slice(text.as_bytes()),
        }
        Ok(())
    }

    fn end(&mut self, _: &Summary, out: &mut BytesMut) {
        if let Some(fences) = &mut self.fences {
            out.extend_from_slice(fences.finish().as_bytes());
        }
    }

    fn fail(&mut self, _: &ExchangeError, _: &mut BytesMut) -> Ending {
        Ending::Cut
    }

    fn headers(&self) -> HeaderMap {
        content_type(CONTENT_TYPE)
    }
}
