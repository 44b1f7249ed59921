//! Whether NATS stores what it is sent. A full disk shows itself only by silence, so this is learned from requests
//! that were given up: `/readyz` then says so, and when it lasts new requests are refused at the gate instead of
//! being held until their patience ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use duo_contract::subject;
use duo_process::admin::Condition;
use duo_process::shutdown::Shutdown;
use tokio::sync::Notify;

use super::Dispatch;
use super::publish::{self, PublishError};

/// The gate shuts when nothing has been stored for so long after the first request was given up: a cluster has a new
/// leader well before, and until then a request may still be stored within its patience.
const SHUT_AFTER: Duration = Duration::from_secs(5);
/// Pause between two tries to store something.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How long such a try may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is tried to take the probes out again.
const CLEARING_TRIES: u32 = 5;

/// Whether one stream stores what it is sent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Storing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The same as `since`, for those who only want to know that all is well.
    failing: AtomicBool,
    since: Mutex<Option<Instant>>,
    begun: Notify,
    condition: Option<Condition>,
}

impl Storing {
    /// A stream that is well, as `condition` says from now on.
    #[must_use]
    pub fn new(condition: Option<Condition>) -> Self {
        if let Some(condition) = &condition {
            condition.set(true);
        }
        Self(Arc::new(Inner {
            failing: AtomicBool::new(false),
            since: Mutex::default(),
            begun: Notify::new(),
            condition,
        }))
    }

    /// The stream has answered a publish.
    pub fn answered(&self) {
        if !self.0.failing.load(Ordering::Relaxed) {
            return;
        }
        let mut since = self.since();
        *since = None;
        self.0.failing.store(false, Ordering::Relaxed);
        self.tell(true);
        tracing::info!("NATS stores messages again");
    }

    /// A publish was given up: the stream has not answered it for as long as it may take.
    pub fn silent(&self) {
        let mut since = self.since();
        if since.is_none() {
            *since = Some(Instant::now());
            self.0.failing.store(true, Ordering::Relaxed);
            self.tell(false);
            self.0.begun.notify_one();
            tracing::error!("NATS does not store messages; is it there, and has its disk room?");
        }
    }

    /// Has it been silent for so long that nothing more is to be sent to it?
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.is_failing() && self.since().is_some_and(|since| since.elapsed() >= SHUT_AFTER)
    }

    fn is_failing(&self) -> bool {
        self.0.failing.load(Ordering::Relaxed)
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, holds: bool) {
        if let Some(condition) = &self.0.condition {
            condition.set(holds);
        }
    }
}

/// Tries the live stream while it is silent, until the drain begins: with the gate shut no request does. The audit
/// stream needs none of this: the records of refused requests are tried until they are stored.
pub async fn probe(dispatch: Dispatch, shutdown: Shutdown) {
    let storing = dispatch.0.queue_stores.clone();
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            () = storing.0.begun.notified() => {}
        }
        while storing.is_failing() {
            tokio::select! {
                () = shutdown.begun() => return,
                () = tokio::time::sleep(PROBE_EVERY) => {}
            }
            match dispatch.probe().await {
                Ok(_) | Err(PublishError::Full) => {
                    dispatch.clear_probes().await;
                    storing.answered();
                }
                Err(error) => tracing::debug!(%error, "the live stream still stores nothing"),
            }
        }
    }
}

impl Dispatch {
    async fn probe(&self) -> Result<u64, PublishError> {
        let subject = subject::probe(&self.0.broker);
        let mut pending = self.0.nats.send(subject, None, Bytes::new()).await?;
        publish::stored(&mut pending, PROBE_TIMEOUT).await
    }

    /// Takes every probe out of the stream, those too that were stored and not acknowledged: no consumer would.
    async fn clear_probes(&self) {
        let filter = subject::probe(&self.0.broker);
        let payload = format!("{{\"filter\":\"{filter}\"}}");
        let subject = format!("$JS.API.STREAM.PURGE.{}", subject::LIVE_STREAM);
        for _ in 0..CLEARING_TRIES {
            let purged = self
                .0
                .nats
                .request(subject.clone(), payload.clone().into(), PROBE_TIMEOUT);
            if purged.await.is_ok() {
                return;
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
        tracing::warn!("probes are left in the live stream; they go with their age");
    }
}

#[cfg(test)]
mod tests {
    use duo_process::admin::Readiness;

    use super::*;

    #[test]
    fn readiness_follows_at_once_and_the_gate_only_when_it_lasts() {
        let readiness = Readiness::new();
        let storing = Storing::new(Some(readiness.condition("stored")));
        assert!(readiness.blockers().is_empty());
        storing.silent();
        assert_eq!(readiness.blockers(), ["stored"]);
        assert!(!storing.is_shut());
        *storing.since() = Instant::now().checked_sub(SHUT_AFTER);
        storing.silent();
        assert!(storing.is_shut(), "the beginning stays");
        storing.answered();
        assert!(!storing.is_shut());
        assert!(readiness.blockers().is_empty());
    }
}
