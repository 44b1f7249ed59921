//! A whole answer by way of a stream.
//!
//! llama-server notices that its caller has left only while it streams; else it
//! generates to the end. So it is asked for a stream also where a whole answer
//! is wanted, and the chunks are folded into the body that it would have sent.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::Fault;

/// Most bytes of the choices of one answer's chunks, together with what is kept of their other members.
const MOST_BYTES: usize = 64 << 20;
const ASKED: &[u8] = br#"{"stream":true,"stream_options":{"include_usage":true}"#;

/// The members of an object in their order, values unread.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// `body` as the request for a stream, unless the chunks of its answer cannot be folded.
#[must_use]
pub fn streamed(endpoint: Endpoint, body: &[u8]) -> Option<Bytes> {
    if matches!(endpoint, Endpoint::Embeddings | Endpoint::Infer) {
        return None;
    }
    let Members(members) = serde_json::from_slice(body).ok()?;
    if !members.iter().all(|(name, value)| plain(name, value.get())) {
        return None;
    }
    let mut asked = Vec::with_capacity(ASKED.len() + body.len() + 1);
    asked.extend_from_slice(ASKED);
    for (name, value) in members {
        if matches!(&*name, "stream" | "stream_options") {
            continue;
        }
        asked.push(b',');
        serde_json::to_writer(&mut asked, &name).ok()?;
        asked.push(b':');
        asked.extend_from_slice(value.get().as_bytes());
    }
    asked.push(b'}');
    Some(asked.into())
}

/// Does this member leave the answer one choice of text and tool calls?
fn plain(name: &str, value: &str) -> bool {
    match name {
        "n" | "n_cmpl" => matches!(value, "null" | "1"),
        // Several prompts get several choices.
        "prompt" => value.starts_with('"'),
        "n_probs" => matches!(value, "null" | "0"),
        "stream" | "logprobs" | "top_logprobs" => matches!(value, "null" | "false"),
        _ => true,
    }
}

/// Chunks on their way to a whole answer.
#[derive(Debug)]
pub struct Fold {
    endpoint: Endpoint,
    /// What stands beside the choices.
    members: BTreeMap<String, Box<RawValue>>,
    choice: Map<String, Value>,
    message: Map<String, Value>,
    tool_calls: BTreeMap<u64, Map<String, Value>>,
    bytes: usize,
}

