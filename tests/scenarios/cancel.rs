//! A client that leaves stops its generation, whichever state it is in.

use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::cluster::{chat, completion};
use duo_system_tests::sim::Settings;
use serde_json::json;

const CANCELLED: (&str, Option<&str>) = ("cancelled", Some("client_gone"));

async fn assert_cancelled(cluster: &Cluster, id: &str) {
    let (outcome, reason) = cluster.end_of(id).await;
    assert_eq!((outcome.as_str(), reason.as_deref()), CANCELLED);
}

fn slow() -> Settings {
    Settings {
        tokens: 1000,
        pace_ms: 50,
        ..Settings::default()
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_queued_never_reaches_the_model() {
    let cluster = Cluster::builder().sim(slow()).slots(1).start().await;
    let mut first = cluster
        .openai("/v1/chat/completions", &chat("first", 1000, true))
        .open()
        .await;
    assert!(first.next().await);
    let call = cluster
        .openai("/v1/chat/completions", &chat("second", 10, true))
        .header("x-request-id", "queued");
    let second = tokio::spawn(call.try_open());
    cluster.queued(2).await;
    second.abort();
    assert_cancelled(&cluster, "queued").await;
    cluster.queued(1).await;
    drop(first);
    let stats = cluster.sim_shows(|stats| stats.running == 0).await;
    assert_eq!((stats.started, stats.aborted), (1, 1));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_client_that_leaves_during_a_silent_prefill_stops_it() {
    let sim = Settings {
        ttft_ms: 60_000,
        ..Settings::default()
    };
    let cluster = Cluster::builder().sim(sim).slots(1).start().await;
    for stream in [true, false] {
        let id = format!("prefill-{stream}");
        let call = cluster
            .openai("/v1/chat/completions", &chat("hello", 10, stream))
            .header("x-request-id", &id);
        let asked = tokio::spawn(call.try_open());
        cluster.sim_shows(|stats| stats.running == 1).await;
        asked.abort();
        cluster.sim_shows(|stats| stats.running == 0).await;
        assert_cancelled(&cluster, &id).await;
    }
    assert_eq!(cluster.sim.stats().aborted, 2);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_stops_the_generation_and_frees_its_slot() {
    let cluster = Cluster::builder().sim(slow()).slots(1).start().await;
    let call = cluster.openai("/v1/chat/completions", &chat("hello", 1000, true));
    let mut stream = call.header("x-request-id", "openai").open().await;
    stream.until(|text| text.matches("data: ").count() > 3).await;
    drop(stream);
    cluster
        .sim_shows(|stats| stats.aborted == 1 && stats.running == 0)
        .await;

    let call = cluster.rails("/v2/code/completions", "alice", &completion("x = ", true));
    let mut stream = call.header("x-request-id", "rails").open().await;
    assert!(stream.next().await);
    drop(stream);
    cluster
        .sim_shows(|stats| stats.aborted == 2 && stats.running == 0)
        .await;

    cluster.sim.set(|sim| (sim.tokens, sim.pace_ms) = (3, 0));
    cluster
        .openai("/v1/chat/completions", &chat("next", 3, false))
        .send()
        .await
        .good();
    assert_cancelled(&cluster, "openai").await;
    assert_cancelled(&cluster, "rails").await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_a_whole_answer_stops_the_generation() {
    let cluster = Cluster::builder().sim(slow()).slots(1).start().await;
    let call = cluster
        .openai("/v1/chat/completions", &chat("hello", 1000, false))
        .header("x-request-id", "whole");
    let asked = tokio::spawn(call.try_open());
    cluster.sim_shows(|stats| stats.running == 1).await;
    asked.abort();
    cluster
        .sim_shows(|stats| stats.aborted == 1 && stats.running == 0)
        .await;
    assert_cancelled(&cluster, "whole").await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_newer_completion_of_the_same_file_replaces_an_older_queued_one() {
    let cluster = Cluster::builder().sim(slow()).slots(1).start().await;
    let mut first = cluster
        .openai("/v1/chat/completions", &chat("first", 1000, true))
        .open()
        .await;
    assert!(first.next().await);
    let call = cluster
        .rails("/v2/code/completions", "alice", &completion("a", false))
        .header("x-request-id", "older");
    let older = tokio::spawn(call.send());
    cluster.queued(2).await;
    cluster.sim.set(|sim| (sim.tokens, sim.pace_ms) = (3, 0));
    let call = cluster.rails("/v2/code/completions", "alice", &completion("ab", false));
    let newer = tokio::spawn(call.header("x-request-id", "newer").send());
    let nothing = older.await.expect("an answer").good();
    assert_eq!(nothing.json()["choices"], json!([]));
    drop(first);
    let newer = newer.await.expect("an answer").good();
    assert_eq!(newer.json()["choices"][0]["text"], cluster.expected(3));
    let (outcome, reason) = cluster.end_of("older").await;
    assert_eq!(
        (outcome.as_str(), reason.as_deref()),
        ("cancelled", Some("superseded"))
    );
    cluster.assert_clean().await;
}

/// A lane so full that others are refused, and somebody who goes on typing.
#[tokio::test]
async fn under_overload_a_newer_completion_takes_the_place_of_an_older_queued_one() {
    let sim = Settings {
        tokens: 1,
        ttft_ms: 1000,
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .slots(1)
        .configure(|config| {
            config["features"]["code_completion"]["first_byte_within"] = "60s".into();
            config["features"]["code_completion"]["end_within"] = "60s".into();
            // On the same server and in the same lane, but in a hurry.
            config["features"]["git_suggestions"] = json!({
                "model": "mistral", "acknowledge": "test", "lane": "keystroke", "first_byte_within": "1s",
            });
        })
        .start()
        .await;
    cluster.slots_known().await;
    let ask = |user: &str, id: &str, text: &str| {
        let mut body = completion(text, false);
        body["current_file"]["file_name"] = format!("{user}.py").into();
        let call = cluster.rails("/v2/code/completions", user, &body);
        tokio::spawn(call.header("x-request-id", id).send())
    };
    // One runs, three stand before the one who types.
    let others: Vec<_> = (0..4)
        .map(|number| ask(&format!("user-{number}"), &format!("other-{number}"), "x"))
        .collect();
    cluster.queued(4).await;
    let mut typed = vec![ask("alice", "typed-0", "a")];
    cluster.queued(5).await;
    let question = json!({"inputs": {"prompt": "how do I undo a commit?"}});
    let hurry = cluster.rails("/v1/prompts/glab_ask_git_command", "hurry", &question);
    assert_eq!(hurry.send().await.status, 429);
    for number in 1..6 {
        typed.push(ask("alice", &format!("typed-{number}"), &"a".repeat(number + 1)));
        let older = typed.swap_remove(0);
        let nothing = older.await.expect("an answer").good();
        assert_eq!(nothing.json()["choices"], json!([]));
    }
    let newest = typed.remove(0).await.expect("an answer").good();
    assert_eq!(newest.json()["choices"][0]["text"], cluster.expected(1));
    for other in others {
        other.await.expect("an answer").good();
    }
    for number in 0..5 {
        let (outcome, reason) = cluster.end_of(&format!("typed-{number}")).await;
        assert_eq!(
            (outcome.as_str(), reason.as_deref()),
            ("cancelled", Some("superseded"))
        );
    }
    // Nothing that was replaced has reached the model server.
    cluster
        .sim_shows(|stats| stats.started == 5 && stats.aborted == 0)
        .await;
    cluster.assert_clean().await;
}
