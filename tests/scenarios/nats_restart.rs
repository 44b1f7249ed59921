//! nats-server dies and comes back: nothing that was queued is lost.

use std::time::Duration;

use duo_system_tests::harness::cluster::{answer_to, chat, completion};
use duo_system_tests::harness::{Cluster, until};
use duo_system_tests::sim::Settings;
use futures_util::future::join_all;
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_in_the_queue_survive_a_killed_nats_server() {
    let sim = Settings {
        tokens: 1000,
        pace_ms: 20,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder().sim(sim).slots(3).start().await;
    // Two hold the slots (the third is kept for those who type), ten wait behind them.
    let mut holders = Vec::new();
    for number in 0..2 {
        let body = chat(&format!("holder {number}"), 1000, true);
        let mut holder = cluster.openai("/v1/chat/completions", &body).open().await;
        assert!(holder.next().await);
        holders.push(holder);
    }
    cluster.sim.set(|sim| (sim.tokens, sim.pace_ms) = (5, 1));
    let waiting: Vec<_> = (0..10)
        .map(|number| {
            let body = chat(&format!("waiting {number}"), 5, number % 2 == 0);
            tokio::spawn(cluster.openai("/v1/chat/completions", &body).send())
        })
        .collect();
    cluster.queued(12).await;
    cluster.nats.kill().await;
    cluster.nats.restart().await;
    assert_eq!(cluster.messages("DUO_LIVE").await, Ok(12));
    drop(holders);
    for (number, answer) in join_all(waiting).await.into_iter().enumerate() {
        let answer = answer.expect("an answer").good();
        let wanted = answer_to(&format!("waiting {number}"), 5);
        let said = match number % 2 {
            0 => answer.said(),
            _ => answer.json()["choices"][0]["message"]["content"]
                .as_str()
                .expect("text")
                .to_owned(),
        };
        assert_eq!(said, wanted, "request {number}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn the_next_completion_is_served_within_a_second_of_the_queues_return() {
    let mut cluster = Cluster::start().await;
    cluster
        .rails("/v2/code/completions", "alice", &completion("warm = ", false))
        .send()
        .await
        .good();
    for round in 0..3 {
        cluster.nats.kill().await;
        cluster.nats.restart().await;
        let back = Instant::now();
        // The model server may be asked again for an older request whose ack the kill has swallowed, so the answer is
        // compared with its own question and not with what the server heard last.
        let question = format!("round {round}");
        let answer = cluster
            .openai("/v1/chat/completions", &chat(&question, 5, false))
            .send()
            .await
            .good();
        assert_eq!(
            answer.json()["choices"][0]["message"]["content"],
            answer_to(&question, 5),
            "round {round}: {answer}"
        );
        let took = back.elapsed();
        assert!(
            took < Duration::from_secs(1),
            "round {round}: served {took:?} after the return"
        );
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_request_that_meets_no_queue_is_served_once_it_is_back() {
    let mut cluster = Cluster::start().await;
    cluster.nats.kill().await;
    let asked = tokio::spawn(
        cluster
            .openai("/v1/chat/completions", &chat("hello", 5, false))
            .send(),
    );
    cluster.nats.restart().await;
    let answer = asked.await.expect("an answer").good();
    assert_eq!(
        answer.json()["choices"][0]["message"]["content"],
        answer_to("hello", 5)
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_stream_in_flight_goes_on_over_a_restart_of_nats() {
    const WORDS: usize = 60;
    let sim = Settings {
        tokens: WORDS,
        pace_ms: 50,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder().sim(sim).start().await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", WORDS, true))
        .open()
        .await;
    stream.until(|text| text.matches("data: ").count() > 10).await;
    cluster.nats.kill().await;
    cluster.nats.restart().await;
    let answer = stream.rest().await.good();
    assert_eq!(answer.said(), answer_to("hello", WORDS));
    assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn readiness_follows_the_connection_and_liveness_does_not() {
    let mut cluster = Cluster::start().await;
    cluster.nats.kill().await;
    until("the broker is not ready", Duration::from_secs(10), async || {
        let answer = cluster.call(http::Method::GET, "/monitoring/ready").send().await;
        if answer.status == 503 {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
    cluster
        .call(http::Method::GET, "/monitoring/healthz")
        .send()
        .await
        .good();
    cluster.nats.restart().await;
    cluster.ready(Duration::from_secs(5)).await;
    cluster
        .rails("/v2/code/completions", "alice", &completion("x = ", false))
        .send()
        .await
        .good();
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_queue_that_lost_its_whole_store_serves_again_within_seconds() {
    let mut cluster = Cluster::start().await;
    let body = completion("warm = ", false);
    cluster
        .rails("/v2/code/completions", "alice", &body)
        .send()
        .await
        .good();
    cluster.nats.kill().await;
    std::fs::remove_dir_all(cluster.nats.store()).expect("the store can be removed");
    cluster.nats.restart().await;
    let back = Instant::now();
    until("a completion is served", Duration::from_secs(10), async || {
        let body = completion("x = ", false);
        let answer = cluster.rails("/v2/code/completions", "alice", &body).send().await;
        if answer.status == 200 && answer.text().contains(&cluster.expected(16)) {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
    let took = back.elapsed();
    assert!(
        took < Duration::from_secs(6),
        "served {took:?} after the queue's return"
    );
    // Workers are known again, so that requests are still let in when the grace for a model without one is over.
    until(
        "workers are present",
        Duration::from_secs(10),
        async || match cluster.messages("KV_duo_workers").await? {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        },
    )
    .await;
}

#[tokio::test]
async fn a_deleted_stream_is_made_again_and_what_waited_in_it_is_published_again() {
    let sim = Settings {
        tokens: 400,
        pace_ms: 20,
        ..Settings::default()
    };
    let cluster = Cluster::builder().sim(sim).slots(1).lease("1s").start().await;
    let mut holder = cluster
        .openai("/v1/chat/completions", &chat("holder", 400, true))
        .open()
        .await;
    assert!(holder.next().await);
    let waiting = tokio::spawn(
        cluster
            .openai("/v1/chat/completions", &chat("waiting", 5, false))
            .send(),
    );
    cluster.queued(2).await;
    let context = async_nats::jetstream::new(cluster.nats.connect().await);
    context.delete_stream("DUO_LIVE").await.expect("it was there");
    let deleted = Instant::now();
    drop(holder);
    let answer = waiting.await.expect("an answer").good();
    assert_eq!(
        answer.json()["choices"][0]["message"]["content"],
        answer_to("waiting", 5)
    );
    let took = deleted.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_deleted_consumer_is_made_again() {
    let cluster = Cluster::start().await;
    let context = async_nats::jetstream::new(cluster.nats.connect().await);
    let stream = context.get_stream("DUO_LIVE").await.expect("it is there");
    let names = futures_util::TryStreamExt::try_collect::<Vec<_>>(stream.consumer_names());
    for name in names.await.expect("names") {
        stream.delete_consumer(&name).await.expect("it was there");
    }
    let deleted = Instant::now();
    cluster
        .rails("/v2/code/completions", "alice", &completion("x = ", false))
        .send()
        .await
        .good();
    let took = deleted.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    cluster.assert_clean().await;
}
