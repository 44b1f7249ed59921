//! What this worker knows of the owners of its requests: which of them do not
//! answer, and since when.
//!
//! Shared by every job, so that the requests that a dead broker leaves in the
//! queue cost one lease together and not one lease each.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// An owner of which nobody has spoken for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// The owners that do not answer.
#[derive(Debug, Default)]
pub struct Owners(Mutex<HashMap<Box<str>, Silence>>);

#[derive(Debug)]
struct Silence {
    since: Instant,
    last: Instant,
    /// Which connection to NATS it was noticed on: after a reconnect the owner may need a moment more.
    connection: u64,
}

impl Owners {
    /// `owner` has answered.
    pub fn answered(&self, owner: &str) {
        self.silences().remove(owner);
    }

    /// `owner` has not answered on this connection; since when it has not. Silences further apart than a lease are
    /// not one silence: nobody has asked in between.
    pub fn unanswered(&self, owner: &str, connection: u64, lease: Duration) -> Instant {
        let now = Instant::now();
        let mut silences = self.silences();
        silences.retain(|_, silence| silence.last.elapsed() < FORGET_AFTER);
        let silence = silences.entry(owner.into()).or_insert(Silence {
            since: now,
            last: now,
            connection,
        });
        if silence.connection != connection || now.saturating_duration_since(silence.last) > lease {
            silence.since = now;
        }
        (silence.last, silence.connection) = (now, connection);
        silence.since
    }

    /// How long `owner` has been silent, if it was asked within a lease.
    #[must_use]
    pub fn silent_for(&self, owner: &str, lease: Duration) -> Duration {
        let silences = self.silences();
        let silence = silences
            .get(owner)
            .filter(|silence| silence.last.elapsed() <= lease);
        silence.map_or(Duration::ZERO, |silence| silence.since.elapsed())
    }

    fn silences(&self) -> MutexGuard<'_, HashMap<Box<str>, Silence>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_its_beginning_for_everybody() {
        let owners = Owners::default();
        let began = owners.unanswered("b", 1, LEASE);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(owners.unanswered("b", 1, LEASE), began);
        assert_eq!(owners.silent_for("b", LEASE), Duration::from_secs(4));
        assert_eq!(owners.silent_for("c", LEASE), Duration::ZERO);
        owners.answered("b");
        assert_eq!(owners.silent_for("b", LEASE), Duration::ZERO);
        assert_eq!(owners.unanswered("b", 1, LEASE), Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_or_a_new_connection_begins_anew() {
        let owners = Owners::default();
        let began = owners.unanswered("b", 1, LEASE);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(owners.unanswered("b", 2, LEASE) > began);
        tokio::time::advance(LEASE * 2).await;
        assert_eq!(owners.unanswered("b", 2, LEASE), Instant::now());
    }
}
