//! `GET /audit/v1/events/{id}/bodies?reason=…`: prompt and answer of a request, for auditors who say why.

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use duo_contract::failure::FailureKind;
use http::HeaderValue;
use http::header::CACHE_CONTROL;
use serde::Deserialize;
use uuid::Uuid;

use super::error::{ApiError, Shape};
use crate::audit::reader::{ReadError, Reader};
use crate::caller::Caller;
use crate::request::ExchangeError;

/// The route; the caller's role is checked around it.
pub fn router(reader: Reader) -> Router {
    Router::new()
        .route("/audit/v1/events/{id}/bodies", get(bodies))
        .with_state(reader)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default)]
    reason: String,
}

async fn bodies(
    State(reader): State<Reader>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let answer = async {
        let Query(asked) = asked.map_err(|error| ApiError::invalid("", error.body_text()))?;
        let id = Uuid::try_parse(&id)
            .map_err(|_| ApiError::NotFound("a record's id is a UUID, as records have it".into()))?;
        reader.read(&caller.who, id, &asked.reason).await.map_err(problem)
    };
    match answer.await {
        Ok(kept) => {
            let mut response = axum::Json(kept).into_response();
            let headers = response.headers_mut();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => error.respond(Shape::Plain),
    }
}

fn problem(error: ReadError) -> ApiError {
    let unavailable = |reason, message: &str| {
        ApiError::Exchange(ExchangeError::new(FailureKind::ModelUnavailable, reason, message))
    };
    match &error {
        ReadError::NotFound(_) => ApiError::NotFound(error.to_string().into()),
        ReadError::Erased(..) => ApiError::Erased(error.to_string()),
        ReadError::NoReason => ApiError::invalid("reason", "say why, in 1 to 500 characters"),
        ReadError::NoMasterKey => unavailable("master_key_missing", &error.to_string()),
        ReadError::Unreadable(..) => {
            tracing::error!(error = %error, "a kept text cannot be opened");
            unavailable("body_unreadable", &error.to_string())
        }
        ReadError::Store(_) => {
            tracing::warn!(error = %error, "the audit log could not be read");
            unavailable(
                "database_unavailable",
                "the audit log cannot be read just now; try again",
            )
        }
    }
}
