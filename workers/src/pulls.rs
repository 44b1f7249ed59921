//! Pull requests under way, and what comes back for them.
//!
//! JetStream delivers a message under its own subject, so a delivery does not
//! name its pull, and a pull for several messages takes turns with the others
//! of its consumer. What counts is how many messages all of them together may
//! still bring. The acknowledgement subject of a delivery names its consumer;
//! a status names its pull.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use duo_process::nats::Nats;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::delivery;
use crate::lanes::{Ask, Pull};

/// How long a pull waits at the server.
const EXPIRES: Duration = Duration::from_secs(20);
/// While a pull waits the server says so often that it still knows it.
const BEAT: Duration = Duration::from_secs(1);
/// How long its answer may take beyond that before it counts as lost.
const SLACK: Duration = Duration::from_secs(2);
/// A consumer that waits and is silent for so long has lost all its pulls: the server that led it has died or hangs, and
/// the one that leads now knows nothing of them.
const SILENCE: Duration = Duration::from_millis(3500);
/// A status of a pull says here how many messages it has not brought.
const UNDELIVERED: &str = "Nats-Pending-Messages";

/// The pulls of several consumers. Dropping it ends the subscription: the
/// server sees that nobody listens.
#[derive(Debug)]
pub struct Pulls {
    nats: Nats,
    /// What their reply subjects begin with; consumer and pull follow.
    prefix: String,
    answers: Subscriber,
    consumers: Vec<Consumer>,
    by_name: HashMap<String, usize>,
    next: u64,
}

/// Where one consumer's pulls go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The consumer's name, which its deliveries carry.
    pub consumer: String,
    /// Where its pulls are sent.
    pub subject: String,
}

#[derive(Debug)]
struct Consumer {
    subject: Subject,
    /// Messages that its waiting pulls may still bring.
    waiting: usize,
    /// Waiting pulls that may not be over, oldest first.
    waits: VecDeque<Sent>,
    /// Probes, oldest first.
    probes: VecDeque<Sent>,
    /// When it was last heard while it waited.
    heard: Instant,
}

#[derive(Debug)]
struct Sent {
    token: u64,
    lost_at: Instant,
}

/// What a message from the server is.
#[derive(Debug)]
pub enum Came {
    /// A delivery, and the pull that brought it, if one is known that could have.
    Delivery(usize, Option<Pull>),
    /// These pulls are over without a message.
    Over(usize, Ask),
    /// A sign of life, or the end of a pull that counted as over already.
    Nothing,
}

impl Consumer {
    /// Waiting pulls bring `count` messages less; without any left none of them is under way.
    fn take_waiting(&mut self, count: usize) -> usize {
        let taken = count.min(self.waiting);
        self.waiting -= taken;
        if self.waiting == 0 {
            self.waits.clear();
        }
        taken
    }

    /// All that its waiting pulls could still have brought.
    fn give_up_waiting(&mut self) -> Option<Ask> {
        let count = self.take_waiting(self.waiting);
        (count > 0).then_some(Ask {
            pull: Pull::Waiting,
            count,
        })
    }

    /// What a delivery was brought by: the kind of the oldest pull, which is served first.
    fn delivered(&mut self, now: Instant) -> Option<Pull> {
        self.heard = now;
        let probe = self.probes.front().map(|sent| sent.token);
        let wait = self.waits.front().map(|sent| sent.token);
        if probe.is_some_and(|probe| wait.is_none_or(|wait| probe < wait)) {
            self.probes.pop_front();
            return Some(Pull::Probe);
        }
        (self.take_waiting(1) > 0).then_some(Pull::Waiting)
    }

    /// The pull with this token is over, `undelivered` messages short.
    fn over(&mut self, token: u64, undelivered: Option<usize>, now: Instant) -> Option<Ask> {
        if let Some(place) = self.probes.iter().position(|sent| sent.token == token) {
            self.probes.remove(place);
            return Some(Ask {
                pull: Pull::Probe,
                count: 1,
            });
        }
        let place = self.waits.iter().position(|sent| sent.token == token)?;
        self.heard = now;
        self.waits.remove(place);
        let count = match undelivered {
            // The last one took along whatever was miscounted.
            _ if self.waits.is_empty() => self.waiting,
            Some(count) => count,
            None => 0,
        };
        let count = self.take_waiting(count);
        Some(Ask {
            pull: Pull::Waiting,
            count,
        })
    }

