//! Brokers, workers and nats-server are restarted one after another under live streams, and no client sees an error.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::Size;
use super::checker::Checker;
use super::history::{End, Strike};
use super::kind::Kind;
use super::load::{Load, Pace, Plan};
use super::report::{Report, millis};
use super::stage::Stage;
use crate::harness::{Cluster, PATIENCE, Program};
use crate::sim::Settings;

/// Brokers behind the balancer.
const BROKERS: usize = 2;
/// Workers.
const WORKERS: usize = 2;
/// Streams at a time, in the short and in the full form.
const STREAMS: (usize, usize) = (60, 500);
/// Words of an answer, in the short and in the full form.
const WORDS: (usize, usize) = (15, 40);
/// Time between two of them: an answer takes eight seconds, a third of the grace period.
const PACE_MS: u64 = 200;
/// Between two restarts, so that each finds the streams spread again.
const BETWEEN: Duration = Duration::from_millis(500);

pub(super) async fn run(size: Size) -> Report {
    let (streams, words) = match size.short {
        true => (STREAMS.0, WORDS.0),
        false => (STREAMS.1, WORDS.1),
    };
    let sim = Settings {
        tokens: words,
        pace_ms: PACE_MS,
        slots: 4 * streams,
        react: true,
        ..Settings::default()
    };
    let builder = Cluster::builder().sim(sim).slots(2 * streams);
    let mut stage = Stage::start(builder.brokers(BROKERS).workers(WORKERS)).await;
    let mut plan = Plan::mixed(size.seed, Pace::Clients(streams));
    plan.mix = vec![(Kind::Agent, 2), (Kind::PromptStream, 2), (Kind::ChatStream, 1)];
    plan.persons = 4 * streams;
    let load = Load::start(&stage.cluster, &stage.balancer, plan).await;
    let history = load.history();
    let (mut slowest, mut told) = (Duration::ZERO, Vec::new());
    let until = Instant::now() + size.span(0, 0);
    loop {
        sleep(BETWEEN).await;
        let cluster = &mut stage.cluster;
        for number in 0..BROKERS {
            let (from, began) = (history.now(), Instant::now());
            told.extend(again(cluster.broker_at(number)).await);
            cluster.broker_ready(number, PATIENCE).await;
            history.struck(Strike::Other("broker restarted"), from);
            slowest = slowest.max(began.elapsed());
            sleep(BETWEEN).await;
        }
        for number in 0..WORKERS {
            let (from, began) = (history.now(), Instant::now());
            told.extend(again(cluster.worker(number)).await);
            cluster.worker_ready(number, PATIENCE).await;
            history.struck(Strike::Other("worker restarted"), from);
            slowest = slowest.max(began.elapsed());
            sleep(BETWEEN).await;
        }
        let from = history.now();
        cluster.nats.stop().await;
        cluster.nats.restart().await;
        cluster.ready(PATIENCE).await;
        history.struck(Strike::Other("nats-server restarted"), from);
        if Instant::now() >= until {
            break;
        }
    }
    let history = load.stop().await;
    let checker = Checker::new("rolling-restart", size);
    let mut report = checker.check(&stage.cluster, &history).await;
    report.figure("live streams at a time", streams.to_string());
    report.figure("slowest restart of a program", millis(slowest));
    let bad = history.count_of(|asked| asked.end != End::Whole);
    report.demand(bad == 0, || format!("{bad} clients saw an error"));
    report.demand(told.is_empty(), || told.join("; "));
    report.finish(stage.cluster)
}

/// Tells a program to end, and starts it again once it has; what it said if not that all was well.
async fn again(program: &mut Program) -> Option<String> {
    program.signal(Signal::SIGTERM);
    let status = program.ended().await;
    program.again();
    (!status.success()).then(|| format!("{}, told to end, said {status}", program.name()))
}
