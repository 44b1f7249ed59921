//! The breaker that Rails keeps for all calls of one kind: half of ten or more failed, and nobody is asked any more.

/// Fewest calls that say anything.
const LEAST_CALLS: u32 = 10;
/// It opens when one of so many calls failed.
const ONE_OF: u32 = 2;

/// Counts calls; how long it stays open is GitLab's own affair.
#[derive(Debug, Default)]
pub struct Breaker {
    calls: u32,
    failed: u32,
}

impl Breaker {
    /// A call has ended, by a fault of the gateway or not.
    pub fn count(&mut self, failed: bool) {
        self.calls += 1;
        self.failed += u32::from(failed);
    }

    /// Is nobody asked at the moment?
    pub fn is_open(&self) -> bool {
        self.calls >= LEAST_CALLS && self.failed * ONE_OF >= self.calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_ten_calls_open_it() {
        let mut breaker = Breaker::default();
        (0..9).for_each(|_| breaker.count(true));
        assert!(!breaker.is_open());
        breaker.count(false);
        assert!(breaker.is_open());
        (0..9).for_each(|_| breaker.count(false));
        assert!(!breaker.is_open());
    }
}
