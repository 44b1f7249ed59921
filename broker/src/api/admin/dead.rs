//! Dead letters: list, show, drop.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use duo_contract::dead::DeadHead;
use duo_contract::failure::FailureKind;
use duo_contract::name::{FeatureName, ModelName};
use http::StatusCode;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::IntoParams;
use uuid::Uuid;

use super::AdminState;
use super::openapi::Refusal;
use crate::api::error::{ApiError, Shape};
use crate::caller::Caller;
use crate::letters::{Filter, LetterError, MAX_PAGE, Page};
use crate::request::ExchangeError;
use crate::store::StoreError;

/// Letters on a page when the request names no number.
const DEFAULT_PAGE: usize = 100;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Letters on a page, 1 to 1000; 100 without it.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<u64>,
    feature: Option<String>,
    model: Option<String>,
    /// The letter's reason or its kind.
    reason: Option<String>,
    /// Not before this moment, such as `2026-01-31T12:00:00Z`.
    since: Option<String>,
}

/// Dead letters, newest first
#[utoipa::path(get, path = "/admin/v1/dead", tag = "dead letters", operation_id = "listDead", params(Asked),
    responses((status = 200, description = "a page of them", body = Page), Refusal))]
pub(super) async fn list(
    State(admin): State<Arc<AdminState>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let answer = async {
        let Query(asked) = asked.map_err(|error| ApiError::invalid("", error.body_text()))?;
        page(&admin, asked).await
    };
    respond(answer.await)
}

/// One dead letter
#[utoipa::path(get, path = "/admin/v1/dead/{id}", tag = "dead letters", operation_id = "showDead",
    params(("id" = String, Path, description = "the request's id")),
    responses((status = 200, description = "the letter", body = DeadHead), Refusal))]
pub(super) async fn show(
    State(admin): State<Arc<AdminState>>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let answer = async { admin.letters.head(parse(id)?).await.map_err(problem) };
    respond(answer.await)
}

/// Remove a dead letter
///
/// The record of it comes first, so that nothing vanishes without one.
#[utoipa::path(delete, path = "/admin/v1/dead/{id}", tag = "dead letters", operation_id = "dropDead",
    params(("id" = String, Path, description = "the request's id")),
    responses((status = 204, description = "it is gone"), Refusal))]
pub(super) async fn drop_one(
    State(admin): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let answer = async {
        let head = admin.letters.head(parse(id)?).await.map_err(problem)?;
        let actor = actor(&caller);
        admin
            .store
            .record_letter_drop(&actor, &head)
            .await
            .map_err(|error| away(&error))?;
        admin.letters.remove(head.request_id).await.map_err(problem)?;
        tracing::info!(request_id = %head.request_id, actor, "a dead letter was dropped");
        Ok::<_, ApiError>(())
    };
    match answer.await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => error.respond(Shape::Plain),
    }
}

fn respond<T: serde::Serialize>(answer: Result<T, ApiError>) -> Response {
    match answer {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => error.respond(Shape::Plain),
    }
}

async fn page(admin: &AdminState, asked: Asked) -> Result<Page, ApiError> {
    let limit = asked.limit.unwrap_or(DEFAULT_PAGE);
    if limit == 0 || limit > MAX_PAGE {
        return Err(ApiError::invalid(
            "limit",
            format!("a page has 1 to {MAX_PAGE} letters"),
        ));
    }
    let cursor = asked.cursor;
    let filter = asked.filter()?;
    admin.letters.page(&filter, limit, cursor).await.map_err(problem)
}

impl Asked {
    fn filter(self) -> Result<Filter, ApiError> {
        let name = |field: &str, error: &dyn std::error::Error| ApiError::invalid(field, error.to_string());
        let feature = self.feature.as_deref().map(FeatureName::parse).transpose();
        let model = self.model.as_deref().map(ModelName::parse).transpose();
        Ok(Filter {
            feature: feature.map_err(|error| name("feature", &error))?,
            model: model.map_err(|error| name("model", &error))?,
            reason: self.reason,
            since_ms: self.since.as_deref().map(since).transpose()?,
        })
    }
}

fn since(text: &str) -> Result<u64, ApiError> {
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| ApiError::invalid("since", "a time looks like 2026-01-31T12:00:00Z"))?;
    Ok(u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).unwrap_or(0))
}

/// A letter's id.
pub(super) fn parse(id: Result<Path<String>, PathRejection>) -> Result<Uuid, ApiError> {
    id.ok()
        .and_then(|Path(text)| Uuid::try_parse(&text).ok())
        .ok_or_else(|| ApiError::invalid("id", "has to be the UUID of a request"))
}

/// Whom a change is recorded under.
pub(super) fn actor(caller: &Caller) -> String {
    let id = caller.who.token_id.as_deref().unwrap_or("unknown");
    format!("token:{id}")
}

pub(super) fn problem(error: LetterError) -> ApiError {
    match &error {
        LetterError::NotFound(_) => ApiError::NotFound(error.to_string().into()),
        LetterError::NoBody(_) => ApiError::Conflict(error.to_string()),
        LetterError::Unreadable(cause) => {
            tracing::error!(error = %cause, "a dead letter cannot be opened");
            ApiError::Conflict(format!("{error}: {cause}"))
        }
        LetterError::Unavailable(_) => {
            tracing::warn!(error = %error, "dead letters cannot be read");
            ApiError::Exchange(ExchangeError::new(
                FailureKind::ModelUnavailable,
                "queue_unavailable",
                "the dead letters cannot be read just now; try again",
            ))
        }
    }
}

fn away(error: &StoreError) -> ApiError {
    tracing::warn!(error = %error, "a drop cannot be recorded, so it is not done");
    ApiError::Exchange(ExchangeError::new(
        FailureKind::ModelUnavailable,
        "database_unavailable",
        "a drop is recorded in the database, which is not available just now; try again",
    ))
}
