//! The GPU-side program: pulls requests that its model servers have room
//! for, calls the model server, and streams the answer back.
//!
//! A request's way through it: [`consumer`] takes a slot and fetches,
//! [`job`] works one delivery from decode to settle, [`claim`] asks the
//! request's owner, [`model_server`] makes the call, [`reply`] sends the
//! frames, [`outcome`] settles. Beside them [`presence`] says what this worker
//! serves, [`running`] hears what owners order, and [`owners`] knows which of
//! them are silent. It opens no database.

pub mod check;
pub mod claim;
pub mod config;
pub mod consumer;
pub mod delivery;
pub mod job;
pub mod lanes;
pub mod metrics;
pub mod model_server;
pub mod outbox;
pub mod outcome;
pub mod owners;
pub mod presence;
pub mod pulls;
pub mod reply;
pub mod running;
pub mod slots;
pub mod startup;

use std::sync::Arc;
use std::time::Duration;

use duo_process::admin;
use duo_process::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use startup::Worker;

/// How long handed-back jobs may take to say so before the process ends.
const HAND_BACK_WAIT: Duration = Duration::from_secs(2);

/// Serves until `shutdown` begins, then drains for `grace` at most.
///
/// # Errors
/// The operator's port or a subscription failed for good.
pub async fn run(
    worker: Arc<Worker>,
    admin_listener: TcpListener,
    grace: Duration,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let ended = shutdown.clone();
    let operations = admin::serve(
        admin_listener,
        worker.registry.clone(),
        worker.readiness.clone(),
        async move { ended.aborted().await },
    );
    shutdown.spawn("admin", async {
        if let Err(error) = operations.await {
            tracing::error!(%error, "the operator's port ended");
        }
    });

    let orders = running::listen(&worker).await?;
    shutdown.spawn("orders", orders);
    for server in &worker.servers {
        shutdown.spawn("health", model_server::health::watch(Arc::clone(server)));
        shutdown.spawn("slots", model_server::pressure::follow(Arc::clone(server)));
        shutdown.spawn(
            "readiness",
            startup::watch_readiness(Arc::clone(&worker), Arc::clone(server)),
        );
    }
    shutdown.spawn(
        "presence",
        presence::announce(Arc::clone(&worker), shutdown.clone()),
    );
    // On the runtime's own threads, beside the tasks that wake them.
    let mut consumers: JoinSet<_> = worker
        .servers
        .iter()
        .map(|server| consumer::serve(Arc::clone(&worker), Arc::clone(server), shutdown.clone()))
        .collect();
    tracing::info!(worker = %worker.name, "serving");
    // Each ends when the shutdown begins: nothing is pulled from then on.
    while consumers.join_next().await.is_some() {}

    drain(&worker, grace, &shutdown).await;
    Ok(())
}

async fn drain(worker: &Worker, grace: Duration, shutdown: &Shutdown) {
    worker.readiness.drain();
    let jobs = worker.running.count();
    tracing::info!(jobs, "draining");
    tokio::select! {
        () = worker.running.idle() => {}
        () = tokio::time::sleep(grace) => {}
        () = shutdown.aborted() => {}
    }
    let left = worker.running.hand_back_all();
    if left > 0 {
        tracing::warn!(jobs = left, "handing back jobs that outlast the grace");
        // Late ones come back by their lease instead.
        let _ = tokio::time::timeout(HAND_BACK_WAIT, worker.running.idle()).await;
    }
    presence::withdraw(worker).await;
    shutdown.abort();
    shutdown.drained(Duration::ZERO).await;
}
