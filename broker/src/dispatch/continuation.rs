//! What a client has of a streamed answer, so that a later attempt can go on
//! after it; and one identity for chunks that several attempts have written.

use std::borrow::Cow;

use bytes::Bytes;
use duo_contract::claim::Have;
use duo_contract::frame::{Summary, Tokens};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// What has been received of an answer.
#[derive(Debug)]
pub(crate) struct Received {
    chunks: u64,
    text: String,
    /// Bytes of text in each chunk that had some: at most its tokens.
    pieces: Vec<u32>,
    prompt_token_ids: Option<Vec<u32>>,
    /// Unless some text came without any.
    token_ids: Option<Vec<u32>>,
    /// Of these, how many came with text or before it.
    covered: usize,
    continuable: bool,
    /// `id` and `created` of the first chunk, which every later attempt keeps.
    identity: Option<(Value, Value)>,
    later_attempt: bool,
    earlier_tokens: u64,
}

impl Default for Received {
    fn default() -> Self {
        Self {
            chunks: 0,
            text: String::new(),
            pieces: Vec::new(),
            prompt_token_ids: None,
            token_ids: Some(Vec::new()),
            covered: 0,
            continuable: true,
            identity: None,
            later_attempt: false,
            earlier_tokens: 0,
        }
    }
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(default, borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: u32,
    #[serde(default, borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    delta: Option<Delta<'a>>,
    #[serde(default, borrow)]
    logprobs: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(default, borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(default, borrow)]
    reasoning_content: Option<&'a RawValue>,
    /// As vLLM names it of late.
    #[serde(default, borrow)]
    reasoning: Option<&'a RawValue>,
}

fn is_set(value: Option<&RawValue>) -> bool {
    value.is_some_and(|value| !matches!(value.get(), "null" | "[]" | "\"\""))
}

impl Received {
    /// Has nothing been received?
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    /// Tokens received: by their ids where the server gives them, else one for each chunk with text.
    pub(crate) fn tokens(&self) -> u64 {
        let ids = self.token_ids.as_ref().map(Vec::len).filter(|n| *n > 0);
        u64::try_from(ids.unwrap_or(self.pieces.len())).unwrap_or(u64::MAX)
    }

    /// Tokens that attempts before the current one have generated.
    pub(crate) fn earlier_tokens(&self) -> u64 {
        self.earlier_tokens
    }

    /// Can another attempt go on after what there is? Whether its model server can, the worker knows.
    pub(crate) fn can_continue(&self) -> bool {
        self.continuable
    }

    /// What a successor is to be told, if there is anything.
    pub(crate) fn have(&self) -> Option<Have> {
        if self.is_empty() {
            return None;
        }
        let ids = self.prompt_token_ids.as_ref().zip(self.token_ids.as_ref());
        let ids = ids.filter(|(_, generated)| !generated.is_empty());
        Some(Have {
            text: self.text.clone(),
            prompt_token_ids: ids.map(|(prompt, _)| prompt.clone()),
            token_ids: ids.map(|(_, generated)| generated.clone()),
            covered: ids.map_or(0, |_| self.covered),
            pieces: self.pieces.clone(),
        })
    }

    /// Another attempt begins to write.
    pub(crate) fn begin_attempt(&mut self) {
        self.later_attempt = !self.is_empty();
        if self.later_attempt {
            self.earlier_tokens = self.tokens();
        }
    }

    /// Adds what earlier attempts generated to the last one's usage.
    pub(crate) fn sum_usage(&self, summary: &mut Summary) {
        if self.later_attempt {
            summary.output_tokens = summary
                .output_tokens
                .map(|tokens| tokens.saturating_add(self.earlier_tokens));
        }
    }

    /// Takes the lines of a chunk frame and their token ids, where they are known; what the client is to get of them.
    pub(crate) fn take(&mut self, lines: Bytes, tokens: Option<&Tokens>) -> Bytes {
        if let Some(tokens) = tokens.filter(|tokens| !tokens.prompt.is_empty()) {
            self.prompt_token_ids = Some(tokens.prompt.clone());
            let ids = self.token_ids.get_or_insert_default();
            ids.truncate(usize::try_from(tokens.after).unwrap_or(usize::MAX));
            self.earlier_tokens = tokens.after.into();
            self.covered = self.covered.min(ids.len());
        }
        let mut ids = tokens.map(Tokens::by_line);
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.note(line, ids.as_mut().and_then(Iterator::next));
        }
        if self.later_attempt {
            self.rewrite(&lines)
        } else {
            lines
        }
    }

    fn note(&mut self, line: &[u8], ids: Option<&[u32]>) {
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(line) else {
            self.continuable = false;
            self.chunks += 1;
            return;
        };
        if self.chunks == 0
            && let Ok(Value::Object(mut first)) = serde_json::from_slice(line)
        {
            let mut member = |name| first.remove(name).unwrap_or(Value::Null);
            self.identity = Some((member("id"), member("created")));
        }
        self.chunks += 1;
        if let (Some(all), Some(ids)) = (&mut self.token_ids, ids) {
            all.extend(ids);
        }
        for choice in chunk.choices {
            let text = choice
                .text
                .or_else(|| choice.delta.as_ref().and_then(|d| d.content.clone()));
            let text = text.as_deref().unwrap_or_default();
            if !text.is_empty() {
                self.text.push_str(text);
                self.pieces.push(u32::try_from(text.len()).unwrap_or(u32::MAX));
                match (&self.token_ids, ids) {
                    (Some(all), Some(_)) => self.covered = all.len(),
                    _ => self.token_ids = None,
                }
            }
            let delta = choice.delta.as_ref();
            let special = delta
                .is_some_and(|d| is_set(d.tool_calls) || is_set(d.reasoning_content) || is_set(d.reasoning));
            if choice.index > 0 || special || is_set(choice.logprobs) {
                self.continuable = false;
            }
        }
    }

    /// Gives a later attempt's chunks the first one's identity and drops its role chunk.
    fn rewrite(&self, lines: &Bytes) -> Bytes {
        let mut out = Vec::with_capacity(lines.len());
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(Value::Object(mut chunk)) = serde_json::from_slice::<Value>(line) else {
                continue;
            };
            let opening = chunk.get("choices").and_then(|c| c.get(0)).is_some_and(|choice| {
                let delta = choice.get("delta");
                delta.is_some_and(|d| d.get("role").is_some())
                    && delta
                        .and_then(|d| d.get("content"))
                        .is_none_or(|c| c.is_null() || c == "")
                    && choice.get("finish_reason").is_none_or(Value::is_null)
            });
            if opening {
                continue;
            }
            if let Some((id, created)) = &self.identity {
                chunk.insert("id".into(), id.clone());
                chunk.insert("created".into(), created.clone());
            }
            if !out.is_empty() {
                out.push(b'\n');
            }
            if serde_json::to_writer(&mut out, &chunk).is_err() {
                continue;
            }
        }
        out.into()
    }
}

#[cfg(test)]
mod tests;
