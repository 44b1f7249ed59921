//! More clients than there is room for, clients that leave, and a model server that is gone.

use std::time::Duration;

use duo_system_tests::harness::Cluster;
use duo_system_tests::rails::events::{Event, parse};
use duo_system_tests::sim::Settings;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::bodies::{
    COMPLETIONS, EXPLAIN, V3, V4, chat, commit, completion, generation, old_generation, old_tool,
};
use crate::case::{Ask, Case, bare, post, story};
use crate::trouble::{TOO_MANY, streamed, streamed_parts};

/// Every case of these; after the last there is no model server any more.
pub(crate) fn cases() -> Vec<Case> {
    vec![ahead(), leaving(), away()]
}

/// Opens so many slow streams; aborted, they close their connections.
async fn occupy(cluster: &Cluster, count: u64, person: impl Fn(u64) -> String) -> Vec<JoinHandle<()>> {
    let body = streamed(old_tool()).body("");
    let asked = (0..count).map(|number| {
        let call = cluster.rails(EXPLAIN, &person(number), &body);
        tokio::spawn(async move {
            if let Ok(opened) = call.try_open().await {
                drop(opened.rest().await);
            }
        })
    });
    let asked = asked.collect();
    cluster.queued(count).await;
    asked
}

/// What a person gets who has used up the share of a feature, by what uses it up.
pub(crate) fn shares() -> Vec<Case> {
    let mut cases = vec![
        beyond(
            "a generation",
            streamed_parts(V3),
            vec![
                generation(V3),
                generation(V4),
                streamed_parts(V4),
                old_generation(),
            ],
        ),
        beyond("a prompt", streamed(commit()), vec![commit(), streamed(commit())]),
        beyond(
            "a tool of old",
            streamed(old_tool()),
            vec![old_tool(), streamed(old_tool())],
        ),
    ];
    cases.push(
        story(
            "beyond a person's share a chat is one error event",
            |cluster| async move {
                let running = fill(&cluster, &chat()).await;
                let event = chat().send(&cluster).await.good();
                let events = parse(&event.text());
                assert!(matches!(events.as_slice(), [Event::Error { .. }]), "{event}");
                drain(&cluster, running).await;
            },
        )
        .sim(slow),
    );
    cases.push(
        story(
            "beyond a person's share a completion is nothing at once, and health is as ever",
            |cluster| async move {
                let running = fill(&cluster, &streamed(completion(COMPLETIONS))).await;
                let nothing = completion(COMPLETIONS).send(&cluster).await.good();
                assert_eq!(nothing.json()["choices"], json!([]), "{nothing}");
                let empty = streamed(completion(COMPLETIONS)).send(&cluster).await.good();
                assert_eq!(empty.text(), "");
                bare(Method::GET, "/monitoring/healthz")
                    .nobody()
                    .send(&cluster)
                    .await
                    .good();
                drain(&cluster, running).await;
            },
        )
        .sim(slow),
    );
    cases
}

fn slow(sim: &mut Settings) {
    (sim.tokens, sim.pace_ms) = (1000, 50);
}

/// Each of `asks` is refused while eight of `first` are there.
fn beyond(what: &str, first: Ask, asks: Vec<Ask>) -> Case {
    story(
        format!("beyond a person's share {what} is 429 with a time to come again"),
        |cluster| async move {
            let running = fill(&cluster, &first).await;
            for ask in asks {
                let refused = ask.send(&cluster).await;
                assert_eq!(
                    refused.status,
                    StatusCode::TOO_MANY_REQUESTS,
                    "{}: {refused}",
                    ask.path()
                );
                assert_eq!(refused.json(), json!({"detail": TOO_MANY}), "{}", ask.path());
                let seconds = refused.header("retry-after").parse::<u64>();
                assert!(seconds.is_ok_and(|seconds| seconds > 0), "{refused}");
            }
            drain(&cluster, running).await;
        },
    )
    .sim(slow)
}

