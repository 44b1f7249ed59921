//! SIGTERM: what has begun is finished, nothing new is taken.

use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::cluster::{answer_to, chat};
use duo_system_tests::sim::Settings;
use nix::sys::signal::Signal;

const WORDS: usize = 40;

async fn streaming() -> (Cluster, duo_system_tests::harness::Opened) {
    let sim = Settings {
        tokens: WORDS,
        pace_ms: 50,
        ..Settings::default()
    };
    let cluster = Cluster::builder().sim(sim).start().await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", WORDS, true))
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
    cluster.ready(duo_system_tests::harness::PATIENCE).await;
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

#[tokio::test]
async fn idle_programs_end_at_once() {
    let mut cluster = Cluster::start().await;
    cluster.assert_clean().await;
    let began = tokio::time::Instant::now();
    assert!(cluster.worker(0).terminate().await.success());
    assert!(cluster.broker.terminate().await.success());
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(8), "{took:?}");
}
