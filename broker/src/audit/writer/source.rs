//! Batches of audit records, by pulls of our own.
//!
//! The client library's batches can go blind for seconds after a restart of the server. Here one subscription
//! receives everything, and a pull is issued again when it ends, when the connection has come back, and when its answer
//! is overdue.
//!
//! A first pull waits for one message. What follows that within [`LINGER`] is pulled at once afterwards: handed out one
//! by one, each message would wake server and broker while a request is under way.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, SubscribeError, Subscriber};
use bytes::Bytes;
use duo_contract::subject::{AUDIT_CONSUMER, AUDIT_STREAM, pull};
use duo_process::nats::{Connection, Nats};
use futures_util::StreamExt as _;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;

/// Messages in a batch at most, each of one record or many: beyond a few hundred records a bigger batch gains nothing.
const BATCH: usize = 200;
/// How long the first message of a batch waits for others; a broker that has more than a batch to write does not wait.
const LINGER: Duration = Duration::from_millis(50);
/// How long the server keeps a pull for a first message open.
const EXPIRES: Duration = Duration::from_secs(1);
/// How much later than that a pull counts as lost.
const OVERDUE: Duration = Duration::from_secs(1);
/// Pause when the server cannot serve a pull.
const UNSERVED_PAUSE: Duration = Duration::from_millis(500);

/// One message of records as it was delivered.
#[derive(Debug)]
pub(super) struct Delivery {
    /// Where its acknowledgement goes.
    pub(super) ack: Subject,
    /// Its place in the stream.
    pub(super) sequence: u64,
    /// When the stream took it.
    pub(super) published: OffsetDateTime,
    /// Messages that waited behind it.
    pub(super) pending: u64,
    /// The records ([`duo_contract::audit::split`]).
    pub(super) payload: Bytes,
}

#[derive(Debug)]
pub(super) struct Source {
    nats: Nats,
    connections: watch::Receiver<Connection>,
    subscriber: Subscriber,
    inbox: String,
    /// Counts pulls, so that the end of an old one does not end the new one.
    number: u64,
    /// The last batch was full, so that more is there.
    is_behind: bool,
}

impl Source {
    pub(super) async fn open(nats: &Nats) -> Result<Self, SubscribeError> {
        let inbox = nats.client().new_inbox();
        let subscriber = nats.client().subscribe(format!("{inbox}.*")).await?;
        let mut connections = nats.connections();
        connections.mark_unchanged();
        Ok(Self {
            nats: nats.clone(),
            connections,
            subscriber,
            inbox,
            number: 0,
            is_behind: false,
        })
    }

    /// The next batch; empty when there was no record for a while.
    pub(super) async fn batch(&mut self) -> Vec<Delivery> {
        let mut batch = Vec::new();
        if !self.is_behind {
            self.pull(&format!(r#"{{"batch":1,"expires":{}}}"#, EXPIRES.as_nanos()))
                .await;
            self.receive(&mut batch, 1, EXPIRES + OVERDUE).await;
            if batch.is_empty() {
                return batch;
            }
            tokio::time::sleep(LINGER).await;
        }
        self.pull(&format!(r#"{{"batch":{},"no_wait":true}}"#, BATCH - batch.len()))
            .await;
        self.receive(&mut batch, BATCH, OVERDUE).await;
        self.is_behind = batch.len() >= BATCH;
        batch
    }

    async fn pull(&mut self, request: &str) {
        self.number += 1;
        let reply = format!("{}.{}", self.inbox, self.number);
        let request = Bytes::copy_from_slice(request.as_bytes());
        // A failure means that the connection is gone; the pull is then overdue or made again on the next one.
        let _ = self
            .nats
            .client()
            .publish_with_reply(pull(AUDIT_STREAM, AUDIT_CONSUMER), reply, request)
            .await;
    }

    /// Takes what the pull under way brings, until the batch has so `many`, the server says that there is no more, or
    /// the pull is lost. That nothing was pending behind a message says nothing: the server goes on with the pull.
    async fn receive(&mut self, batch: &mut Vec<Delivery>, many: usize, overdue: Duration) {
        let until = Instant::now() + overdue;
        while batch.len() < many {
            tokio::select! {
                biased;
                message = self.subscriber.next() => match message.map(|message| self.sort(message)) {
                    Some(Sorted::Record(delivery)) => batch.push(delivery),
                    Some(Sorted::End) => return,
                    Some(Sorted::Stale) => {}
                    // Without a message the connection is closed for good; whoever closed it stops this task too.
                    Some(Sorted::Unserved) | None => return tokio::time::sleep(UNSERVED_PAUSE).await,
                },
                changed = self.connections.changed() => {
                    // A new connection knows nothing of the old one's pull.
                    if changed.is_ok() && self.connections.borrow_and_update().up {
                        return;
                    }
                    tokio::time::sleep(LINGER).await;
                }
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }

    fn sort(&self, message: Message) -> Sorted {
        let Some(status) = message.status else {
            return self.record(message);
        };
        let number = message
            .subject
            .rsplit('.')
            .next()
            .and_then(|number| number.parse().ok());
        if number != Some(self.number) {
            return Sorted::Stale;
        }
        match status {
            StatusCode::NOT_FOUND | StatusCode::TIMEOUT => Sorted::End,
            status => {
                let description = message.description.as_deref().unwrap_or_default();
                tracing::debug!(
                    status = status.as_u16(),
                    description,
                    "a pull for audit records ended"
                );
                Sorted::Unserved
            }
        }
    }

    /// A record; its subject is the one it was published to, and its reply is where the acknowledgement goes.
    fn record(&self, message: Message) -> Sorted {
        let Some(ack) = message.reply else {
            return Sorted::Stale;
        };
        let Some((sequence, nanoseconds, pending)) = delivery_facts(&ack) else {
            return Sorted::Stale;
        };
        Sorted::Record(Delivery {
            ack,
            sequence,
            published: super::moment(nanoseconds),
            pending,
            payload: message.payload,
        })
    }
}

enum Sorted {
    Record(Delivery),
    /// The pull under way ended, since there was nothing more.
    End,
    /// The server cannot serve the pull: no consumer, no leader, a shutdown.
    Unserved,
    /// The end of an older pull, or no delivery at all.
    Stale,
}

/// Sequence, moment and number pending from `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<sequence>.
/// <consumer sequence>.<nanoseconds>.<pending>[.…]`.
fn delivery_facts(ack: &str) -> Option<(u64, i64, u64)> {
    let tokens: Vec<_> = ack.split('.').collect();
    let first = match tokens.len() {
        9 => 2,
        11.. => 4,
        _ => return None,
    };
    Some((
        tokens[first + 3].parse().ok()?,
        tokens[first + 5].parse().ok()?,
        tokens[first + 6].parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_acknowledgement_subject_are_read() {
        let short = "$JS.ACK.DUO_AUDIT.audit_writer.1.42.7.1790000000000000000.3";
        assert_eq!(delivery_facts(short), Some((42, 1_790_000_000_000_000_000, 3)));
        let long = "$JS.ACK._.hash.DUO_AUDIT.audit_writer.1.42.7.1790000000000000000.3.token";
        assert_eq!(delivery_facts(long), Some((42, 1_790_000_000_000_000_000, 3)));
        assert_eq!(delivery_facts("$JS.ACK.short"), None);
    }
}
