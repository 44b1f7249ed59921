//! What it refuses, how it fails, and what it counts.

use futures_util::StreamExt as _;

use super::*;

#[tokio::test]
async fn mistakes_are_told_as_vllm_tells_them() {
    let sim = start(|settings| settings.context = 100).await;
    let long = "x".repeat(400);
    let cases = [
        (json!({"model": "sim"}), 400, "body.messages"),
        (json!({"model": "nope", "messages": messages()}), 404, "model"),
        (
            json!({"messages": messages(), "max_tokens": 101}),
            400,
            "max_tokens",
        ),
        (
            json!({"messages": messages(), "max_tokens": 0}),
            400,
            "max_tokens",
        ),
        (
            json!({"messages": messages(), "max_tokens": 99}),
            400,
            "input_tokens",
        ),
        (
            json!({"messages": [{"role": "user", "content": long}]}),
            400,
            "input_tokens",
        ),
        (
            json!({"messages": messages(), "temperature": -3}),
            400,
            "temperature",
        ),
        (
            json!({"messages": messages(), "stream_options": {}}),
            400,
            "stream_options",
        ),
        (
            json!({"messages": messages(), "continue_final_message": true}),
            400,
            "add_generation_prompt",
        ),
    ];
    for (body, status, param) in cases {
        let response = post(&sim, "/v1/chat/completions", &body).await;
        assert_eq!(response.status(), status, "{body}");
        let error = response.json::<Value>().await.unwrap();
        assert_eq!(error["error"]["param"], param, "{body}");
        assert_eq!(error["error"]["code"], status);
    }
    let request = reqwest::Client::new()
        .post(sim.url() + "/v1/completions")
        .body("{\"model\":");
    assert_eq!(request.send().await.unwrap().status(), 400);
    assert_eq!(
        post(&sim, "/nowhere", &json!({})).await.text().await.unwrap(),
        r#"{"detail":"Not Found"}"#
    );
}

#[tokio::test]
async fn unknown_fields_pass_and_the_request_can_be_looked_at() {
    let sim = start(|settings| settings.api_key = Some("secret".to_owned())).await;
    assert_eq!(
        post(&sim, "/v1/chat/completions", &json!({"messages": []}))
            .await
            .status(),
        401
    );
    let body = r#"{"messages":[],  "cache_salt":"x","nested":{"deep":[1,2.50]}}"#;
    let request = reqwest::Client::new()
        .post(sim.url() + "/v1/chat/completions")
        .bearer_auth("secret");
    assert_eq!(request.body(body).send().await.unwrap().status(), 200);
    assert_eq!(sim.last_request().unwrap().body, body);
    let last = reqwest::get(sim.url() + "/control/last").await.unwrap();
    assert_eq!(last.text().await.unwrap(), body);
}

#[tokio::test]
async fn a_client_that_goes_is_counted_streaming_or_not_running_or_waiting() {
    let sim = start(|settings| (settings.slots, settings.pace_ms) = (2, 60_000)).await;
    let request = |stream: bool| {
        let body = json!({"messages": messages(), "stream": stream});
        reqwest::Client::new()
            .post(sim.url() + "/v1/chat/completions")
            .json(&body)
            .send()
    };
    let streaming = request(true).await.unwrap();
    let whole = tokio::spawn(request(false));
    sim.wait_for(|stats| stats.running == 2, SOON).await.unwrap();
    // Headers come at once, a slot does not.
    let waiting = request(true).await.unwrap();
    sim.wait_for(|stats| stats.waiting == 1, SOON).await.unwrap();
    drop(waiting);
    sim.wait_for(|stats| stats.waiting == 0 && stats.aborted_waiting == 1, SOON)
        .await
        .unwrap();
    drop(streaming);
    whole.abort();
    let stats = sim.wait_for(|stats| stats.aborted == 3, SOON).await.unwrap();
    assert_eq!((stats.started, stats.finished, stats.running), (2, 0, 0));
}

