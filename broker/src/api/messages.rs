//! Conversations in the client's own words.

use serde_json::value::RawValue;

use super::error::ApiError;
use super::fields::Fields;
use crate::prompt::{Conversation, Message, Prompts, Role};
use crate::request::Work;

/// Messages of a conversation, and characters of each.
const MAX_MESSAGES: usize = 100;
const MAX_CONTENT: usize = 400_000;

/// What goes to the model server for a conversation without a template.
///
/// # Errors
/// It is longer than the model's window.
pub(super) fn work(conversation: Conversation<'_>) -> Result<Work, ApiError> {
    let stream = conversation.stream;
    let (endpoint, body) = Prompts::converse(conversation)?;
    Ok(Work {
        endpoint,
        body,
        stream,
        prompt: None,
        supersede_key: None,
    })
}

/// The messages in the field `name`, if it is there.
///
/// # Errors
/// Another type, none, too many, an unknown role, or one that is too long.
pub(super) fn parse(fields: &Fields<'_>, name: &str) -> Result<Option<Vec<Message>>, ApiError> {
    if fields.raw(name).is_none() {
        return Ok(None);
    }
    let items = fields.objects(name, MAX_MESSAGES)?;
    if items.is_empty() {
        return Err(fields.invalid(name, "has to hold at least one message"));
    }
    items.iter().map(message).collect::<Result<_, _>>().map(Some)
}

fn message(item: &Fields<'_>) -> Result<Message, ApiError> {
    let role = match &*item.required_text("role", MAX_CONTENT)? {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return Err(item.invalid("role", "has to be system, user or assistant")),
    };
    Ok(Message::new(role, item.required_text("content", MAX_CONTENT)?))
}

/// What the field `name` says: one text of the user, or messages.
///
/// # Errors
/// As [`parse`], or the field is not there.
pub(super) fn text_or_messages(fields: &Fields<'_>, name: &str) -> Result<Vec<Message>, ApiError> {
    let is_text = |raw: &RawValue| raw.get().starts_with('"');
    if fields.raw(name).is_some_and(is_text) {
        let text = fields.required_text(name, MAX_CONTENT)?;
        return Ok(vec![Message::new(Role::User, text)]);
    }
    parse(fields, name)?.ok_or_else(|| fields.required(name))
}
