//! Takes a slot, then fetches: the deliveries of one model server's models.
//!
//! The pulls are our own requests, for no more messages than there is room, so
//! that a lost connection is noticed at once and nothing is prefetched. When no
//! work is wanted their subscription ends, and what was on its way is handed back.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode};
use duo_contract::name::Lane;
use duo_contract::presence::BreakerState;
use duo_contract::subject;
use duo_process::nats::Settle;
use duo_process::shutdown::Shutdown;
use tokio::time::Instant;

use crate::delivery::{Ack, Delivery};
use crate::job::Job;
use crate::lanes::{Ask, Lines, Pull};
use crate::model_server::ModelServer;
use crate::pulls::{Came, Pulls, Target};
use crate::startup::Worker;

/// Pause before subscribing is tried again.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(250);
/// How long deliveries on their way may take to arrive when pulling ends.
const LAST_ARRIVALS: Duration = Duration::from_millis(500);

/// A durable consumer that one of this server's models is served from.
#[derive(Debug)]
struct Source {
    stream: &'static str,
    lane: Lane,
    consumer: String,
}

/// Pulls and works until the shutdown begins.
pub async fn serve(worker: Arc<Worker>, server: Arc<ModelServer>, shutdown: Shutdown) {
    let mut breaker = server.breaker.state();
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            // The breaker lives as long as its server, which is held here.
            _ = breaker.wait_for(|state| *state != BreakerState::Tripped) => {}
        }
        let (worker, server) = (Arc::clone(&worker), Arc::clone(&server));
        match Fetcher::open(worker, server, shutdown.clone()).await {
            Ok(mut fetcher) => {
                fetcher.fetch_until_unwanted().await;
                fetcher.close().await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot subscribe for pulls; trying again");
                tokio::time::sleep(SUBSCRIBE_PAUSE).await;
            }
        }
    }
}

struct Fetcher {
    worker: Arc<Worker>,
    server: Arc<ModelServer>,
    shutdown: Shutdown,
    sources: Vec<Source>,
    lines: Lines,
    pulls: Pulls,
}

impl Fetcher {
    async fn open(
        worker: Arc<Worker>,
        server: Arc<ModelServer>,
        shutdown: Shutdown,
    ) -> Result<Self, async_nats::SubscribeError> {
        let mut sources = Vec::new();
        for model in server.models() {
            for lane in Lane::ALL {
                let consumer = subject::consumer(lane, model);
                sources.push(Source {
                    stream: subject::LIVE_STREAM,
                    lane,
                    consumer,
                });
            }
        }
        let targets = sources.iter().map(|source| Target {
            consumer: source.consumer.clone(),
            subject: subject::pull(source.stream, &source.consumer),
        });
        let pulls = Pulls::open(&worker.nats, targets.collect()).await?;
        let lines = Lines::new(sources.iter().map(|source| source.lane), server.slots.total());
        Ok(Self {
            worker,
            server,
            shutdown,
            sources,
            lines,
            pulls,
        })
    }

    /// Returns when the shutdown begins or the breaker trips.
    async fn fetch_until_unwanted(&mut self) {
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
            let wake_at = self
                .lines
                .rested_at()
                .into_iter()
                .chain(self.pulls.overdue_at())
                .min();
            tokio::select! {
                () = self.shutdown.begun() => return,
                _ = breaker.changed() => {}
                changed = connections.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.forget(true);
                    self.lines.wake();
                }
                answer = self.pulls.next() => match answer {
                    Some(message) => self.answered(message),
                    // The connection is closed for good.
                    None => return,
                },
                () = slots.freed() => {}
                () = tokio::time::sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                    self.forget(false);
                }
            }
        }
    }

    /// Ends the pulls at the server and hands back what was on its way.
    async fn close(mut self) {
        self.pulls.drain().await;
        let arrivals = async {
            while let Some(mut message) = self.pulls.next().await {
                if let (None, Some(ack_subject)) = (message.status, message.reply.take()) {
                    self.hand_back(ack_subject.to_string());
                }
            }
        };
        // What comes later is brought back by its lease.
        let _ = tokio::time::timeout(LAST_ARRIVALS, arrivals).await;
    }

    async fn refill(&mut self) {
        let server = &self.server;
        self.lines.resize(server.slots.total());
        let room = |lane| {
            server
                .breaker
                .limit(server.slots.room(lane), server.slots.in_use())
        };
        for (index, ask) in self.lines.plan(room, Instant::now()) {
            if let Err(error) = self.pulls.send(index, ask).await {
                tracing::error!(%error, "a pull cannot be sent");
            }
        }
    }

    fn forget(&mut self, all: bool) {
        while let Some((index, ask)) = self.pulls.lost(all) {
            self.lines.lost(index, ask);
        }
    }

    fn answered(&mut self, message: Message) {
        let (index, ask) = match self.pulls.came(&message) {
            // A pull may have counted as lost when its answer came after all.
            Came::Delivery(index, pull) => return self.delivered(index, pull, message),
            Came::Over(index, ask) => (index, ask),
            Came::Nothing => return,
        };
        match message.status {
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) | None => self.lines.empty(index, ask),
            Some(StatusCode::NO_RESPONDERS) => self.refused(index, ask, "the consumer does not exist"),
            Some(status) => {
                let reason = message.description.as_deref().unwrap_or("no reason given");
                self.refused(index, ask, &format!("{status} {reason}"));
            }
        }
    }

    fn refused(&mut self, index: usize, ask: Ask, reason: &str) {
        if self.lines.refused(index, ask, Instant::now()) {
            let consumer = &self.sources[index].consumer;
            tracing::warn!(
                consumer,
                reason,
                "cannot pull; is the model configured in the broker? trying on"
            );
        }
    }

    /// Gives the delivery its slot and its task, or hands it back.
    fn delivered(&mut self, index: usize, pull: Option<Pull>, mut message: Message) {
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
            return;
        };
        self.lines.delivered(index, pull, ack.pending);
        let Some(slot) = self.server.slots.take(self.sources[index].lane) else {
            self.lines.handed_back(index);
            return self.hand_back(ack_subject);
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

    fn hand_back(&self, ack_subject: String) {
        self.worker.metrics.handed_back.inc();
        let nats = self.worker.nats.clone();
        // A task, so that no other delivery waits for this answer.
        self.shutdown.spawn("hand back", async move {
            // Unanswered, the lease brings the message back.
            let _ = nats.settle(&ack_subject, Settle::Nak(Duration::ZERO)).await;
        });
    }
}
