//! Pull requests under way, and what comes back for them.
//!
//! JetStream delivers a message under its own subject, so an answer does not
//! name its pull. Each consumer therefore has a subscription of its own, and
//! a delivery answers the oldest pull, as the server serves them in order. A
//! status does name its pull.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use duo_process::nats::Nats;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::lanes::Pull;

/// How long a pull waits at the server.
const EXPIRES: Duration = Duration::from_secs(20);
/// How long its answer may take beyond that before it counts as lost.
const SLACK: Duration = Duration::from_secs(2);
/// A pull that waits; nanoseconds of [`EXPIRES`].
const WAITING: &[u8] = br#"{"batch":1,"expires":20000000000}"#;
/// The same, and the server says every second that it still knows it.
const BEATING: &[u8] = br#"{"batch":1,"expires":20000000000,"idle_heartbeat":1000000000}"#;
/// A consumer whose beating pull is silent for so long has lost all its pulls: the server that led it has died or
/// hangs, and the one that leads now knows nothing of them.
const SILENCE: Duration = Duration::from_millis(3500);
/// A pull that is answered at once.
const PROBE: &[u8] = br#"{"batch":1,"no_wait":true}"#;

/// The pulls of several consumers. Dropping it ends the subscriptions: the
/// server sees that nobody listens.
#[derive(Debug)]
pub struct Pulls {
    nats: Nats,
    consumers: Vec<Consumer>,
    next: u64,
}

#[derive(Debug)]
struct Consumer {
    /// Where its pulls are sent.
    subject: Subject,
    /// What their reply subjects begin with.
    prefix: String,
    answers: Subscriber,
    sent: VecDeque<Sent>,
    /// Its beat is overdue, and not all that is lost with it has been told.
    silent: bool,
}

#[derive(Debug)]
struct Sent {
    token: u64,
    pull: Pull,
    lost_at: Instant,
    /// When the next beat is overdue, on the pull that the server shows signs of life for.
    silent_at: Option<Instant>,
}

impl Pulls {
    /// Subscribes once per consumer, whose pulls go to `subjects`.
    ///
    /// # Errors
    /// A subscription failed.
    pub async fn open(nats: &Nats, subjects: Vec<String>) -> Result<Self, async_nats::SubscribeError> {
        let mut consumers = Vec::new();
        for subject in subjects {
            let prefix = nats.client().new_inbox();
            let answers = nats.client().subscribe(format!("{prefix}.*")).await?;
            consumers.push(Consumer {
                subject: subject.into(),
                prefix,
                answers,
                sent: VecDeque::new(),
                silent: false,
            });
        }
        Ok(Self {
            nats: nats.clone(),
            consumers,
            next: 0,
        })
    }

    /// Sends a pull.
    ///
    /// # Errors
    /// The connection is closed for good.
    pub async fn send(&mut self, index: usize, pull: Pull) -> Result<(), async_nats::PublishError> {
        self.next += 1;
        let consumer = &mut self.consumers[index];
        let beating = consumer.sent.iter().any(|sent| sent.silent_at.is_some());
        let (payload, patience, silence) = match pull {
            // One is enough to tell that the others are known too.
            Pull::Waiting if beating => (WAITING, EXPIRES + SLACK, None),
            Pull::Waiting => (BEATING, EXPIRES + SLACK, Some(SILENCE)),
            Pull::Probe => (PROBE, SLACK, None),
        };
        let now = Instant::now();
        let reply = format!("{}.{}", consumer.prefix, self.next);
        consumer.sent.push_back(Sent {
            token: self.next,
            pull,
            lost_at: now + patience,
            silent_at: silence.map(|silence| now + silence),
        });
        let subject = consumer.subject.clone();
        self.nats
            .client()
            .publish_with_reply(subject, reply, Bytes::from_static(payload))
            .await
    }

    /// What comes next and for which consumer; nothing when the subscriptions have ended.
    pub async fn next(&mut self) -> Option<(usize, Message)> {
        poll_fn(|context| {
            let mut ended = true;
            for (index, consumer) in self.consumers.iter_mut().enumerate() {
                match consumer.answers.poll_next_unpin(context) {
                    Poll::Ready(Some(message)) => return Poll::Ready(Some((index, message))),
                    Poll::Ready(None) => {}
                    Poll::Pending => ended = false,
                }
            }
            if ended { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    /// The pull that `message` answers, no longer under way; nothing if it is not known, or only shows a sign of life.
    pub fn answered(&mut self, index: usize, message: &Message) -> Option<Pull> {
        let sent = &mut self.consumers[index].sent;
        if message.status.is_none() {
            return sent.pop_front().map(|sent| sent.pull);
        }
        let token: u64 = message.subject.rsplit('.').next()?.parse().ok()?;
        let place = sent.iter().position(|sent| sent.token == token)?;
        if message.status == Some(StatusCode::IDLE_HEARTBEAT) {
            sent[place].silent_at = Some(Instant::now() + SILENCE);
            return None;
        }
        sent.remove(place).map(|sent| sent.pull)
    }

    /// A pull whose answer is overdue, or any pull of a consumer that is silent, or any pull when `all` are lost with
    /// their connection.
    pub fn lost(&mut self, all: bool) -> Option<(usize, Pull)> {
        let now = Instant::now();
        self.consumers
            .iter_mut()
            .enumerate()
            .find_map(|(index, consumer)| {
                consumer.silent |= consumer
                    .sent
                    .iter()
                    .any(|sent| sent.silent_at.is_some_and(|at| at <= now));
                let overdue = consumer
                    .sent
                    .front()
                    .is_some_and(|sent| all || consumer.silent || sent.lost_at <= now);
                let sent = overdue.then(|| consumer.sent.pop_front()).flatten();
                consumer.silent &= sent.is_some();
                Some((index, sent?.pull))
            })
    }

    /// When the next answer or sign of life is overdue.
    #[must_use]
    pub fn overdue_at(&self) -> Option<Instant> {
        self.consumers
            .iter()
            .flat_map(|consumer| {
                let answer = consumer.sent.front().map(|sent| sent.lost_at);
                let beat = consumer.sent.iter().find_map(|sent| sent.silent_at);
                answer.into_iter().chain(beat)
            })
            .min()
    }

    /// Ends the subscriptions at the server; what is on its way still comes.
    pub async fn drain(&mut self) {
        for consumer in &mut self.consumers {
            // A closed connection has nothing on its way.
            let _ = consumer.answers.drain().await;
        }
    }
}
