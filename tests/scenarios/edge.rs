//! The edge of HTTP: what browsers, odd paths, odd bodies and misspelt headers get.

use duo_system_tests::harness::cluster::{agent, chat, completion, generation};
use duo_system_tests::harness::{Answer, Cluster};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const COMPLETIONS: &str = "/v2/code/completions";
const V3: &str = "/v3/code/completions";
const OPENAI_CHAT: &str = "/v1/chat/completions";
const PAGE: &str = "https://gitlab.example.com";

async fn rails(cluster: &Cluster, path: &str, body: &Value) -> Answer {
    cluster.rails(path, "alice", body).send().await
}

#[tokio::test]
async fn a_web_page_may_send_post_and_is_told_so_without_a_token() {
    let cluster = Cluster::start().await;
    let ask = |method: &'static str| {
        cluster
            .call(Method::OPTIONS, "/v2/completions")
            .header("origin", PAGE)
            .header("access-control-request-method", method)
            .header("access-control-request-headers", "authorization,x-gitlab-realm")
            .send()
    };
    let allowed = ask("POST").await;
    assert_eq!(allowed.status, StatusCode::OK, "{allowed}");
    assert_eq!(allowed.header("access-control-allow-origin"), "*");
    assert_eq!(allowed.header("access-control-allow-methods"), "POST");
    let headers = allowed.header("access-control-allow-headers");
    assert_eq!(headers, "authorization,x-gitlab-realm");
    assert!(!allowed.headers.contains_key("x-process-time"));
    assert_eq!(ask("DELETE").await.status, StatusCode::BAD_REQUEST);

    let call = cluster.rails(COMPLETIONS, "alice", &completion("x", false));
    let answer = call.header("origin", PAGE).send().await.good();
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    let stranger = cluster.call(Method::POST, COMPLETIONS).header("origin", PAGE);
    let stranger = stranger.json(&json!({})).send().await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
    assert_eq!(stranger.header("access-control-allow-origin"), "*");
    let no_preflight = cluster.call(Method::OPTIONS, COMPLETIONS).send().await;
    assert_eq!(no_preflight.status, StatusCode::UNAUTHORIZED);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn odd_paths_get_an_answer_that_their_clients_can_read() {
    let cluster = Cluster::start().await;
    for path in ["/v1/prompts/%ff", "/v1/prompts/%00", "/v1/prompts/no%252Fsuch"] {
        let answer = rails(&cluster, path, &json!({"inputs": {}})).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {answer}");
        assert!(answer.json()["detail"].is_string(), "{path}: {answer}");
    }
    let get = |path: &'static str| {
        let call = cluster.call(Method::GET, path);
        call.token(&cluster.client_token).send()
    };
    for path in ["/v1/models/%ff", "/v1/models/no/such"] {
        let answer = get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {answer}");
        assert_eq!(
            answer.json()["error"]["code"],
            "model_not_found",
            "{path}: {answer}"
        );
    }
    for (path, allowed) in [("/monitoring/healthz", "GET"), (COMPLETIONS, "POST")] {
        let call = cluster.call(Method::PUT, path);
        let answer = call.headers(cluster.rails_headers("alice")).send().await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}: {answer}");
        assert_eq!(answer.header("allow"), allowed, "{path}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_body_may_have_a_mark_in_front_but_not_be_compressed() {
    let cluster = Cluster::start().await;
    let headers = cluster.rails_headers("alice");
    let body = completion("x", false).to_string();
    let marked = cluster.call(Method::POST, COMPLETIONS).headers(headers.clone());
    let marked = marked.text("application/json", format!("\u{feff}{body}"));
    marked.send().await.good();
    let packed = cluster.call(Method::POST, COMPLETIONS).headers(headers);
    let packed = packed
        .header("content-encoding", "gzip")
        .text("application/json", body);
    let packed = packed.send().await;
    assert_eq!(packed.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{packed}");
    assert!(packed.text().contains("Content-Encoding"), "{packed}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_name_counts_without_the_blanks_around_it() {
    let cluster = Cluster::start().await;
    let mut body = completion("x", false);
    body["current_file"]["file_name"] = format!("  {}.rb  ", "n".repeat(252)).into();
    rails(&cluster, COMPLETIONS, &body).await.good();
    body["current_file"]["file_name"] = format!("{}.rb", "n".repeat(253)).into();
    let answer = rails(&cluster, COMPLETIONS, &body).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    body["current_file"]["file_name"] = "a.rb".into();
    body["model_endpoint"] = json!(7);
    let answer = rails(&cluster, COMPLETIONS, &body).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert!(answer.text().contains("model_endpoint"), "{answer}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_generation_without_a_prompt_of_ours_takes_the_clients_own() {
    let cluster = Cluster::start().await;
    let mut body = generation("x", false);
    let payload = &mut body["prompt_components"][0]["payload"];
    payload["prompt"] = "write a haiku about queues".into();
    let ours = rails(&cluster, V3, &body).await.good();
    assert!(!cluster.last_body().to_string().contains("haiku"), "{ours}");
    let payload = &mut body["prompt_components"][0]["payload"];
    let fields = payload.as_object_mut().expect("an object");
    fields.remove("prompt_id");
    fields.remove("prompt_enhancer");
    rails(&cluster, V3, &body).await.good();
    assert!(cluster.last_body().to_string().contains("haiku"));
    body["prompt_components"][0]["payload"]["prompt"] = "x".repeat(400_001).into();
    let answer = rails(&cluster, V3, &body).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_prompt_that_cannot_be_made_of_its_inputs_is_no_fault_of_ours() {
    let cluster = Cluster::start().await;
    for documents in [json!("text"), json!([1, null])] {
        let inputs = json!({"question": "q", "documents": documents, "content_id": "CNT-IDX"});
        let body = json!({"inputs": inputs});
        let answer = rails(&cluster, "/v1/prompts/chat/documentation_search", &body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
        assert!(answer.text().contains("inputs"), "{answer}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_prompt_that_only_the_model_server_finds_too_long_is_explained() {
    let cluster = Cluster::start().await;
    cluster.sim.set(|sim| sim.context = 64);
    let long = "word ".repeat(200);
    let answer = rails(&cluster, "/v2/chat/agent", &agent(&long)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer}");
    assert!(answer.text().contains("prompt is too long"), "{answer}");
    let answer = cluster.openai(OPENAI_CHAT, &chat(&long, 5, false)).send().await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer}");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "context_length_exceeded", "{answer}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_key_of_somebody_else_is_told_where_keys_are_made() {
    let cluster = Cluster::start().await;
    let call = cluster
        .call(Method::GET, "/v1/models")
        .token("sk-of-somebody-else");
    let answer = call.send().await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer}");
    let message = answer.json()["error"]["message"].to_string();
    assert!(message.contains("duo-broker token create"), "{answer}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn an_auditor_is_told_what_is_wrong_with_a_query() {
    let cluster = Cluster::start().await;
    for (query, said) in [
        ("limit=x", "limit"),
        ("outcome=lost", "completed"),
        ("kind=x", "admitted"),
        ("user=%00", "user"),
        ("colour=red", "colour"),
    ] {
        let call = cluster.call(Method::GET, &format!("/audit/v1/events?{query}"));
        let answer = call.token(&cluster.auditor_token).send().await;
        assert_eq!(
            answer.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{query}: {answer}"
        );
        let message = answer.json()["message"].to_string();
        assert!(message.contains(said), "{query}: {answer}");
    }
    let first = cluster.call(Method::GET, "/audit/v1/events?cursor=");
    first.token(&cluster.auditor_token).send().await.good();
    cluster.assert_clean().await;
}

/// Reads one answer's head and body from a kept connection.
async fn read_answer(stream: &mut BufReader<TcpStream>) -> (String, Vec<u8>) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = stream.read_line(&mut head).await.expect("an answer comes");
        assert_ne!(read, 0, "the broker closed the connection without an answer");
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse().ok())
        .expect("a length");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("the body comes");
    (head, body)
}

#[tokio::test]
async fn a_refused_strangers_connection_stays_open_or_is_said_to_close() {
    let cluster = Cluster::start().await;
    let mut stream = BufReader::new(TcpStream::connect(cluster.address_of(0)).await.unwrap());
    stream.get_ref().set_nodelay(true).unwrap();
    let head = |bytes: usize| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: broker\r\nauthorization: Bearer duo_nobody\r\n\
             content-type: application/json\r\ncontent-length: {bytes}\r\n\r\n"
        )
    };
    // Head and body arrive apart: many times, since which is seen first is a race.
    for _ in 0..200 {
        stream.write_all(head(2).as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(b"{}").await.unwrap();
        let (head, _) = read_answer(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
        assert!(!head.contains("connection: close"), "{head}");
    }
    // Nobody waits for megabytes of a stranger.
    stream.write_all(head(1 << 20).as_bytes()).await.unwrap();
    let (head, body) = read_answer(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
    assert!(head.contains("connection: close"), "{head}");
    assert!(!body.is_empty());
    let after = stream.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(after, 0, "the connection ends with its answer");
    cluster.assert_clean().await;
}
