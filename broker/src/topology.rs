//! The streams, consumers and buckets that the product needs, created and
//! brought up to date at start. Nothing is ever deleted and made again: that
//! would revive exhausted messages and race with other brokers.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode, kv};
use duo_contract::name::{Lane, ModelName};
use duo_contract::subject;
use duo_process::nats::Nats;
use duo_process::nats::server::{self, ServerProblem};

use crate::caller::PERSON_LIMIT;
use crate::config::QueueConfig;

/// Un-acknowledged deliveries of one lane and model, well above any fleet's slots.
const MAX_ACK_PENDING: i64 = 10_000;
/// Pulls that may wait at one consumer: thousands of workers with a few each.
const MAX_WAITING: i64 = 8192;
/// How long the server recognises a publish that was sent twice.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Backstop far past the longest live deadline; the deadline itself is the owner's.
const LIVE_MAX_AGE: Duration = Duration::from_secs(2 * 3600);
/// The server drops a model's consumers when no worker has pulled from them for so long, by which time nothing can be
/// left for them: those of a model that was removed would make each acknowledgement dearer. One that is still configured
/// is made again at the next look.
const UNUSED_FOR: Duration = Duration::from_secs(3 * 3600);
/// Whoever follows a job later has its answer from the result.
const JOB_REPLIES_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Dead letters stay this long.
const DEAD_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a worker that says nothing counts as present.
pub const PRESENCE_TTL: Duration = Duration::from_secs(8);
const MIB: i64 = 1 << 20;

/// Why the queue is not as it has to be.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The server itself.
    #[error(transparent)]
    Server(#[from] ServerProblem),
    /// A stream, consumer or bucket could not be made or changed.
    #[error("{what} cannot be set up: {detail}")]
    SetUp {
        /// Its name.
        what: String,
        /// What the server says, and what to do.
        detail: String,
    },
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> TopologyError {
    let mut detail = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        detail = format!("{detail}: {cause}");
        source = cause.source();
    }
    if detail.contains("insufficient storage") {
        detail.push_str(
            " (give the NATS server more disk, or lower DUO_LIVE_MAX_BYTES and DUO_AUDIT_MAX_BYTES)",
        );
    }
    TopologyError::SetUp {
        what: what.to_owned(),
        detail,
    }
}

/// Checks the server and brings streams and buckets up to date.
///
/// # Errors
/// A server that is too old or too small, or a stream it refuses.
pub async fn ensure(nats: &Nats, queue: &QueueConfig) -> Result<(), TopologyError> {
    server::check(&nats.client().server_info())?;
    let context = nats.jetstream();
    for wanted in streams(queue) {
        ensure_stream(&context, wanted).await?;
    }
    for wanted in buckets(queue) {
        let name = wanted.bucket.clone();
        context
            .create_or_update_key_value(wanted)
            .await
            .map_err(|error| failed(&name, &error))?;
    }
    ensure_consumer(&context, subject::AUDIT_STREAM, audit_consumer(queue)).await
}

/// Creates or updates the consumers of one model: one per lane.
///
/// # Errors
/// A consumer that the server refuses.
pub async fn ensure_model(nats: &Nats, queue: &QueueConfig, model: &ModelName) -> Result<(), TopologyError> {
    let context = nats.jetstream();
    for lane in Lane::ALL {
        let filter = subject::live_filter(lane, model);
        let config = pull::Config {
            inactive_threshold: UNUSED_FOR,
            ..consumer(
                subject::consumer(lane, model),
                filter,
                queue.lease,
                queue.replicas,
            )
        };
        ensure_consumer(&context, subject::LIVE_STREAM, config).await?;
    }
    Ok(())
}

