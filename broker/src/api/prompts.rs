//! GitLab's prompts by id: `/v1/prompts/{id}` and `/v2/prompts/{id}`, which differ in what an answer is wrapped in.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use duo_contract::envelope::Endpoint;
use duo_contract::failure::FailureKind;
use http::header;
use minijinja::Value;
use minijinja::value::Serde;
use serde_json::{Map, Value as JsonValue, json};
use time::OffsetDateTime;

use super::code;
use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::stream::lines::{ContentLines, UsageByModel};
use super::stream::raw::{self, RawText};
use super::stream::{self, chunk};
use crate::probe::{PROMPT as MODEL_TEST, Probe, ProbeError};
use crate::prompt::answer::{self, End, Formatter};
use crate::prompt::{Purpose, Use};
use crate::request::{ExchangeError, ModelChoice, RoutedRequest, Work};

const MAX_VERSION: usize = 255;
const CURRENT_DATE: &str = "current_date";

/// What an answer is wrapped in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrapping {
    /// v1: the bare text, as a JSON string or as it flows.
    Bare,
    /// v2: an object, or an object a line.
    Object,
}

/// `POST /v1/prompts/{id}`; the id may hold slashes.
pub(super) async fn v1(id: Result<Path<String>, PathRejection>, inbound: Inbound) -> Response {
    invoke(id, inbound, Wrapping::Bare).await
}

/// `POST /v2/prompts/{id}`.
pub(super) async fn v2(id: Result<Path<String>, PathRejection>, inbound: Inbound) -> Response {
    invoke(id, inbound, Wrapping::Object).await
}

async fn invoke(
    id: Result<Path<String>, PathRejection>,
    mut inbound: Inbound,
    wrapping: Wrapping,
) -> Response {
    let Ok(Path(id)) = id else {
        return ApiError::NotFound("Not Found".into()).respond(Shape::GitLab);
    };
    if id.ends_with('/')
        && let Some(redirect) = super::without_slash(&inbound.uri)
    {
        return redirect;
    }
    let mut stream = false;
    let answer = try_invoke(&id, &mut inbound, wrapping, &mut stream).await;
    answer.unwrap_or_else(|error| {
        error.respond(match id.as_str() {
            MODEL_TEST => Shape::ModelTest,
            _ => Shape::Prompt { stream },
        })
    })
}

async fn try_invoke(
    id: &str,
    inbound: &mut Inbound,
    wrapping: Wrapping,
    stream: &mut bool,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::NotFound(format!("Prompt '{id}' not found").into());
    let purpose = inbound.api.prompts.purpose(id).ok_or_else(unknown)?;
    let refusal = format!("Unauthorized to access '{id}'");
    inbound.require(&[&purpose.scope], &purpose.feature, refusal)?;
    if id == MODEL_TEST {
        return test_model(inbound, &purpose, wrapping).await;
    }
    if let Err(refusal) = inbound.gate(&purpose.feature) {
        *stream = inbound.wants_stream().await;
        return Err(refusal);
    }
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    *stream = fields.flag("stream")?;
    // Rails names versions of its own prompts; here each feature has one.
    fields.text("prompt_version", MAX_VERSION)?;
    let inputs = inputs(&purpose, &fields)?;
    let formatter = Formatter::new(id, sources(&inputs));
    inbound.record.judge_answer();
    let (work, routed) = render(id, inbound, &purpose, &fields, &inputs, *stream).await?;
    let mut reply = inbound.send(&routed, work).await?;
    match (*stream, wrapping) {
        (true, Wrapping::Bare) => return stream::respond(reply, RawText::formatted(formatter)).await,
        (true, Wrapping::Object) => {
            return stream::respond(reply, ContentLines::new(&routed.model.name, formatter)).await;
        }
        (false, _) => {}
    }
    let (summary, body) = reply.whole().await?;
    let whole = chunk::whole(&summary, &body)?;
    let text = answer::whole(formatter, whole.text, End { cut: whole.at_limit })?;
    Ok(match wrapping {
        Wrapping::Bare => Json(text).into_response(),
        Wrapping::Object => {
            // By family, where the lines of a stream have the model: what GitLab's gateway does.
            let usage = UsageByModel::new(&routed.model.family, whole.usage);
            Json(json!({"content": text, "usage": usage})).into_response()
        }
    })
}

