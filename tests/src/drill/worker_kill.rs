//! Workers are killed one after another while they work: their requests go on elsewhere, byte for byte.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::checker::Checker;
use super::history::Strike;
use super::load::{Load, Pace, Plan};
use super::random::Random;
use super::report::Report;
use super::{Size, history::History};
use crate::harness::{Balancer, Cluster, PATIENCE};
use crate::sim::Settings;

/// Workers, one of which is down at a time.
const WORKERS: usize = 3;
/// Time between two kills.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(800)..Duration::from_millis(2000);
/// The lease that the cluster is set to, and what a stall may take beside it.
const LEASE: Duration = Duration::from_secs(1);
/// What a stall may take beside the lease.
const BESIDE_THE_LEASE: Duration = Duration::from_secs(1);

pub(super) async fn run(size: Size) -> Report {
    let sim = Settings {
        tokens: 40,
        ttft_ms: 50,
        pace_ms: 20,
        react: true,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder()
        .sim(sim)
        .slots(16)
        .workers(WORKERS)
        .lease("1s")
        .start()
        .await;
    let balancer = Arc::new(Balancer::start(vec![cluster.address_of(0)]).await);
    let plan = Plan::mixed(size.seed, Pace::Clients(if size.short { 12 } else { 24 }));
    let load = Load::start(&cluster, &balancer, plan).await;
    kill(&mut cluster, &load.history(), size).await;
    let history = load.stop().await;
    // A completion that lost its worker may run out of its two seconds; three lost workers in a row may happen too.
    let checker = Checker::new("worker-kill", size).allow(&["expired", "failed: workers_lost"]);
    let mut report = checker.check(&cluster, &history).await;
    let most = (LEASE + BESIDE_THE_LEASE).as_millis() as u64;
    let gap = report.counts.longest_gap_ms;
    report.demand(gap <= most, || {
        format!("a stream stood still for {gap} ms, longer than {most} ms")
    });
    let continued = cluster.sim.stats().continued;
    report.figure("answers continued", continued.to_string());
    report.demand(continued > 0, || "no answer was continued".to_owned());
    report.finish(cluster)
}

async fn kill(cluster: &mut Cluster, history: &History, size: Size) {
    let mut random = Random::new(size.seed, u64::MAX);
    let until = Instant::now() + size.span(6, 60);
    while Instant::now() < until {
        sleep(random.span(PAUSE)).await;
        let victim = random.below(WORKERS);
        let from = history.now();
        cluster.kill_worker(victim).await;
        history.struck(Strike::KillWorker(victim), from);
        cluster.worker(victim).again();
        cluster.worker_ready(victim, PATIENCE).await;
    }
}
