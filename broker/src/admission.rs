//! Whether a lane can take one more request, decided early and honestly.
//!
//! Expected wait = work ahead × mean slot time ÷ serving slots. It is computed
//! from what is queued and running, not from measured throughput, which under
//! light load is only the arrival rate.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use duo_contract::failure::FailureKind;
use duo_contract::name::{Lane, ModelName};
use duo_contract::snapshot::Feature;

use crate::fleet::{Capacity, Fleet};
use crate::request::ExchangeError;

/// Mean slot time of a model that nobody has used yet.
const FIRST_GUESS: Duration = Duration::from_millis(500);
/// Weight of the newest slot time in the running mean: one in this many.
const MEAN_WINDOW: u64 = 16;
/// Least `Retry-After`.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Admission; cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission {
    fleet: Fleet,
    lines: Arc<RwLock<HashMap<ModelName, Arc<Line>>>>,
}

/// What stands in line for one model, and how long a slot is held.
#[derive(Debug)]
pub struct Line {
    queued: [AtomicI64; 3],
    running: AtomicI64,
    /// What all brokers together have queued, as the stream last said.
    polled: [AtomicI64; 3],
    mean_slot_us: AtomicU64,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            queued: Default::default(),
            running: AtomicI64::new(0),
            polled: Default::default(),
            mean_slot_us: AtomicU64::new(u64::try_from(FIRST_GUESS.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

fn index(lane: Lane) -> usize {
    match lane {
        Lane::Keystroke => 0,
        Lane::Interactive => 1,
        Lane::Background => 2,
    }
}

impl Line {
    fn expected_wait(&self, lane: Lane, slots: u32) -> Duration {
        let ahead: i64 = (0..=index(lane))
            .map(|i| {
                self.queued[i]
                    .load(Ordering::Relaxed)
                    .max(self.polled[i].load(Ordering::Relaxed))
            })
            .sum();
        let slots = i64::from(slots.max(1));
        let free = (slots - self.running.load(Ordering::Relaxed)).max(0);
        let before_us = u64::try_from(ahead + 1 - free).unwrap_or(0);
        let mean = self.mean_slot_us.load(Ordering::Relaxed);
        Duration::from_micros(before_us.saturating_mul(mean) / slots.unsigned_abs())
    }

    fn note_slot_time(&self, held: Duration) {
        let held = u64::try_from(held.as_micros()).unwrap_or(u64::MAX);
        let mean = self.mean_slot_us.load(Ordering::Relaxed);
        let next = mean - mean / MEAN_WINDOW + held / MEAN_WINDOW;
        self.mean_slot_us.store(next, Ordering::Relaxed);
    }

    /// Requests of this broker that wait or run.
    #[must_use]
    pub fn counts(&self) -> ([i64; 3], i64) {
        let queued = [0, 1, 2].map(|i| self.queued[i].load(Ordering::Relaxed));
        (queued, self.running.load(Ordering::Relaxed))
    }
}

/// A request's place in line; it moves on when a worker claims the request and
/// goes when it is dropped.
#[derive(Debug)]
pub struct Place {
    line: Arc<Line>,
    lane: Lane,
    running: bool,
}

impl Place {
    /// A worker has taken the request.
    pub fn claimed(&mut self) {
        if !self.running {
            self.running = true;
            self.line.queued[index(self.lane)].fetch_sub(1, Ordering::Relaxed);
            self.line.running.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The request ended well after its slot was held for so long.
    pub fn served(self, held: Duration) {
        self.line.note_slot_time(held);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counter = if self.running {
            &self.line.running
        } else {
            &self.line.queued[index(self.lane)]
        };
        counter.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// Admission by what `fleet` can serve.
    #[must_use]
    pub fn new(fleet: Fleet) -> Self {
        Self {
            fleet,
            lines: Arc::default(),
        }
    }

    /// Is there a worker, and is the wait for it within the feature's bound?
    ///
    /// # Errors
    /// `no_worker`, or `lane_full` with its `Retry-After`.
    pub fn check(&self, feature: &Feature, model: &ModelName) -> Result<(), ExchangeError> {
        let Capacity { slots, deserted } = self.fleet.capacity(model);
        if deserted {
            return Err(ExchangeError::new(
                FailureKind::ModelUnavailable,
                "no_worker",
                format!("no worker serves model {model} at present"),
            ));
        }
        let wait = self.line(model).expected_wait(feature.lane, slots);
        let bound = Duration::from_millis(feature.first_byte_within_ms);
        if slots > 0 && wait > bound {
            let seconds = (wait - bound).as_secs_f64().ceil();
            return Err(ExchangeError {
                retry_after: Some(Duration::from_secs_f64(seconds).max(MIN_RETRY_AFTER)),
                ..ExchangeError::new(
                    FailureKind::Overloaded,
                    "lane_full",
                    format!("too much work is waiting for model {model}; try again later"),
                )
            });
        }
        Ok(())
    }

    /// Takes a place in line.
    ///
    /// # Errors
    /// As [`Admission::check`].
    pub fn admit(&self, feature: &Feature, model: &ModelName) -> Result<Place, ExchangeError> {
        self.check(feature, model)?;
        let line = self.line(model);
        line.queued[index(feature.lane)].fetch_add(1, Ordering::Relaxed);
        Ok(Place {
            line,
            lane: feature.lane,
            running: false,
        })
    }

    /// When a caller whose own limit is reached may come again: about when one
    /// of its `limit` requests ends.
    #[must_use]
    pub fn caller_retry_after(&self, model: &ModelName) -> Duration {
        let mean = self.line(model).mean_slot_us.load(Ordering::Relaxed);
        Duration::from_micros(mean).max(MIN_RETRY_AFTER)
    }

    /// What the stream says all brokers have queued.
    pub fn note_depth(&self, lane: Lane, model: &ModelName, pending: u64) {
        let pending = i64::try_from(pending).unwrap_or(i64::MAX);
        self.line(model).polled[index(lane)].store(pending, Ordering::Relaxed);
    }

    /// The line of one model.
    #[must_use]
    pub fn line(&self, model: &ModelName) -> Arc<Line> {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(model) {
            return Arc::clone(line);
        }
        drop(lines);
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lines.entry(model.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_counts_what_is_ahead_and_not_what_is_free() {
        let line = Line::default();
        line.mean_slot_us.store(1_000_000, Ordering::Relaxed);
        assert_eq!(line.expected_wait(Lane::Keystroke, 4), Duration::ZERO);
        line.running.store(4, Ordering::Relaxed);
        assert_eq!(line.expected_wait(Lane::Keystroke, 4), Duration::from_millis(250));
        line.queued[0].store(7, Ordering::Relaxed);
        assert_eq!(line.expected_wait(Lane::Keystroke, 4), Duration::from_secs(2));
        line.queued[1].store(40, Ordering::Relaxed);
        assert_eq!(line.expected_wait(Lane::Keystroke, 4), Duration::from_secs(2));
        assert_eq!(line.expected_wait(Lane::Interactive, 4), Duration::from_secs(12));
    }

    #[test]
    fn a_place_leaves_whichever_way_it_goes() {
        let admission = Admission::new(Fleet::new());
        let model = ModelName::parse("m").expect("a name");
        let feature = Feature {
            name: duo_contract::name::FeatureName::parse("duo_chat").expect("a name"),
            active: true,
            model: Some(model.clone()),
            lane: Lane::Interactive,
            first_byte_within_ms: 1000,
            end_within_ms: 1000,
            bodies: duo_contract::snapshot::BodyPolicy::None,
        };
        let mut place = admission.admit(&feature, &model).expect("there is room");
        assert_eq!(admission.line(&model).counts(), ([0, 1, 0], 0));
        place.claimed();
        place.claimed();
        assert_eq!(admission.line(&model).counts(), ([0, 0, 0], 1));
        drop(place);
        drop(admission.admit(&feature, &model).expect("there is room"));
        assert_eq!(admission.line(&model).counts(), ([0, 0, 0], 0));
    }
}
