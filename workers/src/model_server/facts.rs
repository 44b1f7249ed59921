//! What the worker has to know of an answer that it hands on as it is: is it
//! whole, is it an error, what did it cost.
//!
//! `[DONE]` proves nothing: some servers send it after a failure, some never.
//! An answer is whole when every choice seen has a `finish_reason`, and none
//! of them is `abort`.

use std::borrow::Cow;

use duo_contract::envelope::Endpoint;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::Fault;

/// What is known of an answer so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The first choice's `finish_reason`.
    pub finish_reason: Option<String>,
    /// Tokens of the prompt.
    pub input_tokens: Option<u64>,
    /// Tokens generated, by the server's count.
    pub output_tokens: Option<u64>,
    /// Token ids seen, which count the tokens of an answer that was cut.
    token_ids: u64,
    /// Pieces of text seen, which count them where the server gives no ids: most send one token in each.
    pieces: u64,
    /// Whether each choice seen has ended, by its index.
    choices: Vec<(u32, bool)>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    object: Option<Cow<'a, str>>,
    #[serde(default)]
    data: Option<IgnoredAny>,
    #[serde(borrow, default)]
    prompt_token_ids: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    token_ids: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt_token_ids: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

impl Choice<'_> {
    fn says_something(&self) -> bool {
        let said = |value: Option<&RawValue>| {
            value.is_some_and(|value| !matches!(value.get(), "null" | "\"\"" | "[]"))
        };
        let delta = self.delta.as_ref();
        said(self.text)
            || delta.is_some_and(|delta| {
                said(delta.content) || said(delta.reasoning_content) || said(delta.tool_calls)
            })
    }
}

/// Lists of token ids in an event, as they stand there.
#[derive(Debug, Default)]
pub struct Ids<'a> {
    /// Of the prompt.
    pub prompt: Option<&'a str>,
    /// Generated, of the first choice.
    pub generated: Option<&'a str>,
    /// Every list, in the event's order but for the prompt's.
    pub all: Vec<&'a str>,
}

struct Read<'a> {
    ids: Ids<'a>,
    has_data: bool,
}

/// An answer of KServe's inference API; what it has come to costs no tokens.
#[derive(Deserialize)]
struct Inferred {
    #[serde(rename = "outputs")]
    _outputs: Vec<IgnoredAny>,
}

fn inferred(body: &[u8]) -> Result<(), Fault> {
    let read = serde_json::from_slice(body);
    read.map(|Inferred { .. }| ())
        .map_err(|_| Fault::server("the model server's answer holds no outputs"))
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
}

