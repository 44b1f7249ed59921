//! Prompts leave no trace on disk.

use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::cluster::{agent, chat, completion, files_with, generation};
use futures_util::StreamExt as _;
use futures_util::stream;
use http::Method;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_served_prompt_is_in_no_file_no_log_and_no_metric() {
    const CANARY: &str = "CANARY7f3a91b2c4";
    let cluster = Cluster::builder()
        .own_postgres()
        .broker_env("DUO_LOG", "debug")
        .worker_env("DUO_LOG", "debug");
    let cluster = cluster.slots(16).start().await;
    let one = async |number: usize| {
        let text = format!("{CANARY} number {number} {CANARY}");
        let stream = number.is_multiple_of(2);
        let (person, mut file) = (format!("person {}", number % 16), completion(&text, stream));
        file["current_file"]["file_name"] = format!("{number}.py").into();
        let call = match number % 5 {
            0 => cluster.rails("/v2/code/completions", &person, &file),
            1 => cluster.rails("/v4/code/suggestions", &person, &generation(&text, stream)),
            2 => cluster.rails("/v2/chat/agent", &person, &agent(&text)),
            3 => {
                let body = json!({"inputs": {"diff": text}});
                cluster.rails("/v1/prompts/generate_commit_message", &person, &body)
            }
            _ => cluster.openai("/v1/chat/completions", &chat(&text, 8, stream)),
        };
        call.send().await.good();
    };
    stream::iter(0..200).for_each_concurrent(8, one).await;
    // Refused ones leave none either.
    let mut bad = completion(CANARY, false);
    bad["current_file"]["file_name"] = CANARY.repeat(100).into();
    let refused = cluster.rails("/v2/code/completions", "alice", &bad).send().await;
    assert_eq!(refused.status, 422);
    assert!(!refused.text().contains(CANARY), "{refused}");
    assert_eq!(cluster.sim.stats().finished, 200);
    cluster.assert_clean().await;

    sqlx::query("CHECKPOINT")
        .execute(cluster.database.pool())
        .await
        .expect("written to disk");
    let metrics = cluster.metrics().await.expect("metrics");
    assert!(!metrics.contains(CANARY), "{metrics}");
    let worker = cluster.worker_metrics(0).await.expect("metrics");
    assert!(!worker.contains(CANARY), "{worker}");
    let postgres = cluster.postgres.as_ref().expect("its own").data();
    for folder in [cluster.folder(), &postgres] {
        assert_eq!(files_with(folder, CANARY.as_bytes()), Vec::<String>::new());
    }
}

/// GitLab's own wish for logs of prompts.
const VERBOSE: &str = "x-gitlab-enabled-instance-verbose-ai-logs";

/// What the prompts of the requests below have in them.
const SPOKEN: &str = "CANARY91c2e07b4d";

/// One of several requests, by a feature of each policy, with that wish.
async fn speak(cluster: &Cluster, number: usize) {
    let text = format!("{SPOKEN} number {number} {SPOKEN}");
    let person = format!("person {}", number % 4);
    let stream = number.is_multiple_of(8);
    let mut file = completion(&text, stream);
    file["current_file"]["file_name"] = format!("{number}.py").into();
    let call = match number % 4 {
        0 => cluster.rails("/v2/code/completions", &person, &file),
        1 => cluster.rails("/v4/code/suggestions", &person, &generation(&text, stream)),
        2 => cluster.rails("/v2/chat/agent", &person, &agent(&text)),
        _ => cluster.openai("/v1/chat/completions", &chat(&text, 8, number % 8 == 3)),
    };
    call.header(VERBOSE, "true").send().await.good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_decides_what_is_kept_of_a_prompt_whatever_gitlab_wishes_to_log() {
    const CANARY: &str = SPOKEN;
    let policy = |policy: &str| json!({"model": "mistral", "acknowledge": "tested", "bodies": policy});
    let mut cluster = Cluster::builder()
        .own_postgres()
        .broker_env("DUO_LOG", "trace,sqlx=debug")
        .worker_env("DUO_LOG", "trace")
        .configure(|config| {
            config["features"]["code_generation"] = json!({"model": "mistral", "bodies": "digest"});
            config["features"]["duo_chat"] = policy("full");
            config["features"]["openai_chat"] = json!({"bodies": "full"});
        })
        .slots(16)
        .start()
        .await;
    stream::iter(0..80)
        .for_each_concurrent(8, |number| speak(&cluster, number))
        .await;
    // With PostgreSQL away sealed texts wait in NATS.
    cluster.postgres.as_mut().expect("its own").stop();
    for number in 80..88 {
        speak(&cluster, number).await;
    }
    assert_eq!(
        files_with(cluster.folder(), CANARY.as_bytes()),
        Vec::<String>::new()
    );
    cluster.postgres.as_mut().expect("its own").start_again().await;
    cluster.assert_clean().await;

    let wrong = [
        "SELECT count(*) FROM audit_events WHERE kind = 'ended' AND feature = 'code_completion'
             AND (prompt_sha256 IS NOT NULL OR answer_sha256 IS NOT NULL)",
        "SELECT count(*) FROM audit_events WHERE kind = 'ended' AND feature IN ('code_generation', 'duo_chat', 'openai_chat')
             AND (prompt_sha256 IS NULL OR answer_sha256 IS NULL)",
        "SELECT count(*) FROM audit_bodies JOIN audit_events USING (request_id)
             WHERE kind = 'ended' AND feature IN ('code_completion', 'code_generation')",
        "SELECT count(*) FROM audit_events AS e WHERE kind = 'ended' AND feature IN ('duo_chat', 'openai_chat')
             AND NOT EXISTS (SELECT FROM audit_bodies AS b WHERE b.request_id = e.request_id AND part = 'prompt'
                             AND b.sha256 = e.prompt_sha256)",
    ];
    for sql in wrong {
        assert_eq!(cluster.database.count(sql).await, Ok(0), "{sql}");
    }
    // What is kept is there, for who says why; and reading it leaves no trace of it either.
    let id: uuid::Uuid = sqlx::query_scalar(
        "SELECT request_id FROM audit_events WHERE kind = 'ended' AND feature = 'openai_chat' LIMIT 1",
    )
    .fetch_one(cluster.database.pool())
    .await
    .expect("one");
    let path = format!("/audit/v1/events/{id}/bodies?reason=canary");
    let kept = cluster
        .call(Method::GET, &path)
        .token(&cluster.auditor_token)
        .send()
        .await
        .good();
    assert!(
        kept.json()["prompt"]["text"]
            .as_str()
            .expect("a text")
            .contains(CANARY),
        "{kept}"
    );
    let shown = cluster
        .cli
        .succeed(&["audit", "body", &id.to_string(), "--reason", "canary"])
        .await;
    assert!(shown.contains(CANARY), "{shown}");

    sqlx::query("CHECKPOINT")
        .execute(cluster.database.pool())
        .await
        .expect("written to disk");
    let metrics = cluster.metrics().await.expect("metrics");
    assert!(!metrics.contains(CANARY), "{metrics}");
    let postgres = cluster.postgres.as_ref().expect("its own").data();
    for folder in [cluster.folder(), &postgres] {
        assert_eq!(files_with(folder, CANARY.as_bytes()), Vec::<String>::new());
    }
}
