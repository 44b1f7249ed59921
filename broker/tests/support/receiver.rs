//! A receiver of webhooks that says what a test tells it and keeps what it is told.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

/// A running receiver; it ends when dropped.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    served: tokio::task::JoinHandle<()>,
}

/// What it was told once.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) at: Instant,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What it answers.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
}

struct Shared {
    told: Mutex<Vec<Told>>,
    replies: Mutex<VecDeque<Reply>>,
    /// Are answers held back?
    held: watch::Sender<bool>,
}

impl Told {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub(crate) fn id(&self) -> &str {
        self.header("webhook-id")
    }
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap(),
            headers: Vec::new(),
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers
            .push((HeaderName::from_static(name), value.parse().unwrap()));
        self
    }
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            told: Mutex::default(),
            replies: Mutex::default(),
            held: watch::Sender::new(false),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            shared,
            served,
        }
    }

    /// Its URL by name.
    pub(crate) fn url(&self) -> String {
        format!("http://localhost:{}/hook", self.address.port())
    }

    /// It answers so to the next request that has no answer yet; 204 to those without.
    pub(crate) fn reply(&self, reply: Reply) {
        lock(&self.shared.replies).push_back(reply);
    }

    /// It answers nobody until it is told otherwise.
    pub(crate) fn hold(&self, held: bool) {
        self.shared.held.send_replace(held);
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        lock(&self.shared.told).clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.served.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let at = Instant::now();
    lock(&shared.told).push(Told { at, headers, body });
    let mut held = shared.held.subscribe();
    held.wait_for(|held| !held).await.unwrap();
    let reply = lock(&shared.replies).pop_front();
    let reply = reply.unwrap_or_else(|| Reply::status(204));
    let mut response = reply.status.into_response();
    response.headers_mut().extend(reply.headers);
    response
}
