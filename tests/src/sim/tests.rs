//! The simulated server over real sockets.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::*;

const SOON: Duration = Duration::from_secs(10);
const MESSAGES: &str = r#"[{"role":"user","content":"hello \"world\"\n"}]"#;

async fn start(change: impl FnOnce(&mut Settings)) -> Sim {
    let mut settings = Settings::default();
    change(&mut settings);
    Sim::start(settings).await.unwrap()
}

fn messages() -> Value {
    serde_json::from_str(MESSAGES).unwrap()
}

async fn post(sim: &Sim, path: &str, body: &Value) -> reqwest::Response {
    reqwest::Client::new()
        .post(sim.url() + path)
        .json(body)
        .send()
        .await
        .unwrap()
}

async fn ask(sim: &Sim, path: &str, body: Value) -> Value {
    let response = post(sim, path, &body).await;
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// The events of a stream; the last one is `[DONE]` if nothing went wrong.
async fn events(sim: &Sim, path: &str, mut body: Value) -> Vec<String> {
    body["stream"] = json!(true);
    let text = post(sim, path, &body).await.text().await.unwrap();
    let events = text
        .strip_suffix("\n\n")
        .expect("an event ends with a blank line")
        .split("\n\n");
    events
        .map(|event| {
            event
                .strip_prefix("data: ")
                .expect("every line is data")
                .to_owned()
        })
        .collect()
}

fn parsed(events: &[String]) -> Vec<Value> {
    let events = events.iter().filter(|event| *event != "[DONE]");
    events.map(|event| serde_json::from_str(event).unwrap()).collect()
}

fn content(events: &[Value]) -> String {
    let choices = events.iter().map(|event| &event["choices"][0]);
    choices
        .filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()))
        .collect()
}

#[tokio::test]
async fn the_answer_is_the_expected_one_whole_or_streamed() {
    let sim = start(|settings| settings.tokens = 100).await;
    let expected = expected::chat_text(MESSAGES, 100).unwrap();
    let whole = ask(
        &sim,
        "/v1/chat/completions",
        json!({"model": "sim", "messages": messages()}),
    )
    .await;
    assert_eq!(whole["choices"][0]["message"]["content"], expected);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["usage"]["completion_tokens"], 100);
    let streamed = events(&sim, "/v1/chat/completions", json!({"messages": messages()})).await;
    assert_eq!(content(&parsed(&streamed)), expected);
    let body = json!({"prompt": "fn main() {", "max_tokens": 9});
    let whole = ask(&sim, "/v1/completions", body.clone()).await;
    assert_eq!(
        whole["choices"][0]["text"],
        expected::completion_text("fn main() {", 9)
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let streamed = events(&sim, "/v1/completions", body).await;
    assert_eq!(content(&parsed(&streamed)), whole["choices"][0]["text"]);
}

#[tokio::test]
async fn a_chat_stream_has_the_shape_vllm_gives_it() {
    let sim = start(|_| {}).await;
    let options = json!({"include_usage": true});
    let body = json!({"messages": messages(), "max_tokens": 3, "stream_options": options});
    let events = events(&sim, "/v1/chat/completions", body).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let head = r#"{"id":"chatcmpl-0000000000000000","object":"chat.completion.chunk","created":"#;
    assert!(events[0].starts_with(head), "{}", events[0]);
    let role = r#""choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}"#;
    assert!(events[0].ends_with(role), "{}", events[0]);
    assert!(events[1].ends_with(r#""},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#));
    let last = r#""},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}"#;
    assert!(events[3].ends_with(last), "{}", events[3]);
    let usage = parsed(&events).pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 3);
    assert_eq!(events.len(), 6);
}

#[tokio::test]
async fn tokens_choices_and_events_are_grouped_as_asked() {
    let sim = start(|settings| (settings.chunk_tokens, settings.coalesce) = (4, 3)).await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"messages": messages(), "max_tokens": 6, "n": 2, "stream_options": options});
    let events = parsed(&events(&sim, "/v1/chat/completions", body.clone()).await);
    // Two roles, two times two events of text, one of usage.
    assert_eq!(events.len(), 7);
    assert!(events.iter().all(|event| event["usage"].is_object()));
    assert_eq!(events[6]["usage"]["completion_tokens"], 12);
    let of = |number: usize| {
        let own = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == number);
        own.filter_map(|choice| choice["delta"]["content"].as_str())
            .collect::<String>()
    };
    assert_eq!(of(0), expected::chat_text(MESSAGES, 6).unwrap());
    assert_ne!(of(0), of(1));
}

#[tokio::test]
async fn a_prefilled_answer_goes_on_where_it_was_cut() {
    let sim = start(|settings| settings.tokens = 40).await;
    let whole = expected::chat_text(MESSAGES, 40).unwrap();
    for cut in (1..=whole.len())
        .filter(|cut| whole.is_char_boundary(*cut))
        .step_by(7)
    {
        let mut messages = messages();
        messages
            .as_array_mut()
            .unwrap()
            .push(json!({"role": "assistant", "content": whole[..cut]}));
        let body =
            json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": false});
        let rest = content(&parsed(&events(&sim, "/v1/chat/completions", body).await));
        assert_eq!(rest, whole[cut..], "cut at {cut}");
    }
    assert_eq!(sim.stats().diverged, 0);
}