/// Makes again what is missing, removes what was acknowledged and is still there, and writes nothing where neither
/// is: a server that has just come back has deliveries and acknowledgements to serve first.
///
/// # Errors
/// As [`ensure`] and [`ensure_model`].
pub async fn mend(nats: &Nats, queue: &QueueConfig, models: &[ModelName]) -> Result<(), TopologyError> {
    let context = nats.jetstream();
    for wanted in streams(queue) {
        ensure_stream(&context, wanted).await?;
    }
    for bucket in buckets(queue) {
        if context.get_key_value(&bucket.bucket).await.is_err() {
            return mend_all(nats, queue, models).await;
        }
    }
    let writer = std::iter::once((subject::AUDIT_STREAM, subject::AUDIT_CONSUMER.to_owned()));
    let live = models.iter().flat_map(|model| {
        Lane::ALL.map(|lane| (subject::LIVE_STREAM, subject::consumer(lane, model).to_string()))
    });
    let mut consumers = Vec::new();
    for (stream, consumer) in writer.chain(live) {
        let found: Result<PullConsumer, _> = context.get_consumer_from_stream(&consumer, stream).await;
        match found {
            Ok(consumer) => consumers.push(consumer),
            Err(_) => return mend_all(nats, queue, models).await,
        }
    }
    for stream in [subject::LIVE_STREAM, subject::AUDIT_STREAM] {
        remove_acknowledged(&context, stream, &consumers).await?;
    }
    Ok(())
}

/// Removes the messages that a consumer has acknowledged and that the server has kept all the same, as it may when it
/// dies before their removal is on disk. They are handed to nobody any more, and would take places of their sender's
/// limit until they are too old.
async fn remove_acknowledged(
    context: &jetstream::Context,
    name: &str,
    consumers: &[PullConsumer],
) -> Result<(), TopologyError> {
    let stream = context
        .get_stream(name)
        .await
        .map_err(|error| failed(name, &error))?;
    let state = &stream.cached_info().state;
    let infos: Vec<_> = consumers
        .iter()
        .map(|consumer| consumer.cached_info())
        .filter(|info| info.stream_name == name)
        .collect();
    let awaited: u64 = infos
        .iter()
        .map(|info| info.num_pending + info.num_ack_pending as u64)
        .sum();
    if state.messages <= awaited {
        return Ok(());
    }
    for info in infos {
        // All that the consumer would ever hand out is above this.
        let acknowledged = info.ack_floor.stream_sequence;
        // Above the last message it tells of a stream that was there before.
        if !(state.first_sequence..=state.last_sequence).contains(&acknowledged) {
            continue;
        }
        let purged = stream
            .purge()
            .filter(&info.config.filter_subject)
            .sequence(acknowledged + 1)
            .await
            .map_err(|error| failed(name, &error))?
            .purged;
        if purged > 0 {
            tracing::warn!(
                stream = name,
                consumer = info.name,
                messages = purged,
                "removed messages that were acknowledged and still there"
            );
        }
    }
    Ok(())
}

async fn mend_all(nats: &Nats, queue: &QueueConfig, models: &[ModelName]) -> Result<(), TopologyError> {
    ensure(nats, queue).await?;
    for model in models {
        ensure_model(nats, queue, model).await?;
    }
    Ok(())
}

fn streams(queue: &QueueConfig) -> Vec<stream::Config> {
    let work_queue = |name: &str, subjects: &str| stream::Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        duplicate_window: DUPLICATE_WINDOW,
        num_replicas: queue.replicas,
        allow_direct: true,
        ..stream::Config::default()
    };
    vec![
        stream::Config {
            max_messages_per_subject: i64::from(PERSON_LIMIT),
            discard_new_per_subject: true,
            max_messages: queue.live_max_messages,
            max_bytes: queue.live_max_bytes,
            max_age: LIVE_MAX_AGE,
            ..work_queue(subject::LIVE_STREAM, subject::LIVE_SUBJECTS)
        },
        stream::Config {
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            max_bytes: 256 * MIB,
            max_age: JOB_REPLIES_MAX_AGE,
            ..work_queue(subject::JOB_REPLIES_STREAM, subject::JOB_REPLIES_SUBJECTS)
        },
        stream::Config {
            max_bytes: queue.audit_max_bytes,
            max_messages: -1,
            ..work_queue(subject::AUDIT_STREAM, subject::AUDIT_SUBJECTS)
        },
        stream::Config {
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            max_bytes: 256 * MIB,
            max_age: DEAD_MAX_AGE,
            ..work_queue(subject::DEAD_STREAM, subject::DEAD_SUBJECTS)
        },
    ]
}

