//! What the drills share whose fault is NATS's: a steady load that does not slow down with the answers, and the bounds
//! that hold in each of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Size;
use super::checker::Checker;
use super::history::{Asked, End, History, Strike};
use super::load::{Load, Pace, Plan};
use super::random::Random;
use super::report::{Report, millis};
use crate::harness::setup::Builder;
use crate::harness::{Balancer, Cluster, NatsPlan};
use crate::sim::Settings;

/// New requests a second.
const RATE: f64 = 12.0;
/// A client knows within this that the queue does not take its request.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// What a busy machine may add to any bound.
const NOISE: Duration = Duration::from_millis(1500);
/// Time before the first fault and behind the last.
const CALM: Duration = Duration::from_millis(1500);
/// Failures that are honest while the queue is away: it took no request, or a completion's two seconds ran out.
const HONEST: [&str; 4] = [
    "expired",
    "failed: queue_unavailable",
    "failed: audit_unavailable",
    "refused: fair_share",
];
/// The same, told at the gate.
const HONEST_AT_THE_GATE: [&str; 2] = ["refused: queue_unavailable", "refused: audit_unavailable"];

/// A cluster under load.
#[derive(Debug)]
pub(super) struct Scene {
    /// The programs.
    pub(super) cluster: Cluster,
    /// What has happened so far.
    pub(super) history: Arc<History>,
    /// Where the drill's own choices come from.
    pub(super) random: Random,
    load: Load,
    drill: &'static str,
    size: Size,
    /// What the checker allows besides.
    allowed: Vec<&'static str>,
}

/// Two workers with slots to spare.
pub(super) fn builder() -> Builder {
    let sim = Settings {
        tokens: 40,
        ttft_ms: 50,
        pace_ms: 20,
        react: true,
        ..Settings::default()
    };
    Cluster::builder().sim(sim).slots(32).workers(2)
}

/// The same beside three nats-servers.
pub(super) fn clustered() -> Builder {
    builder().nats(NatsPlan {
        servers: 3,
        ..NatsPlan::default()
    })
}

impl Scene {
    /// Starts programs and load, and waits until answers come.
    pub(super) async fn begin(drill: &'static str, builder: Builder, size: Size) -> Self {
        let cluster = builder.start().await;
        let balancer = Arc::new(Balancer::start(vec![cluster.address_of(0)]).await);
        let load = Load::start(&cluster, &balancer, Plan::mixed(size.seed, Pace::Rate(RATE))).await;
        sleep(CALM).await;
        Self {
            history: load.history(),
            cluster,
            random: Random::new(size.seed, u64::MAX),
            load,
            drill,
            size,
            allowed: Vec::new(),
        }
    }

    /// Allows these failures besides.
    pub(super) fn allow(&mut self, failures: &[&'static str]) {
        self.allowed.extend(failures);
    }

    /// Keeps a fault that began at `from` and is over now.
    pub(super) fn struck(&self, what: &'static str, from: Duration) {
        self.history.struck(Strike::Other(what), from);
    }

    /// Waits until a request is answered that was sent after this moment, and gives how long that took.
    ///
    /// # Panics
    /// None is in `max`.
    pub(super) async fn answered_again(&self, max: Duration) -> Duration {
        let (from, began) = (self.history.now(), Instant::now());
        let fresh = |asked: &Asked| asked.sent >= from && asked.end == End::Whole;
        while self.history.count_of(fresh) == 0 {
            assert!(began.elapsed() < max, "no request was answered within {max:?}");
            sleep(Duration::from_millis(50)).await;
        }
        began.elapsed()
    }

    /// Ends the load, checks, and demands that no time without an answer was longer than `most`.
    pub(super) async fn end(self, most: Duration) -> (Report, Cluster) {
        sleep(CALM).await;
        let history = self.load.stop().await;
        let checker = Checker::new(self.drill, self.size)
            .allow(&HONEST)
            .allow(&HONEST_AT_THE_GATE)
            .allow(&self.allowed);
        let mut report = checker.check(&self.cluster, &history).await;
        let all = history.all();
        let gap = longest_gap(&all);
        report.figure("longest time without an answer", millis(gap));
        report.demand(gap <= most + NOISE, || {
            format!("no answer for {}, longer than {}", millis(gap), millis(most))
        });
        let stall = Duration::from_millis(report.counts.longest_gap_ms);
        report.demand(stall <= most + NOISE, || {
            format!(
                "a stream stood still for {}, longer than {}",
                millis(stall),
                millis(most)
            )
        });
        let told = |asked: &Asked| asked.ended.saturating_sub(asked.sent);
        let refused = all
            .iter()
            .filter(|asked| matches!(asked.end, End::Failed { status: 503, .. }));
        if let Some(slowest) = refused.map(told).max() {
            report.figure("slowest 503", millis(slowest));
            report.demand(slowest <= TOLD_WITHIN + NOISE, || {
                format!("a client waited {} for its 503", millis(slowest))
            });
        }
        report.demand(report.counts.completed > 0, || "nothing was answered".to_owned());
        (report, self.cluster)
    }
}

/// The longest time between two whole answers.
fn longest_gap(all: &[Asked]) -> Duration {
    let mut ends: Vec<Duration> = all
        .iter()
        .filter(|asked| asked.end == End::Whole)
        .map(|asked| asked.ended)
        .collect();
    ends.sort();
    ends.windows(2)
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or_default()
}
