//! Events to the lines of a frame, and their token ids beside them.
//!
//! Ids that only the worker asked for are taken out of the events: in their
//! place stands `null`, which is what the server writes unasked.

use bytes::{Bytes, BytesMut};
use duo_contract::frame::Tokens;

use crate::model_server::Fault;
use crate::model_server::continuation::Seam;
use crate::model_server::facts::{Ids, numbers};

const NONE: &[u8] = b"null";

/// Events of an answer, one a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    /// The events.
    pub text: Bytes,
    /// Their token ids, if the server gives them.
    pub tokens: Option<Tokens>,
}

/// Collects lines.
#[derive(Debug)]
pub(super) struct Collector {
    /// Take token ids out of the events.
    hide: bool,
    /// Where this answer goes on after an earlier one.
    seam: Option<Seam>,
    lines: Vec<Bytes>,
    tokens: Tokens,
    /// Ids without a line as yet.
    pending: u32,
    /// Does the server give ids?
    given: bool,
}

impl Collector {
    pub(super) fn new(hide: bool, mut seam: Option<Seam>) -> Self {
        let start = seam.as_mut().and_then(Seam::start).unwrap_or_default();
        Self {
            hide,
            lines: Vec::new(),
            tokens: start,
            pending: 0,
            given: false,
            seam,
        }
    }

    /// Tokens of the answer that earlier attempts generated.
    pub(super) fn earlier(&self) -> u64 {
        self.seam.as_ref().map_or(0, |seam| seam.earlier)
    }

    /// Takes one event.
    ///
    /// # Errors
    /// It does not go on where the earlier attempt was cut.
    pub(super) fn event(&mut self, event: &Bytes, ids: &Ids<'_>) -> Result<(), Fault> {
        if let Some(prompt) = ids.prompt {
            self.given = true;
            if self.seam.is_none() {
                self.tokens.prompt.extend(numbers(prompt));
            }
        }
        if let Some(generated) = ids.generated {
            self.given = true;
            let before = self.tokens.ids.len();
            self.tokens.ids.extend(numbers(generated));
            self.pending += u32::try_from(self.tokens.ids.len() - before).unwrap_or(u32::MAX);
        }
        match &mut self.seam {
            Some(seam) => {
                for line in seam.event(event, self.hide)? {
                    self.line(line.into());
                }
            }
            None if self.hide && !ids.all.is_empty() => {
                let line = without(event, &ids.all);
                self.line(line);
            }
            None => self.line(event.clone()),
        }
        Ok(())
    }

    fn line(&mut self, line: Bytes) {
        self.lines.push(line);
        self.tokens.lines.push(std::mem::take(&mut self.pending));
    }

    /// What has been collected.
    pub(super) fn take(&mut self) -> Lines {
        if self.lines.is_empty() {
            return Lines::default();
        }
        let tokens = std::mem::take(&mut self.tokens);
        Lines {
            text: join(&mut self.lines),
            tokens: self.given.then_some(tokens),
        }
    }
}

/// `event` with `null` in the place of each of these parts of it.
fn without(event: &Bytes, parts: &[&str]) -> Bytes {
    let place = |part: &str| part.as_ptr().addr() - event.as_ptr().addr();
    let mut spans: Vec<_> = parts.iter().map(|part| (place(part), part.len())).collect();
    spans.sort_unstable();
    let mut line = BytesMut::with_capacity(event.len() + NONE.len() * spans.len());
    let mut from = 0;
    for (start, length) in spans {
        line.extend_from_slice(&event[from..start]);
        line.extend_from_slice(NONE);
        from = start + length;
    }
    line.extend_from_slice(&event[from..]);
    line.freeze()
}

fn join(lines: &mut Vec<Bytes>) -> Bytes {
    if lines.len() <= 1 {
        return lines.pop().unwrap_or_default();
    }
    let mut joined = BytesMut::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
    for line in lines.drain(..) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"\n");
        }
        joined.extend_from_slice(&line);
    }
    joined.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_server::facts::Facts;

    fn collected(hide: bool, events: &[&'static str]) -> Lines {
        let mut collector = Collector::new(hide, None);
        for event in events {
            let event = Bytes::from_static(event.as_bytes());
            let ids = Facts::default().event(&event).expect("good");
            collector.event(&event, &ids).expect("no seam");
        }
        collector.take()
    }

    const ROLE: &str = r#"{"choices":[{"index":0,"delta":{}}],"prompt_token_ids":[1,2],"prompt_text":null}"#;
    const TEXT: &str =
        r#"{"choices":[{"index":0,"text":"x","prompt_token_ids":null,"token_ids":[7, 8]}],"usage":null}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{}}"#;

    #[test]
    fn ids_that_nobody_asked_for_travel_beside_the_events() {
        let lines = collected(true, &[ROLE, TEXT, USAGE]);
        let tokens = Tokens {
            prompt: vec![1, 2],
            after: 0,
            lines: vec![0, 2, 0],
            ids: vec![7, 8],
        };
        assert_eq!(lines.tokens, Some(tokens));
        let expected = [ROLE, TEXT, USAGE]
            .join("\n")
            .replace("[1,2]", "null")
            .replace("[7, 8]", "null");
        assert_eq!(lines.text, expected);
    }

    #[test]
    fn ids_that_the_client_asked_for_stay() {
        let lines = collected(false, &[TEXT]);
        assert_eq!(lines.text, TEXT);
        assert_eq!(lines.tokens.map(|tokens| tokens.ids), Some(vec![7, 8]));
    }

    #[test]
    fn a_server_without_ids_has_none() {
        assert_eq!(collected(true, &[USAGE]).tokens, None);
    }
}
