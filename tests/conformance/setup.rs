//! The clusters that the cases share.

use std::sync::Arc;

use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::setup::signing_keys;
use serde_json::{Value, json};

use crate::trouble::FIRST_BYTE;

/// Every feature that has a model assigned.
const FEATURES: [&str; 26] = [
    "duo_chat",
    "git_suggestions",
    "discussion_summary",
    "issue_description_generation",
    "test_generation",
    "merge_request_template_population",
    "merge_request_summary",
    "code_review_summary",
    "vulnerability_explanation",
    "vulnerability_resolution",
    "code_explanation",
    "root_cause_analysis",
    "categorize_question",
    "classify_code_review_mention_intent",
    "fix_code",
    "generate_commit_message",
    "generate_session_title",
    "measure_comment_temperature",
    "refactor_code",
    "review_merge_request",
    "summarize_duo_workflow",
    "code_embeddings",
    "code_generation",
    "code_completion",
    "suggested_reviewers",
    "value_stream_forecasting",
];

/// Features with little time where there is trouble.
const IMPATIENT: [&str; 6] = [
    "duo_chat",
    "code_generation",
    "generate_commit_message",
    "code_embeddings",
    "suggested_reviewers",
    "openai_embedding",
];

/// Everything active, a key that signs, time enough, and a model that no worker serves.
pub(crate) async fn plain() -> Arc<Cluster> {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::builder()
        .broker_env("DUO_SIGNING_KEYS_FILE", &signing_keys(folder.path()))
        .broker_env("DUO_NO_WORKER_GRACE", "0s")
        .configure(|config| {
            assign(config, &FEATURES);
            let nobody = json!({"name": "nobody", "family": "mistral_7b", "context_tokens": 8192, "max_output_tokens": 2048});
            config["models"].as_array_mut().expect("models").push(nobody);
            config["support_levels"] = json!([
                {"feature": "vulnerability_explanation", "family": "mistral_7b", "level": "to_be_evaluated", "reason": "tests"},
                {"feature": "code_generation", "family": "codegemma_7b", "level": "supported", "reason": "tests"},
            ]);
        })
        .start()
        .await;
    cluster.slots_known().await;
    Arc::new(cluster)
}

/// No key, little time, one attempt, and three slots, of which completions have one for themselves.
pub(crate) async fn troubled() -> Arc<Cluster> {
    let cluster = Cluster::builder()
        .slots(3)
        .broker_env("DUO_MAX_ATTEMPTS", "1")
        .configure(|config| {
            assign(config, &FEATURES);
            config["support_levels"] = json!([
                {"feature": "vulnerability_explanation", "family": "mistral_7b", "level": "to_be_evaluated", "reason": "tests"},
            ]);
            config["features"]["openai_embedding"] = json!({"active": true});
            for feature in IMPATIENT {
                config["features"][feature]["first_byte_within"] = FIRST_BYTE.into();
            }
            for feature in ["root_cause_analysis", "openai_completion"] {
                config["features"][feature] = "inactive".into();
            }
        })
        .start()
        .await;
    cluster.slots_known().await;
    Arc::new(cluster)
}

fn assign(config: &mut Value, features: &[&str]) {
    for feature in features {
        let assigned = &mut config["features"][feature];
        *assigned = match *feature {
            "code_completion" => json!({"model": "codegemma"}),
            _ => json!({"model": "mistral", "acknowledge": "system tests"}),
        };
    }
}
