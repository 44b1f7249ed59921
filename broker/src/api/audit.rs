//! `/audit/v1`: the audit log, for auditors. Each family of calls is one file under `audit/`.

mod events;
mod proofs;

use axum::Router;

use crate::store::Store;

/// The audit log's routes; the caller's role is checked around them.
pub fn router(store: Store) -> Router {
    events::router(store.clone()).merge(proofs::router(store))
}
