//! The main path, cancellation, deaths and returns with a real model server: llama.cpp's `llama-server`, or vLLM when
//! `DUO_REAL_MODEL_KIND=vllm` says so.

use std::time::Duration;

use duo_system_tests::harness::cluster::{agent, chat, completion, generation, sum};
use duo_system_tests::harness::model_server::{Kind, ModelServer};
use duo_system_tests::harness::{Cluster, PATIENCE, until};
use http::StatusCode;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Within this a slot has to be free again after its client has left.
const FREE_WITHIN: Duration = Duration::from_millis(500);

async fn start() -> ModelServer {
    ModelServer::start(Kind::chosen(), 2).await
}

async fn cluster_of(server: &ModelServer, workers: usize) -> Cluster {
    server.cluster().slots(2).workers(workers).start().await
}

fn temperate(mut body: Value) -> Value {
    body["temperature"] = 0.into();
    body
}

fn text_completion(tokens: usize, stream: bool) -> Value {
    json!({"model": "mistral", "prompt": "def main():", "max_tokens": tokens, "temperature": 0, "stream": stream})
}

#[tokio::test]
async fn answers_of_a_real_server_arrive_whole_and_streamed() {
    let server = start().await;
    let cluster = cluster_of(&server, 1).await;
    let calls = [
        (
            "/v1/chat/completions",
            temperate(chat("hello", 12, false)),
            "/choices/0/message/content",
        ),
        ("/v1/completions", text_completion(12, false), "/choices/0/text"),
    ];
    for (path, mut body, text) in calls {
        body["x_unknown"] = json!({"a": [1]});
        let direct = server.direct(path, &body).await;
        let whole = cluster.openai(path, &body).send().await.good().json();
        assert!(
            direct
                .pointer(text)
                .is_some_and(|text| text.as_str().is_some_and(|text| !text.is_empty()))
        );
        assert_eq!(whole.pointer(text), direct.pointer(text));
        assert_eq!(whole["usage"]["completion_tokens"], 12);
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let streamed = cluster.openai(path, &body).send().await.good();
        assert_eq!(
            Some(&Value::from(streamed.said())),
            direct.pointer(text),
            "{streamed}"
        );
        assert_eq!(streamed.events().last().map(String::as_str), Some("[DONE]"));
        assert!(streamed.text().contains("\"completion_tokens\":12"), "{streamed}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn gitlabs_requests_are_served_by_a_real_server() {
    let server = start().await;
    let cluster = cluster_of(&server, 1).await;
    for stream in [false, true] {
        let answers = [
            ("/v2/code/completions", completion("def add(a, b):\n", stream)),
            ("/v4/code/suggestions", generation("add two numbers", stream)),
            ("/v2/chat/agent", agent("What does a merge train do?")),
        ];
        for (path, body) in answers {
            let answer = cluster.rails(path, "alice", &body).send().await.good();
            assert!(
                !answer.text().is_empty() && !answer.text().contains("\"error\""),
                "{path}: {answer}"
            );
        }
    }
    let ends = until("six records", PATIENCE, async || match cluster.ends().await? {
        ends if ends.len() == 6 => Ok(ends),
        ends => Err(format!("{ends:?}")),
    })
    .await;
    assert!(
        ends.iter().all(|(outcome, ..)| outcome == "completed"),
        "{ends:?}"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_refused_in_the_servers_words() {
    let server = start().await;
    let cluster = cluster_of(&server, 1).await;
    let long = "hello world ".repeat(2_000);
    for stream in [false, true] {
        let answer = cluster
            .openai("/v1/chat/completions", &chat(&long, 12, stream))
            .send()
            .await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(
            answer.json()["error"]["message"]
                .as_str()
                .is_some_and(|text| text.contains("context")),
            "{answer}"
        );
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_client_that_leaves_stops_a_real_servers_generation() {
    let server = start().await;
    let cluster = cluster_of(&server, 1).await;
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for stream in [true, false] {
            let id = format!("left-{stream}{}", path.len());
            let body = match path {
                "/v1/completions" => text_completion(server.kind.long(), stream),
                _ => temperate(chat("hello", server.kind.long(), stream)),
            };
            let asked = tokio::spawn(cluster.openai(path, &body).header("x-request-id", &id).send());
            server.shows(1, PATIENCE).await;
            asked.abort();
            let took = server.shows(0, PATIENCE).await;
            assert_eq!(
                cluster.end_of(&id).await.0,
                "cancelled",
                "the answer was over too soon"
            );
            assert!(took < FREE_WITHIN * 2, "{path}, stream {stream}: {took:?}");
        }
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_real_server_that_dies_in_mid_stream_yields_nothing_whole_and_serves_again_on_its_return() {
    let mut server = start().await;
    let cluster = cluster_of(&server, 1).await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let body = temperate(chat("hello", server.kind.long(), true));
        let mut stream = cluster.openai("/v1/chat/completions", &body).open().await;
        assert_eq!(stream.status, StatusCode::OK);
        stream.until(|text| text.matches("data: ").count() > 2).await;
        server.program.signal(signal);
        // A server that drains may stay for as long as it likes, and take a call that goes on with the answer and never
        // speaks: the client is told all the same.
        let answer = stream.rest().await;
        assert!(!answer.looks_whole(), "{signal}: {answer}");
        if server.program.exited().is_none() {
            server.program.signal(Signal::SIGKILL);
        }
        server.program.ended().await;
        let url = server.url.clone();
        server = server.again().await;
        assert_eq!(server.url, url);
        let served = cluster
            .openai("/v1/chat/completions", &chat("hello", 4, false))
            .send()
            .await;
        assert_eq!(served.status, StatusCode::OK, "{signal}: {served}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_real_servers_stream_goes_on_after_its_worker_was_killed() {
    let server = start().await;
    let mut cluster = cluster_of(&server, 2).await;
    let tokens = match server.kind {
        Kind::Llama => server.kind.long(),
        Kind::Vllm => 600,
    };
    let calls = [
        (
            "/v1/completions",
            text_completion(tokens, true),
            "/choices/0/text",
        ),
        (
            "/v1/chat/completions",
            temperate(chat("hello", tokens, true)),
            "/choices/0/message/content",
        ),
    ];
    for (path, body, text) in calls {
        let mut uncut = body.clone();
        uncut["stream"] = false.into();
        let uncut = server.direct(path, &uncut).await;
        let uncut = uncut
            .pointer(text)
            .and_then(Value::as_str)
            .expect("text")
            .to_owned();
        let mut stream = cluster.openai(path, &body).open().await;
        stream.until(|text| text.matches("data: ").count() > 20).await;
        let mut victim = None;
        for number in 0..2 {
            let metrics = cluster.worker_metrics(number).await.expect("metrics");
            if sum(&metrics, "duo_worker_slots_in_use") > 0.0 {
                victim = Some(number);
            }
        }
        let victim = victim.expect("a worker is busy");
        cluster.kill_worker(victim).await;
        let answer = stream.rest().await;
        assert!(
            answer.looks_whole() && answer.said() == uncut,
            "{path}: it is exact"
        );
        cluster.restart_worker(victim).await;
    }
    cluster.assert_clean().await;
}
