//! Takes a slot, then fetches: the pulls of one model server's consumers.
//!
//! The pulls are our own requests, one message each, so that a lost
//! connection is noticed at once and nothing is prefetched. They stand in an
//! inbox of their own, which is closed when no work is wanted: the server then
//! sees that nobody listens.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use duo_contract::name::{Lane, ModelName};
use duo_contract::presence::BreakerState;
use duo_contract::subject;
use duo_process::nats::{Inbox, RequestError, Settle};
use duo_process::shutdown::Shutdown;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use crate::delivery::{Ack, Delivery};
use crate::job::Job;
use crate::lanes::{Lines, Pull};
use crate::model_server::ModelServer;
use crate::startup::Worker;

/// How long a pull waits at the server.
const PULL_EXPIRES: Duration = Duration::from_secs(20);
/// How long its answer may take beyond that before it counts as lost.
const PULL_SLACK: Duration = Duration::from_secs(2);
/// A pull that waits; nanoseconds of [`PULL_EXPIRES`].
const WAITING: &[u8] = br#"{"batch":1,"expires":20000000000}"#;
/// A pull that is answered at once.
const PROBE: &[u8] = br#"{"batch":1,"no_wait":true}"#;
/// Pause before an inbox is tried again.
const INBOX_PAUSE: Duration = Duration::from_millis(250);

/// A durable consumer that this server's models are served from.
struct Source {
    lane: Lane,
    name: String,
    pull_subject: async_nats::Subject,
}

impl Source {
    fn live(lane: Lane, model: &ModelName) -> Self {
        let name = subject::consumer(lane, model);
        let pull_subject = subject::pull(subject::LIVE_STREAM, &name).into();
        Self {
            lane,
            name,
            pull_subject,
        }
    }
}

type Answer = (usize, Pull, Result<Message, RequestError>);

/// Pulls and works until the shutdown begins.
pub async fn serve(worker: Arc<Worker>, server: Arc<ModelServer>, shutdown: Shutdown) {
    let mut breaker = server.breaker.state();
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            // The breaker lives as long as its server, which is held here.
            _ = breaker.wait_for(|state| *state != BreakerState::Tripped) => {}
        }
        match worker.nats.inbox().await {
            Ok(inbox) => {
                let mut consumer =
                    Consumer::new(Arc::clone(&worker), Arc::clone(&server), inbox, shutdown.clone());
                consumer.pull_until_unwanted().await;
                consumer.inbox.close();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot open an inbox for pulls; trying again");
                tokio::time::sleep(INBOX_PAUSE).await;
            }
        }
    }
}

struct Consumer {
    worker: Arc<Worker>,
    server: Arc<ModelServer>,
    inbox: Inbox,
    shutdown: Shutdown,
    sources: Vec<Source>,
    lines: Lines,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Consumer {
    fn new(worker: Arc<Worker>, server: Arc<ModelServer>, inbox: Inbox, shutdown: Shutdown) -> Self {
        let sources: Vec<_> = server
            .models()
            .flat_map(|model| Lane::LIVE.map(|lane| Source::live(lane, model)))
            .collect();
        let lines = Lines::new(sources.iter().map(|source| source.lane), server.slots.total());
        Self {
            worker,
            server,
            inbox,
            shutdown,
            sources,
            lines,
            answers: FuturesUnordered::new(),
        }
    }

    /// Returns when the shutdown begins or the breaker trips.
    async fn pull_until_unwanted(&mut self) {
        let mut breaker = self.server.breaker.state();
        let mut connections = self.worker.nats.connections();
        let slots = Arc::clone(&self.server.slots);
        loop {
            if *breaker.borrow_and_update() == BreakerState::Tripped {
                return;
            }
            if connections.borrow_and_update().up {
                self.refill().await;
            }
            let rested = self.lines.rested_at();
            tokio::select! {
                () = self.shutdown.begun() => return,
                _ = breaker.changed() => {}
                changed = connections.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.lines.wake();
                }
                Some(answer) = self.answers.next() => self.answered(answer).await,
                () = slots.freed() => {}
                () = tokio::time::sleep_until(rested.unwrap_or_else(Instant::now)), if rested.is_some() => {}
            }
        }
    }

    async fn refill(&mut self) {
        let server = &self.server;
        let room = |lane| {
            server
                .breaker
                .limit(server.slots.room(lane), server.slots.in_use())
        };
        for (index, pull) in self.lines.plan(room, Instant::now()) {
            let (payload, timeout) = match pull {
                Pull::Waiting => (WAITING, PULL_EXPIRES + PULL_SLACK),
                Pull::Probe => (PROBE, PULL_SLACK),
            };
            let subject = self.sources[index].pull_subject.clone();
            match self.inbox.send(subject, None, Bytes::from_static(payload)).await {
                Ok(pending) => {
                    self.answers.push(Box::pin(
                        async move { (index, pull, pending.within(timeout).await) },
                    ));
                }
                Err(error) => self.failed(index, pull, error),
            }
        }
    }

    async fn answered(&mut self, (index, pull, answer): Answer) {
        match answer {
            Ok(message) => match message.status {
                None => self.delivered(index, pull, message).await,
                Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => self.lines.empty(index, pull),
                Some(status) => {
                    let reason = message.description.as_deref().unwrap_or("no reason given");
                    self.refused(index, pull, &format!("{status} {reason}"));
                }
            },
            Err(error) => self.failed(index, pull, error),
        }
    }

    fn failed(&mut self, index: usize, pull: Pull, error: RequestError) {
        match error {
            RequestError::NoResponders => self.refused(index, pull, "the consumer does not exist"),
            RequestError::Disconnected | RequestError::TimedOut => self.lines.lost(index, pull),
            RequestError::TooLarge | RequestError::Closed => self.refused(index, pull, &error.to_string()),
        }
    }

    fn refused(&mut self, index: usize, pull: Pull, reason: &str) {
        if self.lines.refused(index, pull, Instant::now()) {
            let consumer = &self.sources[index].name;
            tracing::warn!(
                consumer,
                reason,
                "cannot pull; is the model configured in the broker? trying on"
            );
        }
    }

    /// Gives the delivery its slot and its task, or hands it back.
    async fn delivered(&mut self, index: usize, pull: Pull, mut message: Message) {
        let lane = self.sources[index].lane;
        let ack_subject = message
            .reply
            .take()
            .map(|subject| subject.to_string())
            .unwrap_or_default();
        let Some(ack) = Ack::parse(&ack_subject) else {
            tracing::error!(
                subject = ack_subject,
                "a delivery without an acknowledgement subject; ignored"
            );
            self.lines.lost(index, pull);
            return;
        };
        self.lines.delivered(index, pull, ack.pending);
        let taken = self.server.slots.take(lane);
        let Some(slot) = taken else {
            self.lines.handed_back(index);
            self.worker.metrics.handed_back.inc();
            let nats = self.worker.nats.clone();
            // A task, so that no other delivery waits for this answer.
            self.shutdown.spawn("hand back", async move {
                // Unanswered, the lease brings the message back.
                let _ = nats.settle(&ack_subject, Settle::Nak(Duration::ZERO)).await;
            });
            return;
        };
        let delivery = Delivery {
            message,
            ack_subject,
            ack,
            slot,
        };
        let job = Job::new(Arc::clone(&self.worker), Arc::clone(&self.server), delivery);
        self.shutdown.spawn("job", job.run());
    }
}
