//! GitLab's prompts by id: `/v1/prompts/{id}`.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use minijinja::Value;
use minijinja::value::Serde;
use serde_json::{Map, Value as JsonValue};
use time::OffsetDateTime;

use super::code;
use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::stream::raw::RawText;
use super::stream::{self, chunk};
use crate::exchange::{RoutedRequest, Work};
use crate::prompt::{Purpose, Use};

/// GitLab's test of a model's connection.
const MODEL_TEST: &str = "model_configuration/check";
const MAX_VERSION: usize = 255;
const CURRENT_DATE: &str = "current_date";

/// `POST /v1/prompts/{id}`; the id may hold slashes.
pub(super) async fn invoke(id: Result<Path<String>, PathRejection>, mut inbound: Inbound) -> Response {
    let Ok(Path(id)) = id else {
        return ApiError::NotFound("Not Found".into()).respond(Shape::GitLab);
    };
    if id.ends_with('/')
        && let Some(redirect) = super::without_slash(&inbound.uri)
    {
        return redirect;
    }
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
    if let Err(refusal) = inbound.gate(&purpose.feature) {
        *stream = inbound.wants_stream().await;
        return Err(refusal);
    }
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    *stream = fields.flag("stream")?;
    // Rails names versions of its own prompts; here each feature has one.
    fields.text("prompt_version", MAX_VERSION)?;
    let (work, routed) = render(id, inbound, &purpose, &fields, *stream)?;
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
    purpose: &Purpose,
    fields: &Fields<'_>,
    stream: bool,
) -> Result<(Work, RoutedRequest), ApiError> {
    let inputs = inputs(purpose, fields)?;
    let routed = inbound.route(&purpose.feature, &code::metadata_hint(fields), stream)?;
    let rendered = inbound.api.prompts.render(Use {
        id,
        model: &routed.model,
        inputs,
        messages: Vec::new(),
        stream,
    });
    let rendered = rendered.map_err(|error| ApiError::from(error).blame_inputs())?;
    let work = Work {
        endpoint: rendered.endpoint,
        body: rendered.body,
        stream,
        prompt: Some(rendered.prompt),
        supersede_key: None,
    };
    Ok((work, routed))
}

/// The inputs as they came; templates know which they need. The date is ours
/// to add where a prompt takes one.
fn inputs(purpose: &Purpose, fields: &Fields<'_>) -> Result<Value, ApiError> {
    let raw = fields.raw("inputs").ok_or_else(|| fields.required("inputs"))?;
    let mut inputs: Map<String, JsonValue> =
        serde_json::from_str(raw.get()).map_err(|_| fields.invalid("inputs", "has to be an object"))?;
    if purpose.inputs.iter().any(|name| name == CURRENT_DATE) && !inputs.contains_key(CURRENT_DATE) {
        inputs.insert(CURRENT_DATE.to_owned(), date(duo_process::clock::now()).into());
    }
    Ok(Value::from(Serde(inputs)))
}

/// `August 22, 2026`.
fn date(now: OffsetDateTime) -> String {
    format!("{} {}, {}", now.month(), now.day(), now.year())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_date_is_written_as_gitlab_writes_it() {
        assert_eq!(date(datetime!(2026-08-02 01:00 UTC)), "August 2, 2026");
    }

    #[test]
    fn inputs_have_to_be_an_object() {
        let purpose = crate::prompt::Prompts::builtin()
            .purpose(MODEL_TEST)
            .expect("a prompt");
        let read = |body: &'static str| {
            let fields = Fields::parse(body.as_bytes()).expect("an object");
            inputs(&purpose, &fields)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        assert_eq!(read(r#"{"inputs":{}}"#), Ok(()));
        assert_eq!(read("{}"), Err("inputs: is required".to_owned()));
        assert_eq!(
            read(r#"{"inputs":["secret"]}"#),
            Err("inputs: has to be an object".to_owned())
        );
    }
}