fn buckets(queue: &QueueConfig) -> Vec<kv::Config> {
    let bucket = |name: &str, max_age: Duration| kv::Config {
        bucket: name.to_owned(),
        history: 1,
        max_age,
        storage: StorageType::File,
        num_replicas: queue.replicas,
        max_bytes: 64 * MIB,
        ..kv::Config::default()
    };
    vec![
        bucket(subject::CONFIG_BUCKET, Duration::ZERO),
        bucket(subject::IDENTITY_BUCKET, Duration::ZERO),
        bucket(subject::WORKERS_BUCKET, PRESENCE_TTL),
    ]
}

async fn ensure_stream(context: &jetstream::Context, wanted: stream::Config) -> Result<(), TopologyError> {
    let name = wanted.name.clone();
    let existing = match context.get_stream(&name).await {
        Ok(stream) => stream.cached_info().clone(),
        Err(error) if is_missing(&error.kind()) => {
            context
                .create_stream(wanted)
                .await
                .map_err(|error| failed(&name, &error))?;
            tracing::info!(stream = name, "created the stream");
            return Ok(());
        }
        Err(error) => return Err(failed(&name, &error)),
    };
    let mut config = existing.config.clone();
    // Lowering the limit per subject deletes the surplus, so it only ever rises.
    config.max_messages_per_subject = config
        .max_messages_per_subject
        .max(unlimited(wanted.max_messages_per_subject));
    config.max_messages = unlimited(wanted.max_messages);
    config.max_bytes = wanted.max_bytes;
    config.max_age = wanted.max_age;
    config.duplicate_window = wanted.duplicate_window;
    config.num_replicas = wanted.num_replicas;
    config.subjects = wanted.subjects;
    config.discard = wanted.discard;
    config.discard_new_per_subject = wanted.discard_new_per_subject;
    config.allow_direct = wanted.allow_direct;
    if config != existing.config {
        context
            .update_stream(&config)
            .await
            .map_err(|error| failed(&name, &error))?;
        tracing::info!(stream = name, "brought the stream's settings up to date");
    }
    Ok(())
}

/// The server writes no limit as -1, whichever way it was asked for.
fn unlimited(limit: i64) -> i64 {
    if limit == 0 { -1 } else { limit }
}

/// Only a stream that the server knows to be missing is made: one whose leader is away comes back.
fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn consumer(name: String, filter: String, ack_wait: Duration, replicas: usize) -> pull::Config {
    pull::Config {
        durable_name: Some(name),
        filter_subject: filter,
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        // The owner counts attempts; a message that exhausts deliveries would stay for ever.
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING,
        max_waiting: MAX_WAITING,
        num_replicas: replicas,
        ..pull::Config::default()
    }
}

fn audit_consumer(queue: &QueueConfig) -> pull::Config {
    // A batch is written in milliseconds; that of a writer that died holds up the sweeper for so long. One that comes
    // twice, since Postgres was slow or a change of leader swallowed its
    // acknowledgement, changes nothing.
    const WRITER_ACK_WAIT: Duration = Duration::from_secs(5);
    consumer(
        subject::AUDIT_CONSUMER.into(),
        subject::AUDIT_SUBJECTS.into(),
        WRITER_ACK_WAIT,
        queue.replicas,
    )
}

async fn ensure_consumer(
    context: &jetstream::Context,
    stream: &str,
    config: pull::Config,
) -> Result<(), TopologyError> {
    let name = config.durable_name.clone().unwrap_or_default();
    context
        .create_consumer_on_stream(config, stream)
        .await
        .map(|_| ())
        .map_err(|error| failed(&format!("consumer {name} of {stream}"), &error))
}
