//! What most drills stand on: brokers behind a balancer, workers, a lease of one second.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::history::{History, Strike};
use crate::harness::cluster::freeze;
use crate::harness::setup::Builder;
use crate::harness::{Balancer, Cluster, PATIENCE};

/// The lease that the cluster is set to.
pub const LEASE: Duration = Duration::from_secs(1);
/// What a stall may take beside the lease.
pub const BESIDE_THE_LEASE: Duration = Duration::from_secs(1);
/// How long a broker is away before its requests are recorded as abandoned: longer than it is ever frozen, and not
/// so long that a drill waits for it.
const ABANDON_AFTER: &str = "4s";

/// The programs and the balancer before the brokers.
#[derive(Debug)]
pub struct Stage {
    /// The programs.
    pub cluster: Cluster,
    /// The balancer.
    pub balancer: Arc<Balancer>,
}

impl Stage {
    /// Starts a cluster with the lease set, and a balancer before all of its brokers.
    ///
    /// # Panics
    /// Something does not start.
    pub async fn start(builder: Builder) -> Self {
        let builder = builder.lease("1s").broker_env("DUO_ABANDON_AFTER", ABANDON_AFTER);
        let cluster = builder.start().await;
        let backends = (0..cluster.brokers()).map(|number| cluster.address_of(number));
        let balancer = Arc::new(Balancer::start(backends.collect()).await);
        Self { cluster, balancer }
    }

    /// Kills a worker and starts it again after a while; it is ready then.
    ///
    /// # Panics
    /// It does not start.
    pub async fn kill_worker(&mut self, number: usize, down: Duration, history: &History) {
        let from = history.now();
        self.cluster.kill_worker(number).await;
        history.struck(Strike::KillWorker(number), from);
        sleep(down).await;
        self.cluster.worker(number).again();
        self.cluster.worker_ready(number, PATIENCE).await;
    }

    /// Kills a broker and starts it again after a while; it is ready then.
    ///
    /// # Panics
    /// It does not start.
    pub async fn kill_broker(&mut self, number: usize, down: Duration, history: &History) {
        let from = history.now();
        self.cluster.broker_at(number).kill().await;
        history.struck(Strike::KillBroker(number), from);
        sleep(down).await;
        self.cluster.broker_at(number).again();
        self.cluster.broker_ready(number, PATIENCE).await;
    }

    /// Stops a worker from running for a while.
    pub async fn freeze_worker(&mut self, number: usize, span: Duration, history: &History) {
        let from = history.now();
        freeze(self.cluster.worker(number), true);
        sleep(span).await;
        freeze(self.cluster.worker(number), false);
        history.struck(Strike::FreezeWorker(number), from);
    }

    /// Stops a broker from running for a while.
    pub async fn freeze_broker(&mut self, number: usize, span: Duration, history: &History) {
        let from = history.now();
        freeze(self.cluster.broker_at(number), true);
        sleep(span).await;
        freeze(self.cluster.broker_at(number), false);
        history.struck(Strike::FreezeBroker(number), from);
    }
}
