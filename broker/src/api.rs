//! The HTTP surface: every endpoint's shapes to and from ours.
//!
//! A handler reads *parse, route, render, send, respond*. Statuses are in
//! `error`, wire formats of streams in `stream`; rules about who may do
//! what with which model are not here but in [`crate::exchange`].
//!
//! A request passes, from the outside in:
//! 1. `edge::mark`: `X-Request-ID` and `X-Process-Time`, around everything so that refusals have them too.
//! 2. `edge::share`: what browsers ask before a page may call, and are told after.
//! 3. `edge::normalise`: `%2F` becomes `/`, before anybody looks at the path, as GitLab's own gateway decodes it.
//! 4. `edge::absorb`: what a refusal left unread of the body is read and thrown away, of a stranger's a little,
//!    so that the client sees the answer and not a broken pipe.
//! 5. `access::authenticate`: strangers get 401 before routing, also for unknown paths.
//! 6. The routes. Inference routes open an audit record first (`access::record`).

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{MethodRouter, delete, get, post};
use http::{HeaderValue, Uri, header};
use tower::ServiceBuilder;

mod access;
pub mod admin;
pub mod audit;
pub mod audit_bodies;
mod batches;
mod chat;
mod code;
mod direct;
mod documentation;
mod edge;
mod embeddings;
mod error;
mod fields;
mod files;
mod generations;
mod inbound;
mod infer;
mod invokable;
mod jobs;
mod kept;
mod language;
pub(crate) mod line;
mod messages;
mod models;
mod monitoring;
mod openai;
mod prompts;
mod responses;
mod state;
mod stream;
mod suggestion;
mod version;
mod xray;

pub use access::Peer;
use error::{ApiError, Refused, Shape};
pub use state::{ApiState, Readiness};

/// The whole API as one router. `audit_events` serves paths below `/audit/`,
/// for callers with the auditor role only, `admin` those below `/admin/`, for
/// the admin role.
pub fn router(state: Arc<ApiState>, audit_events: Option<Router>, admin: Option<Router>) -> Router {
    let routes = routes(&state, audit_events, admin);
    Router::new().fallback_service(
        ServiceBuilder::new()
            .layer(from_fn(edge::mark))
            .layer(from_fn(edge::share))
            .layer(from_fn(edge::normalise))
            .layer(from_fn(edge::absorb))
            .layer(from_fn_with_state(state, access::authenticate))
            .service(routes),
    )
}

/// What known callers may reach.
fn routes(state: &Arc<ApiState>, audit_events: Option<Router>, admin: Option<Router>) -> Router {
    let audit = audit_events
        .unwrap_or_default()
        .layer(from_fn(access::auditors_only));
    let admin = admin.unwrap_or_default().layer(from_fn(access::admins_only));
    Router::new()
        .merge(inference(state))
        .merge(open())
        .merge(kept(state))
        .with_state(Arc::clone(state))
        .merge(audit)
        .merge(admin)
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
}

/// Endpoints that ask a model or the documentation: each request has an audit record.
fn inference(state: &Arc<ApiState>) -> Router<Arc<ApiState>> {
    Router::new()
        .route("/v2/code/completions", post(code::completions))
        .route("/v2/completions", post(code::completions))
        .route("/v2/code/generations", post(generations::generations))
        .route("/v3/code/completions", post(suggestion::v3))
        .route("/v4/code/suggestions", post(suggestion::v4))
        .route("/v2/chat/agent", post(chat::agent))
        .route("/v1/prompts/{*id}", post(prompts::v1))
        .route("/v2/prompts/{*id}", post(prompts::v2))
        .route("/v1/chat/{invokable}", post(invokable::invoke))
        .route("/v1/x-ray/libraries", post(xray::libraries))
        .route("/v1/infer/{feature}", post(infer::infer))
        .route("/v1/search/gitlab-docs", post(documentation::search))
        .route(
            "/v1/embeddings/code_embeddings",
            post(embeddings::code_embeddings),
        )
        .route(
            "/v1/embeddings/code_embeddings/index",
            post(embeddings::code_embeddings),
        )
        .route(
            "/v1/embeddings/code_embeddings/search",
            post(embeddings::code_embeddings),
        )
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/embeddings", post(openai::embeddings))
        .route_layer(from_fn_with_state(Arc::clone(state), access::record))
}

