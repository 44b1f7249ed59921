//! Looks after open requests that nothing happens to: deadlines, and messages
//! that were lost under a silent worker.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use duo_contract::name::{Lane, ModelName};
use duo_contract::subject;
use duo_process::shutdown::Shutdown;
use futures_util::StreamExt as _;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::Dispatch;
use super::inflight::InFlight;
use crate::routing::Routing;

/// How exactly deadlines are kept.
const DEADLINE_TICK: Duration = Duration::from_millis(50);
/// How often silent requests are looked for.
const LOST_TICK: Duration = Duration::from_millis(500);
/// How often the stream is asked what waits.
const DEPTH_TICK: Duration = Duration::from_secs(1);
/// How often it is asked about models whose slots are running out: what other
/// brokers admit is known only from there.
const PRESSED_TICK: Duration = Duration::from_millis(100);
/// How long the stream may take to answer such a look. A question that was on its way when the connection was lost is
/// never answered, and nothing else is looked for meanwhile.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages looked for, and published again, at once.
const LOOKS: usize = 16;

/// Ends what is overdue, and writes the records that waited in vain for a worker's last word, until the process ends.
pub async fn deadlines(dispatch: Dispatch) {
    let mut tick = tokio::time::interval(DEADLINE_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = Instant::now();
        for inflight in dispatch.all() {
            let takers = || dispatch.takers(&inflight);
            let stop = inflight.overdue(now);
            if let Some(stop) = stop.or_else(|| inflight.without_taker(takers, now)) {
                dispatch.stop(&inflight, stop);
            }
            dispatch.write_late_end(&inflight, now, false);
        }
    }
}

/// Publishes again what a silent worker or a lost stream has lost, until the
/// process ends.
pub async fn lost(dispatch: Dispatch) {
    let mut tick = tokio::time::interval(LOST_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        tick.tick().await;
        // Taken before the stream is asked: what it does not know then is not there.
        let mut placed: Vec<_> = dispatch
            .all()
            .into_iter()
            .filter_map(|inflight| Some((inflight.place_in_stream()?, inflight)))
            .collect();
        if placed.is_empty() || !dispatch.0.nats.is_up() {
            continue;
        }
        let mut context = dispatch.0.nats.jetstream();
        context.set_timeout(LOOK_TIMEOUT);
        let Ok(stream) = context.get_stream(subject::LIVE_STREAM).await else {
            continue;
        };
        let info = stream.cached_info();
        let is_new = known
            .replace(info.created)
            .is_some_and(|known| known != info.created);
        let now = Instant::now();
        placed.retain(|((_, queued), inflight)| {
            // Who still works needs no message; who waits for one of the old stream waits in vain.
            inflight.lost_suspect(now).is_some() || (is_new && *queued)
        });
        let held = info.state.first_sequence..=info.state.last_sequence;
        futures_util::stream::iter(placed)
            .for_each_concurrent(LOOKS, |((sequence, _), inflight)| {
                let (dispatch, stream, held) = (&dispatch, &stream, &held);
                async move {
                    let gone = !held.contains(&sequence) || is_gone(stream, sequence, &inflight).await;
                    if gone {
                        dispatch.replace(&inflight, sequence).await;
                    }
                }
            })
            .await;
    }
}

/// Is there no message at `sequence`, or another request's, as in a stream that was made anew?
async fn is_gone<I>(stream: &Stream<I>, sequence: u64, inflight: &InFlight) -> bool {
    match stream.get_raw_message(sequence).await {
        Ok(message) => {
            let id = message.headers.get(async_nats::header::NATS_MESSAGE_ID);
            id.is_none_or(|id| id.as_str() != inflight.message_id())
        }
        Err(error) => error.kind() == RawMessageErrorKind::NoMessageFound,
    }
}

