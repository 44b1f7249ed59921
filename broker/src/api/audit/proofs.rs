//! Checkpoints of the audit log, and proofs that lead to them.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{AuditState, Reader, away};
use crate::api::error::{ApiError, Shape};
use crate::audit::prove;
use crate::caller::Caller;

const CHECKPOINTS: &str = "/audit/v1/checkpoints";
const LATEST: &str = "/audit/v1/checkpoints/latest";
const PROOF: &str = "/audit/v1/events/{id}/proof";
const CONSISTENCY: &str = "/audit/v1/consistency";

/// Checkpoints on a page when the request names no number, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

pub(super) fn router() -> Router<Arc<AuditState>> {
    Router::new()
        .route(CHECKPOINTS, get(checkpoints))
        .route(LATEST, get(latest))
        .route(PROOF, get(proof))
        .route(CONSISTENCY, get(consistency))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pages {
    limit: Option<u32>,
    before: Option<i64>,
}

#[derive(Debug, Serialize)]
struct Page {
    checkpoints: Vec<Listed>,
    /// Give it back as `before` for the next page.
    next_before: Option<i64>,
}

#[derive(Debug, Serialize)]
struct Listed {
    id: i64,
    size: u64,
    root: String,
    #[serde(with = "time::serde::rfc3339::option")]
    signed_at: Option<OffsetDateTime>,
    note: String,
}

async fn checkpoints(
    State(state): State<Arc<AuditState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    asked: Result<Query<Pages>, QueryRejection>,
) -> Response {
    let answer = async {
        let Query(asked) = asked.map_err(|error| ApiError::invalid("", problem(&error)))?;
        let limit = asked.limit.unwrap_or(PAGE);
        if limit == 0 || limit > MAX_PAGE {
            let text = format!("a page has 1 to {MAX_PAGE} checkpoints");
            return Err(ApiError::invalid("limit", text));
        }
        let before = asked.before.unwrap_or(i64::MAX);
        let found = state.store.newest_checkpoints(before, limit).await;
        let found = found.map_err(away)?;
        let is_full = found.len() == limit as usize;
        let next_before = found.last().map(|(id, _)| *id).filter(|_| is_full);
        let listed = found.into_iter().map(|(id, checkpoint)| Listed {
            id,
            size: checkpoint.size,
            root: hex::encode(checkpoint.root),
            signed_at: checkpoint.at,
            note: checkpoint.note,
        });
        let checkpoints: Vec<_> = listed.collect();
        let details = serde_json::json!({
            "read": "checkpoints",
            "limit": limit,
            "before": asked.before,
            "rows": checkpoints.len(),
        });
        let reader = Reader::of(&caller, &headers);
        state.record(Uuid::now_v7(), reader, CHECKPOINTS, details).await?;
        Ok(Page {
            checkpoints,
            next_before,
        })
    };
    json(answer.await)
}

/// The newest checkpoint as it was signed. Monitors ask for it all the time, and it says nothing about anybody.
async fn latest(
    State(state): State<Arc<AuditState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let found = state.store.last_checkpoint().await.map_err(away)?;
        let details = serde_json::json!({"read": "checkpoint"});
        let reader = Reader::of(&caller, &headers);
        state.record_polling(reader, LATEST, details).await?;
        found.ok_or_else(|| none("there is no checkpoint yet"))
    };
    match answer.await {
        Ok(checkpoint) => {
            let text = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            (text, checkpoint.note).into_response()
        }
        Err(error) => error.respond(Shape::Plain),
    }
}

async fn proof(
    State(state): State<Arc<AuditState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let id = Uuid::try_parse(&id)
            .map_err(|_| ApiError::invalid("id", "has to be a UUID, as records have it"))?;
        let proofs = prove::records(&state.store, id).await.map_err(away)?;
        let rows = proofs.as_ref().map_or(0, |found| found.proofs.len());
        let details = serde_json::json!({"read": "proof", "request_id": id, "rows": rows});
        let reader = Reader::of(&caller, &headers);
        state.record(Uuid::now_v7(), reader, PROOF, details).await?;
        proofs.ok_or_else(|| none("there is no audit record about this id"))
    };
    json(answer.await)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    old: u64,
    new: u64,
}

async fn consistency(
    State(state): State<Arc<AuditState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    asked: Result<Query<Sizes>, QueryRejection>,
) -> Response {
    let answer = async {
        let Query(asked) = asked.map_err(|error| ApiError::invalid("", problem(&error)))?;
        if asked.old == 0 || asked.old > asked.new {
            return Err(ApiError::invalid("old", "has to be at least 1 and at most new"));
        }
        if asked.new > state.store.last_checkpoint_size().await.map_err(away)? {
            return Err(ApiError::invalid("new", "is more than any checkpoint has"));
        }
        let growth = prove::growth(&state.store, asked.old, asked.new).await;
        let growth = growth.map_err(away)?;
        let details = serde_json::json!({"read": "consistency", "old": asked.old, "new": asked.new});
        let reader = Reader::of(&caller, &headers);
        state.record(Uuid::now_v7(), reader, CONSISTENCY, details).await?;
        Ok(growth)
    };
    json(answer.await)
}

fn none(text: &'static str) -> ApiError {
    ApiError::NotFound(text.into())
}

fn json(answer: Result<impl Serialize, ApiError>) -> Response {
    match answer {
        Ok(answer) => axum::Json(answer).into_response(),
        Err(error) => error.respond(Shape::Plain),
    }
}

/// The parser's words without its own introduction: `limit: invalid digit found in string`.
fn problem(error: &QueryRejection) -> String {
    let text = error.body_text();
    text.strip_prefix("Failed to deserialize query string: ")
        .unwrap_or(&text)
        .to_owned()
}
