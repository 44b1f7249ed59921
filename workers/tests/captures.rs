//! Every captured answer of a real model server (`workers/fixtures`), byte for byte through the worker's client.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use duo_contract::envelope::Endpoint;
use duo_contract::failure::FailureKind;
use duo_contract::name::ModelName;
use duo_workers::config::{CallConfig, ServedConfig, ServerConfig, ServerKind};
use duo_workers::model_server::Allowance;
use duo_workers::model_server::facts::Facts;
use duo_workers::model_server::openai::{Http, Step};
use duo_workers::model_server::{Answer, Blame, Call, Fault, Spent};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;

const SERVERS: [(&str, ServerKind); 2] = [("llama-server", ServerKind::Llama), ("vllm", ServerKind::Vllm)];
/// Bytes that are written at once: all of them, and so few that every event is cut.
const PIECES: [usize; 2] = [usize::MAX, 61];
/// Shorter than any test waits, longer than a write takes.
const IDLE: Duration = Duration::from_millis(400);

/// What came of one captured answer.
#[derive(Debug)]
struct Seen {
    text: String,
    facts: Result<Facts, Fault>,
}

#[tokio::test]
async fn every_capture_is_what_its_name_says() {
    for (folder, kind) in SERVERS {
        let names = captures(folder);
        for needed in [
            "chat",
            "chat-stream",
            "chat-stream-ended",
            "completions",
            "completions-stream",
        ] {
            assert!(names.iter().any(|name| name == needed), "{folder} lacks {needed}");
        }
        assert!(
            names.iter().any(|name| name.starts_with("dying-")),
            "{folder} lacks a death"
        );
        for name in names {
            for piece in PIECES {
                let seen = replay(folder, kind, &name, piece).await;
                judge(folder, &name, &seen);
            }
        }
    }
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    for (folder, kind) in SERVERS {
        for name in ["chat", "completions"] {
            let whole = replay(folder, kind, name, PIECES[0]).await;
            let stream = replay(folder, kind, &format!("{name}-stream"), PIECES[1]).await;
            assert!(!whole.text.is_empty());
            assert_eq!(whole.text, stream.text, "{folder}/{name}");
            let counted = |seen: &Seen| {
                let facts = seen.facts.as_ref().expect("whole");
                (
                    facts.input_tokens,
                    facts.output_tokens,
                    facts.finish_reason.clone(),
                )
            };
            assert_eq!(counted(&whole), counted(&stream), "{folder}/{name}");
        }
    }
}

fn judge(folder: &str, name: &str, seen: &Seen) {
    let at = format!("{folder}/{name}: {seen:?}");
    match (folder, name) {
        (_, "chat" | "chat-stream" | "completions" | "completions-stream") => {
            let facts = seen.facts.as_ref().expect(&at);
            assert_eq!(facts.finish_reason.as_deref(), Some("length"), "{at}");
            assert_eq!(facts.output_tokens, Some(8), "{at}");
            assert!(facts.input_tokens.is_some(), "{at}");
        }
        (_, "chat-stream-ended") => {
            let facts = seen.facts.as_ref().expect(&at);
            assert_eq!(facts.finish_reason.as_deref(), Some("stop"), "{at}");
        }
        (_, name) if name.starts_with("dying-") => {
            assert!(!seen.text.is_empty(), "{at}");
            refused(seen, FailureKind::ModelServerFault, Blame::Server, None, &at);
        }
        // llama-server serves whatever name it is asked for.
        ("llama-server", "error-unknown-model") => assert!(seen.facts.is_ok(), "{at}"),
        ("vllm", "error-unknown-model") => {
            refused(seen, FailureKind::ModelUnavailable, Blame::Nobody, Some(404), &at);
        }
        // The client's mistake, though llama-server calls it its own.
        ("llama-server", "error-invalid-json") => {
            refused(seen, FailureKind::InvalidRequest, Blame::Nobody, Some(500), &at);
        }
        (_, "error-invalid-json" | "error-missing-messages" | "error-prompt-too-long") => {
            refused(seen, FailureKind::InvalidRequest, Blame::Nobody, Some(400), &at);
            let failure = &seen.facts.as_ref().expect_err("refused").failure;
            let told: Value =
                serde_json::from_str(failure.upstream_error.as_deref().expect(&at)).expect("JSON");
            assert!(
                told["message"].as_str().is_some_and(|words| !words.is_empty()),
                "{at}"
            );
        }
        _ => panic!("say here what {folder}/{name} has to come to"),
    }
}

fn refused(seen: &Seen, kind: FailureKind, blame: Blame, status: Option<u16>, at: &str) {
    let fault = seen.facts.as_ref().expect_err(at);
    assert_eq!(
        (fault.failure.kind, fault.blame, fault.failure.upstream_status),
        (kind, blame, status),
        "{at}"
    );
    if kind == FailureKind::InvalidRequest {
        assert_eq!(fault.most_calls, 1, "{at}");
    }
}

