//! Audit records on their way to NATS: kept until NATS has acknowledged them.
//!
//! Records that come while others are on their way share the next message: under load most of what a record costs is
//! the message around it, its acknowledgement and its place in the stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::Bytes;
use duo_contract::audit::{self, AuditRecord, Outcome};
use duo_contract::subject;
use duo_process::nats::{Nats, RequestError};
use duo_process::retry::RetryPolicy;
use duo_process::shutdown::Shutdown;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::dispatch::publish;
use crate::dispatch::storing::Storing;
use crate::metrics::Metrics;

/// Built only to measure what records cost: none is written.
pub const UNAUDITED: bool = cfg!(feature = "unaudited");
/// Records that may wait for NATS.
const CAPACITY: usize = 65_536;
/// New requests are refused when fewer places than this are free: each open
/// request may still need one.
const RESERVE: usize = CAPACITY / 2;
/// Messages under way at once; with fewer, one that NATS is slow to acknowledge would hold up all others.
const WINDOW: usize = 2;
/// Records in a message at most.
const MESSAGE_RECORDS: usize = 128;
/// Bytes in a message from which on no record joins it; far below the `max_payload` that the broker asks for.
const MESSAGE_BYTES: usize = 256 << 10;
/// One line in the log for so many records dropped.
const DROPS_PER_LINE: u64 = 1000;
/// One publish may take this long before it is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often [`AuditSink::flushed`] looks.
const FLUSH_LOOK: Duration = Duration::from_millis(10);
/// A record that NATS has not acknowledged for so long shows that it does not store any.
const PATIENCE: Duration = Duration::from_millis(4500);

/// Where records go. Cheap to clone.
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
    /// Records of ended requests that are not in the queue yet.
    deferred: Mutex<Tickets>,
}

/// Who has yet to write, by the order in which they said so.
#[derive(Debug, Default)]
struct Tickets {
    next: u64,
    open: BTreeSet<u64>,
}

/// A record that will be written; whoever waits for [`AuditSink::flushed`] waits for it too.
#[derive(Debug)]
pub(super) struct Deferred {
    sink: AuditSink,
    ticket: u64,
}

impl Deferred {
    /// Queues the record.
    pub(super) fn write(&self, record: &AuditRecord) {
        self.sink.write(record);
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        self.sink.progress.tickets().open.remove(&self.ticket);
    }
}

impl Progress {
    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everybody written who came before the holder of `ticket`?
    fn is_before(&self, ticket: u64) -> bool {
        self.tickets().open.first().is_none_or(|first| *first >= ticket)
    }
}

#[derive(Debug)]
struct Outgoing {
    payload: Bytes,
    /// A message of its own under this id, where another broker may send the same.
    id: Option<String>,
    stored: Option<oneshot::Sender<()>>,
}

/// The id of a record that every broker's sweeper may write: NATS keeps one of them. The owner's own end, which may
/// still follow, is no copy of it.
fn shared_id(record: &AuditRecord) -> Option<String> {
    let outcome = record.end.as_ref()?.outcome;
    (outcome == Outcome::Abandoned).then(|| format!("{}-{}", record.request_id.simple(), outcome.as_str()))
}

/// A record's acknowledgement.
#[derive(Debug)]
pub struct Stored(oneshot::Receiver<()>);

impl Stored {
    /// Has NATS acknowledged the record by then? If not, it goes on its way all the same.
    pub async fn by(self, deadline: Instant) -> bool {
        let acknowledged = tokio::time::timeout_at(deadline.into(), self.0).await;
        matches!(acknowledged, Ok(Ok(())))
    }
}

/// Consecutive records in one message.
#[derive(Debug, Default)]
struct Batch {
    /// The number of the first.
    first: u64,
    /// See [`Outgoing::id`].
    id: Option<String>,
    payloads: Vec<Bytes>,
    bytes: usize,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Batch {
    fn takes(&self, record: &Outgoing) -> bool {
        let alone = self.id.is_some() || record.id.is_some();
        let has_room = self.payloads.len() < MESSAGE_RECORDS && self.bytes < MESSAGE_BYTES;
        self.payloads.is_empty() || (has_room && !alone)
    }

    fn add(&mut self, record: Outgoing) {
        self.bytes += record.payload.len();
        self.id = record.id;
        self.payloads.push(record.payload);
        self.waiters.extend(record.stored);
    }

    /// The process ends: nobody is told that it is stored.
    fn unheard(mut self) -> Self {
        self.waiters.clear();
        self
    }

    /// The number of the last.
    fn last(&self) -> u64 {
        self.first + self.payloads.len() as u64 - 1
    }
}

/// A sink and the task that empties it. Run the task until the sink's last
/// clone is gone or `closing` begins; it ends when everything is written.
pub fn sink(
    (nats, metrics, stores): (Nats, Metrics, Storing),
    shutdown: Shutdown,
    closing: Shutdown,
) -> (AuditSink, impl Future<Output = ()> + Send) {
    if UNAUDITED {
        tracing::error!("this program was built to be measured: it writes no audit records");
    }
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
        self.enqueue(record, None);
    }

    /// Queues a record whose acknowledgement matters to somebody.
    #[must_use]
    pub fn write_awaited(&self, record: &AuditRecord) -> Stored {
        let (stored, waiter) = oneshot::channel();
        self.enqueue(record, Some(stored));
        Stored(waiter)
    }

