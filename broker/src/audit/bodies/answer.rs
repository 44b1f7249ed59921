//! An answer as one JSON object, however it came.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};

/// Parts of a streamed message that come in pieces.
const TEXTS: [&str; 3] = ["content", "reasoning_content", "reasoning"];

/// One choice of a stream.
#[derive(Debug, Default)]
struct Choice {
    /// Of a completion.
    text: Option<String>,
    message: Map<String, Value>,
    calls: BTreeMap<u64, Call>,
    finish_reason: Value,
}

#[derive(Debug, Default)]
struct Call {
    id: Value,
    name: String,
    arguments: String,
}

/// The answer as the model server would have given it in one piece; `None` where nothing came. What cannot be read stays
/// as it is.
pub(super) fn whole(stream: bool, bytes: &[u8]) -> Option<Bytes> {
    if bytes.is_empty() {
        return None;
    }
    if !stream {
        return Some(Bytes::copy_from_slice(bytes));
    }
    let mut choices = BTreeMap::<u64, Choice>::new();
    // Pieces are joined without a line feed between them, which a stream of JSON values does not need.
    for chunk in serde_json::Deserializer::from_slice(bytes).into_iter::<Value>() {
        let Ok(chunk) = chunk else {
            return Some(Bytes::copy_from_slice(bytes));
        };
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let index = choice["index"].as_u64().unwrap_or(0);
            choices.entry(index).or_default().add(choice);
        }
    }
    let choices: Vec<_> = choices
        .into_iter()
        .map(|(index, choice)| choice.whole(index))
        .collect();
    Some(json!({"choices": choices}).to_string().into())
}

/// What the model said: the text of every choice, in order. An answer without any is taken whole.
pub(super) fn text(answer: &[u8]) -> String {
    let value: Value = serde_json::from_slice(answer).unwrap_or_default();
    let choices = value["choices"].as_array().into_iter().flatten();
    let texts = choices.filter_map(|choice| {
        let content = choice["message"]["content"].as_str();
        content.or_else(|| choice["text"].as_str())
    });
    let text: String = texts.collect();
    if text.is_empty() {
        String::from_utf8_lossy(answer).into_owned()
    } else {
        text
    }
}

impl Choice {
    fn add(&mut self, choice: &Value) {
        if let Some(text) = choice["text"].as_str() {
            self.text.get_or_insert_default().push_str(text);
        }
        if !choice["finish_reason"].is_null() {
            self.finish_reason = choice["finish_reason"].clone();
        }
        let delta = &choice["delta"];
        for name in TEXTS {
            if let Some(text) = delta[name].as_str() {
                let place = self.message.entry(name).or_insert_with(|| "".into());
                if let Value::String(place) = place {
                    place.push_str(text);
                }
            }
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let place = self.calls.entry(call["index"].as_u64().unwrap_or(0)).or_default();
            if !call["id"].is_null() {
                place.id = call["id"].clone();
            }
            let function = &call["function"];
            place.name.push_str(function["name"].as_str().unwrap_or_default());
            place
                .arguments
                .push_str(function["arguments"].as_str().unwrap_or_default());
        }
    }

    fn whole(mut self, index: u64) -> Value {
        let finish_reason = self.finish_reason;
        if let Some(text) = self.text {
            return json!({"index": index, "text": text, "finish_reason": finish_reason});
        }
        if !self.calls.is_empty() {
            let call = |call: Call| {
                json!({"id": call.id, "type": "function",
                       "function": {"name": call.name, "arguments": call.arguments}})
            };
            let calls: Vec<_> = self.calls.into_values().map(call).collect();
            self.message.insert("tool_calls".into(), calls.into());
        }
        self.message.insert("role".into(), "assistant".into());
        json!({"index": index, "message": self.message, "finish_reason": finish_reason})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_came_in_pieces_is_one_text_again() {
        let stream = concat!(
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"glpat-0123"}}]}"#,
            "\n",
            r#"{"choices":[{"index":0,"delta":{"content":"4567890abcdefghij"}},{"index":1,"delta":{"content":"b"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{}}"#,
        );
        let answer = whole(true, stream.as_bytes()).expect("an answer");
        let value: Value = serde_json::from_slice(&answer).expect("JSON");
        let first = &value["choices"][0];
        assert_eq!(first["message"]["content"], "glpat-01234567890abcdefghij");
        assert_eq!(first["finish_reason"], "stop");
        assert_eq!(text(&answer), "glpat-01234567890abcdefghijb");
    }

    #[test]
    fn a_stream_and_a_whole_answer_of_the_same_text_have_the_same_text() {
        let body = br#"{"choices":[{"index":0,"text":"a b","finish_reason":"length"}]}"#;
        let streamed = br#"{"choices":[{"index":0,"text":"a "}]}{"choices":[{"index":0,"text":"b"}]}"#;
        let texts = [(false, &body[..]), (true, &streamed[..])]
            .map(|(stream, bytes)| text(&whole(stream, bytes).expect("an answer")));
        assert_eq!(texts, ["a b", "a b"]);
        assert_eq!(whole(true, b""), None);
    }

    #[test]
    fn a_call_of_a_tool_is_put_together() {
        let stream = concat!(
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c1","function":{"name":"read","arguments":"{\"pa"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"th\":1}"}}]}}]}"#,
        );
        let value: Value =
            serde_json::from_slice(&whole(true, stream.as_bytes()).expect("one")).expect("JSON");
        let call = &value["choices"][0]["message"]["tool_calls"][0];
        assert_eq!(
            (&call["id"], &call["function"]["arguments"]),
            (&json!("c1"), &json!(r#"{"path":1}"#))
        );
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_is() {
        assert_eq!(
            whole(true, b"{\"a\":1}oops").as_deref(),
            Some(&b"{\"a\":1}oops"[..])
        );
        assert_eq!(text(b"[0.5]"), "[0.5]");
    }
}