/// The names of a server's captures.
fn captures(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(fixtures().join(folder)).expect("a folder");
    let mut names: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.expect("an entry").file_name().into_string().expect("text");
            name.strip_suffix(".response.txt").map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Makes the captured call of a server that answers with the captured bytes.
async fn replay(folder: &str, kind: ServerKind, name: &str, piece: usize) -> Seen {
    let path = fixtures().join(folder).join(name);
    let request = fs::read_to_string(path.with_extension("request.txt")).expect("a request");
    let response = fs::read(path.with_extension("response.txt")).expect("a response");
    let (head, body) = request.split_once("\n\n").expect("a body");
    let endpoint = if head.starts_with("POST /v1/chat/completions ") {
        Endpoint::ChatCompletions
    } else {
        Endpoint::Completions
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let stays = name.ends_with("-left-open");
    let begun = Arc::new(Notify::new());
    // What dies right behind its first data may be called again, and nothing of it is handed on.
    let held_back = name.starts_with("dying-").then(|| Arc::clone(&begun));
    let serving = tokio::spawn(async move { serve(listener, &response, piece, stays, held_back).await });
    let config = ServerConfig {
        name: "captured".to_owned(),
        url,
        slots: duo_workers::config::Slots::Fixed(1),
        kind,
        api_key: None,
        models: vec![ServedConfig {
            model: ModelName::parse("mistral").expect("a name"),
            served_as: "tiny-random".to_owned(),
            tools: false,
        }],
    };
    let calls = CallConfig {
        ca_file: None,
        idle_timeout: IDLE,
        first_timeout: None,
    };
    let http = Http::try_new(&config, &calls).expect("a client");
    let by = Instant::now() + Duration::from_secs(20);
    let call = Call {
        endpoint,
        stream: body.contains("\"stream\":true"),
        body: body.to_owned().into(),
        infer_as: None,
        hide_ids: false,
        seam: None,
        traceparent: String::new(),
        first_by: by,
        silent_by: None,
        end_by: by,
        allowance: Allowance::default(),
        spent: Spent::default(),
    };
    let seen = read(&http, &call, &begun).await;
    serving.abort();
    seen
}

async fn read(http: &Http, call: &Call, begun: &Notify) -> Seen {
    let mut text = String::new();
    let called = http.call(call).await;
    begun.notify_one();
    let facts = match called {
        Err(fault) => Err(fault),
        Ok(Answer::Whole(body, facts)) => {
            text = said(&body);
            Ok(facts)
        }
        Ok(Answer::Stream(mut stream)) => loop {
            match stream.next().await {
                Ok(Step::Chunks(lines)) => text += &said(&lines.text),
                Ok(Step::End(chunks)) => {
                    text += &said(&chunks);
                    break Ok(stream.facts());
                }
                Err(fault) => break Err(fault),
            }
        },
    };
    Seen { text, facts }
}

/// The text in answers or chunks, one a line or one over several.
fn said(json: &[u8]) -> String {
    let values = serde_json::Deserializer::from_slice(json).into_iter::<Value>();
    let texts = values.filter_map(|value| {
        let choice = &value.expect("JSON")["choices"][0];
        let text = [
            &choice["text"],
            &choice["message"]["content"],
            &choice["delta"]["content"],
        ]
        .into_iter()
        .find_map(Value::as_str)?;
        Some(text.to_owned())
    });
    texts.collect()
}

/// Writes the response; if anything is to be held back, what follows the first event only after that.
async fn serve(
    listener: TcpListener,
    response: &[u8],
    piece: usize,
    stays: bool,
    held_back: Option<Arc<Notify>>,
) {
    let (mut connection, _) = listener.accept().await.expect("a call");
    connection.set_nodelay(true).expect("a socket");
    read_request(&mut connection).await;
    let first = match &held_back {
        Some(_) => second_event(response),
        None => response.len(),
    };
    let (first, rest) = response.split_at(first);
    for part in first.chunks(piece.min(response.len())) {
        if connection.write_all(part).await.is_err() {
            return;
        }
    }
    if let Some(begun) = held_back {
        begun.notified().await;
    }
    for part in rest.chunks(piece.min(response.len())) {
        if connection.write_all(part).await.is_err() {
            return;
        }
    }
    if stays {
        std::future::pending::<()>().await;
    }
    let _ = connection.shutdown().await;
}

/// Where the second event begins.
fn second_event(response: &[u8]) -> usize {
    let starts = response
        .windows(6)
        .enumerate()
        .filter(|(_, part)| part == b"data: ");
    starts.map(|(at, _)| at).nth(1).expect("two events")
}

async fn read_request(connection: &mut TcpStream) {
    let mut request = Vec::new();
    loop {
        connection.read_buf(&mut request).await.expect("a request");
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.expect("a length").parse().expect("a number") {
            return;
        }
    }
}
