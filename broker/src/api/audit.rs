//! `/audit/v1`: the audit log, for auditors. Each family of calls is one file under `audit/`.
//!
//! Whatever is shown is recorded first ([`AuditState::record`]).

mod events;
mod export;
mod facets;
mod proofs;
mod query;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use duo_contract::audit::Who;
use duo_contract::failure::FailureKind;
use http::HeaderMap;
use serde_json::Value;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::edge::REQUEST_ID;
use super::error::ApiError;
use crate::audit::AuditLog;
use crate::audit::note::SigningKeys;
use crate::audit::reads::Reading;
use crate::caller::Caller;
use crate::request::ExchangeError;
use crate::store::{Store, StoreError};

/// Longest correlation id a record keeps.
const MAX_CORRELATION_ID: usize = 255;
/// Exports that a broker writes at the same time.
const MAX_EXPORTS: usize = 2;
/// For so long a caller's polling of the newest checkpoint is one reading.
const POLLING: Duration = Duration::from_secs(3600);

/// What the calls work with.
#[derive(Debug)]
struct AuditState {
    store: Store,
    audit: AuditLog,
    /// What signs manifests.
    keys: Option<Arc<SigningKeys>>,
    /// Who asked for the newest checkpoint within [`POLLING`], since when; as many as there are auditors.
    polling: Mutex<HashMap<Polling, Instant>>,
    /// Exports that may be written at the same time: each holds a connection to PostgreSQL.
    exports: Arc<Semaphore>,
}

/// The audit log's routes; the caller's role is checked around them.
pub fn router(store: Store, audit: AuditLog, keys: Option<Arc<SigningKeys>>) -> Router {
    let exports = Arc::new(Semaphore::new(MAX_EXPORTS));
    let state = Arc::new(AuditState {
        store,
        audit,
        keys,
        polling: Mutex::default(),
        exports,
    });
    Router::new()
        .merge(events::router())
        .merge(facets::router())
        .merge(export::router())
        .merge(proofs::router())
        .with_state(state)
}

/// Tells callers apart, whatever their headers say.
type Polling = (Option<String>, Option<String>, Option<String>);

/// Who reads: the caller, and what its request is called.
#[derive(Debug, Clone)]
struct Reader {
    who: Who,
    correlation_id: Option<String>,
}

impl Reader {
    fn of(caller: &Caller, headers: &HeaderMap) -> Self {
        let text = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
        Self {
            who: caller.who.clone(),
            correlation_id: text.map(|text| text[..text.floor_char_boundary(MAX_CORRELATION_ID)].to_owned()),
        }
    }
}

impl AuditState {
    /// Records what `reader` polls, once in [`POLLING`].
    async fn record_polling(
        &self,
        reader: Reader,
        route: &'static str,
        details: Value,
    ) -> Result<(), ApiError> {
        let Who {
            instance_id,
            user_id,
            token_id,
            ..
        } = reader.who.clone();
        let caller = (instance_id, user_id, token_id);
        let polling = || self.polling.lock().unwrap_or_else(PoisonError::into_inner);
        if polling()
            .get(&caller)
            .is_some_and(|since| since.elapsed() < POLLING)
        {
            return Ok(());
        }
        self.record(Uuid::now_v7(), reader, route, details).await?;
        let mut polling = polling();
        polling.retain(|_, since| since.elapsed() < POLLING);
        polling.insert(caller, Instant::now());
        Ok(())
    }

    /// Records what `reader` is about to be shown.
    async fn record(
        &self,
        id: Uuid,
        reader: Reader,
        route: &'static str,
        details: Value,
    ) -> Result<(), ApiError> {
        let reading = Reading {
            id,
            who: reader.who,
            route,
            correlation_id: reader.correlation_id,
            details,
        };
        if self.audit.read(reading).await {
            return Ok(());
        }
        Err(ApiError::Exchange(ExchangeError::new(
            FailureKind::ModelUnavailable,
            "audit_unavailable",
            "the audit log cannot take the record of this reading just now, so nothing is shown; try again",
        )))
    }
}

fn away(error: StoreError) -> ApiError {
    let error = &error as &dyn std::error::Error;
    tracing::warn!(error, "the audit log could not be read");
    ApiError::Exchange(ExchangeError::new(
        FailureKind::ModelUnavailable,
        "database_unavailable",
        "the audit log cannot be read just now; try again",
    ))
}