/// Asks the very model that is named, whatever its features and their state; a test without a name is one of the
/// model that completes code.
async fn test_model(
    inbound: &mut Inbound,
    purpose: &Purpose,
    wrapping: Wrapping,
) -> Result<Response, ApiError> {
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    let stream = fields.flag("stream")?;
    fields.text("prompt_version", MAX_VERSION)?;
    inputs(purpose, &fields)?;
    let probe = match code::metadata_hint(&fields) {
        ModelChoice::Hint(name) | ModelChoice::Named(name) => named_probe(inbound, &name)?,
        ModelChoice::Assigned => {
            let routed = inbound.route(&purpose.feature, &ModelChoice::Assigned, false)?;
            let table = inbound.api.exchange.routing().load();
            Probe::of_model(&table, &inbound.api.prompts, &routed.model, None).map_err(untestable)?
        }
    };
    let (model, endpoint) = (probe.routed.model.clone(), probe.work.endpoint);
    let mut reply = inbound
        .api
        .exchange
        .probe(&inbound.caller, &inbound.record, probe)
        .await?;
    let (summary, body) = reply.whole().await?;
    let (text, usage) = match endpoint {
        // A vector is no text; that there is one is the answer.
        Endpoint::Embeddings | Endpoint::Infer => ("ready".to_owned(), json!({})),
        Endpoint::ChatCompletions | Endpoint::Completions => {
            let whole = chunk::whole(&summary, &body)?;
            (whole.text, json!(UsageByModel::new(&model.family, whole.usage)))
        }
    };
    let body = json!({"content": text, "usage": usage});
    // A few words, which a stream has at once.
    let streamed = [(header::CONTENT_TYPE, raw::CONTENT_TYPE)];
    Ok(match (stream, wrapping) {
        (false, Wrapping::Bare) => Json(text).into_response(),
        (false, Wrapping::Object) => Json(body).into_response(),
        (true, Wrapping::Bare) => (streamed, text).into_response(),
        (true, Wrapping::Object) => (streamed, format!("{body}\n")).into_response(),
    })
}

fn named_probe(inbound: &Inbound, name: &str) -> Result<Probe, ApiError> {
    let exchange = &inbound.api.exchange;
    let table = exchange.routing().load();
    let model = table
        .meant(name)
        .filter(|model| inbound.caller.may_use_model(&model.name));
    let Some(model) = model else {
        let known: Vec<_> = exchange
            .models(&inbound.caller)
            .iter()
            .map(ToString::to_string)
            .collect();
        let message = format!(
            "the model identifier names no model of the gateway's configuration; write custom_openai/ and one of: {}",
            known.join(", ")
        );
        let error = ExchangeError::new(FailureKind::InvalidRequest, "unknown_model", message);
        return Err(error.into());
    };
    Probe::of_model(&table, &inbound.api.prompts, model, None).map_err(untestable)
}

fn untestable(error: ProbeError) -> ApiError {
    match error {
        ProbeError::Prompt(error) => error.into(),
        other => ExchangeError::new(FailureKind::InvalidRequest, "no_test", other.to_string()).into(),
    }
}

async fn render(
    id: &str,
    inbound: &Inbound,
    purpose: &Purpose,
    fields: &Fields<'_>,
    inputs: &Map<String, JsonValue>,
    stream: bool,
) -> Result<(Work, RoutedRequest), ApiError> {
    let routed = inbound.route(&purpose.feature, &code::metadata_hint(fields), stream)?;
    let work = rendered(id, inbound, purpose, inputs, &routed, stream).await?;
    Ok((work, routed))
}

async fn rendered(
    id: &str,
    inbound: &Inbound,
    purpose: &Purpose,
    inputs: &Map<String, JsonValue>,
    routed: &RoutedRequest,
    stream: bool,
) -> Result<Work, ApiError> {
    let rendered = inbound.api.prompts.fit(id, &routed.model, |room| Use {
        id,
        model: &routed.model,
        inputs: Value::from(Serde(&*purpose.fit(inputs, room))),
        messages: Vec::new(),
        stream,
    });
    let rendered = rendered
        .await
        .map_err(|error| ApiError::from(error).blame_inputs())?;
    Ok(Work {
        endpoint: rendered.endpoint,
        body: rendered.body,
        stream,
        prompt: Some(rendered.prompt),
        supersede_key: None,
    })
}

/// A prompt for a job, and the ids of the documents that it is given.
pub(super) async fn render_job(
    inbound: &Inbound,
    id: &str,
    purpose: &Purpose,
    fields: &Fields<'_>,
    routed: &RoutedRequest,
) -> Result<(Work, Vec<String>), ApiError> {
    let inputs = inputs(purpose, fields)?;
    let rendered = rendered(id, inbound, purpose, &inputs, routed, true).await?;
    Ok((rendered, sources(&inputs)))
}

/// The inputs as they came; templates know which they need. The date is ours
/// to add where a prompt takes one.
fn inputs(purpose: &Purpose, fields: &Fields<'_>) -> Result<Map<String, JsonValue>, ApiError> {
    let raw = fields.raw("inputs").ok_or_else(|| fields.required("inputs"))?;
    let mut inputs: Map<String, JsonValue> =
        serde_json::from_str(raw.get()).map_err(|_| fields.invalid("inputs", "has to be an object"))?;
    if purpose.inputs.iter().any(|name| name == CURRENT_DATE) && !inputs.contains_key(CURRENT_DATE) {
        inputs.insert(CURRENT_DATE.to_owned(), date(duo_process::clock::now()).into());
    }
    Ok(inputs)
}

/// Ids of the documents that a prompt is given, as its template shows them to the model.
fn sources(inputs: &Map<String, JsonValue>) -> Vec<String> {
    let (Some(JsonValue::Array(documents)), Some(content_id)) = (
        inputs.get("documents"),
        inputs.get("content_id").and_then(JsonValue::as_str),
    ) else {
        return Vec::new();
    };
    let id = |document: &JsonValue| match document.get("id")? {
        JsonValue::String(id) => Some(format!("{content_id}-{id}")),
        id @ JsonValue::Number(_) => Some(format!("{content_id}-{id}")),
        _ => None,
    };
    documents.iter().filter_map(id).collect()
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
