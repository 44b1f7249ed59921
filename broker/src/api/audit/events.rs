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

use crate::api::error::{ApiError, Shape};
use crate::request::ExchangeError;
use crate::store::audit_events::{Cursor, Filter, MAX_PAGE, Page};
use crate::store::{Store, StoreError};

/// Events on a page when the request names no number.
const DEFAULT_PAGE: u32 = 100;

pub(super) fn router(store: Store) -> Router {
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
        let Query(asked) = asked.map_err(|error| ApiError::invalid("", problem(&error)))?;
        page(&store, asked).await
    };
    match answer.await {
        Ok(page) => axum::Json(page).into_response(),
        Err(error) => error.respond(Shape::Plain),
    }
}

/// The parser's words without its own introduction: `limit: invalid digit found in string`.
pub(super) fn problem(error: &QueryRejection) -> String {
    let text = error.body_text();
    text.strip_prefix("Failed to deserialize query string: ")
        .unwrap_or(&text)
        .to_owned()
}

async fn page(store: &Store, asked: Asked) -> Result<Page, ApiError> {
    let limit = asked.limit.unwrap_or(DEFAULT_PAGE);
    if limit == 0 || limit > MAX_PAGE {
        return Err(ApiError::invalid(
            "limit",
            format!("a page has 1 to {MAX_PAGE} events"),
        ));
    }
    let cursor = match asked.cursor.as_deref().filter(|text| !text.is_empty()) {
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
            outcome: word(
                "outcome",
                self.outcome.as_deref(),
                &Outcome::ALL.map(|outcome| (outcome.as_str(), outcome)),
            )?,
            request_id: id("request_id", self.request_id.as_deref())?,
            kind: word(
                "kind",
                self.kind.as_deref(),
                &AuditKind::ALL.map(|kind| (kind.as_str(), kind)),
            )?,
            feature: without_nul("feature", self.feature)?,
            model: without_nul("model", self.model)?,
            user: without_nul("user", self.user)?,
        })
    }
}

/// PostgreSQL has no text with a NUL in it, so no record does.
fn without_nul(name: &str, text: Option<String>) -> Result<Option<String>, ApiError> {
    if text.as_ref().is_some_and(|text| text.contains('\0')) {
        return Err(ApiError::invalid(name, "may hold no NUL character"));
    }
    Ok(text)
}

fn moment(name: &str, text: Option<&str>) -> Result<Option<OffsetDateTime>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    OffsetDateTime::parse(text, &Rfc3339)
        .map(Some)
        .map_err(|_| ApiError::invalid(name, "a time looks like 2026-01-31T12:00:00Z"))
}

fn id(name: &str, text: Option<&str>) -> Result<Option<Uuid>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    Uuid::try_parse(text)
        .map(Some)
        .map_err(|_| ApiError::invalid(name, "has to be a UUID, as records have it"))
}

fn word<T: Copy>(name: &str, text: Option<&str>, known: &[(&str, T)]) -> Result<Option<T>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
        return Ok(Some(*value));
    }
    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    Err(ApiError::invalid(
        name,
        format!("has to be one of {}", words.join(", ")),
    ))
}

pub(super) fn away(error: StoreError) -> ApiError {
    tracing::warn!(error = %error, "the audit log could not be read");
    ApiError::Exchange(ExchangeError::new(
        FailureKind::ModelUnavailable,
        "database_unavailable",
        "the audit log cannot be read just now; try again",
    ))
}
