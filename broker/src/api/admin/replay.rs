//! Runs a dead letter again, as a request of the administrator's, and tells how it went.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use duo_contract::dead::DeadHead;
use duo_contract::failure::FailureKind;
use duo_contract::frame::Summary;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::AdminState;
use super::dead::{actor, parse, problem};
use super::openapi::Refusal;
use crate::api::error::{ApiError, Shape};
use crate::audit::OpenRecord;
use crate::caller::Caller;
use crate::exchange::Reply;
use crate::letters::LetterError;
use crate::request::{ExchangeError, ReplyEvent};

/// Longest answer that is told, in bytes; a longer one runs to its end all the same.
const MOST_ANSWER: usize = 8 << 20;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReplayHow {
    /// Keep the letter although its replay went well.
    #[serde(default)]
    keep: bool,
}

/// How a replay went.
#[derive(Debug, Serialize, ToSchema)]
struct Replayed {
    /// The replay's own request.
    #[schema(value_type = String, format = "uuid")]
    request_id: Uuid,
    /// The letter.
    #[schema(value_type = String, format = "uuid")]
    replay_of: Uuid,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Said>,
    /// Is the letter still there?
    letter_kept: bool,
}

/// How a replay ended.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Completed,
    Failed,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// What the model server said, in the form of the endpoint that it was asked at.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Said {
    /// The body of an answer that is no stream.
    Body(Members),
    /// The chunks of a stream.
    Chunks(Vec<Members>),
}

/// An object of the model server's, as it came.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(value_type = Object)]
struct Members(Map<String, Value>);

/// Run a dead letter again and wait for its end
#[utoipa::path(post, path = "/admin/v1/dead/{id}/replay", tag = "dead letters", operation_id = "replayDead",
    params(("id" = String, Path, description = "the request's id"), ReplayHow),
    responses((status = 200, description = "how it went", body = Replayed), Refusal))]
pub(super) async fn replay(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    asked: Result<Query<ReplayHow>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let Query(asked) = asked.map_err(|error| ApiError::invalid("", error.body_text()))?;
        let id = parse(id)?;
        let letter = admin.letters.whole(id, admin.dispatch.keys()).await;
        let (head, body) = letter.map_err(problem)?;
        // The route names the letter, so that the records of the two requests can be brought together.
        let route = format!("/admin/v1/dead/{id}/replay");
        let correlation_id = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        let record = admin.audit.open(
            caller.who.clone(),
            &route,
            correlation_id.map(str::to_owned),
            None,
        );
        match admin.exchange.replay(&caller, &record, &head, body).await {
            Ok(reply) => Ok(run(&admin, &caller, &record, &head, reply, asked.keep).await),
            Err(error) => {
                record.refuse(&error.reason);
                Err(ApiError::Exchange(error))
            }
        }
    };
    match answer.await {
        Ok(replayed) => axum::Json(replayed).into_response(),
        Err(error) => error.respond(Shape::Plain),
    }
}

async fn run(
    admin: &AdminState,
    caller: &Caller,
    record: &OpenRecord,
    head: &DeadHead,
    reply: Reply,
    keep: bool,
) -> Replayed {
    let began = Instant::now();
    let ended = whole(reply, head.stream).await;
    let duration = began.elapsed();
    let mut replayed = Replayed {
        request_id: record.request_id(),
        replay_of: head.request_id,
        outcome: Outcome::Failed,
        reason: None,
        message: None,
        duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        worker: None,
        input_tokens: None,
        output_tokens: None,
        answer: None,
        letter_kept: true,
    };
    match ended {
        Ok((summary, answer)) => {
            replayed.outcome = Outcome::Completed;
            replayed.worker = Some(summary.worker);
            replayed.input_tokens = summary.input_tokens;
            replayed.output_tokens = summary.output_tokens;
            replayed.answer = answer;
            // A letter that somebody else has removed meanwhile is gone too.
            replayed.letter_kept = keep || admin.letters.remove(head.request_id).await.is_err_and(is_there);
        }
        Err(error) => {
            replayed.reason = Some(error.reason.into_owned());
            replayed.message = Some(error.message);
        }
    }
    tracing::info!(
        request_id = %replayed.request_id,
        replay_of = %replayed.replay_of,
        actor = actor(caller),
        outcome = replayed.outcome.as_str(),
        letter_kept = replayed.letter_kept,
        "a dead letter was replayed"
    );
    replayed
}

fn is_there(error: LetterError) -> bool {
    !matches!(error, LetterError::NotFound(_))
}

/// Waits for the end; what was said, as JSON, unless it is too long to tell.
async fn whole(mut reply: Reply, stream: bool) -> Result<(Summary, Option<Said>), ExchangeError> {
    let mut said = Vec::new();
    let mut bytes = 0;
    while let Some(event) = reply.next().await {
        match event? {
            ReplyEvent::Chunks(chunks) => {
                bytes += chunks.len();
                if bytes <= MOST_ANSWER {
                    said.push(chunks);
                }
            }
            ReplyEvent::Done { summary, body } if !stream => {
                let answer = serde_json::from_slice(&body).ok().map(Said::Body);
                return Ok((summary, answer.filter(|_| body.len() <= MOST_ANSWER)));
            }
            ReplyEvent::Done { summary, .. } => {
                let lines = said.iter().flat_map(|chunks| chunks.split(|byte| *byte == b'\n'));
                let chunks = lines
                    .filter_map(|line| serde_json::from_slice(line).ok())
                    .collect();
                return Ok((summary, (bytes <= MOST_ANSWER).then_some(Said::Chunks(chunks))));
            }
        }
    }
    Err(ExchangeError::new(
        FailureKind::Internal,
        "read_twice",
        "the answer was read already",
    ))
}
