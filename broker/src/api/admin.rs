//! `/admin/v1`: what an administrator sees and does. For API tokens with the
//! admin role, which is checked around these routes. `docs/admin-api.md` tells
//! the fields, `openapi` the same for programs.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};
use duo_process::nats::Nats;

mod configuration;
mod dead;
mod edit;
mod features;
mod issuers;
mod models;
pub mod openapi;
mod probes;
mod queues;
mod replay;
mod support;
mod templates;
mod tokens;
mod webhooks;

use crate::admission::Admission;
use crate::audit::AuditLog;
use crate::dispatch::Dispatch;
use crate::exchange::Exchange;
use crate::letters::Letters;
use crate::prompt::Prompts;
use crate::store::Store;
use crate::webhooks::Webhooks;

/// What the handlers work with.
#[derive(Debug)]
pub struct AdminState {
    /// Runs dead letters again, and probes.
    pub exchange: Exchange,
    /// Opens a record per replay and probe.
    pub audit: AuditLog,
    /// Opens the bodies of dead letters.
    pub dispatch: Dispatch,
    /// Reads and removes them.
    pub letters: Letters,
    /// Configuration, tokens, and the records of changes.
    pub store: Store,
    /// What waits, and who serves it.
    pub admission: Admission,
    /// Templates of the moment.
    pub prompts: Prompts,
    /// Says what the queue holds.
    pub nats: Nats,
    /// Tells receivers at once.
    pub webhooks: Webhooks,
}

/// One method on one path.
struct Door {
    /// As the router has it.
    path: &'static str,
    /// As the document has it, where a name with slashes makes the router's path another.
    documented: (MethodFilter, &'static str),
    route: MethodRouter<Arc<AdminState>>,
}

/// The routes; the caller's role is checked around them.
pub fn router(state: AdminState) -> Router {
    let mut router = Router::new();
    for door in doors() {
        router = router.route(door.path, door.route);
    }
    router.with_state(Arc::new(state))
}

/// Every method on every path. Names of models, prompts, families and instances may hold slashes.
fn doors() -> Vec<Door> {
    const GET: MethodFilter = MethodFilter::GET;
    const PUT: MethodFilter = MethodFilter::PUT;
    const POST: MethodFilter = MethodFilter::POST;
    const DELETE: MethodFilter = MethodFilter::DELETE;
    let (model, models_path) = ("/admin/v1/models/{name}", "/admin/v1/models/{*name}");
    let (level, levels_path) = (
        "/admin/v1/support/{feature}/{family}",
        "/admin/v1/support/{*pair}",
    );
    let (prompt, prompts_path) = ("/admin/v1/prompts/{id}/{family}", "/admin/v1/prompts/{*name}");
    let (issuer, issuers_path) = ("/admin/v1/issuers/{url}", "/admin/v1/issuers/{*url}");
    let (token, tokens_path) = ("/admin/v1/tokens/{id}", "/admin/v1/tokens/{*id}");
    vec![
        door(GET, "/admin/v1/models", models::list),
        door(GET, models_path, models::one).called(model),
        door(PUT, models_path, models::put).called(model),
        door(DELETE, models_path, models::remove).called(model),
        door(POST, models_path, probes::model).called("/admin/v1/models/{name}/test"),
        door(GET, "/admin/v1/features", features::list),
        door(GET, "/admin/v1/features/{name}", features::one),
        door(PUT, "/admin/v1/features/{name}", features::put),
        door(POST, "/admin/v1/features/{name}/check", probes::feature),
        door(GET, "/admin/v1/support", support::list),
        door(GET, levels_path, support::one).called(level),
        door(PUT, levels_path, support::put).called(level),
        door(GET, "/admin/v1/prompts", templates::list),
        door(GET, prompts_path, templates::one).called(prompt),
        door(PUT, prompts_path, templates::put).called(prompt),
        door(DELETE, prompts_path, templates::remove).called(prompt),
        door(GET, "/admin/v1/issuers", issuers::list),
        door(GET, issuers_path, issuers::one).called(issuer),
        door(PUT, issuers_path, issuers::put).called(issuer),
        door(DELETE, issuers_path, issuers::remove).called(issuer),
        door(GET, "/admin/v1/tokens", tokens::list),
        door(POST, "/admin/v1/tokens", tokens::create),
        door(DELETE, tokens_path, tokens::revoke).called(token),
        door(GET, "/admin/v1/config", configuration::export),
        door(POST, "/admin/v1/config/diff", configuration::diff),
        door(POST, "/admin/v1/config/apply", configuration::apply),
        door(GET, "/admin/v1/dead", dead::list),
        door(GET, "/admin/v1/dead/{id}", dead::show),
        door(DELETE, "/admin/v1/dead/{id}", dead::drop_one),
        door(POST, "/admin/v1/dead/{id}/replay", replay::replay),
        door(GET, "/admin/v1/webhooks", webhooks::list),
        door(POST, "/admin/v1/webhooks", webhooks::create),
        door(GET, "/admin/v1/webhooks/{name}", webhooks::one),
        door(PUT, "/admin/v1/webhooks/{name}", webhooks::put),
        door(DELETE, "/admin/v1/webhooks/{name}", webhooks::remove),
        door(POST, "/admin/v1/webhooks/{name}/secret", webhooks::rotate),
        door(POST, "/admin/v1/webhooks/{name}/test", webhooks::deliveries::test),
        door(
            GET,
            "/admin/v1/webhooks/{name}/deliveries",
            webhooks::deliveries::list,
        ),
        door(
            POST,
            "/admin/v1/webhooks/{name}/deliveries/{id}/replay",
            webhooks::deliveries::replay,
        ),
        door(GET, "/admin/v1/queues", queues::queues),
        door(GET, "/admin/v1/workers", queues::workers),
        door(GET, "/admin/v1/openapi.json", openapi::show),
    ]
}

fn door<H, T>(method: MethodFilter, path: &'static str, handler: H) -> Door
where
    H: Handler<T, Arc<AdminState>>,
    T: 'static,
{
    Door {
        path,
        documented: (method, path),
        route: on(method, handler),
    }
}

impl Door {
    fn called(self, path: &'static str) -> Self {
        let (method, _) = self.documented;
        Self {
            documented: (method, path),
            ..self
        }
    }
}

#[cfg(test)]
mod tests;
