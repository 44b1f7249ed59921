//! GitLab's prompts by id: `/v1/prompts/{id}`.

use axum::Json;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use duo_contract::name::FeatureName;
use minijinja::Value;
use minijinja::value::Serde;

use super::code;
use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::stream::raw::RawText;
use super::stream::{self, chunk};
use crate::exchange::Work;
use crate::prompt::Use;

/// GitLab's test of a model's connection.
const MODEL_TEST: &str = "model_configuration/check";
const MAX_VERSION: usize = 255;

/// `POST /v1/prompts/{id}`; the id may hold slashes.
pub(super) async fn invoke(Path(id): Path<String>, mut inbound: Inbound) -> Response {
    let mut stream = false;
    let answer = try_invoke(&id, &mut inbound, &mut stream).await;
    answer.unwrap_or_else(|error| {
        error.respond(match id.as_str() {
            MODEL_TEST => Shape::ModelTest,
            _ => Shape::Prompt { stream },
        })
    })
}

async fn try_invoke(id: &str, inbound: &mut Inbound, stream: &mut bool) -> Result<Response, ApiError> {
    let unknown = || ApiError::NotFound(format!("Prompt '{id}' not found").into());
    let purpose = inbound.api.prompts.purpose(id).ok_or_else(unknown)?;
    let refusal = format!("Unauthorized to access '{id}'");
    inbound.require(&[&purpose.scope], &purpose.feature, refusal)?;
    inbound.gate(&purpose.feature)?;
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    *stream = fields.flag("stream")?;
    // Rails names versions of its own prompts; here each feature has one.
    fields.text("prompt_version", MAX_VERSION)?;
    let (work, routed) = render(id, inbound, &purpose.feature, &fields, *stream)?;
    let mut reply = inbound.send(&routed, work).await?;
    if *stream {
        return stream::respond(reply, RawText::default()).await;
    }
    let (summary, body) = reply.whole().await?;
    Ok(Json(chunk::whole(&summary, &body)?.text).into_response())
}

fn render(
    id: &str,
    inbound: &Inbound,
    feature: &FeatureName,
    fields: &Fields<'_>,
    stream: bool,
) -> Result<(Work, crate::exchange::RoutedRequest), ApiError> {
    let inputs = inputs(fields)?;
    let routed = inbound.route(feature, &code::metadata_hint(fields), stream)?;
    let rendered = inbound.api.prompts.render(Use {
        id,
        model: &routed.model,
        inputs,
        messages: Vec::new(),
        stream,
    })?;
    let work = Work {
        endpoint: rendered.endpoint,
        body: rendered.body,
        stream,
        prompt: Some(rendered.prompt),
        supersede_key: None,
    };
    Ok((work, routed))
}

/// The inputs as they came; templates know which they need.
fn inputs(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let raw = fields.raw("inputs").ok_or_else(|| fields.required("inputs"))?;
    let inputs: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(raw.get()).map_err(|_| fields.invalid("inputs", "has to be an object"))?;
    Ok(Value::from(Serde(inputs)))
}
