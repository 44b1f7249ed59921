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
            summary.output_tokens = summary.output_tokens.map(|tokens| tokens + self.earlier_tokens);
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
mod tests {
    use super::*;

    const ROLE: &str = r#"{"id":"a","created":1,"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
    const TEXT: &str =
        r#"{"id":"a","created":1,"choices":[{"index":0,"delta":{"content":"hel"},"finish_reason":null}]}"#;

    fn take(received: &mut Received, lines: &[&str]) -> String {
        String::from_utf8(received.take(lines.join("\n").into(), None).to_vec()).expect("it is text")
    }

    #[test]
    fn a_first_attempts_chunks_pass_as_they_are() {
        let mut received = Received::default();
        assert_eq!(take(&mut received, &[ROLE, TEXT]), format!("{ROLE}\n{TEXT}"));
        assert_eq!(received.have().expect("something").text, "hel");
        assert!(received.can_continue());
    }

    #[test]
    fn a_later_attempt_keeps_the_identity_and_says_no_role_again() {
        let mut received = Received::default();
        take(&mut received, &[ROLE, TEXT]);
        received.begin_attempt();
        let second = r#"{"id":"b","created":9,"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}"#;
        let out = take(&mut received, &[&ROLE.replace("\"a\"", "\"b\""), second]);
        let chunk: Value = serde_json::from_str(&out).expect("one chunk");
        assert_eq!(
            (chunk["id"].as_str(), chunk["created"].as_i64()),
            (Some("a"), Some(1))
        );
        assert_eq!(received.have().expect("something").text, "hello");
    }

    #[test]
    fn tool_calls_and_further_choices_are_not_continued() {
        for line in [
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}"#,
            r#"{"choices":[{"index":1,"delta":{"content":"x"}}]}"#,
            r#"{"choices":[{"index":0,"text":"x","logprobs":{"tokens":[]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"reasoning":"hm"}}]}"#,
        ] {
            let mut received = Received::default();
            take(&mut received, &[line]);
            assert!(!received.can_continue(), "{line}");
        }
    }

    const MORE: &str = r#"{"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}]}"#;
    const HELD: &str = r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}"#;

    fn take_ids(received: &mut Received, lines: &[&str], prompt: &[u32], after: u32, ids: &[&[u32]]) {
        let tokens = Tokens {
            prompt: prompt.to_vec(),
            after,
            lines: ids.iter().map(|ids| ids.len() as u32).collect(),
            ids: ids.concat(),
        };
        received.take(lines.join("\n").into(), Some(&tokens));
    }

    #[test]
    fn ids_are_known_with_the_text_that_they_came_with() {
        let mut received = Received::default();
        take_ids(&mut received, &[ROLE], &[1, 2], 0, &[&[]]);
        take_ids(&mut received, &[TEXT, MORE], &[], 0, &[&[5], &[6, 7]]);
        take_ids(&mut received, &[HELD], &[], 0, &[&[8]]);
        let have = received.have().expect("something");
        assert_eq!((&*have.text, &have.pieces[..]), ("hello", &[3, 2][..]));
        assert_eq!(have.prompt_token_ids, Some(vec![1, 2]));
        assert_eq!((have.token_ids, have.covered), (Some(vec![5, 6, 7, 8]), 3));
    }

    #[test]
    fn a_later_attempt_says_after_which_ids_it_goes_on() {
        let mut received = Received::default();
        take_ids(&mut received, &[TEXT, MORE], &[1], 0, &[&[5], &[6, 7]]);
        received.begin_attempt();
        take_ids(&mut received, &[MORE], &[1], 2, &[&[9]]);
        let have = received.have().expect("something");
        assert_eq!((have.token_ids, have.covered), (Some(vec![5, 6, 9]), 3));
    }

    #[test]
    fn text_without_ids_leaves_all_of_them_unknown() {
        let mut received = Received::default();
        take_ids(&mut received, &[TEXT], &[1], 0, &[&[5]]);
        take(&mut received, &[MORE]);
        take_ids(&mut received, &[MORE], &[], 0, &[&[6]]);
        let have = received.have().expect("something");
        assert_eq!(
            (have.prompt_token_ids, have.token_ids, have.covered),
            (None, None, 0)
        );
    }
}
