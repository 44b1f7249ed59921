//! What is needed of a model server's chunk or whole answer where its text alone counts.

use std::borrow::Cow;

use duo_contract::frame::Summary;
use serde::Deserialize;

/// Something that is not what a model server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model server sent an answer that could not be read")]
pub struct Unreadable;

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
pub(crate) struct Usage {
    /// Tokens of the prompt.
    #[serde(default)]
    pub(crate) prompt_tokens: u64,
    /// Tokens generated.
    #[serde(default)]
    pub(crate) completion_tokens: u64,
}

/// The first choice's text in a chunk, if it has any.
pub(crate) fn text(line: &[u8]) -> Result<Option<Cow<'_, str>>, Unreadable> {
    let answer: Answer<'_> = serde_json::from_slice(line).map_err(|_| Unreadable)?;
    Ok(answer.choices.into_iter().next().and_then(Choice::into_text))
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    /// The first choice's text.
    pub(crate) text: String,
    /// Did the model stop because of the output limit?
    pub(crate) at_limit: bool,
    /// Why it stopped, in the model server's word.
    pub(crate) finish_reason: Option<String>,
    /// Tokens, where the model server counted them.
    pub(crate) usage: Usage,
}

/// Reads the body of an answer that is no stream.
pub(crate) fn whole(summary: &Summary, body: &[u8]) -> Result<Whole, Unreadable> {
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(|_| Unreadable)?;
    let usage = answer.usage.unwrap_or(Usage {
        prompt_tokens: summary.input_tokens.unwrap_or(0),
        completion_tokens: summary.output_tokens.unwrap_or(0),
    });
    let choice = answer.choices.into_iter().next().ok_or(Unreadable)?;
    let finish_reason = choice
        .finish_reason
        .as_ref()
        .map(|reason| reason.0.clone().into_owned());
    let at_limit = finish_reason.as_deref() == Some("length");
    Ok(Whole {
        text: choice.into_text().map(Cow::into_owned).unwrap_or_default(),
        at_limit,
        finish_reason,
        usage,
    })
}

impl<'a> Choice<'a> {
    fn into_text(self) -> Option<Cow<'a, str>> {
        let message = self.delta.or(self.message).and_then(|message| message.content);
        self.text.or(message).map(|Text(text)| text)
    }
}
