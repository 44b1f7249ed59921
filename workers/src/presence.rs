//! Says what this worker serves, so that brokers know before they queue.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use duo_contract::presence::{Presence, ServedModel};
use duo_contract::subject;
use duo_process::shutdown::Shutdown;
use futures_util::stream::{SelectAll, StreamExt as _};

use crate::startup::Worker;

/// How often presence is renewed; the bucket's keys expire after a few of these.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How long a farewell may take to leave.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Renews presence, at once when a breaker or the connection changes or a drain begins, until aborted.
pub async fn announce(worker: Arc<Worker>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut connections = worker.nats.connections();
    let mut breakers = SelectAll::new();
    for server in &worker.servers {
        breakers.push(Box::pin(changes(server.breaker.state())));
    }
    let mut draining = false;
    loop {
        if connections.borrow_and_update().up {
            put(&worker, draining).await;
        }
        tokio::select! {
            _ = ticks.tick() => {}
            Some(()) = breakers.next() => {}
            changed = connections.changed() => if changed.is_err() { return },
            () = shutdown.begun(), if !draining => draining = true,
        }
    }
}

fn changes<T: Send + Sync>(state: tokio::sync::watch::Receiver<T>) -> impl futures_util::Stream<Item = ()> {
    futures_util::stream::unfold(state, async |mut state| {
        state.changed().await.ok()?;
        Some(((), state))
    })
}

async fn put(worker: &Worker, draining: bool) {
    let models = worker.servers.iter().flat_map(|server| {
        server.models().map(|model| ServedModel {
            model: model.clone(),
            server: server.name.to_string(),
            slots: u32::try_from(server.slots.total()).unwrap_or(u32::MAX),
            in_flight: u32::try_from(server.slots.in_use()).unwrap_or(u32::MAX),
            breaker: server.breaker.now(),
            tools: server.calls_tools(model),
        })
    });
    let presence = Presence {
        worker: worker.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_ms: worker.started_at_ms,
        draining,
        models: models.collect(),
    };
    // Lost ones do no harm, the next one follows.
    let _ = worker
        .nats
        .client()
        .publish(key_subject(worker), presence.encode())
        .await;
}

/// Removes this worker's presence.
pub async fn withdraw(worker: &Worker) {
    let mut headers = HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    let farewell = async {
        let client = worker.nats.client();
        if client
            .publish_with_headers(key_subject(worker), headers, bytes::Bytes::new())
            .await
            .is_ok()
        {
            // Unsent, the key expires by itself.
            let _ = client.flush().await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
}

fn key_subject(worker: &Worker) -> String {
    format!("$KV.{}.{}", subject::WORKERS_BUCKET, worker.name)
}
