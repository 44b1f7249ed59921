//! Looks after open requests that nothing happens to: deadlines, and messages
//! that were lost under a silent worker.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::RawMessageErrorKind;
use duo_contract::name::{Lane, ModelName};
use duo_contract::subject;
use duo_process::shutdown::Shutdown;
use tokio::time::MissedTickBehavior;

use super::Dispatch;
use crate::routing::Routing;

/// How exactly deadlines are kept.
const DEADLINE_TICK: Duration = Duration::from_millis(50);
/// How often silent requests are looked for.
const LOST_TICK: Duration = Duration::from_millis(500);
/// How often the stream is asked what waits.
const DEPTH_TICK: Duration = Duration::from_secs(1);

/// Ends what is overdue, until the process does.
pub async fn deadlines(dispatch: Dispatch) {
    let mut tick = tokio::time::interval(DEADLINE_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = Instant::now();
        for inflight in dispatch.all() {
            if let Some(stop) = inflight.overdue(now) {
                dispatch.stop(&inflight, stop);
            }
        }
    }
}

/// Publishes again what a silent worker has lost, until the process ends.
pub async fn lost(dispatch: Dispatch) {
    let mut tick = tokio::time::interval(LOST_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = Instant::now();
        let suspects: Vec<_> = dispatch
            .all()
            .into_iter()
            .filter_map(|inflight| inflight.lost_suspect(now).map(|sequence| (inflight, sequence)))
            .collect();
        if suspects.is_empty() || !dispatch.0.nats.is_up() {
            continue;
        }
        let context = dispatch.0.nats.jetstream();
        let Ok(stream) = context.get_stream_no_info(subject::LIVE_STREAM).await else {
            continue;
        };
        for (inflight, sequence) in suspects {
            let gone = matches!(
                stream.get_raw_message(sequence).await,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound
            );
            if !gone {
                continue;
            }
            if let Some(publication) = inflight.next_publication(sequence, Instant::now()) {
                tracing::warn!(request_id = %inflight.request_id, "a request was lost under its worker");
                dispatch.publish_again(&inflight, publication).await;
            }
        }
    }
}

/// Keeps the gauges of what waits and runs true, until the drain begins.
pub async fn depths(dispatch: Dispatch, routing: Routing, shutdown: Shutdown) {
    let mut tick = tokio::time::interval(DEPTH_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            _ = tick.tick() => {}
        }
        let models: Vec<ModelName> = routing.load().models().map(|model| model.name.clone()).collect();
        dispatch.gauge_oldest(&models);
        for model in &models {
            for lane in Lane::LIVE {
                dispatch.gauge_depth(lane, model).await;
            }
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
            for lane in Lane::LIVE {
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

    async fn gauge_depth(&self, lane: Lane, model: &ModelName) {
        let context = self.0.nats.jetstream();
        let name = subject::consumer(lane, model);
        let consumer: Result<PullConsumer, _> =
            context.get_consumer_from_stream(name, subject::LIVE_STREAM).await;
        // Away or not made yet: the next tick asks again.
        let Ok(consumer) = consumer else { return };
        let info = consumer.cached_info();
        self.0.admission.note_depth(lane, model, info.num_pending);
        let labels = [lane.as_str(), model.as_str()];
        let as_gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.0
            .metrics
            .queue_depth
            .with_label_values(&labels)
            .set(as_gauge(info.num_pending));
        let running = u64::try_from(info.num_ack_pending).unwrap_or(0);
        self.0
            .metrics
            .in_flight
            .with_label_values(&labels)
            .set(as_gauge(running));
    }
}
