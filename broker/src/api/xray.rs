//! Repository X-Ray, `/v1/x-ray/libraries`: what a package file says of the libraries that a project uses.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::code::MAX_PROMPT;
use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::messages;
use super::stream::chunk;
use super::suggestion::CODE_GENERATION;
use crate::prompt::answer::{self, End, Formatter};
use crate::prompt::{Conversation, Message, Role};
use crate::request::ModelChoice;

const SCOPE: &str = "generate_code";
const REFUSAL: &str = "Unauthorized to access X Ray";
const KIND: &str = "x_ray_package_file_prompt";
const MAX_TEXT: usize = 255;
const MAX_TOKENS: u32 = 2048;

/// `POST /v1/x-ray/libraries`.
pub(super) async fn libraries(mut inbound: Inbound) -> Response {
    respond(&mut inbound)
        .await
        .unwrap_or_else(|error| error.respond(Shape::GitLab))
}

async fn respond(inbound: &mut Inbound) -> Result<Response, ApiError> {
    inbound.require(&[SCOPE], &CODE_GENERATION, REFUSAL)?;
    inbound.gate(&CODE_GENERATION)?;
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    let components = fields.objects("prompt_components", 1)?;
    let component = components
        .first()
        .ok_or_else(|| fields.required("prompt_components"))?;
    if component.required_text("type", MAX_TEXT)? != KIND {
        return Err(component.invalid("type", format!("has to be {KIND}")));
    }
    let payload = component.required_object("payload")?;
    let prompt = payload.required_text("prompt", MAX_PROMPT)?;
    // It names a model of another vendor, whatever is configured.
    let routed = inbound.route(&CODE_GENERATION, &ModelChoice::Assigned, false)?;
    let work = messages::work(Conversation {
        model: &routed.model,
        messages: vec![Message::new(Role::User, prompt)],
        max_tokens: MAX_TOKENS,
        temperature: 0.0,
        stop: &[],
        stream: false,
    })?;
    inbound.record.judge_answer();
    let mut reply = inbound.send(&routed, work).await?;
    let (summary, body) = reply.whole().await?;
    let whole = chunk::whole(&summary, &body)?;
    let end = End { cut: whole.at_limit };
    let text = answer::whole(Formatter::new(KIND, Vec::new()), whole.text, end)?;
    Ok(Json(json!({"response": text})).into_response())
}
