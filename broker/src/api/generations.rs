//! Code generation as GitLab asked for it until about 17.5, `/v2/code/generations`: the body of a completion and, from
//! the second version on, a prompt that GitLab has made for the model.

use axum::response::{IntoResponse, Response};

use super::code::{self, MAX_PROMPT};
use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::language;
use super::messages;
use super::stream::raw::RawText;
use super::stream::{self, chunk};
use super::suggestion::{CODE_GENERATION, Generation};
use crate::exchange::Reply;
use crate::prompt::answer::{self, End, Formatter};
use crate::prompt::{Conversation, Message, Role};
use crate::request::RoutedRequest;

const SCOPE: &str = "generate_code";
const REFUSAL: &str = "Unauthorized to access code generations";
/// Limits of GitLab's own gateway for a prompt that is not its own.
const MAX_TOKENS: u32 = 2048;
const TEMPERATURE: f64 = 0.2;
const STOP: &str = "</new_code>";

/// `POST /v2/code/generations`.
pub(super) async fn generations(mut inbound: Inbound) -> Response {
    generate(&mut inbound)
        .await
        .unwrap_or_else(|error| error.respond(Shape::GitLab))
}

async fn generate(inbound: &mut Inbound) -> Result<Response, ApiError> {
    inbound.require(&[SCOPE], &CODE_GENERATION, REFUSAL)?;
    inbound.gate(&CODE_GENERATION)?;
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    let stream = fields.flag("stream")?;
    let asked = code::parse(&fields)?;
    let own = own_prompt(&fields)?;
    let routed = inbound.route(&CODE_GENERATION, &asked.choice, stream)?;
    let starts_a_line = asked
        .file
        .above
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .trim()
        .is_empty();
    let lang = language::name(asked.file.language.as_deref(), &asked.file.name);
    let work = match own {
        Some(messages) => messages::work(Conversation {
            model: &routed.model,
            messages,
            max_tokens: MAX_TOKENS,
            temperature: TEMPERATURE,
            stop: &[STOP.to_owned()],
            stream,
        })?,
        None => {
            let generation = Generation::of(asked.file, asked.choice);
            generation.render(inbound, &routed, stream).await?
        }
    };
    inbound.record.judge_answer();
    let reply = inbound.send(&routed, work).await?;
    if stream {
        return stream::respond(reply, RawText::formatted(Formatter::code(lang))).await;
    }
    respond(reply, inbound, &routed, lang, starts_a_line).await
}

/// What GitLab has written for the model: a text in the second version, messages in the third. Where it names a prompt
/// of the gateway or none, the gateway's own is used.
fn own_prompt(fields: &Fields<'_>) -> Result<Option<Vec<Message>>, ApiError> {
    let version = fields.raw("prompt_version").map(serde_json::value::RawValue::get);
    let named = fields.raw("prompt_id").is_some();
    let own = match version {
        Some("2") => {
            let text = fields.text("prompt", MAX_PROMPT)?;
            text.map(|text| vec![Message::new(Role::User, text)])
        }
        Some("3") => messages::parse(fields, "prompt")?,
        _ => return Ok(None),
    };
    match own {
        _ if named => Ok(None),
        Some(messages) => Ok(Some(messages)),
        None => Err(fields.required("prompt")),
    }
}

async fn respond(
    mut reply: Reply,
    inbound: &Inbound,
    routed: &RoutedRequest,
    lang: &str,
    starts_a_line: bool,
) -> Result<Response, ApiError> {
    let (summary, body) = reply.whole().await?;
    let mut whole = chunk::whole(&summary, &body)?;
    let end = End { cut: whole.at_limit };
    let text = answer::whole(Formatter::code(lang), std::mem::take(&mut whole.text), end)?;
    whole.text = clean(&text, starts_a_line);
    let flags = code::enabled_feature_flags(&inbound.headers);
    Ok(code::completed(&whole, routed.model.name.as_str(), lang, flags).into_response())
}

/// Without the blanks around it, on a line of its own.
fn clean(text: &str, starts_a_line: bool) -> String {
    let text = text.trim_matches('\n').trim_end();
    match starts_a_line || text.is_empty() {
        true => text.to_owned(),
        false => format!("\n{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_goes_on_a_line_of_its_own() {
        let text = "\ndef a\nend\n\n";
        assert_eq!(clean(text, true), "def a\nend");
        assert_eq!(clean(text, false), "\ndef a\nend");
        assert_eq!(clean("    indented", true), "    indented");
        assert_eq!(clean("\n", false), "");
    }
}
