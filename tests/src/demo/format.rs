//! The three formats in which GitLab's streams carry text, read as they arrive.
//!
//! An answer counts as whole only if its format says so; where the format has no words for that (raw text), the
//! proper end of the HTTP body and the audit record have to do.

use serde_json::Value;

/// How a stream carries its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The bytes are the text.
    Raw,
    /// Server-sent events: `stream_start`, `content_chunk`, `stream_end`.
    Events,
    /// One JSON object a line.
    Lines,
}

/// Takes the bytes of one answer and gives its text.
#[derive(Debug)]
pub(super) struct Reader {
    format: Format,
    pending: Vec<u8>,
    event: String,
    said: bool,
    ended: bool,
}

impl Reader {
    /// A reader of one answer.
    #[must_use]
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            pending: Vec::new(),
            event: String::new(),
            said: false,
            ended: false,
        }
    }

    /// The text that these bytes complete.
    ///
    /// # Errors
    /// The server told of an error, or this is not the format.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<String, String> {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        if self.format == Format::Raw {
            text = self.characters()?;
        } else {
            while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let line = std::str::from_utf8(&line).map_err(|_| "the answer is no UTF-8".to_owned())?;
                text.push_str(&match self.format {
                    Format::Events => self.event_line(line.trim_end())?,
                    _ => self.json_line(line.trim_end())?,
                });
            }
        }
        self.said |= !text.is_empty();
        Ok(text)
    }

    /// The body has ended properly: was the answer whole?
    ///
    /// # Errors
    /// Why it was not.
    pub(super) fn end(&self) -> Result<(), String> {
        if !self.pending.is_empty() {
            return Err("the answer ends in the middle of a line or character".to_owned());
        }
        if self.format != Format::Raw && !self.ended {
            return Err("the answer ends without the mark of its end".to_owned());
        }
        if !self.said {
            return Err("the answer is empty".to_owned());
        }
        Ok(())
    }

    /// All whole characters that have come; the beginning of one waits for its rest.
    fn characters(&mut self) -> Result<String, String> {
        let whole = match std::str::from_utf8(&self.pending) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err("the answer is no UTF-8".to_owned()),
        };
        let text: Vec<u8> = self.pending.drain(..whole).collect();
        String::from_utf8(text).map_err(|error| error.to_string())
    }

    fn event_line(&mut self, line: &str) -> Result<String, String> {
        if let Some(name) = line.strip_prefix("event: ") {
            name.clone_into(&mut self.event);
            self.ended |= name == "stream_end";
            return Ok(String::new());
        }
        match line.strip_prefix("data: ") {
            Some(data) if self.event == "content_chunk" => {
                let data = parsed(data)?;
                Ok(text_at(&data, "/choices/0/delta/content"))
            }
            Some(_) => Ok(String::new()),
            None if line.is_empty() || line.starts_with(':') => Ok(String::new()),
            None => Err(format!("a line that is no event: {line:?}")),
        }
    }

    fn json_line(&mut self, line: &str) -> Result<String, String> {
        let event = parsed(line)?;
        match event["type"].as_str() {
            Some("final_answer_delta") => {
                self.ended |= event.pointer("/data/finish_reason").is_some_and(Value::is_string);
                Ok(text_at(&event, "/data/text"))
            }
            // Text without the marks of a final answer; GitLab shows it as one.
            Some("unknown") => {
                self.ended = true;
                Ok(text_at(&event, "/data/text"))
            }
            Some("action") => {
                self.ended = true;
                let tool = text_at(&event, "/data/tool");
                Ok(format!(
                    "[asks for the tool {tool}: {}]",
                    text_at(&event, "/data/tool_input")
                ))
            }
            Some("error") => Err(format!(
                "the answer holds an error: {}",
                text_at(&event, "/data/message")
            )),
            _ => Ok(String::new()),
        }
    }
}

fn parsed(json: &str) -> Result<Value, String> {
    serde_json::from_str(json).map_err(|error| format!("{error} in {json:?}"))
}

fn text_at(value: &Value, pointer: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = "event: stream_start\r\ndata: {\"metadata\": {}}\r\n\r\n: ping - now\r\n\r\n\
        event: content_chunk\r\ndata: {\"choices\": [{\"delta\": {\"content\": \"dé\"}, \"index\": 0}]}\r\n\r\n\
        event: content_chunk\r\ndata: {\"choices\": [{\"delta\": {\"content\": \"f\\n\"}, \"index\": 0}]}\r\n\r\n\
        event: stream_end\r\ndata: null\r\n\r\n";
    const LINES: &str = "{\"type\": \"final_answer_delta\", \"data\": {\"text\": \"dé\", \"finish_reason\": null}}\n\
        {\"type\": \"final_answer_delta\", \"data\": {\"text\": \"f\\n\", \"finish_reason\": null}}\n\
        {\"type\": \"final_answer_delta\", \"data\": {\"text\": \"\", \"finish_reason\": \"stop\"}}\n\
        {\"type\": \"usage\", \"data\": {\"usage\": {}}}\n";

    fn read(format: Format, parts: &[&[u8]]) -> Result<String, String> {
        let mut reader = Reader::new(format);
        let mut text = String::new();
        for part in parts {
            text.push_str(&reader.feed(part)?);
        }
        reader.end().map(|()| text)
    }

    #[test]
    fn each_format_gives_the_text_wherever_it_is_cut() {
        for (format, whole) in [
            (Format::Raw, "déf\n"),
            (Format::Events, EVENTS),
            (Format::Lines, LINES),
        ] {
            for cut in 0..=whole.len() {
                let (front, back) = whole.as_bytes().split_at(cut);
                assert_eq!(
                    read(format, &[front, back]).as_deref(),
                    Ok("déf\n"),
                    "{format:?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn an_answer_that_stops_early_is_not_whole() {
        let end = EVENTS.find("event: stream_end").unwrap();
        let last = LINES.find("\"stop\"").unwrap();
        for (format, part) in [
            (Format::Raw, &b""[..]),
            (Format::Raw, &"dé".as_bytes()[..2]),
            (Format::Events, &EVENTS.as_bytes()[..end]),
            (Format::Lines, &LINES.as_bytes()[..last]),
            (
                Format::Lines,
                b"{\"type\":\"final_answer_delta\",\"data\":{\"text\":\"x\",\"finish_reason\":null}}\n",
            ),
        ] {
            assert!(read(format, &[part]).is_err(), "{format:?}");
        }
    }

    #[test]
    fn an_error_event_is_an_error_and_text_without_marks_an_answer() {
        let error = b"{\"type\":\"error\",\"data\":{\"message\":\"no model\",\"retryable\":true}}\n";
        assert!(read(Format::Lines, &[error]).unwrap_err().contains("no model"));
        let unknown = b"{\"type\":\"unknown\",\"data\":{\"text\":\"just words\"}}\n";
        assert_eq!(read(Format::Lines, &[unknown]).as_deref(), Ok("just words"));
    }
}