impl Facts {
    /// Reads one event of a stream; where in it token ids stand.
    ///
    /// # Errors
    /// It is an error, an abort, or not JSON.
    pub fn event<'a>(&mut self, event: &'a [u8]) -> Result<Ids<'a>, Fault> {
        self.read(event).map(|read| read.ids)
    }

    /// The same where the server took so many tokens of the answer, generated before, for a part of the prompt.
    #[must_use]
    pub fn after(mut self, earlier: u64) -> Self {
        self.input_tokens = self.input_tokens.map(|tokens| tokens.saturating_sub(earlier));
        self
    }

    /// Reads the whole body of an answer that is no stream.
    ///
    /// # Errors
    /// It is an error, an abort, cut short, or not what the endpoint answers.
    pub fn whole(endpoint: Endpoint, body: &[u8]) -> Result<Self, Fault> {
        let mut facts = Self::default();
        if endpoint == Endpoint::Infer {
            return inferred(body).map(|()| facts);
        }
        let has_data = facts.read(body)?.has_data;
        match endpoint {
            Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Infer => facts.complete()?,
            Endpoint::Embeddings if has_data => {}
            Endpoint::Embeddings => {
                return Err(Fault::server("the model server's answer holds no embeddings"));
            }
        }
        Ok(facts)
    }

    /// Is the answer whole?
    ///
    /// # Errors
    /// It ended before its choices did.
    pub fn complete(&self) -> Result<(), Fault> {
        if self.choices.is_empty() || self.choices.iter().any(|(_, ended)| !ended) {
            return Err(Fault::server("the model server's answer broke off"));
        }
        Ok(())
    }

    /// Tokens generated as far as known.
    #[must_use]
    pub fn generated(&self) -> Option<u64> {
        self.output_tokens
            .or((self.token_ids > 0).then_some(self.token_ids))
    }

    /// Tokens that an answer has cost so far, as far as known; at least one for each piece of text.
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.generated().unwrap_or(self.pieces)
    }

    fn read<'a>(&mut self, json: &'a [u8]) -> Result<Read<'a>, Fault> {
        let body: Body<'_> = serde_json::from_slice(json)
            .map_err(|_| Fault::server("the model server sent what is not an OpenAI answer"))?;
        if body.error.is_some() || body.object.as_deref() == Some("error") {
            return Err(Fault::server("the model server reported an error in its answer"));
        }
        let mut ids = Ids {
            prompt: body.prompt_token_ids.map(RawValue::get),
            ..Ids::default()
        };
        ids.all.extend(ids.prompt);
        for choice in body.choices.into_iter().flatten() {
            let (prompt, generated) = (choice.prompt_token_ids, choice.token_ids);
            for list in [prompt, generated].into_iter().flatten() {
                ids.all.push(list.get());
            }
            if choice.index == 0 {
                ids.prompt = ids.prompt.or(prompt.map(RawValue::get));
                ids.generated = ids.generated.or(generated.map(RawValue::get));
            }
            self.choice(choice)?;
        }
        if let Some(usage) = body.usage {
            self.input_tokens = usage.prompt_tokens.or(self.input_tokens);
            self.output_tokens = usage.completion_tokens.or(self.output_tokens);
        }
        Ok(Read {
            ids,
            has_data: body.data.is_some(),
        })
    }

    fn choice(&mut self, choice: Choice<'_>) -> Result<(), Fault> {
        if choice.finish_reason.as_deref() == Some("abort") {
            return Err(Fault::server("the model server aborted its answer"));
        }
        let ended = choice.finish_reason.is_some();
        self.pieces += u64::from(choice.says_something());
        let ids = choice.token_ids.map_or(0, |list| numbers(list.get()).count());
        self.token_ids += u64::try_from(ids).unwrap_or(u64::MAX);
        match self.choices.iter_mut().find(|(index, _)| *index == choice.index) {
            Some((_, before)) => *before |= ended,
            None => self.choices.push((choice.index, ended)),
        }
        if let Some(reason) = choice.finish_reason
            && self.finish_reason.is_none()
        {
            self.finish_reason = Some(reason.into_owned());
        }
        Ok(())
    }
}

