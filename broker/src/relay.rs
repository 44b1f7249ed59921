//! Carries each revision of configuration and identities from Postgres into NATS key-value, where brokers and
//! workers read it.
//!
//! Every broker runs one; they need no agreement, because a snapshot is put by compare-and-set and never takes the
//! place of a newer one. It looks at Postgres five times a second and at the buckets every few seconds, so that a
//! bucket that lost its value gets it back. It makes no bucket and reads no snapshot for use.

use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use bytes::Bytes;
use duo_contract::snapshot::{ConfigSnapshot, IdentitySnapshot};
use duo_contract::subject::{CONFIG_BUCKET, IDENTITY_BUCKET, SNAPSHOT_KEY};
use duo_process::nats::Nats;
use duo_process::retry::RetryPolicy;
use duo_process::shutdown::Shutdown;

use crate::store::{Store, StoreError};

/// How often Postgres is asked for its revision: a change is to be everywhere within a second.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often the buckets are looked at although nothing changed.
const BUCKET_INTERVAL: Duration = Duration::from_secs(3);
/// Longest wait for one answer of NATS.
const NATS_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses while Postgres or NATS is away.
const RETRY_BASE: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(5);
/// Tries to put a snapshot while others put theirs.
const PUT_TRIES: u32 = 5;

/// Why a revision is not in its buckets.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("the configuration cannot be read")]
    Store(#[from] StoreError),
    #[error("the bucket {bucket} cannot be {done}")]
    Bucket {
        bucket: &'static str,
        done: &'static str,
        #[source]
        source: async_nats::Error,
    },
    #[error("the bucket {bucket} does not answer in time")]
    TimedOut { bucket: &'static str },
    #[error("the bucket {bucket} keeps changing")]
    Contended { bucket: &'static str },
}

/// The part of both snapshots that decides which one is newer.
#[derive(serde::Deserialize)]
struct Numbered {
    revision: u64,
}

/// Relays until the shutdown begins; when either side is away it tries again, with growing pauses.
///
/// # Panics
/// Never: its constants make a policy.
pub async fn run(store: Store, nats: Nats, shutdown: Shutdown) {
    let policy = RetryPolicy::try_new(RETRY_BASE, RETRY_CAP, u32::MAX).expect("constants that make a policy");
    let mut relay = Relay {
        store,
        nats,
        relayed: None,
        looked: None,
    };
    let mut failures = 0u32;
    loop {
        let ended = tokio::select! {
            () = shutdown.begun() => return,
            ended = relay.step() => ended,
        };
        let pause = match ended {
            Ok(()) => {
                if failures > 0 {
                    tracing::info!("the relay of configuration works again");
                }
                failures = 0;
                POLL_INTERVAL
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                if failures == 1 {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot relay the configuration; trying again");
                }
                policy.delay(failures).max(POLL_INTERVAL)
            }
        };
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Relay {
    store: Store,
    nats: Nats,
    /// The revision that this relay has seen in both buckets.
    relayed: Option<u64>,
    /// When it last looked at the buckets.
    looked: Option<Instant>,
}

impl Relay {
    async fn step(&mut self) -> Result<(), RelayError> {
        let revision = self.store.revision().await?;
        let known = self.relayed == Some(revision);
        if known
            && self
                .looked
                .is_some_and(|looked| looked.elapsed() < BUCKET_INTERVAL)
        {
            return Ok(());
        }
        if !known || !self.are_full(revision).await? {
            let (config, identities) = self.store.snapshots().await?;
            self.put_both(&config, &identities).await?;
            self.store.relayed(config.revision).await?;
            self.relayed = Some(config.revision);
            tracing::info!(revision = config.revision, "configuration relayed");
        }
        self.looked = Some(Instant::now());
        Ok(())
    }

    async fn are_full(&self, revision: u64) -> Result<bool, RelayError> {
        for bucket in [CONFIG_BUCKET, IDENTITY_BUCKET] {
            let held = self.entry(bucket).await?;
            if held.is_none_or(|(_, held)| held < revision) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn put_both(
        &self,
        config: &ConfigSnapshot,
        identities: &IdentitySnapshot,
    ) -> Result<(), RelayError> {
        // Identities first: a token is of no use before its feature, and a revoked one should go at once.
        put(self, IDENTITY_BUCKET, identities.revision, json(identities)).await?;
        put(self, CONFIG_BUCKET, config.revision, json(config)).await
    }

    async fn bucket(&self, bucket: &'static str) -> Result<kv::Store, RelayError> {
        within(bucket, "opened", self.nats.jetstream().get_key_value(bucket)).await
    }

    /// The key-value revision and the snapshot's own revision, if the bucket holds one.
    async fn entry(&self, bucket: &'static str) -> Result<Option<(u64, u64)>, RelayError> {
        let store = self.bucket(bucket).await?;
        let entry = within(bucket, "read", store.entry(SNAPSHOT_KEY)).await?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else {
            return Ok(None);
        };
        // What nobody can read may be replaced, at the key-value revision where it stands.
        let held = serde_json::from_slice::<Numbered>(&entry.value).map_or(0, |snapshot| snapshot.revision);
        Ok(Some((entry.revision, held)))
    }
}

/// Puts a snapshot unless the bucket holds one as new; who loses a race looks again.
async fn put(relay: &Relay, bucket: &'static str, revision: u64, value: Bytes) -> Result<(), RelayError> {
    let store = relay.bucket(bucket).await?;
    for _ in 0..PUT_TRIES {
        let done = match relay.entry(bucket).await? {
            Some((_, held)) if held >= revision => {
                if held > revision {
                    tracing::error!(
                        bucket,
                        held,
                        revision,
                        "the bucket holds a newer revision than PostgreSQL, which may have been restored from a \
                         backup; delete the bucket's key `snapshot` to serve PostgreSQL's configuration"
                    );
                }
                return Ok(());
            }
            Some((at, _)) => {
                let updated = store.update(SNAPSHOT_KEY, value.clone(), at);
                taken(bucket, updated, |error| {
                    error.kind() == kv::UpdateErrorKind::WrongLastRevision
                })
                .await?
            }
            None => {
                let created = store.create(SNAPSHOT_KEY, value.clone());
                taken(bucket, created, |error| {
                    error.kind() == kv::CreateErrorKind::AlreadyExists
                })
                .await?
            }
        };
        if done {
            return Ok(());
        }
    }
    Err(RelayError::Contended { bucket })
}

/// True when the write was taken, false when another one was before it.
async fn taken<E>(
    bucket: &'static str,
    write: impl Future<Output = Result<u64, E>>,
    lost: impl Fn(&E) -> bool,
) -> Result<bool, RelayError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    match tokio::time::timeout(NATS_TIMEOUT, write).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) if lost(&error) => Ok(false),
        Ok(Err(error)) => Err(RelayError::Bucket {
            bucket,
            done: "written",
            source: error.into(),
        }),
        Err(_) => Err(RelayError::TimedOut { bucket }),
    }
}

async fn within<T, E>(
    bucket: &'static str,
    done: &'static str,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, RelayError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    match tokio::time::timeout(NATS_TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(RelayError::Bucket {
            bucket,
            done,
            source: error.into(),
        }),
        Err(_) => Err(RelayError::TimedOut { bucket }),
    }
}

fn json(snapshot: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(snapshot)
        .expect("snapshots are plain structs with text keys")
        .into()
}
