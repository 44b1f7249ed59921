//! The stream of `/v2/prompts/{id}`: a JSON object a line, labelled as server-sent events as GitLab's gateway labels it.

use bytes::BytesMut;
use duo_contract::frame::Summary;
use duo_contract::name::ModelName;
use http::HeaderMap;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::chunk::{self, Usage};
use super::raw::CONTENT_TYPE;
use super::{Encoder, Ending, Unreadable, content_type, end_of, spaced};
use crate::prompt::answer::Formatter;
use crate::request::ExchangeError;

/// Tokens spent, as an object with one member that names the model.
#[derive(Debug)]
pub(in crate::api) struct UsageByModel<'a>(&'a str, Tokens);

#[derive(Debug, Serialize)]
struct Tokens {
    input_tokens: u64,
    output_tokens: u64,
}

impl<'a> UsageByModel<'a> {
    pub(in crate::api) fn new(model: &'a str, usage: Usage) -> Self {
        let tokens = Tokens {
            input_tokens: usage.prompt_tokens,
            output_tokens: usage.completion_tokens,
        };
        Self(model, tokens)
    }

    /// What the end of a stream says; zeros where the model server does not count.
    pub(in crate::api) fn of(model: &'a str, summary: &Summary) -> Self {
        let usage = Usage {
            prompt_tokens: summary.input_tokens.unwrap_or(0),
            completion_tokens: summary.output_tokens.unwrap_or(0),
        };
        Self::new(model, usage)
    }
}

impl Serialize for UsageByModel<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.0, &self.1)?;
        map.end()
    }
}

#[derive(Serialize)]
struct Line<'a> {
    content: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageByModel<'a>>,
}

/// `{"content": "…"}` lines, the last one with what was spent.
#[derive(Debug)]
pub(in crate::api) struct ContentLines {
    model: ModelName,
    formatter: Formatter,
}

impl ContentLines {
    /// The lines of an answer of `model`.
    pub(in crate::api) fn new(model: &ModelName, formatter: Formatter) -> Self {
        Self {
            model: model.clone(),
            formatter,
        }
    }
}

fn content(text: &str, out: &mut BytesMut) {
    if !text.is_empty() {
        let line = Line {
            content: text,
            usage: None,
        };
        write(&line, out);
    }
}

fn write(line: &Line<'_>, out: &mut BytesMut) {
    spaced::write(line, out);
    out.extend_from_slice(b"\n");
}

impl Encoder for ContentLines {
    fn chunk(&mut self, line: &[u8], out: &mut BytesMut) -> Result<(), Unreadable> {
        if let Some(text) = chunk::text(line)? {
            content(&self.formatter.push(&text), out);
        }
        Ok(())
    }

    fn end(&mut self, summary: &Summary, out: &mut BytesMut) -> Result<(), Unreadable> {
        content(&self.formatter.finish(end_of(summary))?, out);
        let line = Line {
            content: "",
            usage: Some(UsageByModel::of(self.model.as_str(), summary)),
        };
        write(&line, out);
        Ok(())
    }

    fn fail(&mut self, _: &ExchangeError, _: &mut BytesMut) -> Ending {
        Ending::Cut
    }

    fn headers(&self) -> HeaderMap {
        content_type(CONTENT_TYPE)
    }
}
