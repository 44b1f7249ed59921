//! Responses: `/v1/responses`, as OpenAI's clients know them. A response is a job whose answer is a text: what it asks for goes
//! to the model server as a chat. With `background` the client leaves; without it this waits for the job.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use duo_contract::failure::FailureKind;
use duo_contract::name::Lane;
use duo_process::clock;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::error::ApiError;
use super::inbound::Inbound;
use super::jobs::correlation;
use super::kept::{Prefix, bulk, is_admin, is_theirs, respond};
use super::openai::{self, OPENAI_CHAT};
use super::state::ApiState;
use crate::caller::Caller;
use crate::jobs::follow::{Event, FollowError};
use crate::jobs::state::JobState;
use crate::jobs::work::{Form, JobWork, Outcome};
use crate::jobs::{DEADLINE, Found, Jobs};
use crate::request::{ExchangeError, ModelChoice, Work};
use crate::store::jobs::{JobRow, NewJob};

mod body;
mod events;
mod shown;

use body::Asked;
use shown::Shown;

/// How long a client that waits is waited with; its job is over by then.
const WAIT: Duration = Duration::from_secs(600);

fn jobs(api: &ApiState) -> Result<&Jobs, ApiError> {
    let none = || ApiError::NotFound("Not Found".into());
    api.jobs.as_ref().ok_or_else(none)
}

/// `POST /v1/responses`.
pub(super) async fn create(mut inbound: Inbound) -> Response {
    respond(try_create(&mut inbound).await)
}

async fn try_create(inbound: &mut Inbound) -> Result<Response, ApiError> {
    let feature = openai::feature(inbound, &OPENAI_CHAT)?;
    let body = inbound.bytes().await?;
    let asked = Asked::parse(&body)?;
    let choice = ModelChoice::Named(asked.model.clone());
    let routed = inbound.route(&feature, &choice, asked.stream)?;
    let chat = asked.chat();
    let request = openai::OpenAiRequest::parse(&chat, duo_contract::envelope::Endpoint::ChatCompletions)?;
    request
        .check_length(&routed.model)
        .map_err(|error| error.prompt_at("input"))?;
    let work = Work {
        endpoint: duo_contract::envelope::Endpoint::ChatCompletions,
        body: request.for_model_server(),
        stream: true,
        prompt: None,
        supersede_key: None,
    };
    inbound.api.exchange.can_record()?;
    let (jobs, id) = (jobs(&inbound.api)?, Uuid::now_v7());
    let input = jobs
        .seal(id, &JobWork::new(work, Form::Text))
        .map_err(crate::bulk::BulkError::Work)?;
    let (lane, within) = match asked.shown.background {
        true => (Lane::Background, DEADLINE),
        false => (routed.feature.lane, WAIT),
    };
    let job = NewJob {
        id,
        client: inbound.caller.share_key.clone(),
        client_limit: inbound.caller.limit,
        who: inbound.caller.who.clone(),
        feature: routed.feature.name.clone(),
        model: routed.model.name.clone(),
        lane,
        prompt: None,
        config_revision: routed.revision,
        traceparent: Some(inbound.record.traceparent().to_owned()),
        correlation_id: correlation(&inbound.headers),
        metadata: asked.metadata.clone(),
        callback: None,
        retry_of: None,
        deadline: clock::now() + within,
        input,
        key: None,
    };
    // First what makes it a response: without its job there is none.
    bulk(&inbound.api)?
        .keep_response(id, &asked.shown.to_bytes())
        .await?;
    jobs.submit(job).await?;
    inbound.record.note_job(id);
    inbound.record.answered();
    let leaving = (!asked.shown.background).then(|| Leaving {
        jobs: jobs.clone(),
        id: Some(id),
    });
    let response = Kept::find(&inbound.api, &inbound.caller, id).await?;
    if asked.stream {
        return events::follow(jobs, response, None, leaving).await;
    }
    match leaving {
        None => Ok(Json(response.shown()).into_response()),
        Some(leaving) => wait(jobs, response, leaving).await,
    }
}

/// Cancels the job of a client that leaves before its answer is there.
struct Leaving {
    jobs: Jobs,
    id: Option<Uuid>,
}

impl Leaving {
    /// It is there.
    fn over(&mut self) {
        self.id = None;
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let jobs = self.jobs.clone();
            tokio::spawn(async move {
                if let Err(error) = jobs.cancel(id, "its client, who left").await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "a response that nobody waits for was not cancelled");
                }
            });
        }
    }
}

/// Waits for the job, and answers as if there had been none.
async fn wait(jobs: &Jobs, mut response: Kept, mut leaving: Leaving) -> Result<Response, ApiError> {
    let mut follower = jobs.follow(response.row.id, None).await.map_err(unfollowed)?;
    while let Some(event) = follower.next().await.map_err(unfollowed)? {
        if let Event::End(found) = event {
            leaving.over();
            response.ended(*found)?;
            let row = &response.row;
            if row.state == JobState::Succeeded {
                return Ok(Json(response.shown()).into_response());
            }
            return Err(failed(row));
        }
    }
    Err(unfollowed(FollowError::Gone))
}

