//! How many slots a model server gets whose worker file says `slots: auto`.
//!
//! The server's own line is the measure: while nothing waits there, its cache
//! has room and the slots are all used, their number grows; when requests wait
//! or the cache fills, it shrinks. Only computes; [`crate::model_server::pressure`]
//! asks the server and sets the pool.

use super::Usage;

/// Requests that may wait in the server's own line: with none it would idle
/// while the next one is on its way from the queue.
pub const SHORT_LINE: u64 = 2;
/// Looks in a row that have to see a longer line before slots are taken away:
/// requests that arrive together wait for a moment on any server.
const LOOKS_TO_SHRINK: u32 = 2;
/// Slots added at a look; no more than may wait, so that growing by itself never makes a line.
const STEP: usize = 2;
/// Steps in a row without a line after which growth doubles again: the server can do much more than it could.
const STEPS_TO_DOUBLE: u32 = 16;
/// Looks in a row without a line before a doubling: a full server may show none at one look, while a batch of requests
/// ends and the next is on its way.
const LOOKS_TO_DOUBLE: u32 = 2;
/// Above this share of its cache the server gets no more slots.
const CACHE_HIGH: f64 = 0.9;
/// Below this share growth may double: twice as much still stays under [`CACHE_HIGH`].
const CACHE_LOW: f64 = CACHE_HIGH / 2.0;
/// Above this share slots are taken away: a server whose cache is full throws running requests out.
const CACHE_FULL: f64 = 0.97;
/// Part of the slots taken away for a full cache.
const CACHE_CUT: usize = 8;

/// What a model server says of its load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// Requests in its own line.
    pub waiting: u64,
    /// Share of its key-value cache in use, 0 to 1.
    pub cache: f64,
}

/// Bounds of a changing number of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Never fewer; also what a server gets whose load is not known.
    pub min: usize,
    /// Never more.
    pub max: usize,
}

/// The number of slots of the moment, and how it came about.
#[derive(Debug, Clone, Copy)]
pub struct Auto {
    bounds: Bounds,
    total: usize,
    /// The server's limit has not been met yet: growth doubles.
    doubling: bool,
    /// Steps since a limit was met.
    steps: u32,
    /// Steps since a limit was met or growth doubled.
    steps_at_pace: u32,
    /// Looks in a row that saw a line.
    lines_seen: u32,
}

