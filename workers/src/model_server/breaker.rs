//! The breaker before a model server: whether work is pulled for it.
//!
//! It holds the state and counts failures in a row; [`super::health`] walks
//! it from tripped over probing to passing and back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use duo_contract::presence::BreakerState;
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};

/// Failures in a row that trip it.
const FAILURES_TO_TRIP: u32 = 5;
/// Most requests at once that probe a server, until the first of them has ended well.
const MOST_PROBES: usize = 8;
/// An answer that begins keeps its own place and so makes room for two more.
const PROBES_PER_ANSWER: usize = 2;

/// Whether work is pulled for a model server.
#[derive(Debug)]
pub struct Breaker {
    state: watch::Sender<BreakerState>,
    counts: Mutex<Counts>,
    suspected: Notify,
    gauge: IntGauge,
}

#[derive(Debug, Default)]
struct Counts {
    /// In a row.
    failures: u32,
    /// Requests that may probe at once: one, and two more for each answer that has begun since.
    probes: usize,
}

impl Breaker {
    /// A breaker that lets nothing pass until the server has been looked at;
    /// `gauge` shows 0 passing, 1 probing, 2 tripped.
    #[must_use]
    pub fn new(gauge: IntGauge) -> Self {
        let breaker = Self {
            state: watch::Sender::new(BreakerState::Tripped),
            counts: Mutex::default(),
            suspected: Notify::new(),
            gauge,
        };
        breaker.set(BreakerState::Tripped);
        breaker
    }

    /// The state as it changes; an answer that begins while probing counts as a change.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<BreakerState> {
        self.state.subscribe()
    }

    /// The state now.
    #[must_use]
    pub fn now(&self) -> BreakerState {
        *self.state.borrow()
    }

    /// How much of `room` may be used with `in_use` slots in use: all, a few as probes, or nothing.
    #[must_use]
    pub fn limit(&self, room: usize, in_use: usize) -> usize {
        match self.now() {
            BreakerState::Passing => room,
            BreakerState::Probing => room.min(self.counts().probes.saturating_sub(in_use)),
            BreakerState::Tripped => 0,
        }
    }

    /// An answer has begun: while probing, two more may be tried. Under a
    /// backlog new probes so double with every first word, however long answers are.
    pub fn begun(&self) {
        if self.now() != BreakerState::Probing {
            return;
        }
        let mut counts = self.counts();
        counts.probes = (counts.probes + PROBES_PER_ANSWER).min(MOST_PROBES);
        drop(counts);
        // Only wakes those who pull.
        self.state
            .send_if_modified(|state| *state == BreakerState::Probing);
    }

    /// An answer came to a good end.
    pub fn succeeded(&self) {
        self.counts().failures = 0;
        self.change(|state| match state {
            BreakerState::Probing => BreakerState::Passing,
            other => other,
        });
    }

    /// A call failed by the server's fault.
    pub fn failed(&self) {
        let failures = {
            let mut counts = self.counts();
            counts.failures = counts.failures.saturating_add(1);
            counts.failures
        };
        self.change(|state| match state {
            BreakerState::Passing if failures < FAILURES_TO_TRIP => BreakerState::Passing,
            _ => BreakerState::Tripped,
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
        *self.counts() = Counts {
            failures: 0,
            probes: 1,
        };
        self.change(|_| state);
    }

    fn change(&self, next: impl FnOnce(BreakerState) -> BreakerState) {
        self.state.send_if_modified(|state| {
            let next = next(*state);
            self.gauge.set(match next {
                BreakerState::Passing => 0,
                BreakerState::Probing => 1,
                BreakerState::Tripped => 2,
            });
            std::mem::replace(state, next) != next
        });
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn breaker() -> Breaker {
        let breaker = Breaker::new(IntGauge::new("state", "State.").expect("a name"));
        assert_eq!(breaker.limit(8, 0), 0, "nothing passes unseen");
        breaker.set(BreakerState::Passing);
        breaker
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

    #[test]
    fn under_a_backlog_probes_double_with_every_first_word() {
        let breaker = breaker();
        breaker.set(BreakerState::Probing);
        let mut in_use = 0;
        for expected in [1, 1 + 2, 1 + 2 + 4, MOST_PROBES, MOST_PROBES] {
            let taken = breaker.limit(100, in_use);
            in_use += taken;
            assert_eq!(in_use, expected);
            (0..taken).for_each(|_| breaker.begun());
        }
        breaker.succeeded();
        assert_eq!(breaker.limit(92, in_use), 92);
    }

    #[derive(Debug, Clone, Copy)]
    enum Turn {
        Begun,
        Succeeded,
        Failed,
        Probe,
        Pass,
    }

    proptest! {
        #[test]
        fn it_trips_by_failures_alone_and_passes_by_a_good_end_alone(
            turns in proptest::collection::vec(
                prop_oneof![
                    Just(Turn::Begun), Just(Turn::Succeeded), Just(Turn::Failed), Just(Turn::Probe), Just(Turn::Pass),
                ],
                0..200,
            ),
            room in 0..300_usize,
            in_use in 0..300_usize,
        ) {
            use BreakerState::{Passing, Probing, Tripped};
            let breaker = breaker();
            let mut in_a_row = 0;
            for turn in turns {
                let before = breaker.now();
                match turn {
                    Turn::Begun => breaker.begun(),
                    Turn::Succeeded => breaker.succeeded(),
                    Turn::Failed => breaker.failed(),
                    Turn::Probe => breaker.set(Probing),
                    Turn::Pass => breaker.set(Passing),
                }
                in_a_row = if matches!(turn, Turn::Failed) { in_a_row + 1 } else { in_a_row };
                let after = breaker.now();
                match turn {
                    Turn::Begun => prop_assert_eq!(after, before),
                    Turn::Succeeded => {
                        prop_assert_eq!(after, if before == Tripped { Tripped } else { Passing });
                        in_a_row = 0;
                    }
                    Turn::Failed => {
                        let holds = before == Passing && in_a_row < FAILURES_TO_TRIP;
                        prop_assert_eq!(after, if holds { Passing } else { Tripped });
                    }
                    Turn::Probe | Turn::Pass => in_a_row = 0,
                }
                let limit = breaker.limit(room, in_use);
                prop_assert!(limit <= room);
                match after {
                    Passing => prop_assert_eq!(limit, room),
                    Probing => prop_assert!(limit + in_use <= MOST_PROBES.max(in_use)),
                    Tripped => prop_assert_eq!(limit, 0),
                }
            }
        }
    }
}
