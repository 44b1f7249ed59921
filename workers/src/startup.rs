//! Builds each part of a worker once, in the order they need each other.

use std::sync::Arc;

use anyhow::Context as _;
use duo_contract::presence::BreakerState;
use duo_contract::seal::SealKeys;
use duo_process::admin::{Condition, Readiness};
use duo_process::clock;
use duo_process::nats::Nats;
use prometheus::Registry;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::model_server::ModelServer;
use crate::outbox::Outbox;
use crate::owners::Owners;
use crate::running::Running;

/// Least NATS server in each line; older ones lose or repeat work-queue messages.
const LEAST_NATS: [(u64, u64, u64); 2] = [(2, 12, 12), (2, 14, 3)];

/// A worker's parts, shared by its tasks.
#[derive(Debug)]
pub struct Worker {
    /// Its name, a subject token.
    pub name: String,
    /// The connection to NATS.
    pub nats: Nats,
    /// The way to the owners of its requests.
    pub outbox: Arc<Outbox>,
    /// The keys that open bodies.
    pub keys: SealKeys,
    /// The model servers beside it.
    pub servers: Vec<Arc<ModelServer>>,
    /// The jobs that run now.
    pub running: Running,
    /// Which owners do not answer.
    pub owners: Owners,
    /// What it counts.
    pub metrics: Metrics,
    /// Where its metrics are registered.
    pub registry: Registry,
    /// What `/readyz` answers from.
    pub readiness: Readiness,
    /// Started at, milliseconds since the epoch.
    pub started_at_ms: u64,
    nats_up: Condition,
    server_passes: Condition,
}

/// Connects and builds.
///
/// # Errors
/// NATS cannot be reached or is too old, or a model server's settings cannot be used.
pub async fn build(config: Config) -> anyhow::Result<Arc<Worker>> {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let servers = config
        .servers
        .into_iter()
        .map(|server| ModelServer::try_new(server, &config.calls, &metrics).map(Arc::new))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let nats = Nats::connect(&config.nats)
        .await
        .context("cannot connect to NATS")?;
    let version = nats.client().server_info().version;
    if let Some(problem) = nats_version_problem(&version) {
        anyhow::bail!(problem);
    }
    let readiness = Readiness::new();
    Ok(Arc::new(Worker {
        name: config.worker,
        outbox: Arc::new(Outbox::open(nats.clone())),
        nats,
        keys: config.seal_keys,
        servers,
        running: Running::default(),
        owners: Owners::default(),
        metrics,
        registry,
        nats_up: readiness.condition("no connection to NATS"),
        server_passes: readiness.condition("no model server is well"),
        readiness,
        started_at_ms: clock::unix_ms(),
    }))
}

/// Keeps readiness in step with the connection and with `server`'s breaker.
pub async fn watch_readiness(worker: Arc<Worker>, server: Arc<ModelServer>) {
    let mut connections = worker.nats.connections();
    let mut breaker = server.breaker.state();
    loop {
        worker.nats_up.set(connections.borrow_and_update().up);
        let _ = breaker.borrow_and_update();
        let pass = |server: &Arc<ModelServer>| server.breaker.now() != BreakerState::Tripped;
        worker.server_passes.set(worker.servers.iter().any(pass));
        tokio::select! {
            changed = connections.changed() => if changed.is_err() { return },
            _ = breaker.changed() => {}
        }
    }
}

/// What is wrong with a NATS server's version, in words.
#[must_use]
pub fn nats_version_problem(version: &str) -> Option<String> {
    let mut parts = version
        .split(['.', '-'])
        .map(|part| part.parse::<u64>().unwrap_or(0));
    let version_parts = (
        parts.next()?,
        parts.next().unwrap_or(0),
        parts.next().unwrap_or(0),
    );
    let line = LEAST_NATS
        .iter()
        .rev()
        .find(|(major, minor, _)| (version_parts.0, version_parts.1) >= (*major, *minor));
    let good = line.is_some_and(|least| version_parts >= *least);
    (!good).then(|| {
        format!("nats-server {version} is too old: 2.12.12, or 2.14.3 in the 2.14 line, is the least")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_nats_servers_are_refused_by_their_line() {
        for good in ["2.12.12", "2.13.0", "2.14.3", "2.15.1", "3.0.0", "2.15.0-RC.1"] {
            assert_eq!(nats_version_problem(good), None, "{good}");
        }
        for old in ["2.12.11", "2.14.2", "2.10.29", "1.4.1", "x"] {
            assert!(nats_version_problem(old).is_some(), "{old}");
        }
    }
}
