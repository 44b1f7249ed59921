//! Batches of audit records, by pulls of our own.
//!
//! The client library's batches can go blind for seconds after a restart of the server. Here one subscription
//! receives everything, one pull is outstanding, and a pull is issued again when it ends, when the connection has
//! come back, and when its answer is overdue.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, SubscribeError, Subscriber};
use bytes::Bytes;
use duo_contract::subject::{AUDIT_BODIES, AUDIT_CONSUMER, AUDIT_STREAM, pull};
use duo_process::nats::{Connection, Nats};
use futures_util::StreamExt as _;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;

/// Messages in a batch at most, each of one record or many: beyond a few hundred records a bigger batch gains nothing.
const BATCH: usize = 200;
/// How long the first message of a batch waits for others.
const LINGER: Duration = Duration::from_millis(50);
/// How long the server keeps a pull open.
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
    /// The records ([`duo_contract::audit::split`]), or a piece of a sealed text ([`duo_contract::body`]).
    pub(super) payload: Bytes,
    /// Is it the latter?
    pub(super) is_body: bool,
}

#[derive(Debug)]
pub(super) struct Source {
    nats: Nats,
    connections: watch::Receiver<Connection>,
    subscriber: Subscriber,
    inbox: String,
    /// Counts pulls, so that the end of an old one does not end the new one.
    number: u64,
    /// Messages that the pull under way may still bring; none means that there is no pull.
    remaining: usize,
    /// When the pull under way counts as lost.
    overdue: Instant,
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
            remaining: 0,
            overdue: Instant::now(),
        })
    }

    /// The next batch; empty when a pull ended without a record.
    pub(super) async fn batch(&mut self) -> Vec<Delivery> {
        let mut batch = Vec::new();
        let mut complete_by = None;
        while batch.len() < BATCH {
            if self.remaining == 0 {
                self.pull().await;
            }
            // Without a record there is nothing to complete, and the pull's own end comes first.
            let until = complete_by.unwrap_or(self.overdue);
            tokio::select! {
                biased;
                message = self.subscriber.next() => match message.map(|message| self.sort(message)) {
                    Some(Sorted::Record(delivery)) => {
                        complete_by.get_or_insert_with(|| Instant::now() + LINGER);
                        batch.push(delivery);
                    }
                    Some(Sorted::End) if batch.is_empty() => return batch,
                    Some(Sorted::End | Sorted::Stale) => {}
                    Some(Sorted::Unserved) => {
                        tokio::time::sleep(UNSERVED_PAUSE).await;
                        return batch;
                    }
                    // The connection is closed for good; whoever closed it stops this task too.
                    None => {
                        tokio::time::sleep(UNSERVED_PAUSE).await;
                        return batch;
                    }
                },
                changed = self.connections.changed() => {
                    // A new connection knows nothing of the old one's pull.
                    if changed.is_ok() && self.connections.borrow_and_update().up {
                        self.remaining = 0;
                    } else {
                        tokio::time::sleep(LINGER).await;
                    }
                }
                () = tokio::time::sleep_until(until) => {
                    if complete_by.is_some() {
                        return batch;
                    }
                    self.remaining = 0;
                    return batch;
                }
            }
        }
        batch
    }

    async fn pull(&mut self) {
        self.number += 1;
        self.remaining = BATCH;
        self.overdue = Instant::now() + EXPIRES + OVERDUE;
        let request = format!(r#"{{"batch":{BATCH},"expires":{}}}"#, EXPIRES.as_nanos());
        let reply = format!("{}.{}", self.inbox, self.number);
        // A failure means that the connection is gone; the pull is then overdue or made again on the next one.
        let _ = self
            .nats
            .client()
            .publish_with_reply(pull(AUDIT_STREAM, AUDIT_CONSUMER), reply, request.into())
            .await;
    }

    fn sort(&mut self, message: Message) -> Sorted {
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
        self.remaining = 0;
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
    fn record(&mut self, message: Message) -> Sorted {
        self.remaining = self.remaining.saturating_sub(1);
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
            is_body: message.subject.as_str() == AUDIT_BODIES,
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
