//! A broker dies, or freezes: its clients' work stops, and nobody else waits for it.

use std::time::{Duration, Instant};

use duo_system_tests::harness::cluster::{answer_to, chat, freeze};
use duo_system_tests::harness::{Cluster, PATIENCE};
use duo_system_tests::sim::Settings;

fn slow() -> Settings {
    Settings {
        tokens: 2000,
        pace_ms: 50,
        ..Settings::default()
    }
}

#[tokio::test]
async fn requests_of_a_killed_broker_end_within_a_lease_and_nobody_waits_for_them() {
    let mut cluster = Cluster::builder()
        .sim(slow())
        .lease("1s")
        .slots(1)
        .broker_env("DUO_ABANDON_AFTER", "1s")
        .start()
        .await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", 2000, true))
        .open()
        .await;
    assert!(stream.next().await);
    let queued = tokio::spawn(
        cluster
            .openai("/v1/chat/completions", &chat("queued", 5, true))
            .try_open(),
    );
    cluster.queued(2).await;
    cluster.broker.kill().await;
    let answer = stream.rest().await;
    assert!(!answer.looks_whole() && answer.broken.is_some(), "{answer}");
    assert!(queued.await.expect("a result").is_err());
    cluster.broker.again();
    cluster.ready(PATIENCE).await;
    cluster.queued(0).await;
    cluster.sim_shows(|stats| stats.running == 0).await;
    cluster.sim.set(|sim| (sim.tokens, sim.pace_ms) = (3, 0));
    cluster
        .openai("/v1/chat/completions", &chat("next", 3, false))
        .send()
        .await
        .good();
    cluster.assert_clean().await;
}

#[tokio::test]
async fn what_a_dead_broker_leaves_in_the_queue_costs_one_lease_together() {
    let mut cluster = Cluster::builder().sim(slow()).lease("1s").slots(1).start().await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("running", 2000, true))
        .open()
        .await;
    assert!(stream.next().await);
    for number in 0..6 {
        let body = chat(&format!("queued {number}"), 5, true);
        tokio::spawn(cluster.openai("/v1/chat/completions", &body).try_open());
    }
    cluster.queued(7).await;
    cluster.broker.kill().await;
    let died = Instant::now();
    cluster.queued(0).await;
    assert!(died.elapsed() < Duration::from_secs(5), "{:?}", died.elapsed());
    let stats = cluster.sim_shows(|stats| stats.running == 0).await;
    assert!(
        stats.started <= 2,
        "who waits in vain is not generated for: {stats:?}"
    );
}

#[tokio::test]
async fn a_frozen_brokers_work_stops_within_two_leases_and_goes_on_when_it_thaws() {
    const WORDS: usize = 200;
    let cluster = Cluster::builder().sim(slow()).lease("1s").start().await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", WORDS, true))
        .open()
        .await;
    stream.until(|text| text.matches("data: ").count() > 10).await;
    freeze(&cluster.broker, true);
    let frozen = Instant::now();
    cluster
        .sim_shows(|stats| stats.aborted == 1 && stats.running == 0)
        .await;
    let stopped = frozen.elapsed();
    cluster.queued(0).await;
    freeze(&cluster.broker, false);
    // The promise is two leases; the rest is for a busy machine.
    assert!(stopped < Duration::from_secs(4), "{stopped:?}");
    cluster.sim.set(|sim| sim.pace_ms = 1);
    let answer = stream.rest().await.good();
    assert_eq!(answer.said(), answer_to("hello", WORDS));
    assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"));
    cluster.assert_clean().await;
}
