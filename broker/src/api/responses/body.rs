//! What a response asks for, and the chat that it becomes.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::shown::Shown;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::api::jobs::metadata;

const MAX_MODEL_NAME: usize = 128;
const MAX_WORD: usize = 64;
/// Items of an input, parts of one, and characters of a text; the body has its own limit.
const MAX_ITEMS: usize = 1000;
const MAX_TEXT: usize = 4 << 20;
const MAX_TOP: f64 = 1.0;
const MAX_TEMPERATURE: f64 = 2.0;
/// Fields that change nothing here, whatever they say.
const IDLE: [&str; 5] = [
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "stream_options",
];
/// Fields that are taken where they ask for nothing but what is done anyway.
const USUAL: [(&str, &[&str]); 8] = [
    ("tools", &["[]"]),
    ("include", &["[]"]),
    ("tool_choice", &["\"auto\"", "\"none\""]),
    ("truncation", &["\"disabled\""]),
    ("service_tier", &["\"auto\"", "\"default\""]),
    ("top_logprobs", &["0"]),
    ("store", &["true"]),
    ("text", &["{}", r#"{"format":{"type":"text"}}"#]),
];
/// Fields that are read.
const READ: [&str; 9] = [
    "model",
    "input",
    "instructions",
    "max_output_tokens",
    "temperature",
    "top_p",
    "metadata",
    "background",
    "stream",
];

/// What a client asks for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) metadata: Option<Value>,
    pub(super) shown: Shown,
    messages: Vec<Value>,
}

impl Asked {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields = Fields::parse(body)?;
        for (name, value) in fields.entries() {
            supported(&fields, name, value)?;
        }
        let model = fields.required_text("model", MAX_MODEL_NAME)?.into_owned();
        let instructions = fields.text("instructions", MAX_TEXT)?;
        let mut messages = Vec::new();
        if let Some(text) = &instructions {
            messages.push(json!({"role": "system", "content": text}));
        }
        messages.extend(input(&fields)?);
        let max_output_tokens = match fields.integer("max_output_tokens")? {
            None => None,
            Some(tokens) => Some(
                u32::try_from(tokens)
                    .ok()
                    .filter(|tokens| *tokens > 0)
                    .ok_or_else(|| fields.invalid("max_output_tokens", "has to be at least 1"))?,
            ),
        };
        Ok(Self {
            model,
            stream: fields.flag("stream")?,
            metadata: metadata(&fields)?,
            shown: Shown {
                background: fields.flag("background")?,
                instructions: instructions.map(std::borrow::Cow::into_owned),
                max_output_tokens,
                temperature: number(&fields, "temperature", MAX_TEMPERATURE)?,
                top_p: number(&fields, "top_p", MAX_TOP)?,
            },
            messages,
        })
    }

    /// The body of the chat.
    pub(super) fn chat(&self) -> Vec<u8> {
        let mut chat = json!({"model": self.model, "messages": self.messages, "stream": true});
        for (name, value) in [
            ("max_tokens", json!(self.shown.max_output_tokens)),
            ("temperature", json!(self.shown.temperature)),
            ("top_p", json!(self.shown.top_p)),
        ] {
            if !value.is_null() {
                chat[name] = value;
            }
        }
        chat.to_string().into_bytes()
    }
}

fn supported(fields: &Fields<'_>, name: &str, value: &RawValue) -> Result<(), ApiError> {
    if value.get() == "null" || READ.contains(&name) || IDLE.contains(&name) {
        return Ok(());
    }
    let Some((_, usual)) = USUAL.into_iter().find(|(known, _)| *known == name) else {
        return Err(fields.invalid(name, "is not supported here"));
    };
    let said = serde_json::from_str::<Value>(value.get()).map(|value| value.to_string());
    if said.is_ok_and(|said| usual.contains(&said.as_str())) {
        return Ok(());
    }
    let usual = usual.join(" or ");
    Err(fields.invalid(
        name,
        format!("is not supported here but as {usual}; leave it out"),
    ))
}

fn number(fields: &Fields<'_>, name: &str, most: f64) -> Result<Option<f64>, ApiError> {
    let Some(raw) = fields.raw(name) else {
        return Ok(None);
    };
    let number = raw
        .get()
        .parse()
        .ok()
        .filter(|number| (0.0..=most).contains(number));
    let problem = || fields.invalid(name, format!("has to be from 0 to {most}"));
    number.map(Some).ok_or_else(problem)
}

