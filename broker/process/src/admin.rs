//! The operator's port: `/metrics`, `/livez` and `/readyz`.
//!
//! It listens apart from the service, so that a probe is answered while the service refuses callers. `/livez` says
//! that the event loop turns; `/readyz` says that work is welcome, and names what stands in the way. It has no
//! authentication: the port is for the cluster's inside.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// How long open connections may hold up the end of [`serve`].
const LINGER: Duration = Duration::from_secs(1);

/// What `/readyz` answers from; clones share it.
///
/// A process is ready when every [`Latch`] is released, every [`Condition`] holds and no drain has begun.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    state: Arc<Mutex<Blockers>>,
}

#[derive(Debug, Default)]
struct Blockers {
    /// Latches still held, counted, since two parts may use one name.
    latches: BTreeMap<&'static str, usize>,
    /// Whether each standing condition holds.
    conditions: BTreeMap<&'static str, bool>,
    /// Set for good once the process stops taking work.
    draining: bool,
}

/// One part of the start-up that is not done yet; dropping it releases it.
#[derive(Debug)]
#[must_use = "a latch that is not kept is released at once"]
pub struct Latch {
    readiness: Readiness,
    name: &'static str,
}

/// Something that must hold for as long as the process is to be ready; clones share it.
#[derive(Clone, Debug)]
pub struct Condition {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Returns a readiness that nothing blocks yet.
    pub fn new() -> Readiness {
        Readiness::default()
    }

    /// Blocks readiness under `name` until the latch is released.
    pub fn latch(&self, name: &'static str) -> Latch {
        *self.lock().latches.entry(name).or_default() += 1;
        Latch {
            readiness: self.clone(),
            name,
        }
    }

    /// Adds a standing condition, which does not hold until it is first set.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.lock().conditions.entry(name).or_insert(false);
        Condition {
            readiness: self.clone(),
            name,
        }
    }

    /// Makes the process not ready from now on, so that no new work is sent to it.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// Returns the names of what stands in the way of readiness; none when ready.
    pub fn blockers(&self) -> Vec<&'static str> {
        let state = self.lock();
        let draining = state.draining.then_some("draining");
        let latches = state.latches.keys().copied();
        let conditions = state
            .conditions
            .iter()
            .filter(|(_, holds)| !**holds)
            .map(|(name, _)| *name);
        draining.into_iter().chain(latches).chain(conditions).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Blockers> {
        self.state
            .lock()
            .expect("no code panics while it holds the readiness")
    }
}

impl Latch {
    /// Says that this part of the start-up is done.
    pub fn release(self) {}
}

impl Drop for Latch {
    fn drop(&mut self) {
        let mut state = self.readiness.lock();
        if let Some(held) = state.latches.get_mut(self.name) {
            *held -= 1;
            if *held == 0 {
                state.latches.remove(self.name);
            }
        }
    }
}

impl Condition {
    /// Says whether the condition holds now.
    pub fn set(&self, holds: bool) {
        self.readiness.lock().conditions.insert(self.name, holds);
    }
}

/// Serves the operator's port until `shutdown` returns; open connections then have a second to end.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    readiness: Readiness,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (stopping, stopped) = oneshot::channel();
    let server = axum::serve(listener.tap_io(send_at_once), router(registry, readiness));
    let server = server.with_graceful_shutdown(async move {
        shutdown.await;
        // The other end is gone only when the server has ended.
        let _ = stopping.send(());
    });
    let lingered = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(LINGER).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        served = server.into_future() => served,
        () = lingered => Ok(()),
    }
}

/// Sets TCP_NODELAY: answers are single small writes, which must not wait for more.
fn send_at_once(connection: &mut TcpStream) {
    if let Err(error) = connection.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY on an operator's connection");
    }
}

fn router(registry: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics).with_state(registry))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/livez", get(async || "ok"))
}

async fn metrics(State(registry): State<Registry>) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot encode the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let blockers = readiness.blockers();
    if blockers.is_empty() {
        return "ok".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, blockers.join("\n")).into_response()
}

#[cfg(test)]
mod tests;