#[tokio::test]
async fn those_who_wait_get_slots_in_turn_and_more_slots_call_more() {
    let sim = start(|settings| (settings.slots, settings.ttft_ms) = (0, 0)).await;
    let mut tasks = Vec::new();
    for number in 1..=3 {
        let body = json!({"messages": messages()});
        let request = reqwest::Client::new()
            .post(sim.url() + "/v1/chat/completions")
            .json(&body);
        tasks.push(tokio::spawn(request.send()));
        sim.wait_for(|stats| stats.waiting == number, SOON).await.unwrap();
    }
    sim.set(|settings| settings.slots = 1);
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().status(), 200);
    }
    let stats = sim.wait_for(|stats| stats.running == 0, SOON).await.unwrap();
    assert_eq!((stats.finished, stats.waiting), (3, 0));
}

#[tokio::test]
async fn the_kill_switch_cuts_streams_and_frees_the_port() {
    let sim = start(|settings| settings.pace_ms = 60_000).await;
    let body = json!({"messages": messages(), "stream": true});
    let mut stream = post(&sim, "/v1/chat/completions", &body).await.bytes_stream();
    assert!(stream.next().await.unwrap().is_ok());
    let kill = reqwest::Client::new()
        .post(sim.url() + "/control/kill")
        .send()
        .await;
    assert!(kill.is_err());
    sim.stopped().await;
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(bytes) => assert!(!bytes.windows(4).any(|window| window == b"DONE")),
            Err(_) => break,
        }
    }
    assert_eq!((sim.stats().failed, sim.stats().aborted), (1, 0));
    Sim::start_on(sim.address(), 1, Settings::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn each_fault_looks_as_it_should() {
    let sim = start(|settings| settings.fault_after = Some(3)).await;
    let body = json!({"messages": messages(), "stream": true});
    let next = |fault| sim.set(|settings| settings.next_faults = vec![fault]);
    let client = || {
        reqwest::Client::new()
            .post(sim.url() + "/v1/chat/completions")
            .json(&body)
    };

    next(Fault::Fail);
    assert_eq!(client().send().await.unwrap().status(), 500);
    sim.set(|settings| (settings.fail_status, settings.retry_after) = (503, Some(7)));
    next(Fault::Fail);
    let refused = client().send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "7");
    next(Fault::Reset);
    assert!(client().send().await.is_err());
    next(Fault::Abort);
    let aborted = parsed(&events(&sim, "/v1/chat/completions", body.clone()).await);
    assert_eq!(aborted.last().unwrap()["choices"][0]["finish_reason"], "abort");
    assert_eq!(content(&aborted), expected::chat_text(MESSAGES, 3).unwrap());
    next(Fault::ErrorMid);
    let broken = events(&sim, "/v1/chat/completions", body.clone()).await;
    assert!(broken[broken.len() - 2].starts_with(r#"{"error": {"message": "EngineCore"#));
    assert_eq!(broken.last().unwrap(), "[DONE]");
    next(Fault::Malformed);
    let malformed = events(&sim, "/v1/chat/completions", body.clone()).await;
    let unreadable = malformed
        .iter()
        .filter(|event| serde_json::from_str::<Value>(event).is_err());
    // The broken one, and the mark of the end.
    assert_eq!(unreadable.count(), 2);
    next(Fault::Cut);
    let (mut text, mut cut) = (String::new(), false);
    let mut stream = client().send().await.unwrap().bytes_stream();
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            Err(_) => cut = true,
        }
    }
    assert!(cut && text.matches("data: {").count() >= 4, "{text}");
    assert_eq!(sim.stats().failed, 4);
}

