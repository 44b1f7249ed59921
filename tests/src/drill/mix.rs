//! Everything at once: kills, freezes and clients that leave, in random states of a mixed load.

use std::io::Write as _;
use std::ops::Range;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Size;
use super::checker::Checker;
use super::history::{End, History, Strike};
use super::load::{Load, Pace, Plan};
use super::random::Random;
use super::report::{Report, millis};
use super::stage::Stage;
use crate::harness::Cluster;
use crate::sim::Settings;

/// Brokers behind the balancer.
const BROKERS: usize = 2;
/// Workers.
const WORKERS: usize = 3;
/// Time between two faults.
const PAUSE: Range<Duration> = Duration::from_millis(100)..Duration::from_millis(700);
/// How long a killed program stays away.
const DOWN: Range<Duration> = Duration::ZERO..Duration::from_millis(600);
/// How long a program is frozen: shorter and longer than the lease.
const FROZEN: Range<Duration> = Duration::from_millis(300)..Duration::from_millis(2500);
/// Fraction of the requests whose clients leave.
const HANG_UPS: f64 = 0.6;
/// Clients at a time, in the short and in the full form.
const CLIENTS: (usize, usize) = (12, 28);
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);
/// Faults and kills of the short form.
const SHORT: (u64, u64) = (60, 6);
/// Faults and kills of the full form.
const FULL: (u64, u64) = (10_000, 300);
/// Failures that are honest here: a completion is worth nothing after its deadline, a request may lose all of its
/// attempts, and while workers are away those who ask a lot are told to come again.
const HONEST: [&str; 3] = ["expired", "failed: workers_lost", "refused: fair_share"];

/// One fault of a program.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillWorker,
    KillBroker,
    KillBoth,
    FreezeWorker,
    FreezeBroker,
}

/// How much is to be done.
#[derive(Debug, Clone, Copy)]
struct Goal {
    until: Option<Instant>,
    faults: u64,
    kills: u64,
}

/// How much has been done.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    workers_killed: u64,
    brokers_killed: u64,
    frozen: u64,
    left: u64,
}

pub(super) async fn run(size: Size) -> Report {
    let sim = Settings {
        tokens: 30,
        ttft_ms: 60,
        pace_ms: 20,
        react: true,
        ..Settings::default()
    };
    let builder = Cluster::builder().sim(sim).slots(16);
    let mut stage = Stage::start(builder.brokers(BROKERS).workers(WORKERS)).await;
    let clients = if size.short { CLIENTS.0 } else { CLIENTS.1 };
    let mut plan = Plan::mixed(size.seed, Pace::Clients(clients));
    plan.hang_ups = HANG_UPS;
    plan.patience = Duration::from_secs(1);
    let load = Load::start(&stage.cluster, &stage.balancer, plan).await;
    strike(&mut stage, &load.history(), size).await;
    let history = load.stop().await;
    let done = Done::of(&history);
    let checker = Checker::new("mix", size).allow(&HONEST);
    let mut report = checker.check(&stage.cluster, &history).await;
    report.figure("faults in all", done.faults().to_string());
    report.figure("kills", done.kills().to_string());
    let whole = history.all().into_iter().filter(|asked| asked.end == End::Whole);
    let slowest = whole.map(|asked| asked.ended - asked.sent).max();
    report.figure("slowest whole answer", millis(slowest.unwrap_or_default()));
    report.finish(stage.cluster)
}

/// Strikes until the goal is reached.
async fn strike(stage: &mut Stage, history: &History, size: Size) {
    let mut random = Random::new(size.seed, u64::MAX);
    let goal = Goal::of(size);
    let mut told = Instant::now();
    loop {
        let done = Done::of(history);
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            tell(&done, history);
        }
        if goal.reached(&done) {
            return;
        }
        sleep(random.span(PAUSE)).await;
        let fault = random.weighted(&[
            (Fault::KillWorker, 5),
            (Fault::KillBroker, 5),
            (Fault::KillBoth, 2),
            (Fault::FreezeWorker, 2),
            (Fault::FreezeBroker, 1),
        ]);
        let (worker, broker) = (random.below(WORKERS), random.below(BROKERS));
        let (down, span) = (random.span(DOWN), random.span(FROZEN));
        match fault {
            Fault::KillWorker => stage.kill_worker(worker, down, history).await,
            Fault::KillBroker => stage.kill_broker(broker, down, history).await,
            Fault::KillBoth => {
                let from = history.now();
                stage.cluster.kill_worker(worker).await;
                history.struck(Strike::KillWorker(worker), from);
                stage.kill_broker(broker, down, history).await;
                stage.cluster.restart_worker(worker).await;
            }
            Fault::FreezeWorker => stage.freeze_worker(worker, span, history).await,
            Fault::FreezeBroker => stage.freeze_broker(broker, span, history).await,
        }
    }
}

fn tell(done: &Done, history: &History) {
    // Nobody reads it: the drill goes on.
    let _closed = writeln!(
        std::io::stderr(),
        "{:>6.0}s  {} requests, {} faults: {} workers and {} brokers killed, {} freezes, {} clients gone",
        history.now().as_secs_f64(),
        history.count(),
        done.faults(),
        done.workers_killed,
        done.brokers_killed,
        done.frozen,
        done.left,
    );
}

impl Goal {
    fn of(size: Size) -> Self {
        let asked = size.faults.is_some() || size.kills.is_some();
        let (faults, kills) = match (asked, size.seconds, size.short) {
            (true, ..) => (size.faults.unwrap_or(0), size.kills.unwrap_or(0)),
            (false, Some(_), _) => (0, 0),
            (false, None, true) => SHORT,
            (false, None, false) => FULL,
        };
        let until = size
            .seconds
            .map(|seconds| Instant::now() + Duration::from_secs(seconds));
        Self { until, faults, kills }
    }

    /// Is all of it done? Of the kills, at least a third have to be of each program.
    fn reached(&self, done: &Done) -> bool {
        let each = self.kills / 3;
        self.until.is_none_or(|until| Instant::now() >= until)
            && done.faults() >= self.faults
            && done.kills() >= self.kills
            && done.workers_killed >= each
            && done.brokers_killed >= each
    }
}

impl Done {
    fn of(history: &History) -> Self {
        let strikes = history.strikes();
        let count = |word| strikes.get(word).copied().unwrap_or(0);
        Self {
            workers_killed: count("worker killed"),
            brokers_killed: count("broker killed"),
            frozen: count("worker frozen") + count("broker frozen"),
            left: count("hang-up"),
        }
    }

    fn kills(&self) -> u64 {
        self.workers_killed + self.brokers_killed
    }

    fn faults(&self) -> u64 {
        self.kills() + self.frozen + self.left
    }
}
