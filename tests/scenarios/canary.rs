//! Prompts leave no trace on disk.

use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::cluster::{agent, chat, completion, files_with, generation};
use futures_util::StreamExt as _;
use futures_util::stream;
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