#[tokio::test]
async fn a_stalled_stream_says_its_part_and_then_nothing() {
    let sim = start(|settings| (settings.fault_after, settings.coalesce) = (Some(2), 8)).await;
    sim.set(|settings| settings.next_faults = vec![Fault::Stall]);
    let body = json!({"messages": messages(), "stream": true});
    let mut stream = post(&sim, "/v1/chat/completions", &body).await.bytes_stream();
    let first = stream.next().await.unwrap().unwrap();
    assert!(first.ends_with(b"\n\n"));
    let stats = sim.wait_for(|stats| stats.tokens == 2, SOON).await.unwrap();
    assert_eq!(stats.running, 1);
    drop(stream);
    sim.wait_for(|stats| stats.aborted == 1, SOON).await.unwrap();
}

#[tokio::test]
async fn draining_and_ill_health_show_as_on_a_real_server() {
    let sim = start(|_| {}).await;
    post(&sim, "/control/drain", &json!({})).await;
    post(&sim, "/control/unhealthy", &json!({"on": true})).await;
    assert_eq!(reqwest::get(sim.url() + "/health").await.unwrap().status(), 503);
    let refused = post(&sim, "/v1/chat/completions", &json!({"messages": messages()})).await;
    assert_eq!(refused.status(), 500);
    let error: Value = refused.json().await.unwrap();
    assert_eq!(
        error["error"]["message"],
        "cannot schedule new futures after shutdown"
    );
    let metrics = reqwest::get(sim.url() + "/metrics")
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(metrics.contains("vllm:num_requests_running{engine=\"0\",model_name=\"sim\"} 0.0"));
    assert!(metrics.contains("sim_generations_refused_total 1"));
}

#[tokio::test]
async fn equal_texts_have_equal_vectors() {
    let sim = start(|_| {}).await;
    let found = ask(
        &sim,
        "/v1/embeddings",
        json!({"input": ["a", "b", "a"], "dimensions": 8}),
    )
    .await;
    assert_eq!(found["data"][0]["embedding"], found["data"][2]["embedding"]);
    assert_ne!(found["data"][0]["embedding"], found["data"][1]["embedding"]);
    assert_eq!(found["data"][0]["embedding"].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn its_metrics_tell_how_full_running_requests_make_the_cache() {
    let sim = start(|settings| {
        settings.kv_tokens = 100;
        settings.ttft_ms = 60_000;
    })
    .await;
    let cache = async || {
        let page = reqwest::get(sim.url() + "/metrics").await.unwrap();
        let page = page.text().await.unwrap();
        let line = page
            .lines()
            .find(|line| line.starts_with("vllm:kv_cache_usage_perc{"))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(cache().await, 0.0);
    let body = json!({"model": "sim", "stream": true, "prompt": "x".repeat(30)});
    let response = post(&sim, "/v1/completions", &body).await;
    sim.wait_for(|stats| stats.running == 1, SOON).await.unwrap();
    assert_eq!(cache().await, 0.1);
    drop(response);
    sim.wait_for(|stats| stats.cached_tokens == 0, SOON)
        .await
        .unwrap();
    assert_eq!(cache().await, 0.0);
}

#[tokio::test]
async fn vectors_and_inferences_meet_faults_as_texts_do() {
    let input = json!({"name": "x", "shape": [1], "data": [1]});
    for (path, body, missing) in [
        ("/v1/embeddings", json!({"input": "a"}), "data"),
        ("/v2/models/sim/infer", json!({"inputs": [input]}), "outputs"),
    ] {
        let faults = vec![Fault::Fail, Fault::Cut, Fault::Malformed];
        let sim = start(|settings| settings.next_faults = faults).await;
        assert_eq!(post(&sim, path, &body).await.status(), 500);
        let call = reqwest::Client::new()
            .post(sim.url() + path)
            .body(body.to_string());
        assert!(call.send().await.is_err(), "{path}");
        assert_eq!(ask(&sim, path, body.clone()).await[missing], Value::Null);
        assert!(ask(&sim, path, body).await[missing].is_array(), "{path}");
        let stats = sim.stats();
        assert_eq!((stats.refused, stats.failed, stats.finished), (1, 2, 1), "{path}");
    }
}
