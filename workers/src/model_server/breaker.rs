//! The breaker before a model server: whether work is pulled for it.
//!
//! It holds the state and counts failures in a row; [`super::health`] walks
//! it from passing over tripped and probing back to passing.

use std::sync::atomic::{AtomicU32, Ordering};

use duo_contract::presence::BreakerState;
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};

/// Failures in a row that trip it.
const FAILURES_TO_TRIP: u32 = 5;

/// Whether work is pulled for a model server.
#[derive(Debug)]
pub struct Breaker {
    state: watch::Sender<BreakerState>,
    failures: AtomicU32,
    suspected: Notify,
    gauge: IntGauge,
}

impl Breaker {
    /// A breaker that lets pass; `gauge` shows 0 passing, 1 probing, 2 tripped.
    #[must_use]
    pub fn new(gauge: IntGauge) -> Self {
        gauge.set(0);
        Self {
            state: watch::Sender::new(BreakerState::Passing),
            failures: AtomicU32::new(0),
            suspected: Notify::new(),
            gauge,
        }
    }

    /// The state as it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<BreakerState> {
        self.state.subscribe()
    }

    /// The state now.
    #[must_use]
    pub fn now(&self) -> BreakerState {
        *self.state.borrow()
    }

    /// How much of `room` may be used with `in_use` slots in use: all, one as a probe, or nothing.
    #[must_use]
    pub fn limit(&self, room: usize, in_use: usize) -> usize {
        match self.now() {
            BreakerState::Passing => room,
            BreakerState::Probing => room.min(1usize.saturating_sub(in_use)),
            BreakerState::Tripped => 0,
        }
    }

    /// An answer came to a good end.
    pub fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.state.send_if_modified(|state| {
            let probing = *state == BreakerState::Probing;
            if probing {
                *state = BreakerState::Passing;
                self.gauge.set(0);
            }
            probing
        });
    }

    /// A call failed by the server's fault.
    pub fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        self.state.send_if_modified(|state| {
            let trips = match *state {
                BreakerState::Passing => failures >= FAILURES_TO_TRIP,
                BreakerState::Probing => true,
                BreakerState::Tripped => false,
            };
            if trips {
                *state = BreakerState::Tripped;
                self.gauge.set(2);
            }
            trips
        });
    }

    /// The server could not be reached: its health is looked at now.
    pub fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Returns when the server has come under suspicion.
    pub(super) async fn suspected(&self) {
        self.suspected.notified().await;
    }

    pub(super) fn set(&self, state: BreakerState) {
        self.failures.store(0, Ordering::Relaxed);
        self.gauge.set(match state {
            BreakerState::Passing => 0,
            BreakerState::Probing => 1,
            BreakerState::Tripped => 2,
        });
        self.state.send_replace(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(IntGauge::new("state", "State.").expect("a name"))
    }

    #[test]
    fn only_failures_in_a_row_trip_it() {
        let breaker = breaker();
        for _ in 0..20 {
            (1..FAILURES_TO_TRIP).for_each(|_| breaker.failed());
            breaker.succeeded();
        }
        assert_eq!(breaker.now(), BreakerState::Passing);
        (0..FAILURES_TO_TRIP).for_each(|_| breaker.failed());
        assert_eq!(breaker.now(), BreakerState::Tripped);
        assert_eq!(breaker.limit(8, 0), 0);
    }

    #[test]
    fn a_probe_decides() {
        let breaker = breaker();
        breaker.set(BreakerState::Probing);
        assert_eq!((breaker.limit(8, 0), breaker.limit(8, 1)), (1, 0));
        breaker.failed();
        assert_eq!(breaker.now(), BreakerState::Tripped);
        breaker.set(BreakerState::Probing);
        breaker.succeeded();
        assert_eq!(breaker.limit(8, 3), 8);
    }
}
