//! What GitLab's formats need of a model server's chunk or whole answer.

use std::borrow::Cow;

use duo_contract::frame::Summary;
use serde::Deserialize;

use super::Unreadable;
use crate::api::error::ApiError;

/// Text of a JSON string, borrowed where it holds no escapes.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A chunk of a stream or a whole answer, of either endpoint.
#[derive(Debug, Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    delta: Option<Message<'a>>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<Text<'a>>,
}

/// Tokens that the model server counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(in crate::api) struct Usage {
    /// Tokens of the prompt.
    #[serde(default)]
    pub(in crate::api) prompt_tokens: u64,
    /// Tokens generated.
    #[serde(default)]
    pub(in crate::api) completion_tokens: u64,
}

/// The first choice's text in a chunk, if it has any.
pub(in crate::api) fn text(line: &[u8]) -> Result<Option<Cow<'_, str>>, Unreadable> {
    let answer: Answer<'_> = serde_json::from_slice(line).map_err(|_| Unreadable::Chunk)?;
    Ok(answer.choices.into_iter().next().and_then(Choice::into_text))
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::api) struct Whole {
    /// The first choice's text.
    pub(in crate::api) text: String,
    /// Did the model stop because of the output limit?
    pub(in crate::api) at_limit: bool,
    /// Tokens, where the model server counted them.
    pub(in crate::api) usage: Usage,
}

/// Reads the body of an answer that is no stream.
pub(in crate::api) fn whole(summary: &Summary, body: &[u8]) -> Result<Whole, ApiError> {
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(|_| ApiError::unreadable())?;
    let usage = answer.usage.unwrap_or(Usage {
        prompt_tokens: summary.input_tokens.unwrap_or(0),
        completion_tokens: summary.output_tokens.unwrap_or(0),
    });
    let choice = answer
        .choices
        .into_iter()
        .next()
        .ok_or_else(ApiError::unreadable)?;
    let at_limit = choice
        .finish_reason
        .as_ref()
        .is_some_and(|reason| reason.0 == "length");
    Ok(Whole {
        text: choice.into_text().map(Cow::into_owned).unwrap_or_default(),
        at_limit,
        usage,
    })
}

impl<'a> Choice<'a> {
    fn into_text(self) -> Option<Cow<'a, str>> {
        let message = self.delta.or(self.message).and_then(|message| message.content);
        self.text.or(message).map(|Text(text)| text)
    }
}
