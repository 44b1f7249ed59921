//! Reads a turn of a model whose server turns its tool calls into data.
//!
//! Text that such a model writes in front of a call is its thought, text without a call is the answer. Which it is, is
//! known only when the call comes, so the beginning of a turn is held back: so much as a thought may have. A longer
//! text is an answer and flows; a call behind it is not made, since GitLab has begun to show the answer.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::react::Outcome;
use crate::api::stream::Unreadable;

/// The longest thought, in bytes.
const LONGEST_THOUGHT: usize = 240;
/// The one argument of our tools.
pub(super) const ARGUMENT: &str = "question";

/// A turn that is being read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    held: String,
    answering: bool,
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    tool_calls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    index: Option<u64>,
    #[serde(default)]
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

impl Reader {
    /// Takes the next piece of text; gives what can be shown of the answer.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.answering {
            return text.to_owned();
        }
        self.held.push_str(text);
        if self.held.len() <= LONGEST_THOUGHT || !self.name.is_empty() {
            return String::new();
        }
        self.answering = true;
        std::mem::take(&mut self.held)
    }

    /// Takes the parts of a call that a chunk of the model server holds. GitLab makes one call a turn, the first.
    pub(super) fn push_calls(&mut self, line: &[u8]) -> Result<(), Unreadable> {
        let chunk: Chunk = serde_json::from_slice(line).map_err(|_| Unreadable::Chunk)?;
        let delta = chunk.choices.into_iter().next().and_then(|choice| choice.delta);
        let calls = delta.and_then(|delta| delta.tool_calls).unwrap_or_default();
        for call in calls.into_iter().filter(|call| call.index.unwrap_or(0) == 0) {
            let Some(function) = call.function else {
                continue;
            };
            // Some servers say the name again with each part.
            if let Some(name) = function.name.filter(|_| self.name.is_empty()) {
                self.name = name;
            }
            self.arguments.push_str(&function.arguments.unwrap_or_default());
        }
        Ok(())
    }

    /// The end of the turn: what of the answer was held back, and what the turn was.
    pub(super) fn finish(self) -> (String, Outcome) {
        if self.answering {
            return (String::new(), Outcome::Answer);
        }
        if !self.name.is_empty() {
            let action = Outcome::Action {
                thought: self.held.trim().to_owned(),
                tool: self.name,
                input: input(&self.arguments),
            };
            return (String::new(), action);
        }
        match self.held.trim().is_empty() {
            true => (String::new(), Outcome::Unknown(self.held)),
            false => (self.held, Outcome::Answer),
        }
    }
}

/// What a tool is asked. Models that make up names for the argument are understood, and so are those that write no JSON.
fn input(arguments: &str) -> String {
    let object: Map<String, Value> = serde_json::from_str(arguments).unwrap_or_default();
    let texts = || object.values().find_map(Value::as_str);
    match object.get(ARGUMENT).and_then(Value::as_str).or_else(texts) {
        Some(text) => text.to_owned(),
        None => arguments.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(name: Option<&str>, arguments: &str) -> Vec<u8> {
        let function = json!({"name": name, "arguments": arguments});
        let call = json!({"index": 0, "function": function});
        json!({"choices": [{"delta": {"tool_calls": [call]}}]})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn a_call_is_put_together_and_what_stood_before_it_is_its_thought() {
        let mut reader = Reader::default();
        assert_eq!(reader.push("I have to look. "), "");
        for part in [
            call(Some("issue_reader"), ""),
            call(None, "{\"question\": \"Who"),
            call(Some("issue_reader"), " wrote #1?\"}"),
        ] {
            reader.push_calls(&part).expect("reads");
        }
        let expected = Outcome::Action {
            thought: "I have to look.".to_owned(),
            tool: "issue_reader".to_owned(),
            input: "Who wrote #1?".to_owned(),
        };
        assert_eq!(reader.finish(), (String::new(), expected));
    }

    #[test]
    fn text_without_a_call_is_the_answer_and_flows_when_it_is_no_thought_any_more() {
        let mut reader = Reader::default();
        assert_eq!(reader.push("Yes."), "");
        reader
            .push_calls(br#"{"choices":[{"delta":{"content":"Yes."}}]}"#)
            .expect("reads");
        assert_eq!(reader.finish(), ("Yes.".to_owned(), Outcome::Answer));
        let mut reader = Reader::default();
        let long = "x".repeat(LONGEST_THOUGHT + 1);
        assert_eq!(reader.push(&long), long);
        assert_eq!(reader.push(" more"), " more");
        reader
            .push_calls(&call(Some("issue_reader"), "{}"))
            .expect("reads");
        assert_eq!(reader.finish(), (String::new(), Outcome::Answer));
        assert_eq!(
            Reader::default().finish(),
            (String::new(), Outcome::Unknown(String::new()))
        );
    }

    #[test]
    fn arguments_of_any_form_make_an_input() {
        assert_eq!(input(r#"{"query": "a", "n": 1}"#), "a");
        assert_eq!(input(r#"{"question": "b", "a": "c"}"#), "b");
        assert_eq!(input("issue 1"), "issue 1");
        assert_eq!(input(r#"{"n": 1}"#), r#"{"n": 1}"#);
    }
}