/// The messages of an input: one text of the user, or a list.
fn input(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let raw = fields.raw("input").ok_or_else(|| fields.required("input"))?;
    if raw.get().starts_with('"') {
        let text = fields.required_text("input", MAX_TEXT)?;
        return Ok(vec![json!({"role": "user", "content": text})]);
    }
    let items = fields.objects("input", MAX_ITEMS)?;
    if items.is_empty() {
        return Err(fields.invalid("input", "may not be empty"));
    }
    items.iter().map(message).collect()
}

fn message(item: &Fields<'_>) -> Result<Value, ApiError> {
    let kind = item.text("type", MAX_WORD)?;
    if kind.is_some_and(|kind| kind != "message") {
        return Err(item.invalid("type", "has to be message; nothing else is supported here"));
    }
    let role = match &*item.required_text("role", MAX_WORD)? {
        "developer" | "system" => "system",
        "user" => "user",
        "assistant" => "assistant",
        _ => return Err(item.invalid("role", "has to be user, assistant, system or developer")),
    };
    let raw = item.raw("content").ok_or_else(|| item.required("content"))?;
    let content = match raw.get().starts_with('"') {
        true => item.required_text("content", MAX_TEXT)?.into_owned(),
        false => {
            let parts = item.objects("content", MAX_ITEMS)?;
            parts.iter().map(text_part).collect::<Result<String, _>>()?
        }
    };
    Ok(json!({"role": role, "content": content}))
}

fn text_part(part: &Fields<'_>) -> Result<String, ApiError> {
    match &*part.required_text("type", MAX_WORD)? {
        "input_text" | "output_text" => Ok(part.required_text("text", MAX_TEXT)?.into_owned()),
        _ => Err(part.invalid("type", "has to be input_text; only text is supported here")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_becomes_a_chat() {
        let asked = Asked::parse(
            br#"{"model":"m","instructions":"be brief","background":true,"max_output_tokens":9,"top_p":0.5,"tools":[],
                "text":{"format":{"type":"text"}},"user":"u","input":[{"role":"developer","content":"d"},
                {"type":"message","role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]},
                {"role":"assistant","content":[{"type":"output_text","text":"c","annotations":[]}]}]}"#,
        )
        .expect("it is good");
        let chat: Value = serde_json::from_slice(&asked.chat()).expect("JSON");
        let expected = json!({
            "model": "m", "stream": true, "max_tokens": 9, "top_p": 0.5,
            "messages": [
                {"role": "system", "content": "be brief"}, {"role": "system", "content": "d"},
                {"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"},
            ],
        });
        assert_eq!(chat, expected);
        assert!(asked.shown.background && !asked.stream);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_its_name() {
        for (field, param) in [
            (r#""tools":[{"type":"web_search"}]"#, "tools"),
            (r#""previous_response_id":"resp_1""#, "previous_response_id"),
            (r#""conversation":"c""#, "conversation"),
            (r#""reasoning":{"effort":"low"}"#, "reasoning"),
            (r#""text":{"format":{"type":"json_object"}}"#, "text"),
            (r#""store":false"#, "store"),
            (r#""truncation":"auto""#, "truncation"),
            (r#""temperature":3"#, "temperature"),
            (r#""top_p":-1"#, "top_p"),
            (r#""max_output_tokens":0"#, "max_output_tokens"),
            (r#""input":[]"#, "input"),
            (
                r#""input":[{"role":"user","content":[{"type":"input_image"}]}]"#,
                "input.0.content.0.type",
            ),
            (r#""input":[{"type":"function_call_output"}]"#, "input.0.type"),
            (r#""input":[{"role":"tool","content":"x"}]"#, "input.0.role"),
        ] {
            let body = format!(r#"{{"model":"m","input":"i",{field}}}"#);
            match Asked::parse(body.as_bytes()) {
                Err(ApiError::Invalid { path, .. }) => assert_eq!(path, param, "{body}"),
                other => panic!("{body}: {other:?}"),
            }
        }
        let null = r#"{"model":"m","input":"i","tools":null,"reasoning":null,"previous_response_id":null}"#;
        assert!(Asked::parse(null.as_bytes()).is_ok());
    }
}
