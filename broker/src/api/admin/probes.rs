//! Does a model answer, and does a feature? Asked by a real request, told in words.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::response::IntoResponse;
use duo_contract::envelope::Endpoint;
use duo_contract::failure::FailureKind;
use duo_contract::presence::BreakerState;
use duo_contract::snapshot::Model;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AdminState;
use super::edit::{self, Answer, Said};
use super::openapi::Refusal;
use crate::api::error::{ApiError, public_message};
use crate::api::stream::chunk;
use crate::caller::Caller;
use crate::probe::{Probe, ProbeError, Way};
use crate::request::ExchangeError;

/// How long a test may take in all; its own deadline comes first unless NATS hangs.
const BOUND: Duration = Duration::from_secs(3);
/// Most characters of an answer that are told.
const MOST_TOLD: usize = 200;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct HowAsked {
    /// `chat`, `completion` or `embedding`; without it, as its features ask it.
    #[serde(rename = "as")]
    way: Option<String>,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WhichModel {
    /// The model to ask, for the OpenAI features, which have none of their own.
    model: Option<String>,
}

/// How a test went.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tested {
    outcome: TestOutcome,
    /// What happened, in words.
    message: String,
    model: String,
    /// `model_test` for the test of a model.
    feature: String,
    /// The path at the model server.
    endpoint: &'static str,
    /// The request, as the audit log has it.
    #[schema(format = "uuid")]
    request_id: String,
    /// From here to the model server and back.
    latency_ms: u64,
    /// The reason of a failure, as the audit log has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The model server's status, where it gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
    /// The beginning of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum TestOutcome {
    /// The model answered.
    Answered,
    /// No worker takes requests for it.
    NoWorker,
    /// The model server, or what is before it, failed.
    Failed,
    /// No answer in time.
    Late,
    /// No room, or the queue does not take it.
    Refused,
}

/// Test connection: a real request for this very model
///
/// It goes through the queue ahead of everybody but people who type, takes three seconds at most, and answers 200
/// whichever way it went.
#[utoipa::path(post, path = "/admin/v1/models/{name}/test", tag = "models", operation_id = "testModel",
    params(("name" = String, Path, description = "the model"), HowAsked),
    responses((status = 200, description = "how it went", body = Tested), Refusal))]
pub(super) async fn model(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    name: Said,
    asked: Result<Query<HowAsked>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    let path = edit::text(name)?;
    let name = path.strip_suffix("/test");
    let name = name.ok_or_else(|| ApiError::NotFound("Not Found".into()))?;
    let Query(asked) = asked.map_err(|error| ApiError::invalid("", error.body_text()))?;
    let way = asked.way.as_deref().map(way).transpose()?;
    let table = admin.exchange.routing().load();
    let model = table
        .model(name)
        .ok_or_else(|| ApiError::NotFound(format!("there is no model {name:?}").into()))?;
    let probe = Probe::of_model(&table, &admin.prompts, model, way).map_err(uncheckable)?;
    drop(table);
    let route = "/admin/v1/models/{name}/test";
    Ok(Json(run(&admin, &caller, &headers, route, probe).await).into_response())
}

/// Check a feature: a real request by its own prompt, to its own model
///
/// As the test of a model.
#[utoipa::path(post, path = "/admin/v1/features/{name}/check", tag = "features", operation_id = "checkFeature",
    params(("name" = String, Path, description = "the feature's id"), WhichModel),
    responses((status = 200, description = "how it went", body = Tested), Refusal))]
pub(super) async fn feature(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    name: Said,
    asked: Result<Query<WhichModel>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    let name = edit::feature(&edit::text(name)?)?;
    let Query(asked) = asked.map_err(|error| ApiError::invalid("", error.body_text()))?;
    let table = admin.exchange.routing().load();
    let feature = table
        .feature(&name)
        .ok_or_else(|| ApiError::NotFound(format!("there is no feature {:?}", name.as_str()).into()))?;
    let probe = Probe::of_feature(&table, &admin.prompts, feature, asked.model.as_deref());
    let probe = probe.map_err(uncheckable)?;
    drop(table);
    let route = "/admin/v1/features/{name}/check";
    Ok(Json(run(&admin, &caller, &headers, route, probe).await).into_response())
}

fn way(text: &str) -> Result<Way, ApiError> {
    match text {
        "chat" => Ok(Way::Chat),
        "completion" => Ok(Way::Completion),
        "embedding" => Ok(Way::Embedding),
        _ => Err(ApiError::invalid("as", "has to be chat, completion or embedding")),
    }
}

fn uncheckable(error: ProbeError) -> ApiError {
    match error {
        ProbeError::Prompt(error) => error.into(),
        ProbeError::ModelUnsaid(_) | ProbeError::UnknownModel(_) => {
            ApiError::invalid("model", error.to_string())
        }
        ProbeError::Inactive(_) | ProbeError::NoPrompt(_) | ProbeError::OnlyInfers(..) => {
            ApiError::Conflict(error.to_string())
        }
    }
}