impl Fold {
    /// No chunks yet.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            members: BTreeMap::new(),
            choice: Map::new(),
            message: Map::new(),
            tool_calls: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Takes chunks, one a line.
    ///
    /// # Errors
    /// They are no chunks, of a second choice, or too many.
    pub fn push(&mut self, chunks: &[u8]) -> Result<(), Fault> {
        for chunk in chunks
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let Members(members) = serde_json::from_slice(chunk).map_err(|_| unreadable())?;
            for (name, value) in members {
                match &*name {
                    "choices" => self.choices(value.get())?,
                    "object" => {}
                    _ => self.keep(name, value)?,
                }
            }
        }
        Ok(())
    }

    /// The whole answer.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<Bytes, Fault> {
        let object = match self.endpoint {
            Endpoint::ChatCompletions => {
                let message = self.message();
                self.choice.insert("message".to_owned(), message);
                "chat.completion"
            }
            Endpoint::Completions | Endpoint::Embeddings | Endpoint::Infer => {
                self.choice.entry("text").or_insert_with(|| "".into());
                "text_completion"
            }
        };
        self.choice.insert("index".to_owned(), 0.into());
        let raw = |value| to_raw_value(&value).map_err(|_| unreadable());
        let choices = raw(Value::Array(vec![self.choice.into()]))?;
        self.members.insert("choices".to_owned(), choices);
        self.members.insert("object".to_owned(), raw(object.into())?);
        let body = serde_json::to_vec(&self.members).map_err(|_| unreadable())?;
        Ok(body.into())
    }

    fn message(&mut self) -> Value {
        let mut message = std::mem::take(&mut self.message);
        message.entry("role").or_insert_with(|| "assistant".into());
        let calls: Vec<Value> = std::mem::take(&mut self.tool_calls)
            .into_values()
            .map(Value::Object)
            .collect();
        let content = message.entry("content").or_insert(Value::Null);
        if calls.is_empty() {
            if content.is_null() {
                *content = "".into();
            }
        } else {
            message.insert("tool_calls".to_owned(), calls.into());
        }
        message.into()
    }

    /// The last chunk that says something has the word.
    fn keep(&mut self, name: String, value: &RawValue) -> Result<(), Fault> {
        match self.members.get(&name) {
            Some(before) if value.get() == "null" || value.get() == before.get() => return Ok(()),
            Some(before) => self.bytes -= before.get().len(),
            None => self.bytes += name.len(),
        }
        self.grow(value.get().len())?;
        self.members.insert(name, value.to_owned());
        Ok(())
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Fault> {
        self.bytes += bytes;
        if self.bytes > MOST_BYTES {
            return Err(Fault::server("the model server's answer is too long"));
        }
        Ok(())
    }

    fn choices(&mut self, choices: &str) -> Result<(), Fault> {
        self.grow(choices.len())?;
        let choices: Option<Vec<Map<String, Value>>> =
            serde_json::from_str(choices).map_err(|_| unreadable())?;
        for (name, value) in choices.into_iter().flatten().flatten() {
            match (&*name, value) {
                ("index", index) if index != 0 => {
                    return Err(Fault::server("the model server sent choices nobody asked for"));
                }
                ("delta", Value::Object(delta)) => self.delta(delta),
                ("delta", _) => {}
                ("text", text) => append(&mut self.choice, name, text),
                (_, value) => set(&mut self.choice, name, value),
            }
        }
        Ok(())
    }

    fn delta(&mut self, delta: Map<String, Value>) {
        for (name, value) in delta {
            match (&*name, value) {
                ("tool_calls", Value::Array(calls)) => self.call_deltas(calls),
                ("tool_calls", _) => {}
                ("role", role) => set(&mut self.message, name, role),
                (_, value) => append(&mut self.message, name, value),
            }
        }
    }

    fn call_deltas(&mut self, calls: Vec<Value>) {
        for (call, position) in calls.into_iter().zip(0..) {
            let Value::Object(mut call) = call else { continue };
            let index = call.remove("index").and_then(|index| index.as_u64());
            let whole = self.tool_calls.entry(index.unwrap_or(position)).or_default();
            for (name, value) in call {
                match (&*name, value) {
                    ("function", Value::Object(parts)) => {
                        let function = whole.entry(name).or_insert_with(|| Map::new().into());
                        if let Value::Object(function) = function {
                            merge_function(function, parts);
                        }
                    }
                    (_, value) => set(whole, name, value),
                }
            }
        }
    }
}

/// Arguments come in pieces; a name comes whole, perhaps again and longer.
fn merge_function(function: &mut Map<String, Value>, parts: Map<String, Value>) {
    for (name, value) in parts {
        match &*name {
            "arguments" => append(function, name, value),
            _ => set(function, name, value),
        }
    }
}

/// Puts text behind the text before it; anything else replaces what was there.
fn append(members: &mut Map<String, Value>, name: String, value: Value) {
    match (members.get_mut(&name), value) {
        (Some(Value::String(text)), Value::String(more)) => text.push_str(&more),
        (_, value) => set(members, name, value),
    }
}

/// Replaces what was there, though not by nothing.
fn set(members: &mut Map<String, Value>, name: String, value: Value) {
    if (value.is_null() || value == "") && members.contains_key(&name) {
        return;
    }
    members.insert(name, value);
}

