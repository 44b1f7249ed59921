//! A worker dies: its requests go on elsewhere, or end honestly.

use duo_system_tests::harness::cluster::{answer_to, chat, freeze};
use duo_system_tests::harness::{Cluster, until};
use duo_system_tests::sim::{Fault, Settings};

const WORDS: usize = 60;

fn sim() -> Settings {
    Settings {
        tokens: WORDS,
        pace_ms: 50,
        ..Settings::default()
    }
}

/// The worker that holds a slot now.
async fn busy(cluster: &Cluster) -> usize {
    until(
        "a worker is busy",
        duo_system_tests::harness::PATIENCE,
        async || {
            for number in 0..2 {
                let metrics = cluster.worker_metrics(number).await?;
                if duo_system_tests::harness::cluster::sum(&metrics, "duo_worker_slots_in_use") > 0.0 {
                    return Ok(number);
                }
            }
            Err("both are idle".to_owned())
        },
    )
    .await
}

#[tokio::test]
async fn a_stream_goes_on_byte_for_byte_after_its_worker_was_killed() {
    let mut cluster = Cluster::builder().sim(sim()).lease("1s").workers(2).start().await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", WORDS, true))
        .open()
        .await;
    stream.until(|text| text.matches("data: ").count() > 10).await;
    let victim = busy(&cluster).await;
    cluster.kill_worker(victim).await;
    let answer = stream.rest().await;
    assert_eq!(answer.said(), answer_to("hello", WORDS), "{answer}");
    assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"));
    assert_eq!(cluster.sim.stats().continued, 1, "{:?}", cluster.sim.stats());
    cluster.restart_worker(victim).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_server_that_never_goes_on_with_an_answer_holds_it_up_for_the_idle_timeout_only() {
    let mut cluster = Cluster::builder()
        .sim(sim())
        .lease("1s")
        .workers(2)
        .worker_env("DUO_MODEL_IDLE_TIMEOUT", "1s")
        .start()
        .await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", WORDS, true))
        .open()
        .await;
    stream.until(|text| text.matches("data: ").count() > 10).await;
    // The next attempt is taken and gets neither headers nor a word; the one behind it is as any other.
    cluster.sim.set(|sim| {
        sim.fault_after = Some(0);
        sim.next_faults = vec![Fault::Stall];
    });
    let victim = busy(&cluster).await;
    cluster.kill_worker(victim).await;
    let killed = std::time::Instant::now();
    let answer = stream.rest().await;
    assert_eq!(answer.said(), answer_to("hello", WORDS), "{answer}");
    // The lease, the idle timeout, the wait for a worker that has not failed it, and the rest of the answer.
    assert!(
        killed.elapsed() < std::time::Duration::from_secs(12),
        "{:?}",
        killed.elapsed()
    );
    assert_eq!(cluster.sim.stats().continued, 2, "{:?}", cluster.sim.stats());
    cluster.restart_worker(victim).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_stream_that_cannot_be_continued_never_looks_whole() {
    let mut cluster = Cluster::builder().sim(sim()).lease("1s").start().await;
    let mut body = chat("hello", WORDS, true);
    body["n"] = 2.into();
    let mut stream = cluster.openai("/v1/chat/completions", &body).open().await;
    stream.until(|text| text.matches("data: ").count() > 10).await;
    cluster.kill_worker(0).await;
    cluster.restart_worker(0).await;
    let answer = stream.rest().await;
    assert!(!answer.looks_whole(), "{answer}");
    assert!(
        answer.broken.is_some() || answer.text().contains("\"error\""),
        "{answer}"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_request_without_a_first_word_runs_again_after_its_worker_was_killed() {
    let sim = Settings {
        ttft_ms: 1500,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder().sim(sim).lease("1s").start().await;
    let asked = tokio::spawn(
        cluster
            .openai("/v1/chat/completions", &chat("hello", 5, true))
            .send(),
    );
    cluster.sim_shows(|stats| stats.running == 1).await;
    cluster.kill_worker(0).await;
    cluster.restart_worker(0).await;
    let answer = asked.await.expect("an answer").good();
    assert_eq!(answer.said(), answer_to("hello", 5));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_frozen_worker_is_replaced_and_its_late_words_change_nothing() {
    let mut cluster = Cluster::builder().sim(sim()).lease("1s").workers(2).start().await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", WORDS, true))
        .open()
        .await;
    stream.until(|text| text.matches("data: ").count() > 10).await;
    let victim = busy(&cluster).await;
    freeze(cluster.worker(victim), true);
    let said = stream.so_far().said().len();
    stream
        .until(|text| text.len() > said && text.contains("[DONE]"))
        .await;
    freeze(cluster.worker(victim), false);
    let answer = stream.rest().await.good();
    assert_eq!(answer.said(), answer_to("hello", WORDS));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_frozen_worker_that_nobody_replaces_goes_on_when_it_thaws() {
    let mut cluster = Cluster::builder().sim(sim()).lease("1s").start().await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", WORDS, true))
        .open()
        .await;
    stream.until(|text| text.matches("data: ").count() > 10).await;
    for _ in 0..3 {
        freeze(cluster.worker(0), true);
        tokio::time::sleep(std::time::Duration::from_millis(1400)).await;
        freeze(cluster.worker(0), false);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let thawed = std::time::Instant::now();
    let answer = stream.rest().await.good();
    assert_eq!(answer.said(), answer_to("hello", WORDS));
    assert!(
        thawed.elapsed() < std::time::Duration::from_secs(5),
        "{:?}",
        thawed.elapsed()
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_request_whose_every_worker_dies_ends_with_an_error() {
    let sim = Settings {
        ttft_ms: 20_000,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder()
        .sim(sim)
        .lease("1s")
        .broker_env("DUO_MAX_ATTEMPTS", "2")
        .start()
        .await;
    let asked = tokio::spawn(
        cluster
            .openai("/v1/chat/completions", &chat("hello", 5, true))
            .send(),
    );
    for attempt in 1..=2 {
        cluster.sim_shows(|stats| stats.running == 1).await;
        cluster.attempted(attempt).await;
        cluster.kill_worker(0).await;
        cluster.sim_shows(|stats| stats.running == 0).await;
        cluster.restart_worker(0).await;
    }
    let answer = tokio::time::timeout(std::time::Duration::from_secs(8), asked)
        .await
        .expect("the client is told")
        .expect("an answer");
    assert!(answer.status.is_server_error(), "{answer}");
    cluster.assert_clean().await;
}
