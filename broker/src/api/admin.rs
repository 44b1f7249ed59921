//! `/admin/v1`: what an administrator sees of the queue and does about it. For
//! API tokens with the admin role, which is checked around these routes.
//! `docs/admin-api.md` tells the fields.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use duo_process::nats::Nats;

mod dead;
mod queues;
mod replay;

use crate::admission::Admission;
use crate::audit::AuditLog;
use crate::dispatch::Dispatch;
use crate::exchange::Exchange;
use crate::letters::Letters;
use crate::store::Store;

/// What the handlers work with.
#[derive(Debug)]
pub struct AdminState {
    /// Runs dead letters again.
    pub exchange: Exchange,
    /// Opens a record per replay.
    pub audit: AuditLog,
    /// Opens their bodies.
    pub dispatch: Dispatch,
    /// Reads and removes them.
    pub letters: Letters,
    /// Keeps a record of each that is dropped.
    pub store: Store,
    /// What waits, and who serves it.
    pub admission: Admission,
    /// Says what the queue holds.
    pub nats: Nats,
}

/// The routes; the caller's role is checked around them.
pub fn router(state: AdminState) -> Router {
    Router::new()
        .route("/admin/v1/dead", get(dead::list))
        .route("/admin/v1/dead/{id}", get(dead::show).delete(dead::drop_one))
        .route("/admin/v1/dead/{id}/replay", post(replay::replay))
        .route("/admin/v1/queues", get(queues::queues))
        .route("/admin/v1/workers", get(queues::workers))
        .with_state(Arc::new(state))
}