#[tokio::test]
async fn a_chat_and_its_continuation_go_on_by_token_ids() {
    let sim = start(|settings| settings.tokens = 30).await;
    let whole = expected::chat_text(MESSAGES, 30).unwrap();
    // The chat itself starts inside a word of an earlier answer, so that its first token is a tail.
    let mut messages = messages();
    messages
        .as_array_mut()
        .unwrap()
        .push(json!({"role": "assistant", "content": whole[..3]}));
    let body = json!({
        "messages": messages, "continue_final_message": true, "add_generation_prompt": false,
        "max_tokens": 10, "return_token_ids": true,
    });
    let begun = parsed(&events(&sim, "/v1/chat/completions", body).await);
    let mut ids = begun[0]["prompt_token_ids"].as_array().unwrap().clone();
    for event in &begun[1..] {
        ids.extend(
            event["choices"][0]["token_ids"]
                .as_array()
                .unwrap()
                .iter()
                .cloned(),
        );
    }
    let body = json!({"prompt": ids, "max_tokens": 100, "return_token_ids": true});
    let rest = ask(&sim, "/v1/completions", body).await;
    assert_eq!(rest["choices"][0]["prompt_token_ids"], json!(ids));
    let rest = rest["choices"][0]["text"].as_str().unwrap();
    assert_eq!(format!("{}{}{rest}", &whole[..3], content(&begun)), whole);
    assert_eq!(sim.stats().continued, 2);
}

#[tokio::test]
async fn prompts_come_as_text_texts_or_ids() {
    let sim = start(|_| {}).await;
    let ids = ask(&sim, "/tokenize", json!({"prompt": "ab cd é"})).await["tokens"].clone();
    let back = ask(&sim, "/detokenize", json!({"tokens": ids})).await;
    assert_eq!(back["prompt"], "ab cd é");
    let one = ask(&sim, "/v1/completions", json!({"prompt": "ab cd é"})).await;
    let same = ask(&sim, "/v1/completions", json!({"prompt": ids})).await;
    let two = ask(&sim, "/v1/completions", json!({"prompt": ["x", "ab cd é"]})).await;
    assert_eq!(one["choices"][0]["text"], same["choices"][0]["text"]);
    assert_eq!(one["choices"][0]["text"], two["choices"][1]["text"]);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_itself() {
    let sim = start(|_| {}).await;
    let whole = expected::chat_text(MESSAGES, 16).unwrap();
    let words: Vec<_> = whole.split(' ').collect();
    let stop = format!("{} {}", words[4], &words[5][..1]);
    let body = json!({"messages": messages(), "stop": [stop, "never"]});
    let answer = ask(&sim, "/v1/chat/completions", body.clone()).await;
    let expected = &whole[..whole.find(&stop).unwrap()];
    assert_eq!(answer["choices"][0]["message"]["content"], expected);
    assert_eq!(answer["choices"][0]["stop_reason"], stop);
    let streamed = parsed(&events(&sim, "/v1/chat/completions", body).await);
    assert_eq!(content(&streamed), expected);
    assert_eq!(streamed.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_tool_is_called_whole_or_in_deltas() {
    let sim = start(|_| {}).await;
    let tools = json!([{"type": "function", "function": {"name": "find_issue", "parameters": {}}}]);
    let body = json!({"messages": [{"role": "user", "content": "please use-tool"}], "tools": tools});
    let answer = ask(&sim, "/v1/chat/completions", body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "find_issue");
    let streamed = parsed(&events(&sim, "/v1/chat/completions", body.clone()).await);
    let deltas = streamed
        .iter()
        .map(|event| &event["choices"][0]["delta"]["tool_calls"][0]["function"]);
    let arguments: String = deltas
        .filter_map(|function| function["arguments"].as_str())
        .collect();
    assert_eq!(call["arguments"], arguments);
    assert!(serde_json::from_str::<Value>(&arguments).unwrap()["query"].is_string());
    assert_eq!(
        streamed.last().unwrap()["choices"][0]["finish_reason"],
        "tool_calls"
    );
    let mut body = body;
    body["tool_choice"] = json!("none");
    assert_eq!(
        ask(&sim, "/v1/chat/completions", body).await["choices"][0]["finish_reason"],
        "stop"
    );
}

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
    next(Fault::Reset);
    assert!(client().send().await.is_err());
    next(Fault::Abort);
    let aborted = parsed(&events(&sim, "/v1/chat/completions", body.clone()).await);
    assert_eq!(aborted.last().unwrap()["choices"][0]["finish_reason"], "abort");
    assert_eq!(content(&aborted), expected::chat_text(MESSAGES, 3).unwrap());
    next(Fault::ErrorMid);
    let broken = events(&sim, "/v1/chat/completions", body.clone()).await;
    assert!(broken[broken.len() - 2].starts_with(r#"{"error":{"#));
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
