//! OpenAI's endpoints. Bodies pass through: only the model's name is ours, so
//! tools, log probabilities and fields that nobody here knows survive.

use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_contract::failure::FailureKind;
use duo_contract::name::FeatureName;
use http::HeaderName;

use super::error::{ApiError, Shape};
use super::inbound::Inbound;
use super::stream::{self, content_type};
use crate::caller::Grant;
use crate::request::{ExchangeError, ModelChoice, Work};

mod body;
mod events;

pub(super) use body::OpenAiRequest;
use events::Events;

/// Applies another feature's rules.
const FEATURE: HeaderName = HeaderName::from_static("x-duo-feature");

pub(super) static OPENAI_CHAT: LazyLock<FeatureName> =
    LazyLock::new(|| FeatureName::parse("openai_chat").expect("a feature id"));
pub(super) static OPENAI_EMBEDDING: LazyLock<FeatureName> =
    LazyLock::new(|| FeatureName::parse("openai_embedding").expect("a feature id"));
pub(super) static OPENAI_COMPLETION: LazyLock<FeatureName> =
    LazyLock::new(|| FeatureName::parse("openai_completion").expect("a feature id"));

/// `POST /v1/chat/completions`.
pub(super) async fn chat_completions(inbound: Inbound) -> Response {
    handle(inbound, Endpoint::ChatCompletions, &OPENAI_CHAT).await
}

/// `POST /v1/completions`.
pub(super) async fn completions(inbound: Inbound) -> Response {
    handle(inbound, Endpoint::Completions, &OPENAI_COMPLETION).await
}

/// `POST /v1/embeddings`.
pub(super) async fn embeddings(inbound: Inbound) -> Response {
    handle(inbound, Endpoint::Embeddings, &OPENAI_EMBEDDING).await
}

async fn handle(mut inbound: Inbound, endpoint: Endpoint, own: &FeatureName) -> Response {
    forward(&mut inbound, endpoint, own)
        .await
        .unwrap_or_else(|error| error.respond(Shape::OpenAi))
}

async fn forward(inbound: &mut Inbound, endpoint: Endpoint, own: &FeatureName) -> Result<Response, ApiError> {
    let feature = feature(inbound, own)?;
    inbound.gate(&feature)?;
    let body = inbound.bytes().await?;
    let request = OpenAiRequest::parse(&body, endpoint)?;
    let choice = ModelChoice::Named(request.model.clone().into_owned());
    let routed = inbound.route(&feature, &choice, request.stream)?;
    request.check_length(&routed.model)?;
    let work = Work {
        endpoint,
        body: request.for_model_server(),
        stream: request.stream,
        prompt: None,
        supersede_key: None,
    };
    let mut reply = inbound.send(&routed, work).await?;
    if request.stream {
        return stream::respond(reply, Events::new(request.wants_usage)).await;
    }
    let (_, body) = reply.whole().await?;
    Ok(json_as_it_is(body))
}

/// The feature whose rules apply: the endpoint's own or the one of the header.
pub(super) fn feature(inbound: &Inbound, own: &FeatureName) -> Result<FeatureName, ApiError> {
    let caller = &inbound.caller;
    let Some(header) = inbound.headers.get(FEATURE) else {
        let allowed = caller.may_use(own);
        return allowed.then(|| own.clone()).ok_or_else(|| not_allowed(own));
    };
    let named = header
        .to_str()
        .ok()
        .and_then(|text| FeatureName::parse(text.trim()).ok());
    let named = named.ok_or_else(unknown_feature)?;
    let allowed = match &*caller.grant {
        // The endpoint has to be open to GitLab's tokens at all, then the scope decides.
        Grant::GitLab { .. } => {
            let scopes = inbound.api.prompts.scopes(&named);
            caller.may_use(own) && (named == *own || scopes.iter().any(|scope| caller.has_scope(scope)))
        }
        // The gate looks, once it is known whether the feature exists.
        Grant::ApiToken { .. } => true,
        Grant::Direct => false,
    };
    if allowed {
        Ok(named)
    } else {
        Err(not_allowed(&named))
    }
}

fn not_allowed(feature: &FeatureName) -> ApiError {
    let text = format!(
        "this token may not use the feature {feature}; an administrator can make a client token that may, \
         with duo-broker token create"
    );
    ApiError::Forbidden(text.into())
}

fn unknown_feature() -> ApiError {
    let message = "the feature that x-duo-feature names does not exist";
    ApiError::Exchange(ExchangeError::new(
        FailureKind::InvalidRequest,
        "unknown_feature",
        message,
    ))
}

/// A model server's answer, byte for byte.
pub(super) fn json_as_it_is(body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.headers_mut() = content_type("application/json");
    response
}

#[cfg(test)]
mod tests;
