//! Every byte of every answer, checked against what the simulated model says to that prompt.

use std::borrow::Cow;

use serde::Deserialize;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// OpenAI chat, one JSON object.
    Chat,
    /// OpenAI chat as server-sent events.
    ChatStream,
    /// GitLab's code completion, one JSON object.
    CodeCompletion,
}

/// Reads one answer after the other; its buffers are used again.
#[derive(Debug)]
pub struct Checker {
    shape: Shape,
    /// Bytes not looked at yet: the whole body, or the part of an event's line that has come.
    pending: Vec<u8>,
    text: String,
    /// Events with text in the answer so far.
    texts: u64,
    finished: bool,
    done: bool,
}

#[derive(Deserialize)]
struct Whole<'a> {
    #[serde(borrow)]
    choices: Vec<WholeChoice<'a>>,
}

#[derive(Deserialize)]
struct WholeChoice<'a> {
    #[serde(borrow)]
    message: Option<Content<'a>>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<ChunkChoice<'a>>,
}

#[derive(Deserialize)]
struct ChunkChoice<'a> {
    #[serde(borrow)]
    delta: Content<'a>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
}

impl Checker {
    /// A checker of answers of this shape.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            pending: Vec::with_capacity(4096),
            text: String::with_capacity(1024),
            texts: 0,
            finished: false,
            done: false,
        }
    }

    /// Forgets the answer before.
    pub fn begin(&mut self) {
        self.pending.clear();
        self.text.clear();
        self.texts = 0;
        self.finished = false;
        self.done = false;
    }

    /// Takes the next part of a body. True once a text has been read, which for a stream is its first token.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn feed(&mut self, part: &[u8]) -> Result<bool, String> {
        self.pending.extend_from_slice(part);
        if self.shape == Shape::ChatStream {
            let mut pending = std::mem::take(&mut self.pending);
            let lines = self.lines(&pending)?;
            pending.drain(..lines);
            self.pending = pending;
        }
        Ok(!self.text.is_empty())
    }

    /// How many events with text the answer has had so far.
    #[must_use]
    pub fn texts(&self) -> u64 {
        self.texts
    }

    /// The body has ended: was it `expected`?
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn end(&mut self, expected: &str) -> Result<(), String> {
        if self.shape == Shape::ChatStream {
            if !self.pending.is_empty() || !self.done {
                return Err("the stream ended without [DONE]".to_owned());
            }
        } else {
            let pending = std::mem::take(&mut self.pending);
            let whole = serde_json::from_slice(&pending);
            self.whole(whole.map_err(|error| format!("{error} in {}", shown(&pending)))?)?;
            self.pending = pending;
        }
        if !self.finished {
            return Err("no finish_reason".to_owned());
        }
        if self.text != expected {
            return Err(format!("expected {expected:?}, got {:?}", self.text));
        }
        Ok(())
    }

    fn whole(&mut self, whole: Whole<'_>) -> Result<(), String> {
        let [choice] = &whole.choices[..] else {
            return Err(format!("{} choices", whole.choices.len()));
        };
        let text = match self.shape {
            Shape::CodeCompletion => choice.text.as_deref(),
            _ => choice
                .message
                .as_ref()
                .and_then(|message| message.content.as_deref()),
        };
        self.text.push_str(text.unwrap_or_default());
        self.finish(choice.finish_reason.as_deref())
    }

    /// Reads all complete lines and returns how many bytes they have.
    fn lines(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let mut read = 0;
        while let Some(length) = bytes[read..].iter().position(|byte| *byte == b'\n') {
            let line = bytes[read..read + length].trim_ascii();
            read += length + 1;
            let Some(data) = line.strip_prefix(b"data: ") else {
                if line.is_empty() || line.starts_with(b":") {
                    continue;
                }
                return Err(format!("a line that is no event: {}", shown(line)));
            };
            if self.done {
                return Err("an event behind [DONE]".to_owned());
            }
            if data == b"[DONE]" {
                self.done = true;
                continue;
            }
            let chunk =
                serde_json::from_slice(data).map_err(|error| format!("{error} in {}", shown(data)))?;
            self.chunk(chunk)?;
        }
        Ok(read)
    }

    fn chunk(&mut self, chunk: Chunk<'_>) -> Result<(), String> {
        for choice in chunk.choices {
            if self.finished {
                return Err("text behind the finish_reason".to_owned());
            }
            let text = choice.delta.content.as_deref().unwrap_or_default();
            self.text.push_str(text);
            self.texts += u64::from(!text.is_empty());
            self.finish(choice.finish_reason.as_deref())?;
        }
        Ok(())
    }

    fn finish(&mut self, reason: Option<&str>) -> Result<(), String> {
        match reason {
            None => {}
            Some("stop" | "length") => self.finished = true,
            Some(other) => return Err(format!("finish_reason {other}")),
        }
        Ok(())
    }
}

/// The beginning of a text, for an error message.
fn shown(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().take(300).collect();
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n\
        : a comment\n\ndata: {\"choices\":[{\"delta\":{\"content\":\" é\"},\"finish_reason\":null}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"\\n\"},\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n";

    fn check(shape: Shape, parts: &[&[u8]], expected: &str) -> Result<(), String> {
        let mut checker = Checker::new(shape);
        checker.begin();
        for part in parts {
            checker.feed(part)?;
        }
        checker.end(expected)
    }

    #[test]
    fn a_right_stream_is_right_wherever_it_is_cut() {
        for cut in 0..STREAM.len() {
            let (front, back) = STREAM.as_bytes().split_at(cut);
            check(Shape::ChatStream, &[front, back], " é\n").unwrap();
        }
    }

    #[test]
    fn a_stream_that_ends_early_or_differs_is_wrong() {
        let done = STREAM.find("[DONE]").unwrap();
        for end in (0..=done + "[DONE]".len()).filter(|end| STREAM.is_char_boundary(*end)) {
            assert!(check(Shape::ChatStream, &[&STREAM.as_bytes()[..end]], " é\n").is_err());
        }
        for (from, to) in [
            ("é", "e"),
            ("length", "abort"),
            ("\"length\"", "null"),
            ("data: {", "{"),
        ] {
            let changed = STREAM.replace(from, to);
            assert!(
                check(Shape::ChatStream, &[changed.as_bytes()], " é\n").is_err(),
                "{from}"
            );
        }
    }

    #[test]
    fn the_first_token_is_the_first_text_not_the_role() {
        let mut checker = Checker::new(Shape::ChatStream);
        let (role, rest) = STREAM.split_once(": a comment").unwrap();
        assert_eq!(checker.feed(role.as_bytes()), Ok(false));
        assert_eq!(checker.feed(format!(":{rest}").as_bytes()), Ok(true));
        assert_eq!(checker.texts(), 2);
    }

    #[test]
    fn whole_answers_are_read_from_their_own_fields() {
        let chat = br#"{"choices":[{"message":{"content":" a\u00e9"},"finish_reason":"stop"}]}"#;
        let code = br#"{"choices":[{"text":" b","index":0,"finish_reason":"length"}]}"#;
        check(Shape::Chat, &[chat], " aé").unwrap();
        check(Shape::CodeCompletion, &[code], " b").unwrap();
        assert!(check(Shape::CodeCompletion, &[br#"{"choices":[]}"#], "").is_err());
        assert!(check(Shape::Chat, &[&chat[..20]], " aé").is_err());
    }
}
