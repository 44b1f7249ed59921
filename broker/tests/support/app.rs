//! The router with everything behind it but workers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use duo_broker::admission::Admission;
use duo_broker::api::{self, ApiState};
use duo_broker::audit::note::SigningKeys;
use duo_broker::audit::{AuditLog, sink};
use duo_broker::auth::{AuthConfig, Authenticator, install_crypto};
use duo_broker::config::QueueConfig;
use duo_broker::dispatch::storing::Storing;
use duo_broker::dispatch::{Dispatch, Parts};
use duo_broker::exchange::Exchange;
use duo_broker::fleet::Fleet;
use duo_broker::metrics::Metrics;
use duo_broker::prompt::Prompts;
use duo_broker::store::Store;
use duo_broker::{identity, routing};
use duo_contract::seal::SealKeys;
use duo_contract::snapshot::{ApiToken, ConfigSnapshot, IdentitySnapshot, Role};
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use uuid::Uuid;

/// An API token with this secret.
pub(crate) fn token(secret: &str, role: Role) -> ApiToken {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes());
    ApiToken {
        id: Uuid::new_v4(),
        name: secret.into(),
        sha256: hex::encode(digest),
        role,
        expires_at_ms: None,
        features: None,
        models: None,
        limit: 8,
    }
}

/// A router for these callers and this configuration, with the audit log of a store and what signs its manifests.
pub(crate) fn app(
    nats: Nats,
    tokens: Vec<ApiToken>,
    config: ConfigSnapshot,
    fleet: Fleet,
    store: Option<(Store, Option<Arc<SigningKeys>>)>,
) -> Router {
    install_crypto();
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry);
    let (audit_sink, written) = sink::sink(
        (nats.clone(), metrics.clone(), Storing::new(None)),
        Shutdown::new(),
        Shutdown::new(),
    );
    tokio::spawn(written);
    let audit = AuditLog::new("test", audit_sink, metrics.clone());
    let admission = Admission::new(fleet);
    let queue = QueueConfig {
        lease: Duration::from_secs(5),
        max_attempts: 3,
        replicas: 1,
        live_max_messages: 1000,
        live_max_bytes: 1 << 20,
        audit_max_bytes: 1 << 20,
    };
    let parts = Parts {
        broker: "test".into(),
        nats,
        keys: SealKeys::generate("k"),
        queue,
        admission: admission.clone(),
        metrics,
        queue_stores: Storing::new(None),
        audit_stores: Storing::new(None),
    };
    let (dispatch, _chores, _letters) = Dispatch::new(parts);
    let (routing_sink, routing) = routing::routing();
    routing_sink.store(config);
    let (identity_sink, identities) = identity::identities();
    identity_sink.store(IdentitySnapshot {
        revision: 1,
        tokens,
        issuers: Vec::new(),
    });
    let audit_log = store.map(|(store, keys)| api::audit::router(store, audit.clone(), keys));
    let state = ApiState {
        exchange: Exchange::new(routing, admission, audit.clone(), dispatch),
        authenticator: Authenticator::new(
            identities,
            AuthConfig::default(),
            reqwest::Client::new(),
            &registry,
        ),
        prompts: Prompts::builtin(),
        audit,
        documentation: None,
        bulk: None,
        jobs: None,
        readiness: Arc::new(|| false),
    };
    api::router(Arc::new(state), audit_log, None)
}
