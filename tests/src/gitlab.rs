//! The stand-in for a GitLab instance: signs tokens as Rails does and publishes the keys to check them.
//!
//! It knows nothing of users, licences or seats: it gives every scope it is asked for, and any wrong token a test
//! of refusals needs.

mod graphql;
mod keys;
mod scopes;
mod state;
#[cfg(test)]
mod tests;
mod token;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use serde_json::json;

use crate::server::Server;

pub use self::graphql::{GraphqlAnswer, TOKEN as GRAPHQL_TOKEN};
pub use self::keys::SigningKey;
pub use self::scopes::ALL_SCOPES;
pub use self::state::load_or_create;
pub use self::token::{Signature, TokenSpec};

/// Worker threads; key fetches are rare.
const THREADS: usize = 1;

/// A running stand-in; it stops when dropped.
#[derive(Debug)]
pub struct Gitlab {
    shared: Arc<Shared>,
    address: SocketAddr,
    server: Server,
}

#[derive(Debug)]
struct Shared {
    url: RwLock<String>,
    instance_id: String,
    key: RwLock<Arc<SigningKey>>,
    key_fetches: AtomicU64,
    broken: AtomicBool,
    graphql: RwLock<GraphqlAnswer>,
    graphql_asked: AtomicU64,
}

impl Gitlab {
    /// Starts an instance with a fresh key and identity on a free port.
    ///
    /// # Errors
    /// No key can be made or no port be had.
    pub async fn start() -> io::Result<Self> {
        let key = SigningKey::generate()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_with(address, key, uuid::Uuid::new_v4().to_string()).await
    }

    /// Starts an instance with this key and identity on `address`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start_with(address: SocketAddr, key: SigningKey, instance_id: String) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            url: RwLock::default(),
            instance_id,
            key: RwLock::new(Arc::new(key)),
            key_fetches: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            graphql: RwLock::default(),
            graphql_asked: AtomicU64::new(0),
        });
        let server = Server::start(address, THREADS, router(Arc::clone(&shared))).await?;
        let address = server.address();
        *shared.url.write().unwrap_or_else(PoisonError::into_inner) = format!("http://{address}");
        Ok(Self {
            shared,
            address,
            server,
        })
    }

    /// The base URL, also the issuer of its tokens.
    pub fn url(&self) -> String {
        self.shared.url()
    }

    /// The instance's UUID, the subject of its tokens.
    pub fn instance_id(&self) -> &str {
        &self.shared.instance_id
    }

    /// A token as `spec` describes it.
    ///
    /// # Errors
    /// The key cannot sign, or another one cannot be made.
    pub fn token(&self, spec: &TokenSpec) -> io::Result<String> {
        spec.mint(&self.shared.key(), &self.url(), &self.shared.instance_id)
    }

    /// The headers Rails sends with `token`, as far as a gateway checks them.
    pub fn headers(&self, token: &str) -> Vec<(&'static str, String)> {
        vec![
            ("authorization", format!("Bearer {token}")),
            ("x-gitlab-authentication-type", "oidc".to_owned()),
            ("x-gitlab-instance-id", self.shared.instance_id.clone()),
            ("x-gitlab-realm", "self-managed".to_owned()),
            ("x-gitlab-host-name", "gitlab.test".to_owned()),
            ("x-gitlab-version", "18.9.0".to_owned()),
        ]
    }

    /// Signs with a new key from now on; the old one is no longer published.
    ///
    /// # Errors
    /// No key can be made.
    pub fn rotate_keys(&self) -> io::Result<()> {
        let key = Arc::new(SigningKey::generate()?);
        *self.shared.key.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }

    /// How often the keys were fetched.
    pub fn key_fetches(&self) -> u64 {
        self.shared.key_fetches.load(Ordering::SeqCst)
    }

    /// Answers questions for its models and feature settings like this from now on.
    pub fn answer_graphql(&self, answer: GraphqlAnswer) {
        *self
            .shared
            .graphql
            .write()
            .unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// How often it was asked for them.
    pub fn graphql_asked(&self) -> u64 {
        self.shared.graphql_asked.load(Ordering::SeqCst)
    }

    /// Answers everything with 502, as a proxy before an instance that is down; or stops doing so.
    pub fn broken(&self, on: bool) {
        self.shared.broken.store(on, Ordering::SeqCst);
    }

    /// Goes away: the port refuses connections.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Comes back on the same port with the same key and identity.
    ///
    /// # Errors
    /// The port was taken meanwhile.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.server.stop().await;
        self.server = Server::start(self.address, THREADS, router(Arc::clone(&self.shared))).await?;
        Ok(())
    }

    /// Waits until it has stopped.
    pub async fn stopped(&self) {
        self.server.stopped().await;
    }
}

impl Shared {
    fn url(&self) -> String {
        self.url.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn graphql(&self) -> GraphqlAnswer {
        self.graphql
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn key(&self) -> Arc<SigningKey> {
        Arc::clone(&self.key.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/oauth/discovery/keys", get(published_keys))
        .route("/api/graphql", post(graphql::answer))
        .with_state(shared)
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Response {
    if shared.broken.load(Ordering::SeqCst) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let url = shared.url();
    axum::Json(json!({
        "issuer": url,
        "jwks_uri": format!("{url}/oauth/discovery/keys"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }))
    .into_response()
}

async fn published_keys(State(shared): State<Arc<Shared>>) -> Response {
    shared.key_fetches.fetch_add(1, Ordering::SeqCst);
    if shared.broken.load(Ordering::SeqCst) {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    axum::Json(json!({"keys": [shared.key().published()]})).into_response()
}