    /// Pulls that count as lost now, one kind at a time.
    fn lost(&mut self, all: bool, now: Instant) -> Option<Ask> {
        let overdue = |sent: &Sent| all || sent.lost_at <= now;
        let probes = self.probes.iter().take_while(|sent| overdue(sent)).count();
        if probes > 0 {
            self.probes.drain(..probes);
            return Some(Ask {
                pull: Pull::Probe,
                count: probes,
            });
        }
        // A pull that has brought all its messages ends without a word: only the last one's loss says something.
        while self.waits.len() > 1 && self.waits.front().is_some_and(overdue) {
            self.waits.pop_front();
        }
        let lost = self.waiting > 0 && (self.silent_at() <= now || self.waits.front().is_none_or(overdue));
        lost.then(|| self.give_up_waiting()).flatten()
    }

    fn silent_at(&self) -> Instant {
        self.heard + SILENCE
    }

    /// When the next answer or sign of life is overdue.
    fn overdue_at(&self) -> Option<Instant> {
        let probe = self.probes.front().map(|sent| sent.lost_at);
        let wait = self.waits.front().map(|sent| sent.lost_at.min(self.silent_at()));
        probe.into_iter().chain(wait).min()
    }
}

impl Pulls {
    /// Subscribes for the answers to the pulls of these consumers.
    ///
    /// # Errors
    /// The subscription failed.
    pub async fn open(nats: &Nats, targets: Vec<Target>) -> Result<Self, async_nats::SubscribeError> {
        let prefix = nats.client().new_inbox();
        let answers = nats.client().subscribe(format!("{prefix}.>")).await?;
        let by_name = targets
            .iter()
            .enumerate()
            .map(|(index, target)| (target.consumer.clone(), index))
            .collect();
        let consumers = targets.into_iter().map(|target| Consumer {
            subject: target.subject.into(),
            waiting: 0,
            waits: VecDeque::new(),
            probes: VecDeque::new(),
            heard: Instant::now(),
        });
        Ok(Self {
            nats: nats.clone(),
            prefix,
            answers,
            consumers: consumers.collect(),
            by_name,
            next: 0,
        })
    }

    /// Sends what is asked of one consumer: a pull that waits for so many messages, or so many probes.
    ///
    /// # Errors
    /// The connection is closed for good.
    pub async fn send(&mut self, index: usize, ask: Ask) -> Result<(), async_nats::PublishError> {
        let now = Instant::now();
        let Ask { pull, count } = ask;
        match pull {
            Pull::Waiting => {
                let consumer = &mut self.consumers[index];
                if consumer.waiting == 0 {
                    consumer.heard = now;
                }
                consumer.waiting += count;
                let request = format!(
                    r#"{{"batch":{count},"expires":{},"idle_heartbeat":{}}}"#,
                    EXPIRES.as_nanos(),
                    BEAT.as_nanos()
                );
                self.publish(index, pull, now + EXPIRES + SLACK, request.into())
                    .await
            }
            Pull::Probe => {
                for _ in 0..count {
                    let request = Bytes::from_static(br#"{"batch":1,"no_wait":true}"#);
                    self.publish(index, pull, now + SLACK, request).await?;
                }
                Ok(())
            }
        }
    }

    async fn publish(
        &mut self,
        index: usize,
        pull: Pull,
        lost_at: Instant,
        request: Bytes,
    ) -> Result<(), async_nats::PublishError> {
        self.next += 1;
        let token = self.next;
        let consumer = &mut self.consumers[index];
        match pull {
            Pull::Waiting => consumer.waits.push_back(Sent { token, lost_at }),
            Pull::Probe => consumer.probes.push_back(Sent { token, lost_at }),
        }
        let reply = format!("{}.{index}.{token}", self.prefix);
        let subject = consumer.subject.clone();
        self.nats
            .client()
            .publish_with_reply(subject, reply, request)
            .await
    }

    /// What comes next; nothing when the subscription has ended.
    pub async fn next(&mut self) -> Option<Message> {
        self.answers.next().await
    }

    /// What `message` is.
    pub fn came(&mut self, message: &Message) -> Came {
        let now = Instant::now();
        let Some(status) = message.status else {
            let name = message.reply.as_deref().and_then(delivery::consumer_of);
            return match name.and_then(|name| self.by_name.get(name)) {
                Some(&index) => Came::Delivery(index, self.consumers[index].delivered(now)),
                None => Came::Nothing,
            };
        };
        let Some((index, token)) = self.named(&message.subject) else {
            return Came::Nothing;
        };
        let consumer = &mut self.consumers[index];
        if status == StatusCode::IDLE_HEARTBEAT {
            consumer.heard = now;
            return Came::Nothing;
        }
        let undelivered = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(UNDELIVERED))
            .and_then(|count| count.as_str().parse().ok());
        let over = consumer.over(token, undelivered, now);
        over.map_or(Came::Nothing, |ask| Came::Over(index, ask))
    }

