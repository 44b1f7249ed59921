//! The loop of a chat, which Rails holds: it asks for a turn, runs the tool that the turn names, and asks again.

use std::time::Duration;

use serde_json::{Value, json};

use super::Rails;
use super::events::{Event, parse};

const PATH: &str = "/v2/chat/agent";
/// Longest silence.
const SILENCE: Duration = Duration::from_secs(60);
/// Most turns of one question.
const TURNS: usize = 10;
/// How often a turn is repeated that may be.
const REPEATS: usize = 2;
/// Tools that this Rails can run, as it spells them.
const TOOLS: [&str; 7] = [
    "IssueReader",
    "WorkItemReader",
    "EpicReader",
    "MergeRequestReader",
    "CommitReader",
    "BuildReader",
    "GitlabDocumentation",
];

/// A question's answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// What the person reads.
    pub text: String,
    /// How many turns it took, repeated ones included.
    pub turns: usize,
}

/// What a person reads instead: GitLab's code for it, and the words of the event if there was one.
#[derive(Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Such as `A1004`.
    pub code: &'static str,
    /// The event's message.
    pub message: String,
}

impl Trouble {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl Rails {
    /// Asks in chat; `run` is what a tool finds for its input.
    ///
    /// # Errors
    /// What the person reads instead of an answer.
    pub async fn chat(
        &self,
        question: &str,
        run: impl AsyncFn(&str, &str) -> String,
    ) -> Result<Answered, Trouble> {
        let mut scratchpad: Vec<Value> = Vec::new();
        let (mut turns, mut repeats) = (0, 0);
        while turns < TURNS {
            turns += 1;
            let events = self.turn(question, &scratchpad).await?;
            match conclude(&events)? {
                Turn::Answer(text) => return Ok(Answered { text, turns }),
                Turn::Again(_) if repeats < REPEATS => repeats += 1,
                Turn::Again(message) => return Err(Trouble::new("A1004", message)),
                Turn::Tool { tool, input, thought } => {
                    let observation = run(&tool, &input).await;
                    let action = json!({"type": "AgentToolAction", "thought": thought, "tool": tool, "tool_input": input});
                    scratchpad.push(json!({"action": action, "observation": observation}));
                }
            }
        }
        Err(Trouble::new("A1006", ""))
    }

    async fn turn(&self, question: &str, scratchpad: &[Value]) -> Result<Vec<Event>, Trouble> {
        let mut messages = vec![json!({
            "role": "user", "content": question, "context": null, "current_file": null, "additional_context": [],
        })];
        if !scratchpad.is_empty() {
            messages.push(json!({"role": "assistant", "content": null, "agent_scratchpad": scratchpad}));
        }
        let body = json!({
            "messages": messages, "unavailable_resources": ["Pipelines", "Vulnerabilities"],
            "model_metadata": super::model_metadata(),
        });
        let mut response = self
            .post(PATH, &body, SILENCE)
            .await
            .map_err(|error| Trouble::new("A1001", error))?;
        match response.status().as_u16() {
            200 => {}
            403 => return Err(Trouble::new("M3006", "")),
            status => return Err(Trouble::new("A9999", status.to_string())),
        }
        let mut text = String::new();
        loop {
            match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => text += &String::from_utf8_lossy(&chunk),
                Ok(Ok(None)) => return Ok(parse(&text)),
                Ok(Err(error)) => return Err(Trouble::new("A1003", error.to_string())),
                Err(_) => return Err(Trouble::new("A1000", "")),
            }
        }
    }
}

enum Turn {
    Answer(String),
    Tool {
        tool: String,
        input: String,
        thought: String,
    },
    Again(String),
}

fn conclude(events: &[Event]) -> Result<Turn, Trouble> {
    let mut answer: Option<String> = None;
    for event in events {
        match event {
            Event::Error { message, retryable } => return failed(message, *retryable),
            Event::Action {
                tool,
                tool_input,
                thought,
            } if TOOLS.contains(&&*camel(tool)) => {
                return Ok(Turn::Tool {
                    tool: tool.clone(),
                    input: tool_input.clone(),
                    thought: thought.clone(),
                });
            }
            Event::Action { .. } => return Err(Trouble::new("G3001", "")),
            Event::Delta { text, .. } | Event::Unknown(text) => answer.get_or_insert_default().push_str(text),
            Event::Usage(_) => {}
        }
    }
    answer.map(Turn::Answer).ok_or(Trouble::new("A1002", ""))
}

fn failed(message: &str, retryable: bool) -> Result<Turn, Trouble> {
    if retryable {
        return Ok(Turn::Again(message.to_owned()));
    }
    let code = match message {
        text if text.contains("prompt is too long") => "A1005",
        text if text.contains("tool not available") => "G3001",
        _ => "A1004",
    };
    Err(Trouble::new(code, message))
}

/// `issue_reader` is `IssueReader`.
fn camel(name: &str) -> String {
    let words = name.split('_');
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_uppercase().chain(letters).collect::<String>())
    };
    words.filter_map(capital).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &str) -> &'static str {
        conclude(&parse(line)).map_or_else(|trouble| trouble.code, |_| "")
    }

    #[test]
    fn each_failure_has_its_code() {
        assert_eq!(code(""), "A1002");
        assert_eq!(
            code("{\"type\":\"error\",\"data\":{\"message\":\"down\"}}\n"),
            "A1004"
        );
        assert_eq!(
            code("{\"type\":\"error\",\"data\":{\"message\":\"prompt is too long for it\"}}\n"),
            "A1005"
        );
        assert_eq!(
            code("{\"type\":\"error\",\"data\":{\"message\":\"tool not available\"}}\n"),
            "G3001"
        );
        let shell =
            "{\"type\":\"action\",\"data\":{\"tool\":\"shell\",\"tool_input\":\"\",\"thought\":\"\"}}\n";
        assert_eq!(code(shell), "G3001");
        assert_eq!(code(&shell.replace("shell", "issue_reader")), "");
    }
}
