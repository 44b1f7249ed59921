//! Takes out the block in which some models think before they answer.

use std::borrow::Cow;

use super::Unusable;
use super::fold::Held;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Drops a block of thoughts at the very beginning of an answer, and the blanks
/// behind it. Anything else flows on untouched.
#[derive(Debug, Default)]
pub struct Thinking {
    /// The beginning of the answer.
    start: Held,
    /// What may be the beginning of the end of the block.
    held: String,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but blanks and a part of the tag so far.
    #[default]
    Starting,
    /// Within the block.
    Thinking,
    /// Behind it, nothing but blanks so far.
    Turning,
    /// The answer flows.
    Answering,
}

impl Thinking {
    /// What can be passed on after `text` has come.
    #[must_use]
    pub fn push<'a>(&mut self, text: &'a str) -> Cow<'a, str> {
        if self.state == State::Answering || text.is_empty() {
            return Cow::Borrowed(text);
        }
        if self.state == State::Starting && self.start.is_empty() && !may_think(text.trim_start()) {
            self.state = State::Answering;
            return Cow::Borrowed(text);
        }
        match self.state {
            State::Starting => self.start.push(text),
            _ => self.held.push_str(text),
        }
        Cow::Owned(self.advance())
    }

    /// What was held back until the end.
    ///
    /// # Errors
    /// The answer is nothing but thoughts.
    pub fn finish(&mut self) -> Result<String, Unusable> {
        match self.state {
            State::Thinking => Err(Unusable),
            State::Turning => Ok(String::new()),
            State::Starting | State::Answering => Ok(self.start.take()),
        }
    }

    fn advance(&mut self) -> String {
        if self.state == State::Starting {
            let begun = self.start.begun();
            if !may_think(begun) {
                self.state = State::Answering;
                return self.start.take();
            }
            if let Some(thoughts) = begun.strip_prefix(OPEN) {
                self.held = thoughts.to_owned();
                self.start.take();
                self.state = State::Thinking;
            }
        }
        if self.state == State::Thinking {
            match self.held.find(CLOSE) {
                Some(at) => {
                    self.held.drain(..at + CLOSE.len());
                    self.state = State::Turning;
                }
                None => {
                    let keep = self.held.len().saturating_sub(CLOSE.len());
                    let keep = self.held.floor_char_boundary(keep);
                    self.held.drain(..keep);
                }
            }
        }
        if self.state == State::Turning {
            let answer = self.held.trim_start();
            if answer.is_empty() {
                self.held.clear();
            } else {
                let answer = answer.to_owned();
                self.held.clear();
                self.state = State::Answering;
                return answer;
            }
        }
        String::new()
    }
}

/// Does it begin with the tag, or with what may become it?
fn may_think(start: &str) -> bool {
    start.starts_with(OPEN) || OPEN.starts_with(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> Result<String, Unusable> {
        let mut thinking = Thinking::default();
        let shown: String = pieces.iter().map(|piece| thinking.push(piece)).collect();
        Ok(shown + &thinking.finish()?)
    }

    #[test]
    fn thoughts_at_the_beginning_go_and_all_else_stays() {
        assert_eq!(
            read(&["\n<think>\nhm </th", "ink>", "\n\n", "Yes."]).as_deref(),
            Ok("Yes.")
        );
        assert_eq!(
            read(&["The tag <think>x</think>."]).as_deref(),
            Ok("The tag <think>x</think>.")
        );
        assert_eq!(read(&["  ", "<thi", "s>"]).as_deref(), Ok("  <this>"));
        assert_eq!(read(&["<thi"]).as_deref(), Ok("<thi"));
        assert_eq!(read(&["<think></think>"]).as_deref(), Ok(""));
        assert_eq!(read(&["<think>and on and on ü"]), Err(Unusable));
    }
}
