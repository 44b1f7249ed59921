//! A broker is killed: its clients are cut, its work stops, and nobody else notices.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Size;
use super::checker::Checker;
use super::history::{History, Strike};
use super::load::{Load, Pace, Plan};
use super::random::Random;
use super::report::{Report, millis};
use super::stage::Stage;
use crate::harness::{Cluster, PATIENCE};
use crate::sim::{Settings, UnderWay};

/// Brokers behind the balancer.
const BROKERS: usize = 2;
/// Time between two kills.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(1000)..Duration::from_millis(2000);
/// Work of a dead broker's clients stops within this, which is two leases.
const STOPS_WITHIN: Duration = Duration::from_secs(2);
/// What the machine may add when it is busy with other things.
const NOISE: Duration = Duration::from_millis(1000);

pub(super) async fn run(size: Size) -> Report {
    let mut plan = Plan::mixed(size.seed, Pace::Clients(if size.short { 12 } else { 24 }));
    // Completions have to be over within two and a half seconds, which is too soon to tell what stopped them.
    plan.mix.retain(|(kind, _)| !kind.is_keystroke());
    let sim = Settings {
        // Long enough that no answer ends by itself before its orphaned generation has to.
        tokens: 150,
        ttft_ms: 50,
        pace_ms: 20,
        react: true,
        follow: Some(plan.prefix()),
        ..Settings::default()
    };
    let builder = Cluster::builder();
    let builder = builder.sim(sim).slots(32).brokers(BROKERS).workers(2);
    let Stage {
        mut cluster,
        balancer,
    } = Stage::start(builder).await;
    let load = Load::start(&cluster, &balancer, plan).await;
    let mut slowest = Duration::ZERO;
    let mut random = Random::new(size.seed, u64::MAX);
    let until = Instant::now() + size.span(6, 60);
    while Instant::now() < until {
        sleep(random.span(PAUSE)).await;
        let victim = random.below(BROKERS);
        slowest = slowest.max(kill(&mut cluster, &load.history(), victim).await);
    }
    let history = load.stop().await;
    let checker = Checker::new("broker-kill", size).allow(&["expired"]);
    let mut report = checker.check(&cluster, &history).await;
    report.figure("work of a dead broker stopped within", millis(slowest));
    report.demand(slowest <= STOPS_WITHIN + NOISE, || {
        format!("work of a dead broker went on for {}", millis(slowest))
    });
    report.demand(report.counts.cut > 0, || "no client was cut".to_owned());
    report.finish(cluster)
}

/// Kills a broker and starts it again; gives how long generations went on for the clients that were cut.
async fn kill(cluster: &mut Cluster, history: &History, victim: usize) -> Duration {
    let from = history.now();
    cluster.broker_at(victim).kill().await;
    let killed = Instant::now();
    history.struck(Strike::KillBroker(victim), from);
    // A client whose connection was cut is over at once, so what is cut is soon known.
    let stopped = loop {
        let cut: HashSet<String> = history
            .all()
            .into_iter()
            .filter(|asked| asked.broker == Some(victim) && asked.sent <= from && asked.ended >= from)
            .map(|asked| asked.id)
            .collect();
        let running: Vec<UnderWay> = cluster.sim.under_way();
        if !running.iter().any(|running| cut.contains(&running.id)) && killed.elapsed() > NOISE {
            break killed.elapsed();
        }
        if killed.elapsed() > PATIENCE {
            break killed.elapsed();
        }
        sleep(Duration::from_millis(20)).await;
    };
    cluster.broker_at(victim).again();
    cluster.broker_ready(victim, PATIENCE).await;
    stopped
}
