//! Workers are killed, or stand still, one after another while they work: their requests go on elsewhere, byte for
//! byte.

use std::ops::Range;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Size;
use super::checker::Checker;
use super::load::{Load, Pace, Plan};
use super::random::Random;
use super::report::Report;
use super::stage::{BESIDE_THE_LEASE, LEASE, Stage};
use crate::harness::Cluster;
use crate::harness::cluster::sum;
use crate::sim::Settings;

/// The short form runs beside other tests, on what they leave of the machine.
const BUSY: Duration = Duration::from_secs(1);
/// As long do faults go on where by chance none has met a stream in mid-answer.
const ANOTHER_CHANCE: Duration = Duration::from_secs(10);
/// Workers, one of which is down or frozen at a time.
const WORKERS: usize = 3;
/// Time between two faults.
const PAUSE: Range<Duration> = Duration::from_millis(800)..Duration::from_millis(2000);
/// How long a worker is frozen: longer than the lease.
const FROZEN: Range<Duration> = Duration::from_millis(1500)..Duration::from_millis(3000);

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Freeze,
}

/// Workers are killed.
pub(super) async fn kill(size: Size) -> Report {
    run("worker-kill", Fault::Kill, size).await
}

/// Workers stand still for longer than the lease and then go on, too late to change anything.
pub(super) async fn freeze(size: Size) -> Report {
    run("worker-freeze", Fault::Freeze, size).await
}

/// One of the workers that work.
async fn busy(cluster: &Cluster, random: &mut Random) -> Option<usize> {
    let mut working = Vec::new();
    for number in 0..WORKERS {
        let metrics = cluster.worker_metrics(number).await.unwrap_or_default();
        if sum(&metrics, "duo_worker_slots_in_use") > 0.0 {
            working.push((number, 1));
        }
    }
    (!working.is_empty()).then(|| random.weighted(&working))
}

async fn run(name: &str, fault: Fault, size: Size) -> Report {
    let sim = Settings {
        tokens: 40,
        ttft_ms: 50,
        pace_ms: 20,
        react: true,
        ..Settings::default()
    };
    let builder = Cluster::builder().sim(sim).slots(16).workers(WORKERS);
    let mut stage = Stage::start(builder).await;
    let plan = Plan::mixed(size.seed, Pace::Clients(if size.short { 12 } else { 24 }));
    let load = Load::start(&stage.cluster, &stage.balancer, plan).await;
    let history = load.history();
    let mut random = Random::new(size.seed, u64::MAX);
    let until = Instant::now() + size.span(6, 60);
    loop {
        let late = Instant::now().saturating_duration_since(until);
        let none_continued = stage.cluster.sim.stats().continued == 0;
        if late >= ANOTHER_CHANCE || (!late.is_zero() && !none_continued) {
            break;
        }
        sleep(random.span(PAUSE)).await;
        let Some(victim) = busy(&stage.cluster, &mut random).await else {
            continue;
        };
        match fault {
            Fault::Kill => stage.kill_worker(victim, Duration::ZERO, &history).await,
            Fault::Freeze => {
                let span = random.span(FROZEN);
                stage.freeze_worker(victim, span, &history).await;
            }
        }
    }
    let history = load.stop().await;
    // A completion that lost its worker may run out of its two seconds; three lost workers in a row may happen too.
    let checker = Checker::new(name, size).allow(&["expired", "failed: workers_lost", "refused: fair_share"]);
    let mut report = checker.check(&stage.cluster, &history).await;
    let busy = if size.short { BUSY } else { Duration::ZERO };
    let most = (LEASE + BESIDE_THE_LEASE + busy).as_millis() as u64;
    let gap = report.counts.longest_gap_ms;
    report.demand(gap <= most, || {
        format!("a stream stood still for {gap} ms, longer than {most} ms")
    });
    let continued = stage.cluster.sim.stats().continued;
    report.figure("answers continued", continued.to_string());
    report.demand(continued > 0, || "no answer was continued".to_owned());
    report.finish(stage.cluster)
}