/// Eight requests of the person that cases ask for.
pub(crate) async fn fill(cluster: &Cluster, ask: &Ask) -> Vec<JoinHandle<()>> {
    let asked = (0..8).map(|number| {
        let mut ask = ask.clone();
        if ask.path() == COMPLETIONS {
            // Completions of one file would replace each other.
            ask = ask.with("/current_file/file_name", format!("file{number}.py").into());
        }
        let call = ask.call(cluster);
        tokio::spawn(async move {
            if let Ok(opened) = call.try_open().await {
                drop(opened.rest().await);
            }
        })
    });
    let asked = asked.collect();
    cluster.queued(8).await;
    asked
}

/// They leave.
pub(crate) async fn drain(cluster: &Cluster, running: Vec<JoinHandle<()>>) {
    running.iter().for_each(JoinHandle::abort);
    drop(running);
    cluster.queued(0).await;
}

/// Completions and the model test go ahead of what waits.
fn ahead() -> Case {
    story(
        "a busy model: the model test and a completion go ahead of the queue, within 3 s",
        |cluster| async move {
            let running = occupy(&cluster, 24, |number| format!("person {}", number % 12)).await;
            for ask in [
                post("/v1/prompts/model_configuration%2Fcheck", json!({"inputs": {}})),
                completion(COMPLETIONS),
            ] {
                let asked = Instant::now();
                let answer = ask.send(&cluster).await.good();
                assert!(
                    asked.elapsed() < Duration::from_secs(3),
                    "{}: {:?}",
                    ask.path(),
                    asked.elapsed()
                );
                assert_ne!(answer.json()["choices"], json!([]), "{answer}");
            }
            running.iter().for_each(JoinHandle::abort);
            drop(running);
            cluster.queued(0).await;
        },
    )
    .sim(|sim| (sim.tokens, sim.pace_ms) = (20, 50))
}

/// A client that goes takes its work with it.
fn leaving() -> Case {
    story(
        "a client that leaves ends its generation, and one that waits is never begun",
        |cluster| async move {
            let before = cluster.sim.stats();
            let running = occupy(&cluster, 2, |number| format!("leaver {number}")).await;
            cluster
                .sim_shows(|stats| stats.started == before.started + 2)
                .await;
            let waiting = tokio::spawn(cluster.rails(EXPLAIN, "waiter", &old_tool().body("")).try_open());
            cluster.queued(3).await;
            waiting.abort();
            cluster.queued(2).await;
            running.iter().for_each(JoinHandle::abort);
            drop(running);
            cluster
                .sim_shows(|stats| stats.aborted == before.aborted + 2)
                .await;
            cluster.queued(0).await;
            let stats = cluster.sim.stats();
            assert_eq!(stats.started, before.started + 2, "{stats:?}");
        },
    )
    .sim(|sim| (sim.tokens, sim.pace_ms) = (1000, 50))
}

/// The last case: nobody is there any more.
fn away() -> Case {
    story(
        "a model server that is gone: each client is told the reason in its time",
        |cluster| async move {
            cluster.sim.kill().await;
            let prompt = commit().send(&cluster).await;
            assert_eq!(prompt.status.as_u16(), 421, "{prompt}");
            let said = prompt.json()["detail"].as_str().unwrap_or_default().to_owned();
            assert!(
                ["503: Service Unavailable", "408: Request Timeout"].contains(&said.as_str()),
                "{prompt}"
            );
            let code = generation(V3).send(&cluster).await;
            assert_eq!(code.status, StatusCode::SERVICE_UNAVAILABLE, "{code}");
            let nothing = completion(COMPLETIONS).send(&cluster).await.good();
            assert_eq!(nothing.json()["choices"], Value::Array(Vec::new()));
            let event = chat().send(&cluster).await.good();
            assert!(
                matches!(
                    parse(&event.text()).as_slice(),
                    [Event::Error { retryable: false, .. }]
                ),
                "{event}"
            );
        },
    )
}
