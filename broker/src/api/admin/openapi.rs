//! The OpenAPI document of the administration API, from the handlers.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

use super::{
    configuration, dead, features, issuers, models, probes, queues, replay, support, templates, tokens,
    webhooks,
};

/// Why something was refused or failed.
#[derive(Serialize, ToSchema)]
pub(super) struct Problem {
    /// One word for programs, such as `stale_revision`.
    error: String,
    /// A sentence for people, which says what to do.
    message: String,
    /// What is wrong, field by field.
    problems: Option<Vec<FieldProblem>>,
}

/// What is wrong with one field.
#[derive(Serialize, ToSchema)]
struct FieldProblem {
    /// The body's field, or another part of the configuration that would not load.
    field: String,
    message: String,
}

/// The refusals that every operation may answer with.
#[derive(IntoResponses)]
#[expect(
    dead_code,
    reason = "statuses for the document; the errors of the API make them"
)]
pub(super) enum Refusal {
    /// The body is no JSON.
    #[response(status = 400)]
    Malformed(Problem),
    /// No API token, or none that is good.
    #[response(status = 401)]
    Stranger(Problem),
    /// A token without the admin role.
    #[response(status = 403)]
    NoAdministrator(Problem),
    /// There is no such thing.
    #[response(status = 404)]
    NotFound(Problem),
    /// What is there does not allow it, or somebody else has changed the configuration meanwhile.
    #[response(status = 409)]
    Conflict(Problem),
    /// The body is over 4 MiB.
    #[response(status = 413)]
    TooLarge(Problem),
    /// Fields that are wrong, or a configuration that would not load; nothing was changed.
    #[response(status = 422)]
    Invalid(Problem),
    /// An edit without `If-Match`.
    #[response(status = 428)]
    NoRevision(Problem),
    /// Postgres or NATS is away.
    #[response(status = 503)]
    Unavailable(Problem),
}

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Administration of duo-broker",
        description = "Models, features, support levels, prompts, GitLab instances, API tokens, the configuration as a \
                       file, dead letters, webhooks, queues and workers. For API tokens with the admin role."
    ),
    paths(
        models::list, models::one, models::put, models::remove, probes::model,
        features::list, features::one, features::put, probes::feature,
        support::list, support::one, support::put,
        templates::list, templates::one, templates::put, templates::remove,
        issuers::list, issuers::one, issuers::put, issuers::remove,
        tokens::list, tokens::create, tokens::revoke,
        configuration::export, configuration::diff, configuration::apply,
        dead::list, dead::show, dead::drop_one, replay::replay,
        webhooks::list, webhooks::create, webhooks::one, webhooks::put, webhooks::remove, webhooks::rotate,
        webhooks::deliveries::test, webhooks::deliveries::list, webhooks::deliveries::replay,
        queues::queues, queues::workers,
        show,
    ),
    components(schemas(Problem, FieldProblem)),
    modifiers(&Bearer),
    security(("api_token" = []))
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("an API token with the admin role"))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("api_token", SecurityScheme::Http(scheme));
    }
}

/// The document of the administration API.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// This document
#[utoipa::path(get, path = "/admin/v1/openapi.json", tag = "document", operation_id = "showDocument",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), Refusal))]
pub(super) async fn show() -> Response {
    Json(document()).into_response()
}
