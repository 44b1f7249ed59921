//! SIGTERM: what has begun is finished, nothing new is taken.

use std::time::Duration;

use duo_system_tests::harness::cluster::{answer_to, chat, sum};
use duo_system_tests::harness::{Cluster, PATIENCE, Program, until};
use duo_system_tests::sim::Settings;
use nix::sys::signal::Signal;

const WORDS: usize = 40;

async fn streaming() -> (Cluster, duo_system_tests::harness::Opened) {
    streaming_words(WORDS, 1).await
}

async fn streaming_words(words: usize, workers: usize) -> (Cluster, duo_system_tests::harness::Opened) {
    let sim = Settings {
        tokens: words,
        pace_ms: 50,
        ..Settings::default()
    };
    let cluster = Cluster::builder().sim(sim).workers(workers).start().await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", words, true))
        .open()
        .await;
    stream.until(|text| text.matches("data: ").count() > 5).await;
    (cluster, stream)
}

#[tokio::test]
async fn a_broker_that_is_told_to_end_finishes_its_streams_first() {
    let (mut cluster, stream) = streaming().await;
    cluster.broker.signal(Signal::SIGTERM);
    let answer = stream.rest().await.good();
    assert_eq!(answer.said(), answer_to("hello", WORDS));
    assert!(cluster.broker.ended().await.success());
    cluster.broker.again();
    cluster.ready(PATIENCE).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_worker_that_is_told_to_end_finishes_its_streams_first() {
    let (mut cluster, stream) = streaming().await;
    cluster.worker(0).signal(Signal::SIGTERM);
    let answer = stream.rest().await.good();
    assert_eq!(answer.said(), answer_to("hello", WORDS));
    assert!(cluster.worker(0).ended().await.success());
    cluster.restart_worker(0).await;
    cluster
        .openai("/v1/chat/completions", &chat("next", 3, false))
        .send()
        .await
        .good();
    cluster.assert_clean().await;
}

/// Tells a program to end, and again once it has heard the first time: two signals that wait are one.
async fn end_now(program: &mut Program) -> Duration {
    let heard = |program: &Program| std::fs::read_to_string(program.log()).unwrap_or_default();
    program.signal(Signal::SIGTERM);
    until("it drains", PATIENCE, async || {
        match heard(program).contains("signal received: draining") {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    })
    .await;
    let began = tokio::time::Instant::now();
    program.signal(Signal::SIGTERM);
    assert!(program.ended().await.success());
    began.elapsed()
}

/// Far less than the grace and the answers of these tests last, 25 s and 50 s.
const AT_ONCE: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_broker_that_is_told_twice_ends_at_once_with_an_error_and_a_record() {
    let (mut cluster, stream) = streaming_words(1000, 1).await;
    let took = end_now(&mut cluster.broker).await;
    assert!(took < AT_ONCE, "{took:?}");
    let answer = stream.rest().await;
    assert!(!answer.looks_whole(), "{answer}");
    assert!(answer.text().contains("\"error\""), "{answer}");
    leaves_nothing(cluster).await;
}

#[tokio::test]
async fn a_worker_that_is_told_twice_ends_at_once_and_its_answer_goes_on_elsewhere() {
    let (mut cluster, stream) = streaming_words(100, 2).await;
    let first = cluster.worker_metrics(0).await.expect("it answers");
    let busy = usize::from(sum(&first, "duo_worker_slots_in_use") == 0.0);
    let took = end_now(cluster.worker(busy)).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    let answer = stream.rest().await.good();
    assert_eq!(answer.said(), answer_to("hello", 100));
    cluster.sim_shows(|stats| stats.continued == 1).await;
    cluster.restart_worker(busy).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn idle_programs_end_at_once() {
    let mut cluster = Cluster::start().await;
    cluster.assert_clean().await;
    let began = tokio::time::Instant::now();
    assert!(cluster.worker(0).terminate().await.success());
    assert!(cluster.broker.terminate().await.success());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// Nothing runs or waits for the broker that has ended, and it comes back to a clean system.
async fn leaves_nothing(mut cluster: Cluster) {
    cluster.sim_shows(|stats| stats.running == 0).await;
    cluster.queued(0).await;
    cluster.broker.again();
    cluster.ready(PATIENCE).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn what_outlasts_a_brokers_grace_ends_with_an_error_and_a_record() {
    let sim = Settings {
        tokens: 1000,
        pace_ms: 50,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder()
        .sim(sim)
        .slots(1)
        .broker_env("DUO_DRAIN_GRACE", "1s")
        .start()
        .await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", 1000, true))
        .open()
        .await;
    assert!(stream.next().await);
    let queued = tokio::spawn(
        cluster
            .openai("/v1/chat/completions", &chat("queued", 5, false))
            .send(),
    );
    cluster.queued(2).await;
    let began = tokio::time::Instant::now();
    cluster.broker.signal(Signal::SIGTERM);
    let answer = stream.rest().await;
    assert!(!answer.looks_whole(), "{answer}");
    assert!(answer.text().contains("\"error\""), "{answer}");
    assert_eq!(queued.await.expect("an answer").status, 503);
    assert!(cluster.broker.ended().await.success());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    leaves_nothing(cluster).await;
}

#[tokio::test]
async fn what_outlasts_a_workers_grace_goes_on_elsewhere_at_once_and_costs_no_attempt() {
    let sim = Settings {
        tokens: 100,
        pace_ms: 50,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder()
        .sim(sim)
        .workers(2)
        .broker_env("DUO_MAX_ATTEMPTS", "1")
        .worker_env("DUO_DRAIN_GRACE", "500ms")
        .start()
        .await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", 100, true))
        .open()
        .await;
    stream.until(|text| text.matches("data: ").count() > 10).await;
    let first = cluster.worker_metrics(0).await.expect("it answers");
    let busy = match sum(&first, "duo_worker_slots_in_use") {
        0.0 => 1,
        _ => 0,
    };
    let began = tokio::time::Instant::now();
    cluster.worker(busy).signal(Signal::SIGTERM);
    assert!(cluster.worker(busy).ended().await.success());
    cluster.sim_shows(|stats| stats.continued == 1).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    let answer = stream.rest().await.good();
    assert_eq!(answer.said(), answer_to("hello", 100));
    cluster.restart_worker(busy).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_broker_that_has_just_been_started_knows_its_callers_and_its_features() {
    // A broker that is killed just after an answer may not have told NATS of its end.
    let builder = Cluster::builder().broker_env("DUO_ABANDON_AFTER", "1s");
    let mut cluster = builder.start().await;
    for round in 0..5 {
        cluster.broker.kill().await;
        cluster.broker.again();
        // A balancer that knows no readiness sends callers as soon as the port is open.
        let question = format!("round {round}");
        let body = chat(&question, 3, true);
        let answer = until("the port is open", PATIENCE, async || {
            let opened = cluster.openai("/v1/chat/completions", &body).try_open().await?;
            Ok(opened.rest().await)
        });
        assert_eq!(answer.await.good().said(), answer_to(&question, 3));
    }
    cluster.assert_clean().await;
}
