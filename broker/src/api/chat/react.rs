//! Reads a model's turn while it is being written: a thought, then either a
//! tool and its input or the final answer.

const THOUGHT: &str = "Thought:";
const ACTION: &str = "Action:";
const ACTION_INPUT: &str = "Action Input:";
const OBSERVATION: &str = "Observation:";
const FINAL_ANSWER: &str = "Final Answer:";

/// A turn that is being read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    text: String,
    /// Where the line starts that has not ended yet, or the line that names the tool.
    line: usize,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No marker but thoughts so far.
    #[default]
    Thinking,
    /// A tool has been named; the rest is read at the end.
    Acting,
    /// After the marker, before the answer's first visible character.
    Turning,
    /// The answer flows.
    Answering,
}

/// What a whole turn was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Text for the user; all of it has been handed out.
    Answer,
    /// A tool call.
    Action {
        /// Why.
        thought: String,
        /// The tool's name as the model wrote it.
        tool: String,
        /// What it is asked.
        input: String,
    },
    /// Neither.
    Unknown(String),
}

impl Reader {
    /// Takes the next piece; gives what can be shown of the answer.
    pub(super) fn push(&mut self, piece: &str) -> String {
        match self.state {
            State::Answering => return piece.to_owned(),
            State::Turning => return self.turn(piece),
            State::Acting | State::Thinking => self.text.push_str(piece),
        }
        while self.state == State::Thinking {
            let rest = &self.text[self.line..];
            let line = rest.split('\n').next().unwrap_or(rest);
            if let Some(begun) = after_marker(line, FINAL_ANSWER) {
                let at = self.line + line.len() - begun.len();
                let begun = self.text.split_off(at);
                self.state = State::Turning;
                return self.turn(&begun);
            }
            if after_marker(line, ACTION).is_some() {
                self.state = State::Acting;
            } else if line.len() == rest.len() {
                break;
            } else {
                self.line += line.len() + 1;
            }
        }
        String::new()
    }

    /// The end of the turn.
    pub(super) fn finish(self) -> Outcome {
        match self.state {
            State::Answering | State::Turning => Outcome::Answer,
            State::Acting => {
                let (before, call) = self.text.split_at(self.line);
                action(before, call).unwrap_or(Outcome::Unknown(self.text))
            }
            State::Thinking => Outcome::Unknown(self.text),
        }
    }

    /// Blanks between the marker and the answer are not part of it, nor is the
    /// end of a bold marker.
    fn turn(&mut self, piece: &str) -> String {
        let visible = piece.trim_start_matches(|c: char| c.is_whitespace() || c == '*');
        if !visible.is_empty() {
            self.state = State::Answering;
        }
        visible.to_owned()
    }
}

/// What follows `marker` at the start of `line`; models like to set markers in bold.
fn after_marker<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.trim_start_matches([' ', '\t', '*', '#'])
        .strip_prefix(marker)
}

/// Reads a tool call: `call` starts with the line that names the tool.
fn action(before: &str, call: &str) -> Option<Outcome> {
    let (named, rest) = call.split_once('\n')?;
    let tool = after_marker(named, ACTION)?.trim_matches(|c: char| c.is_whitespace() || "*`\"'".contains(c));
    let mut lines = rest.split('\n').skip_while(|line| line.trim().is_empty());
    let mut input = after_marker(lines.next()?, ACTION_INPUT)?
        .trim_start_matches('*')
        .to_owned();
    for line in lines.take_while(|line| after_marker(line, OBSERVATION).is_none()) {
        input.push('\n');
        input.push_str(line);
    }
    let thought = before.trim();
    let thought = after_marker(thought, THOUGHT)
        .unwrap_or(thought)
        .trim_start_matches('*')
        .trim();
    (!tool.is_empty()).then(|| Outcome::Action {
        thought: thought.to_owned(),
        tool: tool.to_owned(),
        input: input.trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&str]) -> (String, Outcome) {
        let mut reader = Reader::default();
        let shown = pieces.iter().map(|piece| reader.push(piece)).collect();
        (shown, reader.finish())
    }

    const CALL: &str = "Thought: I need it.\nAction: issue_reader\nAction Input: the issue\nwith two lines\n";

    fn call() -> Outcome {
        Outcome::Action {
            thought: "I need it.".to_owned(),
            tool: "issue_reader".to_owned(),
            input: "the issue\nwith two lines".to_owned(),
        }
    }

    #[test]
    fn an_answer_flows_as_soon_as_its_marker_is_complete() {
        let mut reader = Reader::default();
        assert_eq!(reader.push("Thought: easy\nFinal An"), "");
        assert_eq!(reader.push("swer: "), "");
        assert_eq!(reader.push("Yes,"), "Yes,");
        let more = " no.\nAction: is a word.\nFinal Answer: too";
        assert_eq!(reader.push(more), more);
        assert_eq!(reader.finish(), Outcome::Answer);
    }

    #[test]
    fn a_tool_call_is_read_whole() {
        assert_eq!(read(&[CALL]), (String::new(), call()));
        assert_eq!(read(&[CALL, "Observation: made up\nFinal Answer: no"]).1, call());
        let bold = "**Thought:** I need it.\n**Action:** `issue_reader`\n**Action Input:** the issue\nwith two lines";
        assert_eq!(read(&[bold]).1, call());
    }

    #[test]
    fn text_without_markers_is_unknown() {
        for text in [
            "",
            "Hello.",
            "Thought: hm",
            "Action: issue_reader",
            "Action: issue_reader\nno input",
        ] {
            assert_eq!(
                read(&[text]),
                (String::new(), Outcome::Unknown(text.to_owned())),
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(at in 0usize..80, answer in "[a-z\n ]{0,30}") {
            for text in [CALL.to_owned(), format!("Thought: t\n\nFinal Answer:  x{answer}")] {
                let at = at.min(text.len());
                prop_assert_eq!(read(&[&text[..at], &text[at..]]), read(&[&text]));
            }
        }
    }
}
