//! `GET /audit/v1/events`: the audit log, page by page; and all records of one request.

use std::sync::Arc;

use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::HeaderMap;
use serde_json::json;
use uuid::Uuid;

use super::query::{Pairs, Parameters};
use super::{AuditState, Reader, away};
use crate::api::error::{ApiError, Shape};
use crate::caller::Caller;
use crate::store::audit_search::{Cursor, MAX_PAGE, Page};

const EVENTS: &str = "/audit/v1/events";
const EVENT: &str = "/audit/v1/events/{id}";
/// Events on a page when the request names no number.
const DEFAULT_PAGE: u32 = 100;

pub(super) fn router() -> Router<Arc<AuditState>> {
    Router::new().route(EVENTS, get(events)).route(EVENT, get(event))
}

async fn events(
    State(state): State<Arc<AuditState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    pairs: Pairs,
) -> Response {
    match page(&state, Reader::of(&caller, &headers), pairs).await {
        Ok(page) => Json(page).into_response(),
        Err(error) => error.respond(Shape::Plain),
    }
}

async fn page(state: &AuditState, reader: Reader, pairs: Pairs) -> Result<Page, ApiError> {
    let mut parameters = Parameters::of(pairs)?;
    let limit = parameters.number("limit", DEFAULT_PAGE, MAX_PAGE)?;
    let cursor = match parameters.take("cursor").filter(|text| !text.is_empty()) {
        Some(text) => Some(Cursor::parse(&text).ok_or_else(|| {
            ApiError::invalid(
                "cursor",
                "that is no cursor; give back next_cursor of the page before",
            )
        })?),
        None => None,
    };
    let filter = parameters.filter()?;
    parameters.end()?;
    let page = state.store.audit_page(&filter, limit, cursor.as_ref());
    let page = page.await.map_err(away)?;
    let details = json!({
        "read": "events",
        "filter": filter,
        "limit": limit,
        "cursor": cursor,
        "rows": page.events.len(),
    });
    state.record(Uuid::now_v7(), reader, EVENTS, details).await?;
    Ok(page)
}

async fn event(
    State(state): State<Arc<AuditState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    match request(&state, Reader::of(&caller, &headers), &id).await {
        Ok(page) => Json(page).into_response(),
        Err(error) => error.respond(Shape::Plain),
    }
}

async fn request(state: &AuditState, reader: Reader, id: &str) -> Result<serde_json::Value, ApiError> {
    let id = Uuid::try_parse(id).map_err(|_| ApiError::NotFound("a request's id is a UUID".into()))?;
    let events = state.store.audit_request(id).await.map_err(away)?;
    let details = json!({"read": "event", "request_id": id, "rows": events.len()});
    state.record(Uuid::now_v7(), reader, EVENT, details).await?;
    if events.is_empty() {
        return Err(ApiError::NotFound(
            "the audit log has no record of this id".into(),
        ));
    }
    Ok(json!({"events": events}))
}
