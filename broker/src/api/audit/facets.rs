//! `GET /audit/v1/facets`: how many records there are of each sort.

use std::sync::Arc;

use axum::extract::{Extension, State};
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
use crate::store::audit_facets::{Facet, Facets};

const FACETS: &str = "/audit/v1/facets";

pub(super) fn router() -> Router<Arc<AuditState>> {
    Router::new().route(FACETS, get(facets))
}

async fn facets(
    State(state): State<Arc<AuditState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    pairs: Pairs,
) -> Response {
    match counted(&state, Reader::of(&caller, &headers), pairs).await {
        Ok(facets) => Json(facets).into_response(),
        Err(error) => error.respond(Shape::Plain),
    }
}

async fn counted(state: &AuditState, reader: Reader, pairs: Pairs) -> Result<Facets, ApiError> {
    let mut parameters = Parameters::of(pairs)?;
    let by = match parameters.take("by").filter(|by| !by.is_empty()) {
        Some(by) => by
            .split(',')
            .map(|facet| facet.trim().parse())
            .collect::<Result<Vec<Facet>, String>>()
            .map_err(|problem| ApiError::invalid("by", problem))?,
        None => Facet::ALL.to_vec(),
    };
    let filter = parameters.filter()?;
    parameters.end()?;
    let facets = state.store.audit_facets(&filter, &by).await.map_err(away)?;
    let by: Vec<_> = by.iter().map(|facet| facet.as_str()).collect();
    let details = json!({"read": "facets", "filter": filter, "by": by, "records": facets.records});
    state.record(Uuid::now_v7(), reader, FACETS, details).await?;
    Ok(facets)
}
