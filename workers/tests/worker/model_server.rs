//! A tiny model server whose streams the test feeds by hand.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A call as the test sees it.
pub(crate) struct Call {
    pub(crate) headers: HeaderMap,
    pub(crate) body: serde_json::Value,
    /// The answer, to be sent by the test.
    answer: mpsc::Sender<Response>,
}

/// The writing half of a streamed answer.
pub(crate) struct Feed(mpsc::Sender<Result<String, std::io::Error>>);

pub(crate) struct FakeServer {
    pub(crate) url: String,
    pub(crate) calls: mpsc::Receiver<Call>,
    pub(crate) shared: Arc<Shared>,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) calls: AtomicUsize,
    pub(crate) loading: AtomicBool,
}

type Context = (mpsc::Sender<Call>, Arc<Shared>);

impl FakeServer {
    pub(crate) async fn start() -> Self {
        let (sender, calls) = mpsc::channel(1000);
        let shared = Arc::new(Shared::default());
        let router = Router::new()
            .route("/v1/chat/completions", post(answer))
            .route("/v1/completions", post(answer))
            .route(
                "/v1/models",
                get(async || axum::Json(serde_json::json!({"data": [{"id": "tiny"}]}))),
            )
            // A question that is never answered, as a server that drains may leave it.
            .route("/apply-template", post(pending::<StatusCode>))
            .route("/health", get(health))
            .with_state((sender, Arc::clone(&shared)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { url, calls, shared }
    }

    pub(crate) async fn call(&mut self) -> Call {
        let call = tokio::time::timeout(super::harness::PATIENCE, self.calls.recv()).await;
        call.expect("a call comes").expect("open")
    }
}

impl Call {
    pub(crate) async fn answer(self, status: u16, body: &str) {
        let status = StatusCode::from_u16(status).expect("a status");
        // A caller that has left needs no answer.
        let _ = self.answer.send((status, body.to_owned()).into_response()).await;
    }

    pub(crate) async fn stream(self) -> Feed {
        let (sender, receiver) = mpsc::channel::<Result<String, std::io::Error>>(1);
        let parts = futures_util::stream::unfold(receiver, async |mut receiver| {
            let part = receiver.recv().await?;
            Some((part, receiver))
        });
        let response = Response::builder()
            .header("content-type", "text/event-stream")
            .body(Body::from_stream(parts));
        self.answer
            .send(response.expect("a response"))
            .await
            .expect("still there");
        Feed(sender)
    }

    /// Returns when the caller has closed its connection without an answer.
    pub(crate) async fn closed(self) {
        self.answer.closed().await;
    }
}

impl Feed {
    pub(crate) async fn send(&self, text: &str) {
        self.0.send(Ok(text.to_owned())).await.expect("still there");
    }

    pub(crate) async fn event(&self, json: &str) {
        self.send(&format!("data: {json}\n\n")).await;
    }

    /// Breaks the connection in mid-body.
    pub(crate) async fn break_off(self) {
        let _ = self.0.send(Err(std::io::Error::other("broken"))).await;
    }

    /// Returns when the caller has closed its connection.
    pub(crate) async fn closed(self) {
        self.0.closed().await;
    }
}

async fn answer(
    State((calls, shared)): State<Context>,
    headers: HeaderMap,
    axum::Json(body): axum::Json<serde_json::Value>,
) -> Result<Response, Infallible> {
    shared.calls.fetch_add(1, Ordering::SeqCst);
    let (answer, mut answered) = mpsc::channel(1);
    if calls
        .send(Call {
            headers,
            body,
            answer,
        })
        .await
        .is_err()
    {
        return Ok(StatusCode::SERVICE_UNAVAILABLE.into_response());
    }
    Ok(match answered.recv().await {
        Some(response) => response,
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    })
}

async fn health(State((_, shared)): State<Context>) -> StatusCode {
    if shared.loading.load(Ordering::SeqCst) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}
