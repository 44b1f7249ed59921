//! Who may pass, and the record of those who do.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use duo_contract::snapshot::Role;
use http::HeaderMap;
use http::header::HeaderName;

use super::edge::{Arrived, OfStranger, REQUEST_ID};
use super::error::{ApiError, Refused, Shape};
use super::state::ApiState;
use crate::auth::AuthError;
use crate::caller::{Caller, Grant};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest correlation id a record keeps.
const MAX_CORRELATION_ID: usize = 255;
/// Paths that need no token.
const PUBLIC: [&str; 4] = [
    "/.well-known/jwks.json",
    "/monitoring/healthz",
    "/monitoring/ready",
    "/v1/models/definitions",
];

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Lets known callers pass and leaves them in the request's extensions.
pub(super) async fn authenticate(
    State(api): State<Arc<ApiState>>,
    mut request: Request,
    next: Next,
) -> Response {
    if PUBLIC.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    let address = peer.map(|ConnectInfo(peer)| peer.0);
    match api.authenticator.authenticate(request.headers(), address).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => {
            let shape = Shape::of_path(request.uri().path());
            let route = request.extensions().get::<MatchedPath>();
            let route = route.map_or("unknown", MatchedPath::as_str);
            api.audit.sign_in_failed(address, error.reason(), route);
            let stranger = ApiError::Stranger {
                text: refusal(error, shape),
                reason: error.reason(),
            };
            let mut response = stranger.respond(shape);
            response.extensions_mut().insert(OfStranger);
            response
        }
    }
}

/// GitLab's own words for GitLab; whoever calls the other endpoints has an API
/// token in mind, and "OIDC" would lead astray.
fn refusal(error: AuthError, shape: Shape) -> String {
    let text = match (error, shape) {
        (_, Shape::GitLab) => return error.to_string(),
        (AuthError::NoAuthorization, _) => "no API token given; send it as \"Authorization: Bearer <token>\"",
        (AuthError::InvalidAuthorization, _) => {
            "the Authorization header cannot be read; send it as \"Authorization: Bearer <token>\""
        }
        (AuthError::UnsupportedType | AuthError::UnknownApiToken, _) => {
            "invalid API token; an administrator can make one with duo-broker token create"
        }
        (AuthError::ExpiredApiToken, _) => {
            "the API token has expired; an administrator can make a new one with duo-broker token create"
        }
        (AuthError::Forbidden(_) | AuthError::HeaderMismatch(_), _) => return error.to_string(),
    };
    text.to_owned()
}

/// Opens the request's record and closes it when the answer is a refusal.
pub(super) async fn record(State(api): State<Arc<ApiState>>, mut request: Request, next: Next) -> Response {
    let Some(caller) = request.extensions().get::<Caller>() else {
        return next.run(request).await;
    };
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or_else(|| request.uri().path(), MatchedPath::as_str);
    let mut correlation_id = text(request.headers(), &REQUEST_ID);
    if let Some(id) = &mut correlation_id {
        id.truncate(id.floor_char_boundary(MAX_CORRELATION_ID));
    }
    let record = api.audit.open(
        caller.who.clone(),
        route,
        correlation_id,
        text(request.headers(), &TRACEPARENT).as_deref(),
    );
    if let Some(Arrived(at)) = request.extensions().get() {
        record.note_arrival(*at);
    }
    request.extensions_mut().insert(record.clone());
    let response = next.run(request).await;
    if let Some(Refused(reason)) = response.extensions().get() {
        record.refuse(reason);
    } else if response.status().is_client_error() || response.status().is_server_error() {
        record.refuse(&format!("status_{}", response.status().as_u16()));
    }
    response
}

/// Reading the audit log takes its own role.
pub(super) async fn auditors_only(request: Request, next: Next) -> Response {
    if role(&request) == Some(Role::Auditor) {
        return next.run(request).await;
    }
    ApiError::Forbidden("this needs a token with the auditor role".into()).respond(Shape::Plain)
}

/// Administration takes its own role too.
pub(super) async fn admins_only(request: Request, next: Next) -> Response {
    if role(&request) == Some(Role::Admin) {
        return next.run(request).await;
    }
    ApiError::Forbidden("this needs a token with the admin role".into()).respond(Shape::Plain)
}

/// Endpoints that ask for no scope are closed to an IDE's token of ours.
pub(super) async fn not_direct(request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>();
    if caller.is_some_and(|caller| matches!(&*caller.grant, Grant::Direct)) {
        let shape = Shape::of_path(request.uri().path());
        return ApiError::Forbidden("this token opens /v2/completions only".into()).respond(shape);
    }
    next.run(request).await
}

fn role(request: &Request) -> Option<Role> {
    request.extensions().get::<Caller>().and_then(Caller::role)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}
