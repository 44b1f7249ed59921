//! The events of a chat turn, found as Rails finds them: an object on a line of its own that has ended.

use serde_json::Value;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A piece of the final answer.
    Delta {
        /// What is shown.
        text: String,
        /// Why the answer ends, in its last piece.
        finish_reason: Option<String>,
    },
    /// A tool that Rails is to run.
    Action {
        /// Its name.
        tool: String,
        /// What it is asked.
        tool_input: String,
        /// Why.
        thought: String,
    },
    /// Text that is shown as the final answer.
    Unknown(String),
    /// The turn failed.
    Error {
        /// What is shown, or looked up.
        message: String,
        /// Is the turn to be repeated?
        retryable: bool,
    },
    /// What the turn cost, by model.
    Usage(Value),
}

/// The events in `text`. What is no object on one line, or has not ended, is overlooked without a word.
pub fn parse(text: &str) -> Vec<Event> {
    let ended = text
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'));
    ended.filter_map(event).collect()
}

fn event(line: &str) -> Option<Event> {
    let object = &line[line.find('{')?..];
    let event: Value = object
        .ends_with('}')
        .then(|| serde_json::from_str(object).ok())??;
    let text = |name: &str| event["data"][name].as_str().map(str::to_owned);
    match event["type"].as_str()? {
        "final_answer_delta" => Some(Event::Delta {
            text: text("text")?,
            finish_reason: text("finish_reason"),
        }),
        "action" => Some(Event::Action {
            tool: text("tool")?,
            tool_input: text("tool_input")?,
            thought: text("thought")?,
        }),
        "unknown" => Some(Event::Unknown(text("text")?)),
        "error" => Some(Event::Error {
            message: text("message")?,
            retryable: event["data"]["retryable"].as_bool().unwrap_or(false),
        }),
        "usage" => Some(Event::Usage(event["data"]["usage"].clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_on_lines_that_have_ended_are_events() {
        let delta = |text: &str| Event::Delta {
            text: text.to_owned(),
            finish_reason: None,
        };
        let line = |text: &str| format!(r#"{{"type":"final_answer_delta","data":{{"text":"{text}"}}}}"#);
        assert_eq!(parse(&format!("{}\n{}", line("a"), line("b"))), [delta("a")]);
        assert_eq!(parse("{\n\"type\": \"unknown\"}\n"), []);
        assert_eq!(parse(&format!("noise {}\n", line("a"))), [delta("a")]);
        assert_eq!(parse("{\"type\":\"new\",\"data\":{}}\n\n"), []);
        let retry = r#"{"type":"error","data":{"message":"busy","retryable":true}}"#;
        let error = Event::Error {
            message: "busy".to_owned(),
            retryable: true,
        };
        assert_eq!(parse(&format!("{retry}\n")), [error]);
    }
}
