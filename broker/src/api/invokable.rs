//! Chat's tools as GitLab asked for them before prompts had ids: `/v1/chat/{invokable}`, with a prompt that GitLab has made.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::code;
use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::messages;
use super::stream::raw::RawText;
use super::stream::{self, chunk};
use crate::prompt::Conversation;
use crate::prompt::answer::{self, End, Formatter};

/// What may be invoked, and the prompt whose feature, scopes and form of answers count.
const INVOKABLES: [(&str, &str); 7] = [
    ("explain_code", "chat/explain_code"),
    ("write_tests", "chat/write_tests"),
    ("refactor_code", "chat/refactor_code"),
    ("explain_vulnerability", "chat/explain_vulnerability"),
    ("summarize_comments", "chat/summarize_comments"),
    ("troubleshoot_job", "chat/troubleshoot_job"),
    ("agent", "chat/agent"),
];
const MAX_TEXT: usize = 1000;
const MAX_STOPS: usize = 10;
const MAX_STOP: usize = 225;
const MOST_TOKENS: i64 = 8192;
const TOKENS: u32 = 2048;
const TEMPERATURE: f64 = 0.2;

/// `POST /v1/chat/{invokable}`.
pub(super) async fn invoke(name: Result<Path<String>, PathRejection>, mut inbound: Inbound) -> Response {
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    respond(&name, &mut inbound)
        .await
        .unwrap_or_else(|error| error.respond(Shape::GitLab))
}

async fn respond(name: &str, inbound: &mut Inbound) -> Result<Response, ApiError> {
    let known = INVOKABLES.iter().find(|(known, _)| *known == name);
    let known = known.and_then(|(_, prompt)| Some((prompt, inbound.api.prompts.purpose(prompt)?)));
    let (prompt, purpose) = known.ok_or(ApiError::NotFound("Not Found".into()))?;
    // Tokens of GitLab before 17.10 have the older name of chat's own scope.
    let scopes: &[&str] = match name {
        "agent" => &["duo_classic_chat", "duo_chat"],
        _ => &[&purpose.scope],
    };
    inbound.require(scopes, &purpose.feature, format!("Unauthorized to access {name}"))?;
    inbound.gate(&purpose.feature)?;
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    let stream = fields.flag("stream")?;
    let components = fields.objects("prompt_components", 1)?;
    let component = components
        .first()
        .ok_or_else(|| fields.required("prompt_components"))?;
    let payload = component.required_object("payload")?;
    let settings = Settings::parse(&payload)?;
    let messages = messages::text_or_messages(&payload, "content")?;
    let model = payload.text("model", MAX_TEXT)?;
    let identifier = payload.text("model_identifier", MAX_TEXT)?;
    let choice = code::hint(identifier.as_deref(), model.as_deref());
    let routed = inbound.route(&purpose.feature, &choice, stream)?;
    let work = messages::work(Conversation {
        model: &routed.model,
        messages,
        max_tokens: settings.max_tokens,
        temperature: settings.temperature,
        stop: &settings.stop,
        stream,
    })?;
    let formatter = Formatter::new(prompt, Vec::new());
    inbound.record.judge_answer();
    let mut reply = inbound.send(&routed, work).await?;
    if stream {
        return stream::respond(reply, RawText::formatted(formatter)).await;
    }
    let (summary, body) = reply.whole().await?;
    let metadata = json!({"provider": code::ENGINE, "model": routed.model.name, "timestamp": code::now()});
    let whole = chunk::whole(&summary, &body)?;
    let text = answer::whole(formatter, whole.text, End { cut: whole.at_limit })?;
    Ok(Json(json!({"response": text, "metadata": metadata})).into_response())
}

/// How the model is to answer.
struct Settings {
    max_tokens: u32,
    temperature: f64,
    stop: Vec<String>,
}

impl Settings {
    fn parse(payload: &Fields<'_>) -> Result<Self, ApiError> {
        let mut settings = Self {
            max_tokens: TOKENS,
            temperature: TEMPERATURE,
            stop: Vec::new(),
        };
        let Some(params) = payload.object("params")? else {
            return Ok(settings);
        };
        if let Some(tokens) = params.integer("max_tokens_to_sample")? {
            let most = (1..=MOST_TOKENS)
                .contains(&tokens)
                .then(|| u32::try_from(tokens).ok());
            settings.max_tokens = most
                .flatten()
                .ok_or_else(|| params.invalid("max_tokens_to_sample", "has to be from 1 to 8192"))?;
        }
        if let Some(raw) = params.raw("temperature") {
            let temperature = raw
                .get()
                .parse()
                .ok()
                .filter(|number| (0.0..=1.0).contains(number));
            settings.temperature =
                temperature.ok_or_else(|| params.invalid("temperature", "has to be from 0 to 1"))?;
        }
        for stop in params.texts("stop_sequences", MAX_STOPS)? {
            if stop.is_empty() || stop.chars().count() > MAX_STOP {
                return Err(params.invalid("stop_sequences", "each has to have 1 to 225 characters"));
            }
            settings.stop.push(stop.into_owned());
        }
        Ok(settings)
    }
}