fn unreadable() -> Fault {
    Fault::server("the model server sent what is not an OpenAI answer")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn asked(endpoint: Endpoint, body: &str) -> Option<Value> {
        let body = streamed(endpoint, body.as_bytes())?;
        Some(serde_json::from_slice(&body).expect("JSON"))
    }

    fn folded<'a>(endpoint: Endpoint, chunks: impl IntoIterator<Item = &'a str>) -> Result<Value, Fault> {
        let mut fold = Fold::new(endpoint);
        for chunk in chunks {
            fold.push(chunk.as_bytes())?;
        }
        Ok(serde_json::from_slice(&fold.finish()?).expect("JSON"))
    }

    fn deltas(deltas: &[Value]) -> Value {
        let chunks = deltas
            .iter()
            .map(|delta| json!({"choices": [{"index": 0, "delta": delta}]}).to_string());
        let chunks: Vec<_> = chunks.collect();
        let whole = folded(Endpoint::ChatCompletions, chunks.iter().map(String::as_str)).expect("folds");
        whole["choices"][0]["message"].clone()
    }

    /// The events of a captured stream.
    fn events(capture: &str) -> impl Iterator<Item = &str> {
        let data = capture.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|event| *event != "[DONE]")
    }

    #[test]
    fn a_plain_request_asks_for_a_stream_and_keeps_its_other_members() {
        let body =
            r#"{"model":"m","stream" : false,"stream_options":null,"n":1,"tools":[{}],"x":{"stream":false}}"#;
        assert_eq!(
            streamed(Endpoint::ChatCompletions, body.as_bytes()).as_deref(),
            Some(&br#"{"stream":true,"stream_options":{"include_usage":true},"model":"m","n":1,"tools":[{}],"x":{"stream":false}}"#[..])
        );
        let body = r#"{"st\u0072eam":null,"prompt":"a","logprobs":null}"#;
        let body = asked(Endpoint::Completions, body).expect("plain");
        assert_eq!((&body["stream"], &body["prompt"]), (&json!(true), &json!("a")));
        assert!(streamed(Endpoint::Completions, b" { } ").is_some());
    }

    #[test]
    fn what_cannot_be_folded_is_asked_for_as_it_is() {
        for member in [
            r#""n":2"#,
            r#""n_cmpl":2"#,
            r#""logprobs":true"#,
            r#""logprobs":0"#,
            r#""n_probs":3"#,
            r#""prompt":["a","b"]"#,
            r#""stream":true"#,
        ] {
            assert_eq!(
                asked(Endpoint::Completions, &format!("{{{member}}}")),
                None,
                "{member}"
            );
        }
        assert_eq!(asked(Endpoint::Embeddings, "{}"), None);
        assert_eq!(asked(Endpoint::Completions, "[]"), None);
        assert_eq!(asked(Endpoint::Completions, "{"), None);
    }

    #[test]
    fn a_captured_stream_folds_into_the_captured_whole_answer() {
        let captures = [
            (
                Endpoint::ChatCompletions,
                include_str!("../../fixtures/llama-server/chat-stream.response.txt"),
                include_str!("../../fixtures/llama-server/chat.response.txt"),
            ),
            (
                Endpoint::Completions,
                include_str!("../../fixtures/llama-server/completions-stream.response.txt"),
                include_str!("../../fixtures/llama-server/completions.response.txt"),
            ),
        ];
        for (endpoint, stream, whole) in captures {
            let folded = folded(endpoint, events(stream)).expect("folds");
            let whole = whole.lines().last().expect("a body");
            let whole: Value = serde_json::from_str(whole).expect("JSON");
            for same in ["choices", "object", "model", "system_fingerprint"] {
                assert_eq!(folded[same], whole[same]);
            }
            assert_eq!(shape(&folded), shape(&whole));
            assert_eq!(
                folded["usage"]["completion_tokens"],
                whole["usage"]["completion_tokens"]
            );
        }
    }

    /// The same with nothing but types in it.
    fn shape(value: &Value) -> Value {
        match value {
            Value::Object(members) => members
                .iter()
                .map(|(name, value)| (name.clone(), shape(value)))
                .collect(),
            Value::Array(values) => values.iter().map(shape).collect(),
            Value::Number(_) => "a number".into(),
            Value::String(_) => "text".into(),
            Value::Bool(_) | Value::Null => value.clone(),
        }
    }

    #[test]
    fn tool_calls_are_merged_by_their_index() {
        let message = deltas(&[
            json!({"role": "assistant", "content": null}),
            json!({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
            json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\""}}]}),
            json!({"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]}),
            json!({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "ff", "arguments": ":1}"}}]}),
        ]);
        assert_eq!(
            message,
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "ff", "arguments": "{\"x\":1}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ]})
        );
    }

    #[test]
    fn text_and_reasoning_are_joined_and_an_empty_answer_is_empty_text() {
        let message = deltas(&[
            json!({"role": "assistant", "content": null}),
            json!({"reasoning_content": "h"}),
            json!({"reasoning_content": "m"}),
            json!({"content": "\u{e4}"}),
            json!({"content": "\n"}),
        ]);
        assert_eq!(
            message,
            json!({"role": "assistant", "content": "\u{e4}\n", "reasoning_content": "hm"})
        );
        assert_eq!(deltas(&[json!({})]), json!({"role": "assistant", "content": ""}));
    }

    #[test]
    fn the_last_chunk_that_carries_a_member_has_the_word() {
        let chunks = [
            r#"{"id":"a","usage":null,"x":1}"#,
            "{\"x\":2,\"usage\":{\"n\":1}}\n{\"usage\":null,\"choices\":null}",
        ];
        let whole = folded(Endpoint::Completions, chunks).expect("folds");
        assert_eq!(
            (&whole["id"], &whole["usage"], &whole["x"]),
            (&json!("a"), &json!({"n": 1}), &json!(2))
        );
    }

    #[test]
    fn a_second_choice_or_no_chunk_is_a_fault() {
        for chunk in [r#"{"choices":[{"index":1}]}"#, r#"{"choices":7}"#, "[]", "null"] {
            assert!(folded(Endpoint::Completions, [chunk]).is_err(), "{chunk}");
        }
    }

    #[test]
    fn members_without_end_are_refused() {
        let member = "x".repeat(7 << 20);
        let mut fold = Fold::new(Endpoint::ChatCompletions);
        let mut push = |name: usize| fold.push(json!({ format!("m{name}"): member }).to_string().as_bytes());
        assert_eq!((0..10).find(|name| push(*name).is_err()), Some(9));
        // One that comes again takes the place of the one before.
        let mut fold = Fold::new(Endpoint::ChatCompletions);
        let mut push = |turn: usize| fold.push(json!({ "m": member, "n": turn }).to_string().as_bytes());
        assert!((0..12).all(|turn| push(turn).is_ok()));
    }

    /// `text` in pieces that together are it.
    fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
        let mut cuts: Vec<_> = cuts.iter().map(|at| text.floor_char_boundary(*at)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        cuts.windows(2)
            .map(|ends| text[ends[0]..ends[1]].to_owned())
            .collect()
    }

    proptest! {
        #[test]
        fn an_answer_is_the_same_however_its_stream_is_cut(
            reasoning in "[a-z\u{e4}\" ]{0,12}", content in "\\PC{1,12}", arguments in "[a-z{}\":,\u{e4}]{1,12}",
            cuts in prop::collection::vec(0usize..40, 0..5), frames in prop::collection::vec(any::<bool>(), 24),
        ) {
            let mut deltas = vec![json!({"role": "assistant", "content": null})];
            deltas.extend(pieces(&reasoning, &cuts).iter().map(|part| json!({"reasoning_content": part})));
            deltas.extend(pieces(&content, &cuts).iter().map(|part| json!({"content": part})));
            let call = |part: &String| json!({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": part}}]});
            deltas.extend(pieces(&arguments, &cuts).iter().map(call));
            let mut frame = Vec::new();
            let mut fold = Fold::new(Endpoint::ChatCompletions);
            for (delta, ends) in deltas.iter().zip(frames.iter().cycle()) {
                frame.extend(json!({"choices": [{"index": 0, "delta": delta}]}).to_string().into_bytes());
                frame.push(b'\n');
                if *ends {
                    fold.push(&std::mem::take(&mut frame)).expect("chunks");
                }
            }
            fold.push(&frame).expect("chunks");
            let whole: Value = serde_json::from_slice(&fold.finish().expect("folds")).expect("JSON");
            let message = json!({
                "role": "assistant", "content": content, "reasoning_content": reasoning,
                "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
            });
            prop_assert_eq!(&whole["choices"][0]["message"], &message);
        }

        #[test]
        fn no_chunk_is_a_panic(
            chunks in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..60).boxed(),
                    "(\\{|\\}|\\[|\\]|\"choices\":|\"delta\":|\"tool_calls\":|\"function\":|\"index\":|\"x\"|7|null|,){0,24}"
                        .prop_map(String::into_bytes).boxed(),
                ],
                0..4
            )
        ) {
            let mut fold = Fold::new(Endpoint::ChatCompletions);
            let pushed = chunks.iter().try_for_each(|chunk| fold.push(chunk));
            if pushed.is_ok() {
                let whole: Value = serde_json::from_slice(&fold.finish().expect("folds")).expect("JSON");
                prop_assert_eq!(&whole["object"], "chat.completion");
            }
        }
    }
}
