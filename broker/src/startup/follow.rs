//! Keeps what is served from memory fresh: the configuration, the identities
//! and the state of the connection.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::jetstream::kv::{Operation, Store as Bucket};
use duo_contract::name::ModelName;
use duo_contract::snapshot::{ConfigSnapshot, IdentitySnapshot};
use duo_contract::subject;
use duo_process::admin::{Condition, Latch};
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use futures_util::StreamExt as _;
use tokio::sync::oneshot;

use crate::config::QueueConfig;
use crate::identity::IdentitySink;
use crate::metrics::Metrics;
use crate::prompt::Prompts;
use crate::routing::RoutingSink;
use crate::topology;

/// A watch that has gone quiet without an error is caught by reading the bucket.
const REREAD: Duration = Duration::from_secs(30);
/// Pause before a watch that ended is opened again.
const REWATCH: Duration = Duration::from_millis(250);

/// What follows the buckets.
#[derive(Debug)]
pub(super) struct Followed {
    /// The connection.
    pub(super) nats: Nats,
    /// Settings of consumers.
    pub(super) queue: QueueConfig,
    /// Takes configurations.
    pub(super) routing: RoutingSink,
    /// Takes prompt templates.
    pub(super) prompts: Prompts,
    /// Takes identities.
    pub(super) identities: IdentitySink,
    /// Counters.
    pub(super) metrics: Metrics,
}

/// Who is told that the first configuration is served.
#[derive(Debug)]
pub(super) struct Configured {
    /// Readiness.
    latch: Latch,
    /// The API, which takes nobody in before.
    api: oneshot::Sender<()>,
}

impl Configured {
    /// Readiness by `latch`, and whoever holds the other half.
    pub(super) fn new(latch: Latch) -> (Self, oneshot::Receiver<()>) {
        let (api, first) = oneshot::channel();
        (Self { latch, api }, first)
    }
}

/// Follows both buckets until the drain begins; `configured` is told when the
/// first configuration is served.
pub(super) async fn snapshots(followed: Followed, configured: Configured, shutdown: Shutdown) {
    let mut configured = Some(configured);
    let mut served = Served::default();
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            result = follow(&followed, &mut served, &mut configured) => {
                if let Err(error) = result {
                    tracing::warn!(error = %error, "the watch of the configuration ended; opening it again");
                }
            }
        }
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(REWATCH) => {}
        }
    }
}

/// What is served already.
#[derive(Debug, Default)]
struct Served {
    config: u64,
    identity: u64,
    consumers: HashSet<ModelName>,
}

async fn follow(
    followed: &Followed,
    served: &mut Served,
    configured: &mut Option<Configured>,
) -> Result<(), async_nats::Error> {
    let context = followed.nats.jetstream();
    let config = context.get_key_value(subject::CONFIG_BUCKET).await?;
    let identity = context.get_key_value(subject::IDENTITY_BUCKET).await?;
    let mut config_watch = config.watch_many_with_history([subject::SNAPSHOT_KEY]).await?;
    let mut identity_watch = identity.watch_many_with_history([subject::SNAPSHOT_KEY]).await?;
    let mut reread = tokio::time::interval(REREAD);
    let mut connections = followed.nats.connections();
    connections.mark_unchanged();
    // Identities first: whoever is let in by readiness is known.
    if let Some(value) = value(&identity).await? {
        take_identity(followed, served, &value);
    }
    loop {
        tokio::select! {
            entry = config_watch.next() => {
                let Some(entry) = entry else { return Ok(()) };
                let entry = entry?;
                if entry.operation == Operation::Put {
                    take_config(followed, served, configured, &entry.value).await;
                }
            }
            entry = identity_watch.next() => {
                let Some(entry) = entry else { return Ok(()) };
                let entry = entry?;
                if entry.operation == Operation::Put {
                    take_identity(followed, served, &entry.value);
                }
            }
            // A watch may not see a bucket that was made anew, so it is opened again.
            _ = connections.changed() => return Ok(()),
            _ = reread.tick() => {
                if let Some(value) = value(&config).await? {
                    take_config(followed, served, configured, &value).await;
                }
                if let Some(value) = value(&identity).await? {
                    take_identity(followed, served, &value);
                }
            }
        }
    }
}

async fn value(bucket: &Bucket) -> Result<Option<bytes::Bytes>, async_nats::Error> {
    Ok(bucket.get(subject::SNAPSHOT_KEY).await?)
}

async fn take_config(
    followed: &Followed,
    served: &mut Served,
    configured: &mut Option<Configured>,
    value: &[u8],
) {
    let snapshot = match ConfigSnapshot::decode(value) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            tracing::error!(error = %error, "the configuration does not parse; the old one stays");
            return;
        }
    };
    // Consumers first: a request for a model without one would wait for nobody.
    for model in &snapshot.models {
        if served.consumers.contains(&model.name) {
            continue;
        }
        match topology::ensure_model(&followed.nats, &followed.queue, &model.name).await {
            Ok(()) => {
                served.consumers.insert(model.name.clone());
            }
            Err(error) => tracing::error!(model = %model.name, error = %error, "the model has no consumers"),
        }
    }
    let revision = snapshot.revision;
    if revision <= served.config && configured.is_none() {
        return;
    }
    followed.prompts.apply(&snapshot.prompts);
    followed.routing.store(snapshot);
    served.config = revision;
    followed
        .metrics
        .config_revision
        .set(i64::try_from(revision).unwrap_or(i64::MAX));
    tracing::info!(revision, "serving the configuration");
    if let Some(first) = configured.take() {
        first.latch.release();
        // An API that did not wait so long serves already.
        let _ = first.api.send(());
    }
}

fn take_identity(followed: &Followed, served: &mut Served, value: &[u8]) {
    match IdentitySnapshot::decode(value) {
        Ok(snapshot) if snapshot.revision > served.identity => {
            served.identity = snapshot.revision;
            followed.identities.store(snapshot);
        }
        Ok(_) => {}
        Err(error) => tracing::error!(error = %error, "the identities do not parse; the old ones stay"),
    }
}

/// Tells readiness whether the connection to NATS is up.
pub(super) fn connection(nats: &Nats, connected: Condition, shutdown: &Shutdown) {
    let mut connections = nats.connections();
    let end = shutdown.clone();
    connected.set(connections.borrow_and_update().up);
    shutdown.spawn("connection state", async move {
        loop {
            tokio::select! {
                () = end.begun() => return,
                changed = connections.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    connected.set(connections.borrow_and_update().up);
                }
            }
        }
    });
}
