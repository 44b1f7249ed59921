//! Terminal records on their way to NATS: kept until NATS has acknowledged them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::Bytes;
use duo_contract::audit::{AuditRecord, Outcome};
use duo_contract::subject;
use duo_process::nats::{Nats, RequestError};
use duo_process::retry::RetryPolicy;
use duo_process::shutdown::Shutdown;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::dispatch::publish;
use crate::dispatch::storing::Storing;
use crate::metrics::Metrics;

/// Records that may wait for NATS.
const CAPACITY: usize = 65_536;
/// New requests are refused when fewer places than this are free: each open
/// request may still need one.
const RESERVE: usize = CAPACITY / 2;
/// Publishes under way at once.
const WINDOW: usize = 512;
/// One line in the log for so many records dropped.
const DROPS_PER_LINE: u64 = 1000;
/// One publish may take this long before it is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often [`AuditSink::flushed`] looks.
const FLUSH_LOOK: Duration = Duration::from_millis(10);
/// A record that NATS has not acknowledged for so long shows that it does not store any.
const PATIENCE: Duration = Duration::from_millis(4500);

/// Where terminal records go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuditSink {
    queue: mpsc::Sender<Outgoing>,
    progress: Arc<Progress>,
    metrics: Metrics,
}

/// How far the sink is. Records are numbered from 1 in the order of the queue.
#[derive(Debug, Default)]
struct Progress {
    /// At least the number of every record that is in the queue.
    queued: AtomicU64,
    /// Every record up to this number has been acknowledged.
    stored: AtomicU64,
}

#[derive(Debug)]
struct Outgoing {
    subject: String,
    message_id: String,
    payload: Bytes,
}

impl Outgoing {
    fn new(record: &AuditRecord) -> Self {
        Self {
            subject: subject::audit(record.kind.as_str()),
            message_id: message_id(record),
            payload: record.encode(),
        }
    }
}

/// What lets NATS recognise a record that is sent twice. A sweeper's is no copy of the owner's, which may follow.
pub(crate) fn message_id(record: &AuditRecord) -> String {
    let abandoned = record
        .end
        .as_ref()
        .is_some_and(|end| end.outcome == Outcome::Abandoned);
    let kind = if abandoned {
        Outcome::Abandoned.as_str()
    } else {
        record.kind.as_str()
    };
    format!("{}-{kind}", record.request_id.simple())
}

/// A sink and the task that empties it. Run the task until the sink's last
/// clone is gone or `closing` begins; it ends when everything is written.
pub fn sink(
    (nats, metrics, stores): (Nats, Metrics, Storing),
    shutdown: Shutdown,
    closing: Shutdown,
) -> (AuditSink, impl Future<Output = ()> + Send) {
    let (queue, records) = mpsc::channel(CAPACITY);
    let sink = AuditSink {
        queue,
        progress: Arc::default(),
        metrics,
    };
    let task = drain(
        records,
        nats,
        sink.metrics.clone(),
        Arc::clone(&sink.progress),
        stores,
        shutdown,
        closing,
    );
    (sink, task)
}

impl AuditSink {
    /// Queues a record. The reserve sees to it that there is a place.
    pub fn write(&self, record: &AuditRecord) {
        // Counted first, so that whoever waits for the count waits for this record.
        self.progress.queued.fetch_add(1, Ordering::SeqCst);
        match self.queue.try_send(Outgoing::new(record)) {
            Ok(()) => self.metrics.audit_backlog.inc(),
            Err(_) => {
                self.progress.queued.fetch_sub(1, Ordering::SeqCst);
                tracing::error!(
                    request_id = %record.request_id,
                    "an audit record found no place although places are reserved; the sweeper will close it"
                );
            }
        }
    }

    /// Waits until NATS has every record that was written before this call; false when it has not within `max`.
    pub async fn flushed(&self, max: Duration) -> bool {
        let queued = self.progress.queued.load(Ordering::SeqCst);
        let all_stored = async {
            while self.progress.stored.load(Ordering::SeqCst) < queued {
                tokio::time::sleep(FLUSH_LOOK).await;
            }
        };
        tokio::time::timeout(max, all_stored).await.is_ok()
    }

