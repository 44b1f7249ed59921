//! Endpoints of GitLab that are there for older installations and for its prompts' second version.

use duo_system_tests::gitlab::TokenSpec;
use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::cluster::completion;
use http::{Method, StatusCode};
use serde_json::{Value, json};

fn lines(text: &str) -> Vec<Value> {
    let line = |line: &str| serde_json::from_str(line).expect("JSON a line");
    text.lines().map(line).collect()
}

#[tokio::test]
async fn a_prompt_of_the_second_version_is_an_object_or_an_object_a_line() {
    let cluster = Cluster::start().await;
    let mut body = json!({"inputs": {"diff": "+ one line"}, "prompt_version": "^1.0.0"});
    let path = "/v2/prompts/generate_commit_message";
    let answer = cluster.rails(path, "alice", &body).send().await.good().json();
    assert_eq!(answer["content"], cluster.expected(16), "{answer}");
    assert_eq!(answer["usage"]["mistral_7b"]["output_tokens"], 16, "{answer}");

    body["stream"] = true.into();
    let answer = cluster.rails(path, "alice", &body).send().await.good();
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    assert!(answer.text().ends_with("}\n"), "{answer}");
    let lines = lines(&answer.text());
    let text: String = lines
        .iter()
        .map(|line| line["content"].as_str().expect("text"))
        .collect();
    assert_eq!(text, cluster.expected(16));
    let (last, others) = lines.split_last().expect("a line");
    assert_eq!(last["usage"]["mistral"]["output_tokens"], 16, "{last}");
    assert!(others.iter().all(|line| line.get("usage").is_none()));

    let unknown = cluster
        .rails("/v2/prompts/nobody%2Fknows", "alice", &body)
        .send()
        .await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn an_older_gitlab_has_code_written_by_a_prompt_of_its_own_or_of_ours() {
    let cluster = Cluster::start().await;
    let path = "/v2/code/generations";
    let mut body = completion("def add(a, b):\n", false);
    body["prompt"] = "Write the body.".into();
    let answer = cluster.rails(path, "alice", &body).send().await.good().json();
    let messages = cluster.last_body()["messages"].clone();
    assert_eq!(messages, json!([{"role": "user", "content": "Write the body."}]));
    assert_eq!(cluster.last_body()["stop"], json!(["</new_code>"]));
    assert_eq!(
        answer["choices"][0]["text"],
        cluster.expected(16).trim_end(),
        "{answer}"
    );
    assert_eq!(answer["object"], "text_completion");

    // In the middle of a line the code begins on the next.
    body = completion("def add(a, b): ", false);
    body["prompt_version"] = 3.into();
    body["prompt"] =
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go on."}]);
    let answer = cluster.rails(path, "alice", &body).send().await.good().json();
    let text = answer["choices"][0]["text"].as_str().expect("text");
    assert!(text.starts_with('\n'), "{answer}");
    assert!(cluster.last_body()["messages"].to_string().contains("Be brief."));

    body["prompt_id"] = "code_suggestions/generations".into();
    body["stream"] = true.into();
    let answer = cluster.rails(path, "alice", &body).send().await.good();
    assert_eq!(answer.text(), cluster.expected(16));
    assert!(!cluster.last_body()["messages"].to_string().contains("Be brief."));

    let mut wrong = completion("x = ", false);
    wrong["prompt"] = Value::Null;
    let refused = cluster.rails(path, "alice", &wrong).send().await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    let spec = TokenSpec::default().scopes(["complete_code"]);
    let refused = cluster
        .call(Method::POST, path)
        .headers(cluster.rails_headers_with(&spec, "alice"))
        .json(&body)
        .send()
        .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused}");
    assert_eq!(
        refused.json()["detail"],
        "Unauthorized to access code generations"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_chat_tool_of_old_answers_the_prompt_it_is_given() {
    let cluster = Cluster::start().await;
    let path = "/v1/chat/explain_code";
    let body = |content: Value, stream: bool| {
        json!({
            "prompt_components": [{
                "type": "prompt",
                "metadata": {"source": "GitLab EE", "version": "17.3.0"},
                "payload": {
                    "content": content,
                    "provider": "litellm",
                    "model": "mistral",
                    "params": {"stop_sequences": ["END"], "temperature": 0.1, "max_tokens_to_sample": 99},
                },
            }],
            "stream": stream,
        })
    };
    let asked = body("Explain: x = 1".into(), false);
    let answer = cluster.rails(path, "alice", &asked).send().await.good().json();
    assert_eq!(answer["response"], cluster.expected(16), "{answer}");
    assert_eq!(answer["metadata"]["provider"], "litellm");
    assert_eq!(answer["metadata"]["model"], "mistral");
    let sent = cluster.last_body();
    assert_eq!(
        (&sent["max_tokens"], &sent["temperature"], &sent["stop"]),
        (&json!(99), &json!(0.1), &json!(["END"]))
    );
    let messages = json!([{"role": "user", "content": "Explain: x = 1"}]);
    let answer = cluster
        .rails(path, "alice", &body(messages, true))
        .send()
        .await
        .good();
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(answer.text(), cluster.expected(16));

    let mut wrong = body("x".into(), false);
    wrong["prompt_components"][0]["payload"]["params"]["temperature"] = 7.into();
    let refused = cluster.rails(path, "alice", &wrong).send().await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    let unknown = cluster.rails("/v1/chat/sing", "alice", &asked).send().await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn x_ray_answers_what_a_package_file_says() {
    let cluster = Cluster::start().await;
    let body = json!({"prompt_components": [{
        "type": "x_ray_package_file_prompt",
        "payload": {"prompt": "gem 'rails'", "provider": "anthropic", "model": "claude-2.1"},
    }]});
    let answer = cluster
        .rails("/v1/x-ray/libraries", "alice", &body)
        .send()
        .await
        .good()
        .json();
    assert_eq!(answer["response"], cluster.expected(16), "{answer}");
    let empty = json!({"prompt_components": []});
    let refused = cluster.rails("/v1/x-ray/libraries", "alice", &empty).send().await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn code_is_embedded_by_the_model_of_its_feature() {
    let cluster = Cluster::builder()
        .configure(|config| config["features"]["code_embeddings"] = json!({"model": "mistral"}))
        .start()
        .await;
    let path = "/v1/embeddings/code_embeddings";
    let body = json!({
        "contents": ["def a", "def b", "def a"],
        "dimensions": 8,
        "litellm_drop_params": true,
        "model_metadata": {
            "provider": "litellm", "name": "embedding", "identifier": "custom_openai/any",
            "endpoint": "http://127.0.0.1:9/v1", "api_key": null,
        },
    });
    for path in [path.to_owned(), format!("{path}/index"), format!("{path}/search")] {
        let answer = cluster.rails(&path, "alice", &body).send().await.good().json();
        let predictions = answer["predictions"].as_array().expect("a list");
        assert_eq!(predictions.len(), 3, "{answer}");
        assert_eq!(predictions[2]["index"], 2);
        assert_eq!(predictions[0]["embedding"].as_array().map(Vec::len), Some(8));
        assert_eq!(predictions[0]["embedding"], predictions[2]["embedding"]);
        assert_ne!(predictions[0]["embedding"], predictions[1]["embedding"]);
        assert_eq!(answer["model"]["identifier"], "mistral");
    }
    assert_eq!(cluster.last_body()["input"], body["contents"]);

    for (name, wrong) in [
        ("contents", json!([])),
        ("contents", json!("text")),
        ("contents", json!([7])),
        ("dimensions", json!(0)),
        ("model_metadata", json!("none")),
        ("contents", json!(["x".repeat(100_000)])),
    ] {
        let mut body = body.clone();
        body[name] = wrong;
        let refused = cluster.rails(path, "alice", &body).send().await;
        assert_eq!(
            refused.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{name}: {refused}"
        );
        assert!(refused.text().contains(name), "{name}: {refused}");
    }
    let spec = TokenSpec::default().scopes(["complete_code"]);
    let headers = cluster.rails_headers_with(&spec, "alice");
    let refused = cluster
        .call(Method::POST, path)
        .headers(headers)
        .json(&body)
        .send()
        .await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused}");
    cluster.assert_clean().await;
}
