//! Prompts and answers that are kept: read by auditors, erased, and lost by no crash.

use duo_system_tests::harness::cluster::{answer_to, chat};
use duo_system_tests::harness::{Cluster, PATIENCE, until};
use futures_util::StreamExt as _;
use futures_util::stream;
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

async fn keeping() -> Cluster {
    Cluster::builder()
        .own_postgres()
        .broker_env("DUO_ABANDON_AFTER", "1s")
        .lease("1s")
        .slots(16)
        .configure(|config| config["features"]["openai_chat"] = json!({"bodies": "full"}))
        .start()
        .await
}

/// The newest request that has ended.
async fn newest(cluster: &Cluster) -> Uuid {
    let sql = "SELECT request_id FROM audit_events WHERE kind = 'ended' ORDER BY request_id DESC LIMIT 1";
    sqlx::query_scalar(sql)
        .fetch_one(cluster.database.pool())
        .await
        .expect("one")
}

#[tokio::test]
async fn an_auditor_with_a_reason_reads_what_was_said_without_its_secrets() {
    let cluster = keeping().await;
    for stream in [false, true] {
        let body = chat("is glpat-0123456789abcdefABCD good?", 6, stream);
        let said = cluster.openai("/v1/chat/completions", &body).send().await.good();
        cluster.assert_clean().await;
        let id = newest(&cluster).await;
        let ask = |token: &str, query: &str| {
            let path = format!("/audit/v1/events/{id}/bodies{query}");
            cluster.call(Method::GET, &path).token(token).send()
        };
        let kept = ask(&cluster.auditor_token, "?reason=complaint%204711")
            .await
            .good();
        assert_eq!(kept.header("cache-control"), "no-store");
        let kept = kept.json();
        let prompt: Value =
            serde_json::from_str(kept["prompt"]["text"].as_str().expect("a text")).expect("JSON");
        assert_eq!(
            prompt["messages"][0]["content"],
            "is [redacted:gitlab_token] good?"
        );
        assert_eq!(
            (&kept["prompt"]["redacted"], &kept["prompt"]["redaction_rules"]),
            (&json!(1), &json!(1))
        );
        let answer: Value =
            serde_json::from_str(kept["answer"]["text"].as_str().expect("a text")).expect("JSON");
        let content = answer["choices"][0]["message"]["content"]
            .as_str()
            .expect("a text");
        // The simulated server repeats what it was asked.
        let expected = answer_to("is glpat-0123456789abcdefABCD good?", 6);
        let expected = expected.replace("glpat-0123456789abcdefABCD", "[redacted:gitlab_token]");
        assert_eq!(content, expected, "{said}");
        for part in ["prompt", "answer"] {
            assert_eq!(kept[part]["matches_record"], true, "{kept}");
            assert_eq!(kept[part]["truncated"], false);
        }

        assert_eq!(ask(&cluster.auditor_token, "").await.status, 422);
        assert_eq!(ask(&cluster.auditor_token, "?reason=%20").await.status, 422);
        assert_eq!(ask(&cluster.client_token, "?reason=x").await.status, 403);
        let readings =
            "SELECT count(*) FROM audit_events WHERE kind = 'read' AND details LIKE '%complaint 4711%'";
        assert_eq!(
            cluster.database.count(readings).await,
            Ok(if stream { 2 } else { 1 })
        );
        let token_id = "SELECT count(*) FROM audit_events WHERE kind = 'read' AND token_id IS NULL";
        assert_eq!(cluster.database.count(token_id).await, Ok(0));
    }
    let nowhere = format!("/audit/v1/events/{}/bodies?reason=x", Uuid::now_v7());
    let nowhere = cluster
        .call(Method::GET, &nowhere)
        .token(&cluster.auditor_token)
        .send()
        .await;
    assert_eq!(nowhere.status, 404);

    let id = newest(&cluster).await;
    let sql = "SELECT subject FROM audit_keys LIMIT 1";
    let subject: String = sqlx::query_scalar(sql)
        .fetch_one(cluster.database.pool())
        .await
        .expect("one");
    let token = subject.strip_prefix("token:").expect("a token's");
    cluster
        .cli
        .succeed(&["audit", "erase", "--user", token, "--reason", "asked for"])
        .await;
    let path = format!("/audit/v1/events/{id}/bodies?reason=again");
    let erased = cluster
        .call(Method::GET, &path)
        .token(&cluster.auditor_token)
        .send()
        .await;
    assert_eq!(
        (erased.status.as_u16(), &erased.json()["error"]),
        (410, &json!("erased"))
    );
}

