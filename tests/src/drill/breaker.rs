//! One of two model servers goes away under load: no client sees it, and it gets work again soon after it is back. Then
//! the only server fails every request: the failures are honest, and it serves again within the declared time.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Size;
use super::asking::{Form, busy_token};
use super::checker::Checker;
use super::history::Strike;
use super::load::{Load, Pace, Plan};
use super::report::{Report, millis};
use crate::harness::{Balancer, Cluster, PATIENCE};
use crate::sim::{Settings, Sim};

/// A server that was away is asked every half second whether it is back.
const BACK: Duration = Duration::from_secs(3);
/// One that failed every request is probed at least every five seconds.
const RECOVERED: Duration = Duration::from_secs(8);
const THREADS: usize = 2;

pub(super) async fn run(size: Size) -> Report {
    let settings = Settings {
        tokens: 20,
        ttft_ms: 30,
        pace_ms: 15,
        react: true,
        ..Settings::default()
    };
    let other = Sim::start(settings.clone()).await.expect("a second model server");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("worker.yaml");
    let served = |model: &str| json!({"model": model, "served_as": "sim"});
    let servers = json!({"servers": [{
        "name": "other", "url": format!("{}/v1", other.url()), "slots": 16, "kind": "vllm",
        "models": [served("mistral"), served("codegemma")],
    }]});
    std::fs::write(&file, servers.to_string()).expect("our folder");
    let mut cluster = Cluster::builder()
        .sim(settings.clone())
        .slots(16)
        .workers(2)
        .worker_env_of(1, "DUO_WORKER_FILE", &file.display().to_string())
        .start()
        .await;
    let balancer = Arc::new(Balancer::start(vec![cluster.address_of(0)]).await);
    let plan = Plan::mixed(size.seed, Pace::Clients(12));
    // The right answers are learned from what the first server is asked.
    cluster.kill_worker(1).await;
    let load = Load::start(&cluster, &balancer, plan).await;
    cluster.restart_worker(1).await;
    let history = load.history();
    sleep(Duration::from_secs(1)).await;
    let from = history.now();
    other.kill().await;
    let address = other.address();
    sleep(size.span(4, 10)).await;
    history.struck(Strike::Other("model server down"), from);
    let other = Sim::start_on(address, THREADS, settings.clone())
        .await
        .expect("its port is free again");
    let came = Instant::now();
    let back = other.wait_for(|stats| stats.finished > 0, PATIENCE).await;
    let took = came.elapsed();
    sleep(Duration::from_secs(1)).await;
    let history = load.stop().await;
    let mut report = Checker::new("breaker", size).check(&cluster, &history).await;
    report.figure("the server that came back serves after", millis(took));
    report.demand(back.is_ok() && took <= BACK, || {
        format!("the server that came back got no work for {}", millis(took))
    });

    cluster.kill_worker(1).await;
    alone(&mut report, &cluster).await;
    cluster.restart_worker(1).await;
    cluster.assert_clean().await;
    report.finish(cluster)
}

/// The only server fails every request for a while.
async fn alone(report: &mut Report, cluster: &Cluster) {
    let form = Form {
        chat: true,
        stream: true,
        words: 20,
    };
    let token = busy_token(cluster).await;
    cluster.sim.set(|sim| sim.fail_rate = 1.0);
    let mut asking = JoinSet::new();
    for number in 0..20 {
        let question = format!("question {number}");
        let call = cluster
            .call(Method::POST, form.path())
            .token(&token)
            .json(&form.body(&question));
        asking.spawn(async move {
            let answer = call.send().await;
            (form.is_right(&question, &answer), answer)
        });
    }
    sleep(Duration::from_secs(3)).await;
    cluster.sim.set(|sim| sim.fail_rate = 0.0);
    let (healed, served) = (Instant::now(), cluster.sim.stats().finished);
    let question = "are you well?";
    let call = cluster
        .call(Method::POST, form.path())
        .token(&token)
        .json(&form.body(question));
    let probe = timeout(PATIENCE, call.send()).await;
    let took = healed.elapsed();
    report.figure("the only server serves again after", millis(took));
    let well = probe.is_ok_and(|answer| form.is_right(question, &answer));
    report.demand(well && took <= RECOVERED, || {
        format!(
            "the only server did not serve again within {RECOVERED:?}: {}",
            millis(took)
        )
    });
    let (mut right, mut told) = (0, 0);
    while let Some(done) = asking.join_next().await {
        let (is_right, answer) = done.expect("a client does not fail");
        right += u64::from(is_right);
        let honest = answer.status != 200 || !answer.looks_whole();
        told += u64::from(!is_right && honest);
        report.demand(is_right || honest, || format!("looks whole and is not: {answer}"));
    }
    let finished = cluster.sim.stats().finished - served;
    report.figure(
        "asked while the only server failed: answered all the same",
        right.to_string(),
    );
    report.figure("asked while the only server failed: told so", told.to_string());
    report.demand(finished > right, || {
        format!("{finished} answers for {right} clients and a probe")
    });
}
