//! A broker dies: each of its requests gets one terminal record from another broker, and nobody else's does.

use std::time::Duration;

use duo_system_tests::harness::cluster::{answer_to, chat, freeze, sum};
use duo_system_tests::harness::program::free_port;
use duo_system_tests::harness::{Cluster, PATIENCE, Program, until};
use duo_system_tests::sim::Settings;

const ABANDONED: &str = "SELECT count(*) FROM audit_events WHERE outcome = 'abandoned'";
const OPEN: &str = "SELECT count(*) FROM audit_events AS a WHERE kind = 'admitted' AND NOT EXISTS \
     (SELECT FROM audit_events AS e WHERE e.request_id = a.request_id AND e.kind = 'ended')";

const ADMITTED: &str = "SELECT count(*) FROM audit_events WHERE kind = 'admitted'";
/// Requests of a round that have their record before the broker is killed.
const RECORDED: i64 = 16;

/// A second broker with the settings of the first, and where its metrics are.
async fn second_broker(cluster: &Cluster) -> (Program, String) {
    let (api, operations) = (free_port(), free_port());
    let operations = format!("127.0.0.1:{operations}");
    let env = [
        ("DUO_BROKER_NAME", "b2".to_owned()),
        ("DUO_LISTEN", format!("127.0.0.1:{api}")),
        ("DUO_ADMIN_LISTEN", operations.clone()),
    ];
    let broker = cluster.cli.serve("broker-2", &env, cluster.folder());
    let url = format!("http://{operations}/metrics");
    until("the second broker is there", PATIENCE, async || {
        reqwest::get(&url)
            .await
            .map(|_| ())
            .map_err(|error| error.to_string())
    })
    .await;
    (broker, url)
}

async fn metric(url: &str, name: &str) -> Result<f64, String> {
    let answer = reqwest::get(url).await.map_err(|error| error.to_string())?;
    let text = answer.text().await.map_err(|error| error.to_string())?;
    Ok(sum(&text, name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_a_killed_broker_gets_one_end() {
    let sim = Settings {
        tokens: 400,
        pace_ms: 25,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder()
        .sim(sim)
        .lease("1s")
        .broker_env("DUO_ABANDON_AFTER", "1s")
        .start()
        .await;
    for round in 0..2 {
        let mut asked = Vec::new();
        for number in 0..30 {
            let words = if number % 3 == 0 { 2 } else { 400 };
            let body = chat(&format!("{round} {number}"), words, number % 2 == 0);
            asked.push(tokio::spawn(
                cluster.openai("/v1/chat/completions", &body).try_open(),
            ));
        }
        let least = (round + 1) * RECORDED;
        until("many have their record", PATIENCE, async || {
            match cluster.database.count(ADMITTED).await? {
                admitted if admitted >= least => Ok(()),
                admitted => Err(format!("{admitted} of {least}")),
            }
        })
        .await;
        // More are on their way in, out and through the audit log at the moment of the kill.
        cluster.broker.kill().await;
        for task in asked {
            let _ = task.await.expect("no panic");
        }
        cluster.broker.again();
        cluster.ready(PATIENCE).await;
    }
    until("every request has its end", PATIENCE, async || {
        // What the killed broker was about to write comes to another writer first.
        let waiting = cluster.messages("DUO_AUDIT").await?;
        match (waiting, cluster.database.count(OPEN).await?) {
            (0, 0) => Ok(()),
            (waiting, open) => Err(format!("{open} are open, {waiting} records wait")),
        }
    })
    .await;
    let abandoned = cluster.database.count(ABANDONED).await.expect("a count");
    assert!(abandoned > 10, "{abandoned}");
    let reasons = cluster.ends().await.expect("ends");
    let lost = |(outcome, reason, _): &&(String, Option<String>, Option<String>)| {
        outcome == "abandoned" && reason.as_deref() == Some("broker_lost")
    };
    assert_eq!(reasons.iter().filter(lost).count() as i64, abandoned);
    cluster.assert_clean().await;
}

/// With the store of NATS went what the broker had said last; the new stream has never had a record.
#[tokio::test]
async fn a_request_is_closed_although_its_end_is_lost_and_no_other_record_follows() {
    let mut cluster = Cluster::builder()
        .sim(Settings {
            tokens: 400,
            pace_ms: 25,
            ..Settings::default()
        })
        .broker_env("DUO_ABANDON_AFTER", "1s")
        .start()
        .await;
    let asked = cluster.openai("/v1/chat/completions", &chat("long", 400, true));
    let asked = tokio::spawn(asked.try_open());
    until("it has its record", PATIENCE, async || {
        match cluster.database.count(ADMITTED).await? {
            1 => Ok(()),
            admitted => Err(admitted.to_string()),
        }
    })
    .await;
    cluster.broker.kill().await;
    cluster.nats.kill().await;
    std::fs::remove_dir_all(cluster.nats.store()).expect("the store can be removed");
    cluster.nats.restart().await;
    cluster.broker.again();
    cluster.ready(PATIENCE).await;
    drop(asked.await.expect("no panic"));
    until("it has its end", PATIENCE, async || {
        match cluster.database.count(ABANDONED).await? {
            1 => Ok(()),
            abandoned => Err(abandoned.to_string()),
        }
    })
    .await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_broker_that_is_slow_frozen_or_cut_off_keeps_its_requests() {
    const WORDS: usize = 400;
    let sim = Settings {
        tokens: WORDS,
        pace_ms: 25,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder()
        .sim(sim)
        .broker_env("DUO_ABANDON_AFTER", "1s")
        .start()
        .await;
    let (_second, metrics) = second_broker(&cluster).await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("long", WORDS, true))
        .open()
        .await;
    assert!(stream.next().await);
    until(
        "the second broker knows it as open",
        PATIENCE,
        async || match metric(&metrics, "duo_audit_unended").await? {
            1.0 => Ok(()),
            found => Err(found.to_string()),
        },
    )
    .await;
    freeze(&cluster.broker, true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    freeze(&cluster.broker, false);
    cluster.nats.kill().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    cluster.nats.restart().await;
    let answer = stream.rest().await.good();
    assert_eq!(answer.said(), answer_to("long", WORDS));
    cluster.assert_clean().await;
    assert_eq!(cluster.database.count(ABANDONED).await, Ok(0));
    assert_eq!(metric(&metrics, "duo_requests_abandoned_total").await, Ok(0.0));
}