async fn run(admin: &AdminState, caller: &Caller, headers: &HeaderMap, route: &str, probe: Probe) -> Tested {
    let correlation_id = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let correlation_id = correlation_id.map(str::to_owned);
    let record = admin.audit.open(caller.who.clone(), route, correlation_id, None);
    let (model, endpoint) = (probe.routed.model.clone(), probe.work.endpoint);
    let mut tested = Tested {
        outcome: TestOutcome::Failed,
        message: String::new(),
        model: model.name.to_string(),
        feature: probe.routed.feature.name.to_string(),
        endpoint: endpoint.path(),
        request_id: record.request_id().to_string(),
        latency_ms: 0,
        reason: None,
        upstream_status: None,
        worker: None,
        input_tokens: None,
        output_tokens: None,
        answer: None,
    };
    record.note(Some(&probe.routed.feature.name), Some(&model.name), false);
    let began = Instant::now();
    let asked = async {
        let mut reply = admin.exchange.probe(caller, &record, probe).await?;
        reply.whole().await
    };
    // Giving up drops the reply, which cancels the request.
    let ended = tokio::time::timeout(BOUND, asked).await.unwrap_or_else(|_| {
        Err(ExchangeError::new(
            FailureKind::DeadlineExceeded,
            "probe_bound",
            "the queue did not answer in time",
        ))
    });
    tested.latency_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match ended {
        Ok((summary, body)) => {
            tested.outcome = TestOutcome::Answered;
            tested.message = format!("{} answered in {} ms", model.name, tested.latency_ms);
            tested.answer = match endpoint {
                Endpoint::Embeddings => None,
                _ => chunk::whole(&summary, &body)
                    .ok()
                    .map(|whole| beginning(&whole.text)),
            };
            tested.worker = Some(summary.worker);
            tested.input_tokens = summary.input_tokens;
            tested.output_tokens = summary.output_tokens;
        }
        Err(error) => {
            record.refuse(&error.reason);
            tell(&mut tested, admin, &model, &error);
        }
    }
    tested
}

/// What went wrong, in words that say where to look.
fn tell(tested: &mut Tested, admin: &AdminState, model: &Model, error: &ExchangeError) {
    let words = public_message(error);
    let name = &model.name;
    let status = error.upstream_status.map(|status| format!(" (status {status})"));
    let status = status.unwrap_or_default();
    (tested.outcome, tested.message) = match error.kind {
        FailureKind::Overloaded if error.upstream_status.is_none() => {
            (TestOutcome::Refused, words.to_owned())
        }
        // Only now: a broker that has just started learns of its workers while the request waits.
        FailureKind::DeadlineExceeded => match nobody(admin, model) {
            Some(message) => (TestOutcome::NoWorker, message),
            None => (TestOutcome::Late, late(tested, admin, model)),
        },
        FailureKind::ModelUnavailable if error.reason == "no_worker" => (
            TestOutcome::NoWorker,
            nobody(admin, model).unwrap_or_else(|| words.to_owned()),
        ),
        FailureKind::ModelUnavailable
            if error.reason.ends_with("_unavailable") && error.reason != "model_unavailable" =>
        {
            (TestOutcome::Refused, words.to_owned())
        }
        FailureKind::InvalidRequest
        | FailureKind::Overloaded
        | FailureKind::ModelUnavailable
        | FailureKind::ModelServerFault => {
            let own = error.upstream_error.as_deref().map(beginning);
            let own = own.map(|text| format!(": {text}")).unwrap_or_default();
            (
                TestOutcome::Failed,
                format!("the model server of {name} failed{status}: {words}{own}"),
            )
        }
        _ => (TestOutcome::Failed, words.to_owned()),
    };
    tested.reason = Some(error.reason.to_string());
    tested.upstream_status = error.upstream_status;
}

fn late(tested: &Tested, admin: &AdminState, model: &Model) -> String {
    let line = admin.admission.outlook(&model.name);
    format!(
        "{} did not answer within {} ms; {} slots serve it and {:.1} slot seconds of work are in line",
        model.name, tested.latency_ms, line.slots, line.work,
    )
}

/// Why no worker takes a request for `model`, if none does.
fn nobody(admin: &AdminState, model: &Model) -> Option<String> {
    let workers = admin.admission.fleet().present();
    let serving = workers.iter().flat_map(|worker| {
        let served = worker.models.iter().filter(|served| served.model == model.name);
        served.map(move |served| (worker, served))
    });
    let serving: Vec<_> = serving.collect();
    let takes = |breaker| breaker != BreakerState::Tripped;
    if serving
        .iter()
        .any(|(worker, served)| !worker.draining && takes(served.breaker))
    {
        return None;
    }
    let name = &model.name;
    let Some((worker, served)) = serving.first() else {
        return Some(format!(
            "no worker serves {name}: {} workers are there, and the file of none names it",
            workers.len()
        ));
    };
    Some(match worker.draining {
        true => format!(
            "the worker {} that serves {name} is stopping, and there is no other",
            worker.worker
        ),
        false => format!(
            "the worker {} has stopped asking its model server {} for {name}, which keeps failing; its log says how",
            worker.worker, served.server
        ),
    })
}

fn beginning(text: &str) -> String {
    text.chars().take(MOST_TOLD).collect()
}
