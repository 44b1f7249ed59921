//! Jobs: `/v1/jobs`, where a client submits and leaves.
//!
//! | status | when |
//! |---|---|
//! | 202 | accepted: in the database, whatever happens now |
//! | 200 | the job as it stands; a cancellation, however often |
//! | 400 | the body is no JSON, the idempotency key none |
//! | 404 | there is no such job, or it is somebody else's |
//! | 409 | the idempotency key is being used at this moment |
//! | 410 | the job's result, or the job, is past keeping |
//! | 422 | a field is missing, unknown or wrong; the key was used for another job |
//! | 429 | too many jobs wait |
//! | 503 | the database is away |

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use duo_contract::failure::FailureKind;
use duo_contract::snapshot::Role;
use duo_process::clock;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::error::{ApiError, Refused, Shape};
use super::inbound::Inbound;
use super::state::ApiState;
use crate::caller::Caller;
use crate::jobs::accept::AcceptError;
use crate::jobs::{FindError, Found, Jobs};
use crate::request::ExchangeError;
use crate::store::StoreError;
use crate::store::jobs::{Filter, JobRow, day};

mod body;
mod events;
mod key;
mod shown;

pub(super) use body::{correlation, metadata};
pub(super) use events::events;

/// Jobs on a page when the request names no number.
const DEFAULT_PAGE: u32 = 20;
/// Set on the answer to a submission that was made before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// When to ask again where a key is being used.
const KEY_RETRY: Duration = Duration::from_secs(1);
/// When to submit again where too much waits.
const BACKLOG_RETRY: Duration = Duration::from_secs(30);

/// What a job's endpoints refuse in words of their own.
#[derive(Debug)]
pub(super) enum JobsError {
    /// In the words of administration and audit.
    Api(ApiError),
    /// A status with its code and what to do.
    Own {
        status: StatusCode,
        code: &'static str,
        message: String,
        retry_after: Option<Duration>,
    },
}

impl From<ApiError> for JobsError {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<StoreError> for JobsError {
    fn from(error: StoreError) -> Self {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "jobs cannot be read or written"
        );
        let message = "the database is not available just now; try again";
        ApiError::Exchange(ExchangeError {
            retry_after: Some(KEY_RETRY),
            ..ExchangeError::new(FailureKind::ModelUnavailable, "database_unavailable", message)
        })
        .into()
    }
}

impl From<FindError> for JobsError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Store(error) => error.into(),
            FindError::Work(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a job's result cannot be opened"
                );
                ApiError::Exchange(ExchangeError::new(FailureKind::Internal, "result_unreadable", "")).into()
            }
        }
    }
}

