//! PostgreSQL goes away for a while: every request is served, and every record is there afterwards.
//!
//! With `DUO_TEST_LONG=1` the while is a minute instead of some seconds.

use std::time::Duration;

use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::cluster::{answer_to, chat, completion};
use tokio::time::{MissedTickBehavior, interval};

fn a_while() -> Duration {
    let long = std::env::var_os("DUO_TEST_LONG").is_some_and(|value| value == "1");
    Duration::from_secs(if long { 60 } else { 5 })
}

/// Asks at a steady pace for a while; gives how many were answered.
async fn ask_steadily(cluster: &Cluster) -> i64 {
    let mut ticks = interval(Duration::from_millis(100));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let began = tokio::time::Instant::now();
    let mut answered = 0;
    while began.elapsed() < a_while() {
        ticks.tick().await;
        let question = format!("question {answered}");
        let answer = cluster
            .openai("/v1/chat/completions", &chat(&question, 4, false))
            .send()
            .await
            .good();
        assert_eq!(
            answer.json()["choices"][0]["message"]["content"],
            answer_to(&question, 4)
        );
        cluster
            .rails("/v2/code/completions", "alice", &completion("x = ", false))
            .send()
            .await
            .good();
        answered += 2;
    }
    answered
}

async fn assert_recorded(cluster: &Cluster, count: i64) {
    cluster.assert_clean().await;
    let ended = "SELECT count(*) FROM audit_events WHERE kind = 'ended' AND outcome = 'completed'";
    assert_eq!(cluster.database.count(ended).await, Ok(count));
    let admitted = "SELECT count(*) FROM audit_events WHERE kind = 'admitted'";
    assert_eq!(cluster.database.count(admitted).await, Ok(count));
}

#[tokio::test]
async fn a_stopped_postgres_stops_no_request_and_loses_no_record() {
    let mut cluster = Cluster::builder().own_postgres().start().await;
    cluster.postgres.as_mut().expect("its own").stop();
    let answered = ask_steadily(&cluster).await;
    cluster.postgres.as_mut().expect("its own").start_again().await;
    assert_recorded(&cluster, answered).await;
}

#[tokio::test]
async fn a_frozen_postgres_stops_no_request_and_loses_no_record() {
    let cluster = Cluster::builder().own_postgres().start().await;
    let postgres = cluster.postgres.as_ref().expect("its own");
    postgres.freeze(true);
    let answered = ask_steadily(&cluster).await;
    postgres.freeze(false);
    assert_recorded(&cluster, answered).await;
}

#[tokio::test]
async fn a_broker_starts_and_serves_while_postgres_is_away() {
    let mut cluster = Cluster::builder().own_postgres().start().await;
    cluster.postgres.as_mut().expect("its own").stop();
    assert!(cluster.broker.terminate().await.success());
    cluster.broker.again();
    cluster.ready(Duration::from_secs(15)).await;
    cluster
        .rails("/v2/code/completions", "alice", &completion("x = ", false))
        .send()
        .await
        .good();
    cluster
        .openai("/v1/chat/completions", &chat("hello", 4, false))
        .send()
        .await
        .good();
    cluster.postgres.as_mut().expect("its own").start_again().await;
    assert_recorded(&cluster, 2).await;
}
