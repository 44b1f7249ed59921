//! A request that kills every worker that takes it: it takes down as many as it has attempts and no more, and the
//! others go on.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::Size;
use super::checker::Checker;
use super::history::Strike;
use super::kind::Kind;
use super::load::{Load, Pace, Plan};
use super::report::Report;
use super::stage::Stage;
use crate::harness::{Answer, Cluster, PATIENCE};
use crate::sim::Settings;

/// Workers, which tell the model server who they are.
const WORKERS: usize = 3;
/// Attempts that a request has.
const ATTEMPTS: usize = 3;
/// The variable that holds a worker's key.
const KEY: &str = "MODEL_KEY";
/// Words of an answer.
const WORDS: usize = 30;
/// Time between two looks at the model server; well below the time to the first token.
const LOOK: Duration = Duration::from_millis(5);

pub(super) async fn run(size: Size) -> Report {
    let plan = Plan::mixed(size.seed, Pace::Clients(if size.short { 8 } else { 16 }));
    let sim = Settings {
        tokens: WORDS,
        ttft_ms: 150,
        pace_ms: 20,
        react: true,
        follow: Some(plan.prefix()),
        ..Settings::default()
    };
    let mut builder = Cluster::builder().sim(sim).slots(16).workers(WORKERS);
    builder = builder
        .key_variable(KEY)
        .broker_env("DUO_MAX_ATTEMPTS", &ATTEMPTS.to_string());
    for number in 0..WORKERS {
        builder = builder.worker_env_of(number, KEY, &number.to_string());
    }
    let mut stage = Stage::start(builder).await;
    let prefix = plan.prefix();
    let load = Load::start(&stage.cluster, &stage.balancer, plan).await;
    let until = Instant::now() + size.span(4, 60);
    let (mut poisons, mut most, mut unclear) = (0, 0, Vec::new());
    while poisons == 0 || Instant::now() < until {
        poisons += 1;
        let id = format!("{prefix}poison{poisons}");
        let kind = if poisons % 2 == 0 {
            Kind::Chat
        } else {
            Kind::ChatStream
        };
        let call = stage.cluster.openai(kind.path(), &kind.body(&id, WORDS));
        let asked = tokio::spawn(call.header("x-request-id", &id).send());
        let (killed, answer) = kill_whoever_takes(&mut stage, &load, &id, asked).await;
        most = most.max(killed);
        let told = answer.status != 200 || answer.text().contains("\"error\"");
        if !told || answer.looks_whole() {
            unclear.push(format!("{id} was told: {answer}"));
        }
        let end = stage.cluster.end_of(&id).await;
        if end.0 != "failed" {
            unclear.push(format!("{id} was recorded as {end:?}"));
        }
    }
    let history = load.stop().await;
    // The others lose their workers too, and some of them as often as a poison does.
    let checker = Checker::new("poison", size).allow(&["expired", "failed: workers_lost"]);
    let mut report = checker.check(&stage.cluster, &history).await;
    report.figure("workers taken down by one, at most", most.to_string());
    // A copy that was published again is a first delivery, whose call begins beside its claim: one worker more may be
    // taken down before it hears that there is no attempt left.
    report.demand((ATTEMPTS..=ATTEMPTS + 1).contains(&most), || {
        format!("a poison took down {most} workers instead of {ATTEMPTS}")
    });
    report.demand(unclear.is_empty(), || unclear.join("; "));
    report.finish(stage.cluster)
}

/// Kills every worker at which the model server sees this id, until its client has an answer; how many it were.
async fn kill_whoever_takes(
    stage: &mut Stage,
    load: &Load,
    id: &str,
    asked: JoinHandle<Answer>,
) -> (usize, Answer) {
    let history = load.history();
    let (mut killed, began) = (0, Instant::now());
    let from = history.now();
    while !asked.is_finished() {
        assert!(began.elapsed() < PATIENCE * 2, "{id} gets no answer");
        let seen = stage.cluster.sim.under_way();
        let taker = seen.iter().find(|seen| seen.id == id);
        if let Some(number) = taker.and_then(|seen| seen.key.parse::<usize>().ok()) {
            stage.kill_worker(number, Duration::ZERO, &history).await;
            killed += 1;
        }
        sleep(LOOK).await;
    }
    history.struck(Strike::Other("poison"), from);
    (killed, asked.await.expect("an answer"))
}