    /// The consumer and the pull that a status is for.
    fn named(&self, subject: &str) -> Option<(usize, u64)> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix('.')?;
        let (index, token) = rest.split_once('.')?;
        let index = index.parse().ok().filter(|&index| index < self.consumers.len())?;
        Some((index, token.parse().ok()?))
    }

    /// Pulls whose answer is overdue, or those of a consumer that is silent, or any when `all` are lost with their
    /// connection.
    pub fn lost(&mut self, all: bool) -> Option<(usize, Ask)> {
        let now = Instant::now();
        let mut consumers = self.consumers.iter_mut().enumerate();
        consumers.find_map(|(index, consumer)| Some((index, consumer.lost(all, now)?)))
    }

    /// When the next answer or sign of life is overdue.
    #[must_use]
    pub fn overdue_at(&self) -> Option<Instant> {
        self.consumers.iter().filter_map(Consumer::overdue_at).min()
    }

    /// Ends the subscription at the server; what is on its way still comes.
    pub async fn drain(&mut self) {
        // A closed connection has nothing on its way.
        let _ = self.answers.drain().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(count: usize) -> Option<Ask> {
        Some(Ask {
            pull: Pull::Waiting,
            count,
        })
    }

    fn consumer(now: Instant, waits: &[u64], waiting: usize) -> Consumer {
        let sent = |token: &u64| Sent {
            token: *token,
            lost_at: now + EXPIRES + SLACK,
        };
        Consumer {
            subject: "pull".into(),
            waiting,
            waits: waits.iter().map(sent).collect(),
            probes: VecDeque::new(),
            heard: now,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pulls_are_counted_together_whichever_of_them_is_served() {
        let now = Instant::now();
        let mut consumer = consumer(now, &[1, 2], 8);
        for _ in 0..5 {
            assert_eq!(consumer.delivered(now), Some(Pull::Waiting));
        }
        // The second has brought three of four, the first two.
        assert_eq!(consumer.over(2, Some(1), now), waiting(1));
        assert_eq!(consumer.delivered(now), Some(Pull::Waiting));
        assert_eq!(consumer.over(1, Some(1), now), waiting(1));
        assert_eq!((consumer.waiting, consumer.waits.len()), (0, 0));
        assert_eq!(consumer.delivered(now), None, "it counted as over");
        assert_eq!(consumer.over(1, Some(1), now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_miscounted_ends_with_the_last_pull() {
        let now = Instant::now();
        let mut consumer = consumer(now, &[1, 2], 8);
        assert_eq!(consumer.over(1, None, now), waiting(0));
        assert_eq!(consumer.over(2, Some(3), now), waiting(8));
        assert_eq!(consumer.lost(true, now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_consumer_has_lost_what_waits_and_an_old_pull_alone_nothing() {
        let now = Instant::now();
        let mut consumer = consumer(now, &[1, 2], 8);
        assert_eq!(consumer.overdue_at(), Some(now + SILENCE));
        assert_eq!(consumer.lost(false, now), None);
        assert_eq!(consumer.lost(false, now + SILENCE), waiting(8));
        assert_eq!(consumer.overdue_at(), None);

        consumer = self::consumer(now, &[1, 2], 8);
        let late = now + EXPIRES + SLACK;
        consumer.waits[1].lost_at = late + SLACK;
        consumer.heard = late;
        assert_eq!(consumer.lost(false, late), None, "the first may have been served");
        consumer.heard = late + SLACK;
        assert_eq!(consumer.lost(false, late + SLACK), waiting(8));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_pull_is_served_first() {
        let now = Instant::now();
        let probe = |token| Sent {
            token,
            lost_at: now + SLACK,
        };
        let mut consumer = consumer(now, &[2], 1);
        consumer.probes.extend([probe(1), probe(3)]);
        let served = [0; 4].map(|_| consumer.delivered(now));
        assert_eq!(
            served,
            [Some(Pull::Probe), Some(Pull::Waiting), Some(Pull::Probe), None]
        );
    }
}
