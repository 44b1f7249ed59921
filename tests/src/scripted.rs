//! A model that says what a test tells it, in the words of an OpenAI-compatible server.
//!
//! The simulated model server says text of its own; this one stands in where the text matters: the turns of a chat
//! agent, and the answers whose form GitLab parses. It never fails and never waits.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderValue, header};
use serde_json::{Value, json};

use crate::server::Server;

/// The name of its one model.
pub const MODEL: &str = "scripted";
/// What it says when nobody has told it what to say.
const DEFAULT: &str = "Final Answer: yes";
/// Characters in one piece of a stream: fewer than any marker has, so that every marker comes in pieces.
const PIECE: usize = 5;
const THREADS: usize = 1;

/// A running scripted model; it stops when dropped.
#[derive(Debug)]
pub struct Scripted {
    script: Arc<Script>,
    server: Server,
}

#[derive(Debug, Default)]
struct Script(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    next: VecDeque<String>,
    asked: Vec<Value>,
}

impl Scripted {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// No port or thread can be had.
    pub async fn start() -> io::Result<Self> {
        let script = Arc::new(Script::default());
        let router = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/v1/completions", post(completion))
            .route("/v1/models", get(models))
            .with_state(Arc::clone(&script));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::start(address, THREADS, router).await?;
        Ok(Self { script, server })
    }

    /// The URL that a worker is told.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.server.address())
    }

    /// It says this to the next request that nothing was said to yet.
    pub fn say(&self, text: &str) {
        self.script.lines().next.push_back(text.to_owned());
    }

    /// The bodies of all requests so far.
    pub fn asked(&self) -> Vec<Value> {
        self.script.lines().asked.clone()
    }
}

impl Script {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, body: Value) -> String {
        let mut lines = self.lines();
        lines.asked.push(body);
        lines.next.pop_front().unwrap_or_else(|| DEFAULT.to_owned())
    }
}

async fn models() -> Json<Value> {
    Json(json!({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
}

async fn chat(State(script): State<Arc<Script>>, Json(body): Json<Value>) -> Response {
    answer(
        &script,
        body,
        "chat.completion",
        |text, whole| json!({ if whole { "message" } else { "delta" }: {"role": "assistant", "content": text} }),
    )
}

async fn completion(State(script): State<Arc<Script>>, Json(body): Json<Value>) -> Response {
    answer(
        &script,
        body,
        "text_completion",
        |text, _| json!({ "text": text }),
    )
}

fn answer(script: &Script, body: Value, object: &str, choice: impl Fn(&str, bool) -> Value) -> Response {
    let stream = body["stream"] == true;
    let text = script.take(body);
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5});
    let reply = |object: String, mut choices: Vec<Value>, finish: Option<&str>, usage: Value| {
        for choice in &mut choices {
            choice["index"] = 0.into();
            choice["finish_reason"] = finish.into();
        }
        json!({"id": "scripted", "object": object, "created": 0, "model": MODEL, "choices": choices, "usage": usage})
    };
    if !stream {
        let whole = reply(object.to_owned(), vec![choice(&text, true)], Some("stop"), usage);
        return Json(whole).into_response();
    }
    let chunk = format!("{object}.chunk");
    let letters: Vec<char> = text.chars().collect();
    let mut events: Vec<String> = letters
        .chunks(PIECE)
        .map(|piece| {
            let piece: String = piece.iter().collect();
            reply(chunk.clone(), vec![choice(&piece, false)], None, Value::Null).to_string()
        })
        .collect();
    events.push(reply(chunk.clone(), vec![choice("", false)], Some("stop"), Value::Null).to_string());
    events.push(reply(chunk, Vec::new(), None, usage).to_string());
    events.push("[DONE]".to_owned());
    let body: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    let mut response = Response::new(Body::from(body));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