/// The numbers of a list in JSON.
pub fn numbers(list: &str) -> impl Iterator<Item = u32> {
    let inside = list.trim_start_matches('[').trim_end_matches(']');
    inside.split(',').filter_map(|number| number.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(text: &str) -> Result<Facts, Fault> {
        let mut facts = Facts::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            facts.event(line.as_bytes())?;
        }
        facts.complete()?;
        Ok(facts)
    }

    #[test]
    fn a_whole_stream_of_each_server_is_whole() {
        let vllm = stream(include_str!("../../fixtures/vllm_chat_stream.jsonl")).expect("whole");
        assert_eq!(vllm.finish_reason.as_deref(), Some("length"));
        assert_eq!((vllm.input_tokens, vllm.output_tokens), (Some(9), Some(3)));
        let llama = stream(include_str!("../../fixtures/llama_chat_stream.jsonl")).expect("whole");
        assert_eq!(llama.finish_reason.as_deref(), Some("stop"));
        let transformers = stream(include_str!("../../fixtures/keys_left_out_stream.jsonl")).expect("whole");
        assert_eq!(transformers.output_tokens, Some(2));
    }

    #[test]
    fn an_inference_has_outputs_or_is_a_fault() {
        let whole = |body: &str| Facts::whole(Endpoint::Infer, body.as_bytes());
        assert!(whole(r#"{"model_name":"m","outputs":[{"data":[1]}]}"#).is_ok());
        for body in [
            "",
            "[]",
            "{}",
            r#"{"outputs":7}"#,
            r#"{"error":"text"}"#,
            r#"{"outputs":[1]"#,
        ] {
            assert!(whole(body).is_err(), "{body}");
        }
    }

    #[test]
    fn an_abort_or_an_error_in_mid_stream_is_a_fault() {
        assert!(stream(include_str!("../../fixtures/vllm_abort.jsonl")).is_err());
        assert!(stream(include_str!("../../fixtures/vllm_engine_died.jsonl")).is_err());
        assert!(stream(r#"{"error":"text"}"#).is_err());
        assert!(stream("Internal Server Error").is_err());
    }

    #[test]
    fn an_answer_is_whole_when_every_choice_has_ended() {
        let one = r#"{"choices":[{"index":0,"delta":{}},{"index":1,"delta":{}}]}"#;
        let first = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
        let second = r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#;
        assert!(stream(&format!("{one}\n{first}")).is_err());
        let facts = stream(&format!("{one}\n{first}\n{second}")).expect("whole");
        assert_eq!(facts.finish_reason.as_deref(), Some("stop"));
        assert!(stream("").is_err());
    }

    #[test]
    fn a_cut_answer_still_counts_its_token_ids() {
        let mut facts = Facts::default();
        facts
            .event(br#"{"choices":[{"index":0,"delta":{"content":"x"},"token_ids":[5,9]}]}"#)
            .expect("good");
        assert_eq!(facts.generated(), Some(2));
    }

    #[test]
    fn a_cut_answer_without_token_ids_counts_its_pieces() {
        let mut facts = Facts::default();
        for event in [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"x"}}]}"#,
            r#"{"choices":[{"index":0,"text":"y"}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":null},"finish_reason":"stop"}]}"#,
        ] {
            facts.event(event.as_bytes()).expect("good");
        }
        assert_eq!((facts.generated(), facts.spent()), (None, 2));
    }

    #[test]
    fn the_places_of_token_ids_are_found() {
        let chat = br#"{"choices":[{"index":0,"delta":{}}],"prompt_token_ids":[1, 2]}"#;
        let ids = Facts::default().event(chat).expect("good");
        assert_eq!((ids.prompt, ids.generated), (Some("[1, 2]"), None));
        let text =
            br#"{"choices":[{"index":0,"text":"x","prompt_token_ids":[1],"token_ids":[7,8]},{"index":1,"token_ids":[9]}]}"#;
        let ids = Facts::default().event(text).expect("good");
        assert_eq!((ids.prompt, ids.generated), (Some("[1]"), Some("[7,8]")));
        assert_eq!(ids.all, ["[1]", "[7,8]", "[9]"]);
        assert_eq!(numbers("[7, 8]").collect::<Vec<_>>(), [7, 8]);
        assert_eq!(numbers("[]").count(), 0);
        let none = br#"{"choices":[{"index":0,"token_ids":null}],"prompt_token_ids":null}"#;
        assert!(Facts::default().event(none).expect("good").all.is_empty());
    }

    #[test]
    fn what_went_before_is_no_part_of_the_prompt() {
        let mut facts = Facts::default();
        facts
            .event(br#"{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":5}}"#)
            .expect("good");
        let facts = facts.after(4);
        assert_eq!((facts.input_tokens, facts.output_tokens), (Some(8), Some(5)));
    }

    #[test]
    fn a_whole_body_is_judged_by_its_endpoint() {
        let chat = br#"{"choices":[{"index":0,"message":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":1}}"#;
        assert_eq!(
            Facts::whole(Endpoint::ChatCompletions, chat)
                .expect("good")
                .output_tokens,
            Some(1)
        );
        assert!(Facts::whole(Endpoint::Embeddings, chat).is_err());
        assert!(Facts::whole(Endpoint::Embeddings, br#"{"data":[]}"#).is_ok());
        assert!(Facts::whole(Endpoint::Completions, br#"{"choices":[]}"#).is_err());
        assert!(
            Facts::whole(
                Endpoint::Completions,
                br#"{"choices":[{"finish_reason":"abort"}]}"#
            )
            .is_err()
        );
    }
}
