//! One choice of a reply: text, or a call of one of the client's tools.

use serde::Deserialize;
use serde_json::json;

use super::plan::Plan;
use super::prompt::Message;
use super::sequence::Sequence;

/// The word in the last user message that makes the model call a tool.
const TRIGGER: &str = "use-tool";
/// Bytes of the arguments in one event.
const PIECE: usize = 8;

/// What one choice says.
#[derive(Debug)]
pub(crate) enum Answer {
    Text(Plan),
    Tool(Tool),
}

/// A call of a tool.
#[derive(Debug)]
pub(crate) struct Tool {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

impl Answer {
    /// How many tokens it takes.
    pub(crate) fn tokens(&self) -> usize {
        match self {
            Self::Text(plan) => plan.tokens,
            // The name is the first token.
            Self::Tool(tool) => 1 + tool.arguments.len().div_ceil(PIECE),
        }
    }

    /// Why it ends.
    pub(crate) fn finish(&self) -> &'static str {
        match self {
            Self::Text(plan) => plan.finish,
            Self::Tool(_) => "tool_calls",
        }
    }

    /// The stop string that ended it, as JSON.
    pub(crate) fn stop(&self) -> String {
        match self {
            Self::Text(Plan { stop: Some(stop), .. }) => serde_json::Value::from(stop.as_str()).to_string(),
            _ => "null".to_owned(),
        }
    }

    /// Token ids from one index to another; a tool call has none worth telling.
    pub(crate) fn ids(&self, from: usize, to: usize) -> Vec<u32> {
        match self {
            Self::Text(plan) => (from..to.min(plan.tokens)).map(|index| plan.id(index)).collect(),
            Self::Tool(_) => Vec::new(),
        }
    }
}

impl Tool {
    /// The function to call, if the request offers tools, does not forbid them and ends with the trigger.
    pub(crate) fn wanted(tools: &str, choice: Option<&str>, messages: &[Message<'_>]) -> Option<String> {
        #[derive(Deserialize)]
        struct Named {
            function: Function,
        }
        #[derive(Deserialize)]
        struct Function {
            name: String,
        }
        let last = messages.last().filter(|message| message.role == "user")?;
        if !last.text().contains(TRIGGER) || choice == Some("\"none\"") {
            return None;
        }
        let offered: Vec<Named> = serde_json::from_str(tools).ok()?;
        let chosen = choice.and_then(|choice| serde_json::from_str::<Named>(choice).ok());
        chosen
            .or_else(|| offered.into_iter().next())
            .map(|named| named.function.name)
    }

    /// The call that a prompt with this sequence leads to.
    pub(crate) fn call(name: &str, sequence: Sequence) -> Self {
        let words = sequence.text(3);
        let id = format!("chatcmpl-tool-{:08x}{:08x}", sequence.word(3), sequence.word(4));
        Self {
            id,
            name: name.to_owned(),
            arguments: json!({"query": words.trim()}).to_string(),
        }
    }

    /// The `delta` object for the tokens from one index to another.
    pub(crate) fn delta(&self, from: usize, to: usize) -> serde_json::Value {
        let arguments = self.arguments(from.max(1) - 1, to.max(1) - 1);
        if from > 0 {
            return json!({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]});
        }
        let function = json!({"name": self.name, "arguments": arguments});
        json!({"tool_calls": [{"id": self.id, "type": "function", "index": 0, "function": function}]})
    }

    /// The call as it stands in a whole message.
    pub(crate) fn whole(&self) -> serde_json::Value {
        let function = json!({"name": self.name, "arguments": self.arguments});
        json!([{"id": self.id, "type": "function", "function": function}])
    }

    fn arguments(&self, from: usize, to: usize) -> &str {
        let place = |piece: usize| self.arguments.floor_char_boundary(piece * PIECE);
        &self.arguments[place(from)..place(to)]
    }
}
