//! `GET /v1/jobs/{id}/events`: server-sent events, from any place in the answer to the job's end.
//!
//! | event | id | data |
//! |---|---|---|
//! | `state` | – | the job, when it comes to be queued or running |
//! | `text` | place in the answer | `{"text": …}`: more of it |
//! | `restart` | – | `{"run": …}`: forget the text so far, another run begins it anew |
//! | `end` | – | the job with its result |
//!
//! Silence is filled with comments. After `end` the stream ends; one that ends without it was broken off: come
//! again with `Last-Event-ID`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{JobsError, find, jobs, respond, shown};
use crate::api::error::ApiError;
use crate::api::state::ApiState;
use crate::caller::Caller;
use crate::jobs::Found;
use crate::jobs::follow::{Event, FollowError, Follower, Place};
use crate::request::ExchangeError;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const CONTENT_TYPE: &str = "text/event-stream; charset=utf-8";
/// Silence after which a comment is sent.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING: &[u8] = b": waiting\n\n";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct From {
    /// As `Last-Event-ID`, for clients that cannot set headers.
    after: Option<String>,
}

/// `GET /v1/jobs/{id}/events`.
pub(in crate::api) async fn events(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<Uuid>, PathRejection>,
    from: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    respond(follow(&api, &caller, id, from, &headers).await)
}

async fn follow(
    api: &ApiState,
    caller: &Caller,
    id: Result<Path<Uuid>, PathRejection>,
    from: Result<Query<From>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<Response, JobsError> {
    let Query(from) = from.map_err(|error| ApiError::invalid("", error.body_text()))?;
    let header = headers
        .get(LAST_EVENT_ID)
        .map(|value| value.to_str().unwrap_or("?"));
    let after = header.or(from.after.as_deref()).filter(|text| !text.is_empty());
    let place = |text: &str| {
        let problem = "that is no id of an event of this job";
        text.parse::<Place>()
            .map_err(|()| ApiError::invalid("Last-Event-ID", problem))
    };
    let after = after.map(place).transpose()?;
    let jobs = jobs(api)?;
    let row = find(jobs, caller, id).await?;
    let follower = jobs.follow(row.row().id, after).await.map_err(refused)?;
    let mut response = Response::new(Body::from_stream(stream::unfold(Some(follower), step)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The next event, or a comment; an error breaks the stream off.
async fn step(follower: Option<Follower>) -> Option<(Result<Bytes, FollowError>, Option<Follower>)> {
    let mut follower = follower?;
    match tokio::time::timeout(PING_EVERY, follower.next()).await {
        Err(_) => Some((Ok(Bytes::from_static(PING)), Some(follower))),
        Ok(Ok(Some(event))) => Some((Ok(write(&event)), Some(follower))),
        Ok(Ok(None)) => None,
        Ok(Err(error)) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the events of a job are broken off"
            );
            Some((Err(error), None))
        }
    }
}

fn write(event: &Event) -> Bytes {
    let text = match event {
        Event::State(row) => one("state", None, &shown::job(row, None, None)),
        Event::Text { place, text } => one("text", Some(*place), &json!({"text": text})),
        Event::Restart { run } => one("restart", None, &json!({"run": run})),
        Event::End(found) => one("end", None, &ended(found)),
    };
    text.into()
}

fn ended(found: &Found) -> Value {
    match found {
        Found::Job(row, outcome) => shown::job(row, outcome.as_ref(), None),
        Found::ResultGone(row) => shown::job(row, None, None),
    }
}

/// JSON has no line break of its own, so one line of data will do.
fn one(name: &str, id: Option<Place>, data: &Value) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: {name}\n{id}data: {data}\n\n")
}

fn refused(error: FollowError) -> JobsError {
    match error {
        FollowError::Find(error) => error.into(),
        FollowError::Gone => ApiError::NotFound("there is no such job".into()).into(),
        FollowError::Nats => ApiError::Exchange(ExchangeError::new(
            duo_contract::failure::FailureKind::ModelUnavailable,
            "queue_unavailable",
            error.to_string(),
        ))
        .into(),
    }
}