/// Pieces of sealed texts.
const TEXTS: &str = "SELECT count(*) FROM audit_bodies";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_between_text_and_record_loses_neither() {
    let mut cluster = keeping().await;
    for round in 0..3 {
        let before = cluster.database.count(TEXTS).await.expect("PostgreSQL answers");
        let calls: Vec<_> = (0..400)
            .map(|number| {
                let body = chat(&format!("question {round} {number}"), 4, number % 2 == 0);
                cluster.openai("/v1/chat/completions", &body).try_open()
            })
            .collect();
        let asked = tokio::spawn(async move {
            stream::iter(calls)
                .for_each_concurrent(16, async |call| {
                    if let Ok(answer) = call.await {
                        answer.rest().await;
                    }
                })
                .await;
        });
        // Some are through, others on each step of their way.
        until("texts are kept", PATIENCE, async || {
            match cluster.database.count(TEXTS).await? {
                texts if texts > before => Ok(()),
                texts => Err(format!("{texts}")),
            }
        })
        .await;
        cluster.broker.kill().await;
        asked.await.expect("no panic");
        cluster.broker.again();
        cluster.ready(PATIENCE).await;
    }
    cluster.assert_clean().await;
    let wrong = [
        // No record commits to a text that is not there.
        "SELECT count(*) FROM audit_events AS e WHERE kind = 'ended' AND prompt_sha256 IS NOT NULL
             AND NOT EXISTS (SELECT FROM audit_bodies AS b WHERE b.request_id = e.request_id AND part = 'prompt'
                             AND b.sha256 = e.prompt_sha256)",
        // Every request that was admitted has its end, and what completed has its text.
        "SELECT count(*) FROM audit_events AS a WHERE kind = 'admitted'
             AND NOT EXISTS (SELECT FROM audit_events AS e WHERE e.request_id = a.request_id AND e.kind = 'ended')",
        "SELECT count(*) FROM audit_events WHERE outcome = 'completed' AND (prompt_sha256 IS NULL OR answer_sha256 IS NULL)",
        // No text without a request.
        "SELECT count(*) FROM audit_bodies AS b
             WHERE NOT EXISTS (SELECT FROM audit_events AS e WHERE e.request_id = b.request_id AND e.kind = 'ended')",
        "SELECT count(*) FROM audit_rejects",
    ];
    for sql in wrong {
        assert_eq!(cluster.database.count(sql).await, Ok(0), "{sql}");
    }
}

#[tokio::test]
async fn a_broker_without_a_master_key_does_not_start_where_texts_are_to_be_kept() {
    let cluster = keeping().await;
    let mut program = cluster.cli.without("DUO_AUDIT_MASTER_KEY_FILE").serve(
        "keyless",
        &[
            ("DUO_BROKER_NAME", "keyless".to_owned()),
            ("DUO_LISTEN", "127.0.0.1:0".to_owned()),
            ("DUO_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ],
        cluster.folder(),
    );
    until("it gives up", PATIENCE, async || match program.exited() {
        Some(status) => Ok(status),
        None => Err("it runs".to_owned()),
    })
    .await;
    let words = program.last_words();
    assert!(
        words.contains("openai_chat") && words.contains("DUO_AUDIT_MASTER_KEY_FILE"),
        "{words}"
    );
}