/// Endpoints that ask nobody.
fn open() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/v1/models", only_get(get(models::list)))
        .route("/v1/models/{*id}", only_get(get(models::one)))
        .route_layer(from_fn(access::not_direct))
        .route("/v1/models/definitions", only_get(get(models::definitions)))
        .route("/v1/code/user_access_token", post(direct::token))
        .route("/.well-known/jwks.json", only_get(get(direct::keys)))
        .route("/monitoring/healthz", only_get(get(monitoring::healthz)))
        .route("/monitoring/ready", only_get(get(monitoring::ready)))
}

/// Jobs, and what is made of them: what changes something has an audit record.
fn kept(state: &Arc<ApiState>) -> Router<Arc<ApiState>> {
    let changing = Router::new()
        .route("/v1/jobs", post(jobs::submit))
        .route("/v1/jobs/{id}", delete(jobs::cancel))
        .route("/v1/files", post(files::create))
        .route("/v1/files/{id}", delete(files::remove))
        .route("/v1/batches", post(batches::create))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", delete(responses::remove))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route_layer(from_fn_with_state(Arc::clone(state), access::record));
    Router::new()
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::one))
        .route("/v1/jobs/{id}/events", get(jobs::events))
        .route("/v1/files", get(files::list))
        .route("/v1/files/{id}", get(files::one))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/batches", get(batches::list))
        .route("/v1/batches/{id}", get(batches::one))
        .route("/v1/responses/{id}", get(responses::one))
        .merge(changing)
        .route_layer(from_fn(access::not_direct))
}

/// `HEAD` is refused where GitLab's own gateway refuses it.
fn only_get(route: MethodRouter<Arc<ApiState>>) -> MethodRouter<Arc<ApiState>> {
    route.head(only_get_allowed).fallback(only_get_allowed)
}

async fn only_get_allowed(request: Request) -> Response {
    let mut response = unknown_method(request).await;
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

/// 404, or 307 where only a slash at the end is too much.
async fn unknown_path(request: Request) -> Response {
    without_slash(request.uri()).unwrap_or_else(|| {
        ApiError::NotFound("Not Found".into()).respond(Shape::of_path(request.uri().path()))
    })
}

async fn unknown_method(request: Request) -> Response {
    ApiError::MethodNotAllowed.respond(Shape::of_path(request.uri().path()))
}

/// A redirect to the path without its last slash, when it has one.
fn without_slash(uri: &Uri) -> Option<Response> {
    let path = uri.path();
    // A path that starts with two slashes would read as another host.
    let target = path
        .strip_suffix('/')
        .filter(|path| !path.is_empty() && !path.starts_with("//"))?;
    let target = match uri.query() {
        Some(query) => format!("{target}?{query}"),
        None => target.to_owned(),
    };
    let mut response = Redirect::temporary(&target).into_response();
    response.extensions_mut().insert(Refused("redirected".into()));
    Some(response)
}

impl Shape {
    /// The shape of errors that come before an endpoint has its say.
    fn of_path(path: &str) -> Self {
        let openai = [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/models",
        ];
        let model = path
            .strip_prefix("/v1/models/")
            .is_some_and(|id| id != "definitions");
        let bulk = matches!(path.split('/').nth(2), Some("files" | "batches" | "responses"));
        if openai.contains(&path) || model || path.starts_with("/v1/") && bulk {
            return Self::OpenAi;
        }
        if path.starts_with("/v1/infer/") {
            return Self::Infer;
        }
        match path.split('/').nth(1) {
            Some("audit" | "admin") => Self::Plain,
            Some("v1") if path.split('/').nth(2) == Some("jobs") => Self::Plain,
            _ => Self::GitLab,
        }
    }
}

#[cfg(test)]
mod tests;
