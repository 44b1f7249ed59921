//! What every look at the configuration and every edit of it share: body, revision, plan, answer.
//!
//! The revision of the configuration is the `ETag` of each of its resources. An edit says by `If-Match` which one it
//! starts from; what it wants goes the way of a configuration file, so the same rules hold.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{ExtensionRejection, PathRejection};
use axum::extract::{Extension, FromRequest, FromRequestParts, Path, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use duo_contract::failure::FailureKind;
use duo_contract::name::{FeatureName, ModelName};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::Value;

use super::AdminState;
use super::dead::actor;
use crate::api::error::{ApiError, Shape};
use crate::api::inbound;
use crate::caller::Caller;
use crate::config_file::resource::{self, Target, Wish};
use crate::config_file::{Applied, ApplyError};
use crate::prompt;
use crate::request::ExchangeError;
use crate::store::StoreError;
use crate::store::snapshot::ConfigState;

/// A body, or why it cannot be read.
pub(super) struct Payload(pub(super) Result<Bytes, ApiError>);

impl<S: Send + Sync> FromRequest<S> for Payload {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        let (parts, body) = request.into_parts();
        Ok(Self(inbound::read(&parts.headers, body).await))
    }
}

impl Payload {
    /// The body as JSON.
    pub(super) fn json(self) -> Result<Value, ApiError> {
        serde_json::from_slice(&self.0?).map_err(|_| ApiError::Malformed)
    }
}

/// The revision that an edit starts from: none for `*`, which is whatever is there.
pub(super) struct Seen(Result<Option<u64>, ApiError>);

impl<S: Send + Sync> FromRequestParts<S> for Seen {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else {
            return Ok(Self(Err(ApiError::NoRevision)));
        };
        Ok(Self(value.to_str().ok().and_then(seen).ok_or_else(|| {
            ApiError::invalid(
                "If-Match",
                "has to be the ETag of what you read, such as \"17\", or *",
            )
        })))
    }
}

impl Seen {
    pub(super) fn revision(self) -> Result<Option<u64>, ApiError> {
        self.0
    }
}

fn seen(text: &str) -> Option<Option<u64>> {
    let text = text.trim();
    if text == "*" {
        return Some(None);
    }
    let text = text.strip_prefix("W/").unwrap_or(text);
    text.trim_matches('"').parse().ok().map(Some)
}

/// Shows what `find` finds in the configuration of the moment.
pub(super) async fn show<T: Serialize>(
    admin: &AdminState,
    find: impl FnOnce(&ConfigState) -> Result<T, ApiError>,
) -> Answer {
    let state = state(admin).await?;
    Ok(at_revision(state.revision, StatusCode::OK, &find(&state)?))
}

/// An edit: who makes it and what it starts from.
pub(super) struct Edit {
    admin: Arc<AdminState>,
    caller: Caller,
    seen: Seen,
}

impl FromRequestParts<Arc<AdminState>> for Edit {
    type Rejection = ExtensionRejection;

    async fn from_request_parts(
        parts: &mut Parts,
        admin: &Arc<AdminState>,
    ) -> Result<Self, ExtensionRejection> {
        let Extension(caller) = Extension::<Caller>::from_request_parts(parts, admin).await?;
        let Ok(seen) = Seen::from_request_parts(parts, admin).await;
        Ok(Self {
            admin: Arc::clone(admin),
            caller,
            seen,
        })
    }
}

