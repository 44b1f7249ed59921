//! A known caller's request on its way through a handler.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use duo_contract::name::FeatureName;
use http::{HeaderMap, StatusCode, Uri, header};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::ApiError;
use super::fields::Fields;
use super::state::ApiState;
use crate::audit::OpenRecord;
use crate::caller::{Caller, Grant};
use crate::exchange::Reply;
use crate::request::{ModelChoice, RoutedRequest, Work};

/// Largest body that is read, in bytes: chats with attached files need more
/// than 2 MiB, and an envelope has to fit into a message of the queue.
pub(super) const MAX_BODY: usize = 4 * 1024 * 1024;
/// How long a refused client may go on writing.
pub(super) const REFUSED_WITHIN: Duration = Duration::from_secs(2);
/// How long a body may take to arrive.
pub(super) const BODY_WITHIN: Duration = Duration::from_secs(30);

/// What a handler starts from.
pub(super) struct Inbound {
    pub(super) api: Arc<ApiState>,
    pub(super) caller: Caller,
    pub(super) record: OpenRecord,
    pub(super) headers: HeaderMap,
    pub(super) uri: Uri,
    /// Behind a lock only so that a handler may lend itself across an await.
    body: Mutex<Body>,
}

impl FromRequest<Arc<ApiState>> for Inbound {
    type Rejection = Response;

    async fn from_request(request: Request, api: &Arc<ApiState>) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let mut extensions = parts.extensions;
        let (Some(caller), Some(record)) = (extensions.remove(), extensions.remove()) else {
            return Err(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        };
        Ok(Self {
            api: Arc::clone(api),
            caller,
            record,
            headers: parts.headers,
            uri: parts.uri,
            body: Mutex::new(body),
        })
    }
}

impl Inbound {
    /// A GitLab token needs one of `scopes`, an API token the feature.
    pub(super) fn require(
        &self,
        scopes: &[&str],
        feature: &FeatureName,
        refusal: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Result<(), ApiError> {
        let allowed = match &*self.caller.grant {
            Grant::GitLab { .. } => scopes.iter().any(|scope| self.caller.has_scope(scope)),
            Grant::ApiToken { .. } => self.caller.may_use(feature),
            // The one endpoint that is open to it does not ask.
            Grant::Direct => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(ApiError::Forbidden(refusal.into()))
        }
    }

    /// The first gate, before the body is read where the path tells the feature.
    pub(super) fn gate(&self, feature: &FeatureName) -> Result<(), ApiError> {
        self.record.note(Some(feature), None, false);
        Ok(self.api.exchange.gate(&self.caller, &self.record, feature)?)
    }

    /// The body of a GitLab endpoint, which insists on JSON by name.
    pub(super) async fn json(&mut self) -> Result<Bytes, ApiError> {
        let named = self
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let essence = named
            .and_then(|value| value.split(';').next())
            .unwrap_or_default()
            .trim();
        if !is_json(essence) {
            return Err(ApiError::NotJson);
        }
        self.bytes().await
    }

    /// The body, whatever it is called.
    pub(super) async fn bytes(&mut self) -> Result<Bytes, ApiError> {
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        read(&self.headers, std::mem::take(body)).await
    }

    /// The body as it comes, for a handler that bounds it itself.
    pub(super) fn body(&mut self) -> Result<Body, ApiError> {
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        as_it_is(&self.headers)?;
        Ok(std::mem::take(body))
    }

    /// Whether the body asks for a stream, for an answer that depends on it
    /// although the request is refused.
    pub(super) async fn wants_stream(&mut self) -> bool {
        let body = tokio::time::timeout(REFUSED_WITHIN, self.bytes()).await;
        match body {
            Ok(Ok(body)) => Fields::parse(&body).is_ok_and(|fields| fields.flag("stream").unwrap_or(false)),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Finds the model that will answer.
    pub(super) fn route(
        &self,
        feature: &FeatureName,
        choice: &ModelChoice,
        stream: bool,
    ) -> Result<RoutedRequest, ApiError> {
        self.record.note(Some(feature), None, stream);
        let routed = self
            .api
            .exchange
            .route(&self.caller, &self.record, feature, choice)?;
        self.record.note(Some(feature), Some(&routed.model.name), stream);
        Ok(routed)
    }

    /// Queues the request; the answer follows.
    pub(super) async fn send(&self, routed: &RoutedRequest, work: Work) -> Result<Reply, ApiError> {
        let sent = self.api.exchange.send(&self.caller, &self.record, routed, work);
        Ok(sent.await?)
    }
}

/// Reads a body, within its bounds of size and time.
pub(super) async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    as_it_is(headers)?;
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(ApiError::TooLarge(MAX_BODY));
    }
    let body = Limited::new(body, MAX_BODY);
    match tokio::time::timeout(BODY_WITHIN, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge(MAX_BODY)),
        Ok(Err(_)) | Err(_) => Err(ApiError::BodyLate),
    }
}

fn as_it_is(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|name| !name.is_empty() && name != "identity") {
        return Err(ApiError::Encoded);
    }
    Ok(())
}

fn is_json(essence: &str) -> bool {
    let Some((kind, subtype)) = essence.split_once('/') else {
        return false;
    };
    let subtype = subtype.to_ascii_lowercase();
    kind.eq_ignore_ascii_case("application") && (subtype == "json" || subtype.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_media_type() {
        for good in ["application/json", "Application/JSON", "application/vnd.api+json"] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["", "text/plain", "application/jsonp", "json"] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