/// Keeps what is known of the queue and the gauges of it true, until the drain
/// begins; a consumer that is not there is reported to `missing`.
pub async fn depths(dispatch: Dispatch, routing: Routing, missing: Arc<Notify>, shutdown: Shutdown) {
    let mut tick = tokio::time::interval(PRESSED_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut all_at = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            _ = tick.tick() => {}
        }
        let mut models: Vec<ModelName> = routing.load().models().map(|model| model.name.clone()).collect();
        let is_all = Instant::now() >= all_at;
        if is_all {
            all_at = Instant::now() + DEPTH_TICK;
            dispatch.gauge_oldest(&models);
        } else {
            models.retain(|model| dispatch.0.admission.is_pressed(model));
        }
        let lines = models
            .iter()
            .flat_map(|model| Lane::ALL.map(|lane| (lane, model)));
        let asked = lines.map(async |(lane, model)| {
            if !dispatch.gauge_depth(lane, model).await && dispatch.0.nats.is_up() {
                missing.notify_one();
            }
        });
        futures_util::future::join_all(asked).await;
        for model in &models {
            dispatch.gauge_outlook(model);
        }
    }
}

impl Dispatch {
    fn gauge_oldest(&self, models: &[ModelName]) {
        let mut oldest: HashMap<(Lane, &ModelName), Duration> = HashMap::new();
        let open = self.all();
        for inflight in open.iter().filter(|inflight| inflight.is_queued()) {
            let age = inflight.accepted.elapsed();
            let entry = oldest
                .entry((inflight.lane, &inflight.task.routed.model.name))
                .or_default();
            *entry = age.max(*entry);
        }
        for model in models {
            for lane in Lane::ALL {
                let age = oldest.get(&(lane, model)).copied().unwrap_or_default();
                let gauge = self
                    .0
                    .metrics
                    .queue_oldest
                    .with_label_values(&[lane.as_str(), model.as_str()]);
                gauge.set(age.as_secs_f64());
            }
        }
    }

    fn gauge_outlook(&self, model: &ModelName) {
        let outlook = self.0.admission.outlook(model);
        let metrics = &self.0.metrics;
        metrics
            .queue_work
            .with_label_values(&[model.as_str()])
            .set(outlook.work);
        metrics
            .serving_slots
            .with_label_values(&[model.as_str()])
            .set(i64::from(outlook.slots));
        for (number, lane) in Lane::ALL.into_iter().enumerate() {
            let labels = [lane.as_str(), model.as_str()];
            metrics
                .expected_wait
                .with_label_values(&labels)
                .set(outlook.wait[number]);
            metrics
                .slot_time
                .with_label_values(&labels)
                .set(outlook.slot_time[number]);
        }
    }

    /// Publishes a request again whose message at `sequence` is gone.
    async fn replace(&self, inflight: &InFlight, sequence: u64) {
        if let Some((publication, todo)) = inflight.next_publication(sequence, Instant::now()) {
            tracing::warn!(request_id = %inflight.request_id, "a request was lost from the queue; publishing it again");
            self.follow_up(inflight, todo);
            self.publish_again(inflight, publication, sequence).await;
        }
    }

    /// Notes what waits and runs; false if the consumer did not answer.
    async fn gauge_depth(&self, lane: Lane, model: &ModelName) -> bool {
        let context = self.0.nats.jetstream();
        let name = subject::consumer(lane, model);
        let asked = Instant::now();
        let consumer: Result<PullConsumer, _> =
            context.get_consumer_from_stream(name, subject::LIVE_STREAM).await;
        // Away or not made yet: the next tick asks again.
        let Ok(consumer) = consumer else { return false };
        let info = consumer.cached_info();
        let running = u64::try_from(info.num_ack_pending).unwrap_or(0);
        self.0
            .admission
            .note_depth(lane, model, info.num_pending, running, asked);
        let labels = [lane.as_str(), model.as_str()];
        let as_gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.0
            .metrics
            .queue_depth
            .with_label_values(&labels)
            .set(as_gauge(info.num_pending));
        self.0
            .metrics
            .in_flight
            .with_label_values(&labels)
            .set(as_gauge(running));
        true
    }
}