    fn enqueue(&self, record: &AuditRecord, stored: Option<oneshot::Sender<()>>) {
        if UNAUDITED {
            // Whoever waited may have given up.
            let _ = stored.map(|stored| stored.send(()));
            return;
        }
        let outgoing = Outgoing {
            payload: record.encode(),
            id: shared_id(record),
            stored,
        };
        // Counted first, so that whoever waits for the count waits for this record.
        self.progress.queued.fetch_add(1, Ordering::SeqCst);
        match self.queue.try_send(outgoing) {
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

    /// A record that is written when something before it is done.
    pub(super) fn defer(&self) -> Deferred {
        let mut tickets = self.progress.tickets();
        let ticket = tickets.next;
        tickets.next += 1;
        tickets.open.insert(ticket);
        drop(tickets);
        Deferred {
            sink: self.clone(),
            ticket,
        }
    }

    /// Waits until NATS has every record that was written before this call, or deferred; false when it has not within
    /// `max`.
    pub async fn flushed(&self, max: Duration) -> bool {
        let next = self.progress.tickets().next;
        let all_stored = async {
            while !self.progress.is_before(next) {
                tokio::time::sleep(FLUSH_LOOK).await;
            }
            let queued = self.progress.queued.load(Ordering::SeqCst);
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
    let mut next = 1_u64;
    let mut settled = Settled::default();
    let mut taken = Vec::with_capacity(MESSAGE_RECORDS);
    let acknowledged = |settled: &mut Settled, batch: Batch| {
        metrics.audit_backlog.sub(batch.payloads.len() as i64);
        progress
            .stored
            .store(settled.add(batch.first, batch.last()), Ordering::SeqCst);
        for waiter in batch.waiters {
            // Whoever waited may have given up.
            let _ = waiter.send(());
        }
    };
    loop {
        tokio::select! {
            Some(batch) = under_way.next(), if !under_way.is_empty() => acknowledged(&mut settled, batch),
            count = records.recv_many(&mut taken, MESSAGE_RECORDS), if under_way.len() < WINDOW => {
                if count == 0 {
                    break;
                }
                let mut records = taken.drain(..).peekable();
                while records.peek().is_some() {
                    let mut batch = Batch { first: next, ..Batch::default() };
                    while let Some(record) = records.next_if(|record| batch.takes(record)) {
                        batch.add(record);
                    }
                    next = batch.last() + 1;
                    under_way.push(store(&nats, batch, &stores, &shutdown));
                }
            }
            () = closing.begun(), if !records.is_closed() => records.close(),
        }
    }
    while let Some(batch) = under_way.next().await {
        acknowledged(&mut settled, batch);
    }
}

/// Numbers that have come, whichever order they came in.
#[derive(Debug, Default)]
struct Settled {
    /// All up to this one.
    all_to: u64,
    /// Spans beyond, first to last.
    beyond: BTreeMap<u64, u64>,
}

impl Settled {
    /// Adds a span; the number up to which all have come.
    fn add(&mut self, first: u64, last: u64) -> u64 {
        self.beyond.insert(first, last);
        while let Some(last) = self.beyond.remove(&(self.all_to + 1)) {
            self.all_to = last;
        }
        self.all_to
    }
}

/// Publishes until NATS has acknowledged; only the end of the process stops it.
async fn store(nats: &Nats, batch: Batch, stores: &Storing, shutdown: &Shutdown) -> Batch {
    let pause = RetryPolicy::try_new(Duration::from_millis(20), Duration::from_millis(500), u32::MAX)
        .expect("the constants are in order");
    // By its id NATS recognises a message that is sent again because its acknowledgement was lost.
    let id = batch
        .id
        .clone()
        .unwrap_or_else(|| Uuid::new_v4().simple().to_string());
    let payload = audit::join(&batch.payloads);
    let began = Instant::now();
    let mut attempt = 1;
    loop {
        match once(nats, &id, payload.clone()).await {
            Ok(()) => {
                stores.answered();
                return batch;
            }
            Err(error) => {
                tracing::debug!(error = %error, attempt, "audit records were not acknowledged; sending them again");
                if began.elapsed() >= PATIENCE {
                    stores.silent();
                }
            }
        }
        tokio::select! {
            () = shutdown.aborted() => return batch.unheard(),
            () = tokio::time::sleep(pause.delay(attempt)) => {}
        }
        attempt = attempt.saturating_add(1);
    }
}

async fn once(nats: &Nats, id: &str, payload: Bytes) -> Result<(), publish::PublishError> {
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
    let mut pending = nats
        .send(subject::AUDIT_RECORDS.to_owned(), Some(headers), payload)
        .await
        .map_err(|error: RequestError| publish::PublishError::from(error))?;
    publish::stored(&mut pending, ACK_TIMEOUT).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_another_broker_may_write_too_travels_alone() {
        let record = |id: Option<&str>| Outgoing {
            payload: Bytes::from_static(b"{}"),
            id: id.map(str::to_owned),
            stored: None,
        };
        let mut batch = Batch::default();
        batch.add(record(None));
        assert!(batch.takes(&record(None)));
        assert!(!batch.takes(&record(Some("x-abandoned"))));
        let mut batch = Batch::default();
        assert!(batch.takes(&record(Some("x-abandoned"))));
        batch.add(record(Some("x-abandoned")));
        assert!(!batch.takes(&record(None)));
    }

    #[test]
    fn what_is_stored_out_of_order_counts_once_all_before_it_is() {
        let mut settled = Settled::default();
        let spans = [(2, 2), (3, 5), (1, 1), (8, 9), (6, 7)];
        assert_eq!(
            spans.map(|(first, last)| settled.add(first, last)),
            [0, 0, 5, 5, 9]
        );
        assert!(settled.beyond.is_empty());
    }
}
