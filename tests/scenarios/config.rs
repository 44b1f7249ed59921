//! Configuration: what is refused, and how fast the rest is followed.

use std::time::Duration;

use duo_system_tests::harness::cluster::{chat, completion};
use duo_system_tests::harness::{Cluster, until};
use http::StatusCode;
use serde_json::json;
use tokio::time::Instant;

#[tokio::test]
async fn a_pair_that_is_not_supported_is_refused_whole() {
    let mut cluster = Cluster::start().await;
    let revision = cluster.metric("duo_config_revision").await.expect("metrics");
    let (fine, words) = cluster
        .apply(|config| {
            config["features"]["code_completion"] = json!({"model": "mistral"});
            config["features"]["code_generation"] = "inactive".into();
        })
        .await;
    assert!(
        !fine && words.contains("code_completion") && words.contains("mistral"),
        "{words}"
    );
    let (fine, words) = cluster
        .apply(|config| config["features"]["fix_code"] = json!({"model": "mistral"}))
        .await;
    assert!(
        !fine && words.contains("fix_code") && words.contains("acknowledge"),
        "{words}"
    );
    let (fine, words) = cluster
        .apply(|config| config["features"]["fix_coed"] = "inactive".into())
        .await;
    assert!(!fine && words.contains("fix_coed"), "{words}");
    assert_eq!(cluster.metric("duo_config_revision").await, Ok(revision));
    cluster
        .rails("/v2/code/completions", "alice", &completion("x", false))
        .send()
        .await
        .good();
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_change_is_followed_within_a_second() {
    let mut cluster = Cluster::start().await;
    let inputs = json!({"inputs": {"selected_text": "job log"}});
    let path = "/v1/prompts/chat/troubleshoot_job";
    let inactive = cluster.rails(path, "alice", &inputs).send().await;
    assert_eq!(inactive.status, StatusCode::FORBIDDEN, "{inactive}");

    let (fine, words) = cluster
        .apply(|config| {
            config["features"]["root_cause_analysis"] = json!({"model": "mistral", "acknowledge": "tests"});
        })
        .await;
    let applied = Instant::now();
    assert!(fine, "{words}");
    until("the feature is active", Duration::from_secs(1), async || {
        let answer = cluster.rails(path, "alice", &inputs).send().await;
        if answer.status == StatusCode::OK {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;

    // A model that did not exist when the worker started is served by nobody, and the others go on.
    let (fine, words) = cluster
        .apply(|config| {
            config["features"]["code_completion"] = "inactive".into();
        })
        .await;
    assert!(fine, "{words}; the first change took {:?}", applied.elapsed());
    until("the feature is inactive", Duration::from_secs(1), async || {
        let answer = cluster
            .rails("/v2/code/completions", "alice", &completion("x", false))
            .send()
            .await;
        if answer.status == StatusCode::FORBIDDEN {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
    cluster
        .openai("/v1/chat/completions", &chat("hello", 3, false))
        .send()
        .await
        .good();
    cluster.assert_clean().await;
}

#[tokio::test]
async fn what_is_exported_can_be_applied_and_changes_nothing() {
    let cluster = Cluster::start().await;
    let exported = cluster.cli.succeed(&["config", "export"]).await;
    let path = cluster.folder().join("exported.yaml");
    std::fs::write(&path, &exported).expect("our folder");
    let path = path.to_str().expect("a plain path");
    cluster.cli.succeed(&["config", "check", path]).await;
    let revision = cluster.metric("duo_config_revision").await.expect("metrics");
    cluster.cli.succeed(&["config", "apply", path]).await;
    assert_eq!(cluster.cli.succeed(&["config", "export"]).await, exported);
    assert_eq!(cluster.metric("duo_config_revision").await, Ok(revision));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_healthy_installation_passes_its_own_examination() {
    let cluster = Cluster::start().await;
    let words = cluster.cli.succeed(&["doctor"]).await;
    assert!(!words.is_empty());
    cluster.assert_clean().await;
}
