//! The body of a call of a model server.

use duo_contract::snapshot::Model;
use serde::Serialize;

use super::template::{Content, Message, Template};

/// Most stop strings of a call: OpenAI's limit, which vLLM enforces by refusing the call.
const MOST_STOPS: usize = 4;

/// The call's JSON. What changes least comes first, as in the templates.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Message]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    max_tokens: u32,
    temperature: f64,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    /// Stop strings of fill-in-the-middle prompts are special tokens, which a
    /// server has to keep in its text to see them.
    #[serde(skip_serializing_if = "Option::is_none")]
    skip_special_tokens: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// How a model is to answer.
pub(super) struct Settings<'a> {
    pub(super) max_tokens: u32,
    pub(super) temperature: f64,
    pub(super) stop: &'a [String],
}

impl<'a> Settings<'a> {
    pub(super) fn of(template: &'a Template, model: &Model) -> Self {
        Self {
            max_tokens: template.max_tokens(model),
            temperature: template.temperature(),
            stop: template.stop(),
        }
    }
}

/// The call's JSON, but for the model's name.
pub(super) fn body(settings: &Settings<'_>, content: &Content, stream: bool) -> Vec<u8> {
    let (messages, prompt) = match content {
        Content::Messages(messages) => (Some(messages.as_slice()), None),
        Content::Text(text) => (None, Some(text.as_str())),
    };
    let body = Body {
        messages,
        prompt,
        max_tokens: settings.max_tokens,
        temperature: settings.temperature,
        stop: settings.stop.get(..MOST_STOPS).unwrap_or(settings.stop),
        skip_special_tokens: prompt.map(|_| false),
        stream: stream.then_some(true),
        stream_options: stream.then_some(StreamOptions { include_usage: true }),
    };
    serde_json::to_vec(&body).expect("texts and numbers always serialise")
}