impl Auto {
    /// Begins at the least number.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            total: bounds.min,
            doubling: true,
            steps: 0,
            steps_at_pace: 0,
            lines_seen: 0,
        }
    }

    /// The number now.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// The number after one more look at the server and at the pool.
    pub fn look(&mut self, server: Pressure, pool: Usage) -> usize {
        let full = server.cache > CACHE_HIGH;
        if full || server.waiting > SHORT_LINE {
            self.doubling = false;
            self.steps = 0;
            self.steps_at_pace = 0;
        }
        if server.waiting > SHORT_LINE {
            self.lines_seen += 1;
            if self.lines_seen >= LOOKS_TO_SHRINK {
                self.shrink_by_line(server.waiting - SHORT_LINE, pool.in_use);
            }
        } else {
            self.lines_seen = 0;
            // A cut that has not taken effect yet is not made twice.
            if server.cache > CACHE_FULL && pool.in_use <= self.total {
                self.total -= (self.total / CACHE_CUT).max(1).min(self.total);
            } else if server.waiting == 0 && !full && pool.was_full {
                self.grow(server.cache);
            }
        }
        self.total = self.total.clamp(self.bounds.min, self.bounds.max);
        self.total
    }

    /// The server's load is not known any more: begins anew.
    pub fn forget(&mut self) -> usize {
        *self = Self::new(self.bounds);
        self.total
    }

    fn grow(&mut self, cache: f64) {
        self.doubling |= self.steps >= STEPS_TO_DOUBLE;
        self.steps += 1;
        self.steps_at_pace += 1;
        if self.doubling && cache < CACHE_LOW && self.steps_at_pace >= LOOKS_TO_DOUBLE {
            self.steps_at_pace = 0;
            self.total *= 2;
        } else {
            self.total += STEP;
        }
    }

    /// The server runs all but what waits; at most half is taken at once, as others may have made the line.
    fn shrink_by_line(&mut self, excess: u64, in_use: usize) {
        let excess = usize::try_from(excess).unwrap_or(usize::MAX);
        let served = in_use.saturating_sub(excess);
        self.total = self.total.min(served.max(self.total / 2));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { min: 4, max: 256 };

    /// A server that runs `capacity` requests at once, under a backlog that fills every slot.
    fn overloaded(auto: &mut Auto, capacity: usize, looks: usize) -> usize {
        for _ in 0..looks {
            let in_use = auto.total();
            let waiting = u64::try_from(in_use.saturating_sub(capacity)).expect("small");
            auto.look(
                Pressure { waiting, cache: 0.3 },
                Usage {
                    in_use,
                    was_full: true,
                },
            );
        }
        auto.total()
    }

    #[test]
    fn it_doubles_until_the_server_is_full() {
        let mut auto = Auto::new(BOUNDS);
        assert_eq!(overloaded(&mut auto, 64, 4), 28, "by steps and doublings in turn");
        assert_eq!(overloaded(&mut auto, 64, 8), 66, "what it runs, and a short line");
    }

    #[test]
    fn one_look_that_misses_the_line_doubles_nothing() {
        let mut auto = Auto::new(BOUNDS);
        let before = overloaded(&mut auto, 24, 4);
        assert_eq!(before, 28, "a line of four, not seen yet");
        let pool = Usage {
            in_use: before,
            was_full: true,
        };
        let between_batches = Pressure {
            waiting: 0,
            cache: 0.3,
        };
        assert_eq!(auto.look(between_batches, pool), before + STEP);
    }

    #[test]
    fn slots_that_nobody_uses_stay_as_they_are() {
        let mut auto = Auto::new(BOUNDS);
        let idle = Pressure {
            waiting: 0,
            cache: 0.0,
        };
        for _ in 0..100 {
            let pool = Usage {
                in_use: 3,
                was_full: false,
            };
            assert_eq!(auto.look(idle, pool), BOUNDS.min);
        }
    }

    #[test]
    fn one_burst_takes_no_slot_away() {
        let mut auto = Auto::new(BOUNDS);
        let before = overloaded(&mut auto, 64, 12);
        let pool = Usage {
            in_use: before,
            was_full: true,
        };
        let burst = Pressure {
            waiting: 30,
            cache: 0.3,
        };
        assert_eq!(auto.look(burst, pool), before);
        let calm = Pressure { waiting: 1, ..burst };
        assert_eq!(auto.look(calm, pool), before);
    }

    #[test]
    fn a_filling_cache_holds_and_a_full_one_cuts_once() {
        let mut auto = Auto::new(BOUNDS);
        let before = overloaded(&mut auto, 64, 12);
        let pool = |in_use| Usage {
            in_use,
            was_full: true,
        };
        let cache = |cache| Pressure { waiting: 0, cache };
        assert_eq!(auto.look(cache(0.93), pool(before)), before);
        assert_eq!(auto.look(cache(0.99), pool(before)), 58);
        assert_eq!(auto.look(cache(0.99), pool(before)), 58, "not in effect yet");
        assert_eq!(auto.look(cache(0.99), pool(58)), 51);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(
            looks in proptest::collection::vec((0..500_u64, 0.0..1.5_f64, 0..600_usize, any::<bool>()), 1..100),
        ) {
            let mut auto = Auto::new(BOUNDS);
            for (waiting, cache, in_use, was_full) in looks {
                let total = auto.look(Pressure { waiting, cache }, Usage { in_use, was_full });
                prop_assert!((BOUNDS.min..=BOUNDS.max).contains(&total));
            }
            prop_assert_eq!(auto.forget(), BOUNDS.min);
        }

        #[test]
        fn it_finds_every_capacity_and_follows_it_when_it_changes(
            first in 4..256_usize,
            second in 4..256_usize,
        ) {
            let mut auto = Auto::new(BOUNDS);
            let line = usize::try_from(SHORT_LINE).expect("small");
            for capacity in [first, second] {
                // Growth is by steps of two; shrinking halves.
                let total = overloaded(&mut auto, capacity, 140);
                prop_assert!(total >= capacity && total <= capacity + line, "{total} for {capacity}");
                prop_assert_eq!(overloaded(&mut auto, capacity, 10), total, "and stays");
            }
        }
    }
}
