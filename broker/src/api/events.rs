//! `GET /audit/v1/events`: the audit log, page by page, for auditors.

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use duo_contract::audit::{AuditKind, Outcome};
use duo_contract::failure::FailureKind;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::error::{ApiError, Shape};
use crate::exchange::ExchangeError;
use crate::store::audit_events::{Cursor, Filter, MAX_PAGE, Page};
use crate::store::{Store, StoreError};

/// Events on a page when the request names no number.
const DEFAULT_PAGE: u32 = 100;

/// The audit log's routes; the caller's role is checked around them.
pub fn router(store: Store) -> Router {
    Router::new()
        .route("/audit/v1/events", get(events))
        .with_state(store)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    limit: Option<u32>,
    cursor: Option<String>,
    feature: Option<String>,
    model: Option<String>,
    user: Option<String>,
    since: Option<String>,
    until: Option<String>,
    outcome: Option<String>,
    request_id: Option<String>,
    kind: Option<String>,
}

async fn events(State(store): State<Store>, asked: Result<Query<Asked>, QueryRejection>) -> Response {
    let answer = async {
        let Query(asked) = asked.map_err(|error| ApiError::invalid("query", error.body_text()))?;
        page(&store, asked).await
    };
    match answer.await {
        Ok(page) => axum::Json(page).into_response(),
        Err(error) => error.respond(Shape::Plain),
    }
}

async fn page(store: &Store, asked: Asked) -> Result<Page, ApiError> {
    let limit = asked.limit.unwrap_or(DEFAULT_PAGE);
    if limit == 0 || limit > MAX_PAGE {
        return Err(ApiError::invalid(
            "limit",
            format!("a page has 1 to {MAX_PAGE} events"),
        ));
    }
    let cursor = match &asked.cursor {
        Some(text) => Some(Cursor::parse(text).ok_or_else(|| {
            ApiError::invalid(
                "cursor",
                "that is no cursor; give back next_cursor of the page before",
            )
        })?),
        None => None,
    };
    store
        .audit_page(&asked.filter()?, limit, cursor.as_ref())
        .await
        .map_err(away)
}

impl Asked {
    fn filter(self) -> Result<Filter, ApiError> {
        Ok(Filter {
            since: moment("since", self.since.as_deref())?,
            until: moment("until", self.until.as_deref())?,
            outcome: word("outcome", self.outcome.as_deref(), |text| {
                text.parse::<Outcome>().ok()
            })?,
            request_id: word("request_id", self.request_id.as_deref(), |text| {
                Uuid::try_parse(text).ok()
            })?,
            kind: word("kind", self.kind.as_deref(), |text| {
                [AuditKind::Admitted, AuditKind::Ended]
                    .into_iter()
                    .find(|kind| kind.as_str() == text)
            })?,
            feature: self.feature,
            model: self.model,
            user: self.user,
        })
    }
}

fn moment(name: &str, text: Option<&str>) -> Result<Option<OffsetDateTime>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    OffsetDateTime::parse(text, &Rfc3339)
        .map(Some)
        .map_err(|_| ApiError::invalid(name, "a time looks like 2026-01-31T12:00:00Z"))
}

fn word<T>(name: &str, text: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    parse(text)
        .map(Some)
        .ok_or_else(|| ApiError::invalid(name, "unknown value"))
}

fn away(error: StoreError) -> ApiError {
    tracing::warn!(error = %error, "the audit log could not be read");
    ApiError::Exchange(ExchangeError::new(
        FailureKind::ModelUnavailable,
        "database_unavailable",
        "the audit log cannot be read just now; try again",
    ))
}
