//! Models that are no language models: a KServe inference request passes through the queue as it is.

use duo_system_tests::gitlab::TokenSpec;
use duo_system_tests::harness::{Builder, Cluster, PATIENCE, until};
use duo_system_tests::sim::{Fault, Settings};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const PATH: &str = "/v1/infer/suggested_reviewers";

fn builder() -> Builder {
    Cluster::builder().kind("kserve").configure(|config| {
        config["features"]["suggested_reviewers"] =
            json!({"model": "mistral", "acknowledge": "system tests"});
    })
}

fn asked(data: &Value, shape: &[u64]) -> Value {
    json!({"id": "mr-7", "inputs": [{"name": "changes", "datatype": "FP32", "shape": shape, "data": data}]})
}

#[tokio::test]
async fn a_request_reaches_the_model_server_byte_for_byte_and_its_answer_the_client() {
    let cluster = builder().start().await;
    // Blanks, order and unknown members are the client's own.
    let body = format!(
        "{{ \"unknown\": 1, {}",
        &asked(&json!([[1, 2], [3, 4]]), &[2, 2]).to_string()[1..]
    );
    let call = |path: &str| {
        cluster
            .call(Method::POST, path)
            .headers(cluster.rails_headers("alice"))
            .text("application/json", body.clone())
    };
    let answer = call(PATH).send().await.good();
    let last = cluster.sim.last_request().expect("a request");
    assert_eq!(
        (last.path.as_str(), last.body.as_ref()),
        ("/v2/models/sim/infer", body.as_bytes())
    );
    let said = answer.json();
    assert_eq!(
        (&said["model_name"], &said["id"]),
        (&json!("sim"), &json!("mr-7"))
    );
    assert_eq!(said["outputs"][0]["name"], "changes_scores");
    assert_eq!(
        said["outputs"][0]["data"].as_array().map(Vec::len),
        Some(4),
        "{said}"
    );
    assert_eq!(call(PATH).send().await.good().json(), said, "the same again");

    let token = cluster
        .cli
        .token("reviews", "client", &["--features", "suggested_reviewers"])
        .await;
    let by_token = |path: &str, token: &str| {
        cluster
            .call(Method::POST, path)
            .token(token)
            .json(&asked(&json!([1]), &[1]))
    };
    until("the broker knows the token", PATIENCE, async || {
        match by_token(PATH, &token).send().await.status {
            StatusCode::OK => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    for (answer, status) in [
        (
            by_token(PATH, &cluster.client_token).send().await,
            StatusCode::FORBIDDEN,
        ),
        (
            by_token("/v1/infer/value_stream_forecasting", &token)
                .send()
                .await,
            StatusCode::FORBIDDEN,
        ),
        // Not active until a model is assigned.
        (
            call("/v1/infer/value_stream_forecasting").send().await,
            StatusCode::FORBIDDEN,
        ),
        (call("/v1/infer/duo_chat").send().await, StatusCode::NOT_FOUND),
        (by_token(PATH, "nobody").send().await, StatusCode::UNAUTHORIZED),
        (
            cluster.call(Method::GET, PATH).token(&token).send().await,
            StatusCode::METHOD_NOT_ALLOWED,
        ),
    ] {
        assert_eq!(answer.status, status, "{answer}");
        assert!(answer.json()["error"].is_string(), "{answer}");
    }
    let spec = TokenSpec::default().scopes(["duo_chat", "value_stream_forecasting"]);
    let refused = cluster
        .call(Method::POST, PATH)
        .headers(cluster.rails_headers_with(&spec, "alice"))
        .json(&asked(&json!([1]), &[1]))
        .send()
        .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert_eq!(
        refused.json()["error"],
        "Unauthorized to access suggested_reviewers"
    );
    cluster.assert_clean().await;
    let records = "SELECT count(*) FROM audit_events WHERE kind = 'ended' AND outcome = 'completed' \
                   AND feature = 'suggested_reviewers' AND model = 'mistral' AND lane = 'interactive' \
                   AND route = '/v1/infer/{feature}' AND worker IS NOT NULL";
    assert_eq!(cluster.database.count(records).await, Ok(3));
}

#[tokio::test]
async fn a_mistake_is_told_in_the_model_servers_own_words() {
    let cluster = builder().start().await;
    let wrong = asked(&json!([1, 2, 3]), &[2]);
    let refused = cluster.rails(PATH, "alice", &wrong).send().await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused}");
    let text = "unexpected number of elements for input 'changes': 3, expecting 2";
    assert_eq!(refused.json(), json!({ "error": text }));
    assert_eq!(refused.header("x-duo-reason"), "invalid_request");
    for (name, body) in [
        ("inputs", json!({})),
        (
            "inputs.0.shape",
            json!({"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]}),
        ),
        (
            "outputs",
            json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], "outputs": 7}),
        ),
    ] {
        let refused = cluster.rails(PATH, "alice", &body).send().await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused}");
        assert!(
            refused.json()["error"]
                .as_str()
                .is_some_and(|text| text.starts_with(name)),
            "{refused}"
        );
    }
    let large = asked(&json!(["x".repeat(5 << 20)]), &[1]);
    let refused = cluster.rails(PATH, "alice", &large).send().await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(
        cluster.sim.stats().requests.infer,
        1,
        "what we refuse no server sees"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_model_server_that_fails_or_says_nothing_is_asked_again_and_then_told_of() {
    let cluster = builder().start().await;
    let ask = async || {
        cluster
            .rails(PATH, "alice", &asked(&json!([1, 2]), &[2]))
            .send()
            .await
    };
    for fault in [Fault::Fail, Fault::Cut, Fault::ErrorMid] {
        cluster.sim.set(|sim| sim.next_faults = vec![fault]);
        ask().await.good();
    }
    assert_eq!(cluster.sim.stats().requests.infer, 6);
    cluster.sim.set(|sim| sim.fail_rate = 1.0);
    let failed = ask().await;
    assert_eq!(failed.status, StatusCode::BAD_GATEWAY, "{failed}");
    assert_eq!(failed.header("x-duo-reason"), "model_server_fault", "{failed}");
    assert!(failed.json()["error"].is_string(), "{failed}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn an_inference_is_run_again_after_its_worker_was_killed_and_stopped_when_its_client_leaves() {
    let slow = Settings {
        ttft_ms: 1500,
        ..Settings::default()
    };
    let mut cluster = builder().sim(slow).lease("1s").start().await;
    let call = cluster.rails(PATH, "alice", &asked(&json!([1, 2]), &[2]));
    let (again, asking) = (call.again(), tokio::spawn(call.send()));
    cluster.attempted(1).await;
    cluster.sim_shows(|stats| stats.running == 1).await;
    cluster.kill_worker(0).await;
    cluster.restart_worker(0).await;
    let answer = asking.await.expect("no panic").good();
    assert_eq!(answer.json()["outputs"][0]["shape"], json!([2]));
    assert_eq!(cluster.sim.stats().requests.infer, 2);

    let leaving = tokio::spawn(again.send());
    cluster.sim_shows(|stats| stats.running == 1).await;
    leaving.abort();
    cluster
        .sim_shows(|stats| stats.aborted == 2 && stats.running == 0)
        .await;
    cluster.assert_clean().await;
}
