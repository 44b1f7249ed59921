//! What waits, for how long, and who serves it. Read only.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use axum::Json;
use axum::extract::State;
use duo_contract::name::{Lane, ModelName};
use duo_contract::presence::Presence;
use duo_contract::subject;
use duo_process::clock;
use duo_process::nats::Nats;
use futures_util::StreamExt as _;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::AdminState;
use super::openapi::Refusal;
use crate::admission::Outlook;

/// Lines that NATS is asked about at once.
const AT_ONCE: usize = 8;
/// Longest wait for what NATS says of one line.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Every line, by model and lane.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Queues {
    queues: Vec<Queue>,
}

/// The line of one lane and model. What is `null` is not known just now.
#[derive(Debug, Serialize, ToSchema)]
struct Queue {
    lane: Lane,
    model: ModelName,
    /// Requests that no worker has.
    depth: Option<u64>,
    /// Deliveries that workers have and have not settled.
    in_flight: Option<u64>,
    /// Pulls of workers with a free slot that wait for a request.
    waiting_pulls: Option<u64>,
    /// Age of the first request that was never delivered; 0 when none waits.
    oldest_seconds: Option<f64>,
    /// What a newcomer would wait for a slot, as admission expects it.
    expected_wait_seconds: f64,
    /// How long a request of this lane has its slot, in the mean.
    mean_slot_seconds: f64,
    /// Slots that serve the model, all lanes together.
    slots: u32,
    /// Requests that these slots end in a second when all of them serve this lane.
    drain_per_second: f64,
    /// Slot seconds of the work for the model that waits or runs, all lanes together.
    model_work_seconds: f64,
}

/// What NATS says of one line.
#[derive(Debug, Default)]
struct Seen {
    depth: Option<u64>,
    in_flight: Option<u64>,
    waiting_pulls: Option<u64>,
    oldest_seconds: Option<f64>,
}

/// Every worker that is there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Workers {
    workers: Vec<Presence>,
}

/// What waits, by model and lane
#[utoipa::path(get, path = "/admin/v1/queues", tag = "queues", operation_id = "listQueues",
    responses((status = 200, description = "what there is", body = Queues), Refusal))]
pub(super) async fn queues(State(admin): State<Arc<AdminState>>) -> Json<Queues> {
    let table = admin.exchange.routing().load();
    let mut models: Vec<_> = table.models().map(|model| model.name.clone()).collect();
    drop(table);
    models.sort();
    let lines = models
        .into_iter()
        .flat_map(|model| Lane::ALL.map(|lane| (lane, model.clone())))
        .map(|(lane, model)| queue(Arc::clone(&admin), lane, model));
    let queues = futures_util::stream::iter(lines)
        .buffered(AT_ONCE)
        .collect()
        .await;
    Json(Queues { queues })
}

/// Workers and what they serve
#[utoipa::path(get, path = "/admin/v1/workers", tag = "queues", operation_id = "listWorkers",
    responses((status = 200, description = "what there is", body = Workers), Refusal))]
pub(super) async fn workers(State(admin): State<Arc<AdminState>>) -> Json<Workers> {
    let mut workers = admin.admission.fleet().present();
    workers.sort_by(|a, b| a.worker.cmp(&b.worker));
    Json(Workers { workers })
}

async fn queue(admin: Arc<AdminState>, lane: Lane, model: ModelName) -> Queue {
    let looked = look(&admin.nats, lane, &model);
    let seen = tokio::time::timeout(TIMEOUT, looked).await.ok().flatten();
    let seen = seen.unwrap_or_default();
    let Outlook {
        work,
        slots,
        wait,
        slot_time,
    } = admin.admission.outlook(&model);
    let at = lane as usize;
    Queue {
        lane,
        model,
        depth: seen.depth,
        in_flight: seen.in_flight,
        waiting_pulls: seen.waiting_pulls,
        oldest_seconds: seen.oldest_seconds,
        expected_wait_seconds: wait[at],
        mean_slot_seconds: slot_time[at],
        slots,
        drain_per_second: f64::from(slots) / slot_time[at],
        model_work_seconds: work,
    }
}

async fn look(nats: &Nats, lane: Lane, model: &ModelName) -> Option<Seen> {
    let context = nats.jetstream();
    let name = subject::consumer(lane, model);
    let consumer: PullConsumer = context
        .get_consumer_from_stream(name, subject::LIVE_STREAM)
        .await
        .ok()?;
    let info = consumer.cached_info();
    let mut seen = Seen {
        depth: Some(info.num_pending),
        in_flight: u64::try_from(info.num_ack_pending).ok(),
        waiting_pulls: u64::try_from(info.num_waiting).ok(),
        oldest_seconds: Some(0.0),
    };
    if info.num_pending > 0 {
        let stream = context.get_stream_no_info(subject::LIVE_STREAM).await.ok()?;
        let next = info.delivered.stream_sequence + 1;
        let filter = subject::live_filter(lane, model);
        let first = stream.get_first_raw_message_by_subject(filter, next).await;
        seen.oldest_seconds = first.ok().map(|message| age(message.time));
    }
    Some(seen)
}

fn age(since: OffsetDateTime) -> f64 {
    (clock::now() - since).as_seconds_f64().max(0.0)
}
