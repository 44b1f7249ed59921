//! The events of chat: one JSON object a line, each line ended. GitLab finds
//! them by a pattern of one line.

use bytes::BytesMut;
use duo_contract::frame::Summary;
use duo_contract::name::ModelName;
use http::HeaderMap;
use serde::Serialize;

use super::CONTENT_TYPE;
use super::react::Outcome;
use super::tools::Tool;
use super::{calls, react};
use crate::api::error::{is_retryable, public_message};
use crate::api::stream::lines::UsageByModel;
use crate::api::stream::{Encoder, Ending, Unreadable, chunk, content_type, spaced};
use crate::prompt::answer::Thinking;
use crate::request::ExchangeError;

/// GitLab looks for this text and explains it to the user.
const NO_SUCH_TOOL: &str = "tool not available";

#[derive(Serialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
enum Event<'a> {
    FinalAnswerDelta {
        text: &'a str,
        finish_reason: Option<&'static str>,
    },
    Action {
        tool: &'a str,
        tool_input: &'a str,
        thought: &'a str,
    },
    Unknown {
        text: &'a str,
    },
    Error {
        message: &'a str,
        retryable: bool,
    },
    Usage {
        usage: UsageByModel<'a>,
    },
}

/// One turn of a chat.
#[derive(Debug)]
pub(super) struct Turn {
    thinking: Thinking,
    reader: Reader,
    tools: Vec<&'static Tool>,
    model: ModelName,
}

/// How the model calls tools.
#[derive(Debug)]
enum Reader {
    /// In its text.
    Text(react::Reader),
    /// By data of the model server.
    Calls(calls::Reader),
}

impl Reader {
    fn push(&mut self, text: &str) -> String {
        match self {
            Self::Text(reader) => reader.push(text),
            Self::Calls(reader) => reader.push(text),
        }
    }

    fn finish(self) -> (String, Outcome) {
        match self {
            Self::Text(reader) => (String::new(), reader.finish()),
            Self::Calls(reader) => reader.finish(),
        }
    }
}

impl Turn {
    /// A turn in which the model may call `tools`, in its text or, if `as_data`, by data of the model server.
    pub(super) fn new(tools: Vec<&'static Tool>, model: &ModelName, as_data: bool) -> Self {
        let reader = match as_data {
            true => Reader::Calls(calls::Reader::default()),
            false => Reader::Text(react::Reader::default()),
        };
        Self {
            thinking: Thinking::default(),
            reader,
            tools,
            model: model.clone(),
        }
    }

    fn call(&self, thought: &str, tool: &str, tool_input: &str, out: &mut BytesMut) {
        let known = self
            .tools
            .iter()
            .find(|known| known.name.eq_ignore_ascii_case(tool));
        let Some(known) = known else {
            return error(NO_SUCH_TOOL, false, out);
        };
        let action = Event::Action {
            tool: known.name,
            tool_input,
            thought,
        };
        line(&action, out);
    }
}

impl Encoder for Turn {
    fn chunk(&mut self, chunk: &[u8], out: &mut BytesMut) -> Result<(), Unreadable> {
        if let Reader::Calls(reader) = &mut self.reader {
            reader.push_calls(chunk)?;
        }
        let Some(text) = chunk::text(chunk)? else {
            return Ok(());
        };
        let shown = self.reader.push(&self.thinking.push(&text));
        if !shown.is_empty() {
            delta(&shown, None, out);
        }
        Ok(())
    }

    fn end(&mut self, summary: &Summary, out: &mut BytesMut) -> Result<(), Unreadable> {
        let mut shown = self.reader.push(&self.thinking.finish()?);
        let reader = std::mem::replace(&mut self.reader, Reader::Text(react::Reader::default()));
        let (held, outcome) = reader.finish();
        shown.push_str(&held);
        if !shown.is_empty() {
            delta(&shown, None, out);
        }
        match outcome {
            Outcome::Answer => delta("", Some("stop"), out),
            Outcome::Action { thought, tool, input } => self.call(&thought, &tool, &input, out),
            Outcome::Unknown(text) => line(&Event::Unknown { text: &text }, out),
        }
        let usage = UsageByModel::of(self.model.as_str(), summary);
        line(&Event::Usage { usage }, out);
        Ok(())
    }

    fn fail(&mut self, failure: &ExchangeError, out: &mut BytesMut) -> Ending {
        error(public_message(failure), is_retryable(failure), out);
        Ending::Told
    }

    fn headers(&self) -> HeaderMap {
        content_type(CONTENT_TYPE)
    }
}

/// An error as an event.
pub(super) fn error(message: &str, retryable: bool, out: &mut BytesMut) {
    line(&Event::Error { message, retryable }, out);
}

fn delta(text: &str, finish_reason: Option<&'static str>, out: &mut BytesMut) {
    line(&Event::FinalAnswerDelta { text, finish_reason }, out);
}

fn line(event: &Event<'_>, out: &mut BytesMut) {
    spaced::write(event, out);
    out.extend_from_slice(b"\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::stream::tests::{chunks, collect, delta as text, done, failed};

    fn turn() -> Turn {
        Turn::new(Vec::new(), &ModelName::parse("mistral").expect("a name"), false)
    }

    const USAGE: &str = "{\"type\": \"usage\", \"data\": {\"usage\": {\"mistral\": {\"input_tokens\": 3, \"output_tokens\": 2}}}}\n";

    #[tokio::test]
    async fn an_answer_is_exact_to_the_byte() {
        let answer = vec![
            chunks(&[&text("Thought: t\nFinal"), &text(" Answer: a\n")]),
            chunks(&[&text("\"b\"")]),
            done(),
        ];
        let expected = format!(
            "{}{}{}{USAGE}",
            "{\"type\": \"final_answer_delta\", \"data\": {\"text\": \"a\\n\", \"finish_reason\": null}}\n",
            "{\"type\": \"final_answer_delta\", \"data\": {\"text\": \"\\\"b\\\"\", \"finish_reason\": null}}\n",
            "{\"type\": \"final_answer_delta\", \"data\": {\"text\": \"\", \"finish_reason\": \"stop\"}}\n",
        );
        assert_eq!(collect(answer, turn()).await, (expected, true));
    }

    #[tokio::test]
    async fn text_without_markers_is_unknown() {
        let expected = format!(
            "{}{USAGE}",
            "{\"type\": \"unknown\", \"data\": {\"text\": \"Hi\"}}\n"
        );
        let answer = vec![chunks(&[&text("Hi")]), done()];
        assert_eq!(collect(answer, turn()).await, (expected, true));
    }

    #[tokio::test]
    async fn a_tool_that_was_not_offered_is_an_error() {
        let call = text("Thought: t\nAction: shell\nAction Input: ls");
        let (lines, _) = collect(vec![chunks(&[&call]), done()], turn()).await;
        assert!(lines.starts_with(
            "{\"type\": \"error\", \"data\": {\"message\": \"tool not available\", \"retryable\": false}}\n"
        ));
    }

    #[tokio::test]
    async fn a_failure_in_mid_stream_is_an_error_and_no_stop() {
        let answer = vec![chunks(&[&text("Final Answer: half")]), failed()];
        let (lines, _) = collect(answer, turn()).await;
        assert!(lines.ends_with(
            "{\"type\": \"error\", \"data\": {\"message\": \"the model server broke off\", \"retryable\": false}}\n"
        ));
        assert!(!lines.contains("stop"));
    }
}
