//! The log of refused callers: one line in ten seconds at most, however many there are.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::AuthError;

/// Least time between two lines.
const QUIET_MS: u64 = 10_000;

#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// When the next line may be written.
    next_ms: AtomicU64,
    /// Refusals since the last line.
    unlogged: AtomicU64,
}

impl Refusals {
    pub(super) fn note(&self, error: AuthError, peer: Option<IpAddr>, now_ms: u64) {
        if let Some(others) = self.admit(now_ms) {
            tracing::warn!(
                reason = error.reason(),
                %error,
                address = peer.map(tracing::field::display),
                others_since_last_line = others,
                "caller refused"
            );
        }
    }

    /// How many were passed over since the last line, if one may be written now.
    fn admit(&self, now_ms: u64) -> Option<u64> {
        let next = self.next_ms.load(Ordering::Relaxed);
        let is_mine = now_ms >= next
            && self
                .next_ms
                .compare_exchange(next, now_ms + QUIET_MS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            return Some(self.unlogged.swap(0, Ordering::Relaxed));
        }
        self.unlogged.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_one_line_with_a_count() {
        let refusals = Refusals::default();
        assert_eq!(refusals.admit(1_000), Some(0));
        for _ in 0..500 {
            assert_eq!(refusals.admit(1_001), None);
        }
        assert_eq!(refusals.admit(1_000 + QUIET_MS), Some(500));
    }
}