impl Edit {
    /// Makes one resource what `payload` says, and shows what `find` finds then: 201 where it is new.
    pub(super) async fn put<T: Serialize>(
        self,
        target: Target,
        payload: Payload,
        find: impl FnOnce(&ConfigState) -> Result<T, ApiError>,
    ) -> Answer {
        let expected = self.seen.revision()?;
        let wish = Wish::read(target, payload.json()?, &prompt::check).map_err(ApiError::Problems)?;
        let applied = apply(&self.admin, &self.caller, &wish, expected).await?;
        let is_new = applied.edits.iter().any(|edit| edit.record().before.is_none());
        let status = if is_new {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        Ok(at_revision(applied.revision, status, &find(&applied.state)?))
    }

    /// Removes one resource.
    pub(super) async fn remove(self, target: Target) -> Answer {
        let expected = self.seen.revision()?;
        let applied = apply(&self.admin, &self.caller, &Wish::removal(target), expected).await?;
        let mut response = StatusCode::NO_CONTENT.into_response();
        tag(&mut response, applied.revision);
        Ok(response)
    }
}

async fn apply(
    admin: &AdminState,
    caller: &Caller,
    wish: &Wish,
    expected: Option<u64>,
) -> Result<Applied, ApiError> {
    let actor = actor(caller);
    let applied = resource::apply(&admin.store, wish, &actor, expected, &prompt::check).await;
    let applied = applied.map_err(refused)?;
    tell(&actor, &applied);
    Ok(applied)
}

/// One line for the log; the record of the change is in the database.
pub(super) fn tell(actor: &str, applied: &Applied) {
    if !applied.edits.is_empty() {
        let changes = applied.edits.len();
        tracing::info!(
            actor,
            revision = applied.revision,
            changes,
            "the configuration was changed"
        );
    }
}

/// The configuration of the moment, as Postgres has it.
pub(super) async fn state(admin: &AdminState) -> Result<ConfigState, ApiError> {
    admin.store.config_state().await.map_err(|error| stored(&error))
}

/// Why a change was not made.
pub(super) fn refused(error: ApplyError) -> ApiError {
    match error {
        ApplyError::Refused(problems) => ApiError::Problems(problems),
        ApplyError::Stale { expected, current } => ApiError::Stale { expected, current },
        ApplyError::Absent(message) => ApiError::NotFound(message.into()),
        ApplyError::Store(error) => stored(&error),
    }
}

/// Why the database did not do it.
pub(super) fn stored(error: &StoreError) -> ApiError {
    match error {
        StoreError::NotFound(message) => ApiError::NotFound(message.clone().into()),
        StoreError::Conflict(message) => ApiError::Conflict(message.clone()),
        StoreError::Unavailable(_) => {
            tracing::warn!(error = %error, "administration waits for the database in vain");
            ApiError::Exchange(ExchangeError::new(
                FailureKind::ModelUnavailable,
                "database_unavailable",
                "the database is not available just now; look whether the change was made, and try again",
            ))
        }
        _ => {
            tracing::error!(error = %error, "the database refused what an administrator asked");
            ApiError::Exchange(ExchangeError::new(
                FailureKind::Internal,
                "database_refused",
                "the database refused the change; the broker's log says why",
            ))
        }
    }
}

/// JSON with the revision that it shows as its `ETag`.
pub(super) fn at_revision<T: Serialize>(revision: u64, status: StatusCode, value: &T) -> Response {
    let mut response = (status, Json(value)).into_response();
    tag(&mut response, revision);
    response
}

pub(super) fn tag(response: &mut Response, revision: u64) {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    // Whoever reads is to see the moment, and no proxy is to keep what only administrators may see.
    let none = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, none);
}

/// An answer, or why there is none.
pub(super) type Answer = Result<Response, NotDone>;

/// A refusal or a failure, told in the shape of administration.
pub(super) struct NotDone(ApiError);

impl From<ApiError> for NotDone {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for NotDone {
    fn into_response(self) -> Response {
        self.0.respond(Shape::Plain)
    }
}

/// What the path says.
pub(super) type Said = Result<Path<String>, PathRejection>;

/// What the path says, as it is.
pub(super) fn text(said: Said) -> Result<String, ApiError> {
    match said {
        Ok(Path(text)) if !text.is_empty() => Ok(text),
        _ => Err(ApiError::NotFound("Not Found".into())),
    }
}

/// The model that the path says.
pub(super) fn model(text: &str) -> Result<ModelName, ApiError> {
    ModelName::parse(text).map_err(|error| ApiError::invalid("name", error.to_string()))
}

/// The feature that the path says; none has a name that cannot be one.
pub(super) fn feature(text: &str) -> Result<FeatureName, ApiError> {
    FeatureName::parse(text).map_err(|_| ApiError::NotFound(format!("there is no feature {text:?}").into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_read_in_every_form_of_an_etag() {
        for text in ["\"17\"", "17", "W/\"17\"", " \"17\" "] {
            assert_eq!(seen(text), Some(Some(17)), "{text}");
        }
        assert_eq!(seen("*"), Some(None));
        for text in ["", "\"\"", "abc", "\"1\", \"2\"", "-1"] {
            assert_eq!(seen(text), None, "{text}");
        }
    }
}