impl From<AcceptError> for JobsError {
    fn from(error: AcceptError) -> Self {
        let message = error.to_string();
        let own = |status, code, retry_after| Self::Own {
            status,
            code,
            message,
            retry_after,
        };
        match error {
            AcceptError::BeingCreated => own(StatusCode::CONFLICT, "idempotency_key_in_use", Some(KEY_RETRY)),
            AcceptError::OtherContent => {
                own(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", None)
            }
            AcceptError::ClientBacklog(_) | AcceptError::Backlog => own(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_jobs",
                Some(BACKLOG_RETRY),
            ),
            AcceptError::Busy => own(
                StatusCode::SERVICE_UNAVAILABLE,
                "database_unavailable",
                Some(KEY_RETRY),
            ),
            AcceptError::Store(error) => error.into(),
        }
    }
}

impl JobsError {
    fn respond(self) -> Response {
        match self {
            Self::Api(error) => error.respond(Shape::Plain),
            Self::Own {
                status,
                code,
                message,
                retry_after,
            } => {
                let body = json!({"error": code, "message": message});
                let mut response = (status, Json(body)).into_response();
                if let Some(after) = retry_after {
                    let seconds = HeaderValue::from(after.as_secs());
                    response.headers_mut().insert(header::RETRY_AFTER, seconds);
                }
                response.extensions_mut().insert(Refused(code.into()));
                response
            }
        }
    }
}

fn respond(result: Result<Response, JobsError>) -> Response {
    result.unwrap_or_else(JobsError::respond)
}

fn jobs(api: &ApiState) -> Result<&Jobs, JobsError> {
    let none = || ApiError::NotFound("Not Found".into()).into();
    api.jobs.as_ref().ok_or_else(none)
}

/// `POST /v1/jobs`.
pub(super) async fn submit(mut inbound: Inbound) -> Response {
    respond(try_submit(&mut inbound).await)
}

async fn try_submit(inbound: &mut Inbound) -> Result<Response, JobsError> {
    let key = key::read(&inbound.headers)?;
    let body = inbound.json().await?;
    let job = body::read(inbound, &body, key).await?;
    let id = job.id;
    let accepted = jobs(&inbound.api)?.submit(job).await?;
    inbound.record.note_job(accepted);
    inbound.record.answered();
    let links = shown::links(accepted);
    let body = json!({"id": accepted, "object": "job", "state": "queued", "links": links});
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/jobs/{accepted}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if accepted != id {
        let replayed = HeaderValue::from_static("true");
        response.headers_mut().insert(REPLAYED, replayed);
    }
    Ok(response)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    state: Option<String>,
    feature: Option<String>,
    model: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// `GET /v1/jobs`.
pub(super) async fn list(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    respond(try_list(&api, &caller, asked).await)
}

async fn try_list(
    api: &ApiState,
    caller: &Caller,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, JobsError> {
    let Query(asked) = asked.map_err(|error| ApiError::invalid("", error.body_text()))?;
    let limit = asked.limit.unwrap_or(DEFAULT_PAGE);
    if limit == 0 || limit > crate::store::jobs::MAX_PAGE {
        let problem = format!("a page has 1 to {} jobs", crate::store::jobs::MAX_PAGE);
        return Err(ApiError::invalid("limit", problem).into());
    }
    let state = asked.state.as_deref().map(str::parse).transpose();
    let cursor = asked.cursor.as_deref().map(Uuid::try_parse).transpose();
    let filter = Filter {
        client: (!is_admin(caller)).then(|| caller.share_key.clone()),
        state: state.map_err(|problem: String| ApiError::invalid("state", problem))?,
        feature: asked.feature,
        model: asked.model,
    };
    for (name, text) in [("feature", &filter.feature), ("model", &filter.model)] {
        if text.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(ApiError::invalid(name, "may hold no NUL character").into());
        }
    }
    let cursor = cursor.map_err(|_| {
        ApiError::invalid(
            "cursor",
            "that is no cursor; give back next_cursor of the page before",
        )
    })?;
    let page = jobs(api)?.page(&filter, limit, cursor).await?;
    let shown: Vec<_> = page.jobs.iter().map(|row| shown::job(row, None, None)).collect();
    Ok(Json(json!({"jobs": shown, "next_cursor": page.next})).into_response())
}

/// `GET /v1/jobs/{id}`.
pub(super) async fn one(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<Uuid>, PathRejection>,
) -> Response {
    respond(try_one(&api, &caller, id).await)
}

async fn try_one(
    api: &ApiState,
    caller: &Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, JobsError> {
    let jobs = jobs(api)?;
    let found = find(jobs, caller, id).await?;
    show(jobs, found).await
}

async fn show(jobs: &Jobs, found: Found) -> Result<Response, JobsError> {
    match found {
        Found::Job(row, outcome) => {
            let place = match row.state {
                crate::jobs::state::JobState::Queued => Some(jobs.position(&row).await?),
                _ => None,
            };
            Ok(Json(shown::job(&row, outcome.as_ref(), place)).into_response())
        }
        Found::ResultGone(row) => {
            let message = "the job succeeded, but its result is not kept any more";
            let job = shown::job(&row, None, None);
            let body = json!({"error": "result_expired", "message": message, "job": job});
            Ok((StatusCode::GONE, Json(body)).into_response())
        }
    }
}

/// The caller's job of that id.
async fn find(
    jobs: &Jobs,
    caller: &Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Found, JobsError> {
    let Path(id) = id.map_err(|_| nobodys())?;
    match jobs.find(id).await? {
        Some(found) if is_theirs(caller, found.row()) => Ok(found),
        Some(_) => Err(nobodys()),
        None if jobs.is_past_keeping(day(id), clock::now().date()) => Err(JobsError::Own {
            status: StatusCode::GONE,
            code: "job_expired",
            message: "jobs of that day are not kept any more".to_owned(),
            retry_after: None,
        }),
        None => Err(nobodys()),
    }
}

fn nobodys() -> JobsError {
    ApiError::NotFound("there is no such job".into()).into()
}

fn is_theirs(caller: &Caller, row: &JobRow) -> bool {
    row.client == caller.share_key || is_admin(caller)
}

fn is_admin(caller: &Caller) -> bool {
    caller.role() == Some(Role::Admin)
}

/// `DELETE /v1/jobs/{id}`.
pub(super) async fn cancel(id: Result<Path<Uuid>, PathRejection>, inbound: Inbound) -> Response {
    respond(try_cancel(&inbound, id).await)
}

async fn try_cancel(inbound: &Inbound, id: Result<Path<Uuid>, PathRejection>) -> Result<Response, JobsError> {
    let jobs = jobs(&inbound.api)?;
    let found = find(jobs, &inbound.caller, id).await?;
    let id = found.row().id;
    inbound.record.note_job(id);
    let by = match is_admin(&inbound.caller) && found.row().client != inbound.caller.share_key {
        true => "an administrator",
        false => "its client",
    };
    jobs.cancel(id, by).await?;
    inbound.record.answered();
    let now = jobs.find(id).await?.ok_or_else(nobodys)?;
    Ok(Json(shown::job(now.row(), None, None)).into_response())
}