    /// Queues the record of a request that the queue never had, unless that
    /// would use the reserve: open requests need it more.
    pub fn write_refusal(&self, record: &AuditRecord) {
        if !self.is_saturated() {
            return self.write(record);
        }
        let dropped = &self.metrics.audit_dropped;
        dropped.inc();
        if dropped.get() % DROPS_PER_LINE == 1 {
            tracing::error!(
                dropped = dropped.get(),
                "NATS does not take audit records; those of refused requests are dropped"
            );
        }
    }

    /// A sink whose records a test reads itself, or drops.
    #[cfg(test)]
    pub(crate) fn for_test(metrics: Metrics) -> (Self, TestRecords) {
        let (queue, records) = mpsc::channel(CAPACITY);
        let progress = Arc::default();
        (
            Self {
                queue,
                progress,
                metrics,
            },
            TestRecords(records),
        )
    }

    /// Has the reserve for open requests been reached?
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.queue.capacity() < RESERVE
    }
}

/// What a test's sink was given.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct TestRecords(mpsc::Receiver<Outgoing>);

#[cfg(test)]
impl TestRecords {
    /// The oldest record that has not been read.
    pub(crate) fn next(&mut self) -> Option<AuditRecord> {
        let outgoing = self.0.try_recv().ok()?;
        Some(AuditRecord::decode(&outgoing.payload).expect("our own record"))
    }
}

async fn drain(
    mut records: mpsc::Receiver<Outgoing>,
    nats: Nats,
    metrics: Metrics,
    progress: Arc<Progress>,
    stores: Storing,
    shutdown: Shutdown,
    closing: Shutdown,
) {
    let mut under_way = FuturesUnordered::new();
    let mut received = 0_u64;
    let mut settled = Settled::default();
    loop {
        tokio::select! {
            Some(number) = under_way.next(), if !under_way.is_empty() => {
                metrics.audit_backlog.dec();
                progress.stored.store(settled.add(number), Ordering::SeqCst);
            }
            record = records.recv(), if under_way.len() < WINDOW => match record {
                Some(record) => {
                    received += 1;
                    let number = received;
                    let stored = store(&nats, record, &stores, &shutdown);
                    under_way.push(async move {
                        stored.await;
                        number
                    });
                }
                None => break,
            },
            () = closing.begun(), if !records.is_closed() => records.close(),
        }
    }
    while under_way.next().await.is_some() {
        metrics.audit_backlog.dec();
    }
}

/// Numbers that have come, whichever order they came in.
#[derive(Debug, Default)]
struct Settled {
    /// All up to this one.
    all_to: u64,
    /// Those beyond; fewer than [`WINDOW`].
    beyond: BTreeSet<u64>,
}

impl Settled {
    /// Adds a number; the one up to which all have come.
    fn add(&mut self, number: u64) -> u64 {
        self.beyond.insert(number);
        while self.beyond.remove(&(self.all_to + 1)) {
            self.all_to += 1;
        }
        self.all_to
    }
}

/// Publishes until NATS has acknowledged; only the end of the process stops it.
async fn store(nats: &Nats, record: Outgoing, stores: &Storing, shutdown: &Shutdown) {
    let pause = RetryPolicy::try_new(Duration::from_millis(50), Duration::from_secs(2), u32::MAX)
        .expect("the constants are in order");
    let began = Instant::now();
    let mut attempt = 1;
    loop {
        match once(nats, &record).await {
            Ok(()) => return stores.answered(),
            Err(error) => {
                tracing::debug!(error = %error, attempt, "an audit record was not acknowledged; sending it again");
                if began.elapsed() >= PATIENCE {
                    stores.silent();
                }
            }
        }
        tokio::select! {
            () = shutdown.aborted() => return,
            () = tokio::time::sleep(pause.delay(attempt)) => {}
        }
        attempt = attempt.saturating_add(1);
    }
}

async fn once(nats: &Nats, record: &Outgoing) -> Result<(), publish::PublishError> {
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, record.message_id.as_str());
    let mut pending = nats
        .send(record.subject.clone(), Some(headers), record.payload.clone())
        .await
        .map_err(|error: RequestError| publish::PublishError::from(error))?;
    publish::stored(&mut pending, ACK_TIMEOUT).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_out_of_order_counts_once_all_before_it_is() {
        let mut settled = Settled::default();
        assert_eq!([2, 3, 1, 5, 4].map(|number| settled.add(number)), [0, 0, 3, 3, 5]);
        assert!(settled.beyond.is_empty());
    }
}
