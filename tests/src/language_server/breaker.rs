//! The breaker of an editor: after a failure nothing is asked for a while, longer each time.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);

/// Pauses that grow by a factor up to a bound.
#[derive(Debug)]
pub(super) struct Breaker {
    factor: u32,
    longest: Duration,
    failures: u32,
    open_until: Duration,
}

impl Breaker {
    /// Of direct calls.
    pub(super) fn direct() -> Self {
        Self::new(5, Duration::from_secs(10 * 60))
    }

    /// Of the question for direct access.
    pub(super) fn details() -> Self {
        Self::new(3, Duration::from_secs(60 * 60))
    }

    fn new(factor: u32, longest: Duration) -> Self {
        Self {
            factor,
            longest,
            failures: 0,
            open_until: Duration::ZERO,
        }
    }

    /// Is nothing asked at this time?
    pub(super) fn is_open(&self, now: Duration) -> bool {
        now < self.open_until
    }

    /// A failure that counts for so many.
    pub(super) fn failed(&mut self, count: u32, now: Duration) {
        self.failures += count;
        let grown = self.factor.checked_pow(self.failures - 1).unwrap_or(u32::MAX);
        self.open_until = now + FIRST.saturating_mul(grown).min(self.longest);
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_anew_after_success() {
        let mut breaker = Breaker::direct();
        for pause in [1, 5, 25, 125, 600, 600] {
            breaker.failed(1, Duration::ZERO);
            assert!(breaker.is_open(Duration::from_secs(pause) - Duration::from_millis(1)));
            assert!(!breaker.is_open(Duration::from_secs(pause)));
        }
        breaker.succeeded();
        breaker.failed(1, Duration::ZERO);
        assert!(!breaker.is_open(FIRST));
        let mut breaker = Breaker::details();
        breaker.failed(3, Duration::ZERO);
        assert!(
            breaker.is_open(Duration::from_secs(8)),
            "unknown counts for three"
        );
        assert!(!breaker.is_open(Duration::from_secs(9)));
    }
}