/// The error of a request whose job came to nothing.
fn failed(row: &JobRow) -> ApiError {
    let upstream_status = row.upstream_status.and_then(|status| u16::try_from(status).ok());
    let (kind, reason) = match (row.state, upstream_status) {
        (_, Some(400..=499)) => (FailureKind::InvalidRequest, "invalid_request"),
        (JobState::Expired, _) => (FailureKind::DeadlineExceeded, "deadline"),
        (JobState::Cancelled, _) => (FailureKind::Cancelled, "cancelled"),
        _ => (FailureKind::ModelServerFault, "model_server_fault"),
    };
    let message = row.message.clone().unwrap_or_default();
    ApiError::Exchange(ExchangeError {
        upstream_status,
        ..ExchangeError::new(kind, reason, message)
    })
}

fn unfollowed(error: FollowError) -> ApiError {
    match error {
        FollowError::Find(error) => error.into(),
        FollowError::Gone => Prefix::Response.missing(),
        FollowError::Nats => ApiError::Exchange(ExchangeError::new(
            FailureKind::ModelUnavailable,
            "queue_unavailable",
            error.to_string(),
        )),
    }
}

/// A response that is the caller's.
struct Kept {
    row: JobRow,
    outcome: Option<Outcome>,
    request: Shown,
}

impl Kept {
    async fn find(api: &ApiState, caller: &Caller, id: Uuid) -> Result<Self, ApiError> {
        let missing = || Prefix::Response.missing();
        let request = bulk(api)?.kept_response(id).await?.ok_or_else(missing)?;
        let request = Shown::read(&request).ok_or_else(missing)?;
        let found = jobs(api)?.find(id).await?.ok_or_else(missing)?;
        if !is_theirs(caller, &found.row().client) {
            return Err(missing());
        }
        let mut kept = Self {
            row: found.row().clone(),
            outcome: None,
            request,
        };
        kept.ended(found)?;
        Ok(kept)
    }

    /// As it stands now.
    fn ended(&mut self, found: Found) -> Result<(), ApiError> {
        match found {
            Found::Job(row, outcome) => {
                self.row = *row;
                self.outcome = outcome;
                Ok(())
            }
            Found::ResultGone(_) => {
                let message = "the response is not kept any more";
                Err(ApiError::NotFound(message.into()))
            }
        }
    }

    fn shown(&self) -> serde_json::Value {
        shown::response(&self.request, &self.row, self.outcome.as_ref())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    #[serde(default)]
    stream: bool,
    starting_after: Option<u64>,
    /// There is none, so that it is not included either way.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

/// `GET /v1/responses/{id}`.
pub(super) async fn one(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    from: Result<Query<From>, QueryRejection>,
) -> Response {
    respond(try_one(&api, &caller, &id, from).await)
}

async fn try_one(
    api: &ApiState,
    caller: &Caller,
    id: &str,
    from: Result<Query<From>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(from) = from.map_err(|error| ApiError::invalid("", error.body_text()))?;
    let response = Kept::find(api, caller, Prefix::Response.of_path(id)?).await?;
    if from.stream {
        return events::follow(jobs(api)?, response, from.starting_after, None).await;
    }
    if from.starting_after.is_some() {
        return Err(ApiError::invalid("starting_after", "goes with stream=true"));
    }
    Ok(Json(response.shown()).into_response())
}

/// `POST /v1/responses/{id}/cancel`.
pub(super) async fn cancel(Path(id): Path<String>, inbound: Inbound) -> Response {
    respond(try_cancel(&inbound, &id).await)
}

async fn try_cancel(inbound: &Inbound, id: &str) -> Result<Response, ApiError> {
    let (api, caller) = (&inbound.api, &inbound.caller);
    let response = Kept::find(api, caller, Prefix::Response.of_path(id)?).await?;
    if !response.request.background {
        let message = "only responses that were made with background: true can be cancelled";
        return Err(ApiError::invalid("response_id", message));
    }
    end(inbound, &response).await?;
    inbound.record.answered();
    let response = Kept::find(api, caller, response.row.id).await?;
    Ok(Json(response.shown()).into_response())
}

async fn end(inbound: &Inbound, response: &Kept) -> Result<(), ApiError> {
    inbound.record.note_job(response.row.id);
    let by = match is_admin(&inbound.caller) && response.row.client != inbound.caller.share_key {
        true => "an administrator",
        false => "its client",
    };
    Ok(jobs(&inbound.api)?.cancel(response.row.id, by).await?)
}

/// `DELETE /v1/responses/{id}`.
pub(super) async fn remove(Path(id): Path<String>, inbound: Inbound) -> Response {
    respond(try_remove(&inbound, &id).await)
}

async fn try_remove(inbound: &Inbound, id: &str) -> Result<Response, ApiError> {
    let id = Prefix::Response.of_path(id)?;
    let response = Kept::find(&inbound.api, &inbound.caller, id).await?;
    end(inbound, &response).await?;
    bulk(&inbound.api)?.store().delete_response(id).await?;
    inbound.record.answered();
    let body = json!({"id": Prefix::Response.show(id), "object": "response", "deleted": true});
    Ok(Json(body).into_response())
}
