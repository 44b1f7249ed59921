//! Whether a lane can take one more request, decided early and honestly.
//!
//! Expected wait = work ahead × mean slot time ÷ serving slots. It is computed
//! from what is queued and running at all brokers, not from measured
//! throughput, which under light load is only the arrival rate. What this
//! broker has in line it knows exactly; what the others have is what the queue
//! held beyond that when it was last asked, which under pressure is a tenth of
//! a second ago ([`crate::dispatch::watch`]).
//!
//! A request is refused, in this order, because nobody serves its model, its
//! caller has as many under way as it may, the queue is full, the wait is
//! longer than the feature allows, or its person has more than a share while
//! others wait ([`share`]). [`line`] counts, [`pool`] says which of that work is
//! ahead of whom, [`estimate`] computes.

mod estimate;
mod line;
mod pool;
mod share;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use duo_contract::failure::FailureKind;
use duo_contract::name::{Lane, ModelName};
use duo_contract::snapshot::Feature;

use crate::caller::Caller;
use crate::fleet::{Capacity, Fleet};
use crate::request::ExchangeError;
use line::{LaneState, Load};
pub use line::{Line, Place};
use pool::{Pool, Prospect};
use share::{Contest, People};

/// Least `Retry-After`.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Part of a feature's `first_byte_within` that is not promised away: what is
/// admitted waits nearly as long as it may when there is too much work, and an
/// estimate that is a little short would then let all of it expire.
const RESERVE: f64 = 0.125;
/// What a `Retry-After` has beyond the estimate, as a factor: a slot takes a
/// moment to change hands.
const RETRY_MARGIN: f64 = 1.03;
/// How long a full stream is not asked again.
const FULL_FOR: Duration = Duration::from_millis(200);

/// Admission; cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission {
    fleet: Fleet,
    lines: Arc<RwLock<HashMap<ModelName, Arc<Line>>>>,
    full_until: Arc<Mutex<Option<Instant>>>,
}

/// Who asks, as far as admission cares.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Keys the caller's share.
    pub key: &'a str,
    /// Requests it may have under way for one feature and model.
    pub limit: u32,
    /// Does one of its requests that wait give way to this one? Then that is not ahead of it.
    pub replaces: bool,
}

impl<'a> From<&'a Caller> for Asker<'a> {
    fn from(caller: &'a Caller) -> Self {
        Self {
            key: &caller.share_key,
            limit: caller.limit,
            replaces: false,
        }
    }
}

/// What an autoscaler and an administrator want to know of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlook {
    /// Slot seconds of work that waits or runs.
    pub work: f64,
    /// Slots that serve the model now.
    pub slots: u32,
    /// Expected wait of a newcomer in seconds, by lane.
    pub wait: [f64; 3],
    /// Mean slot time in seconds, by lane.
    pub slot_time: [f64; 3],
}

impl Admission {
    /// Admission by what `fleet` can serve.
    #[must_use]
    pub fn new(fleet: Fleet) -> Self {
        Self {
            fleet,
            lines: Arc::default(),
            full_until: Arc::default(),
        }
    }

    /// The workers of the moment.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// May this caller have a place in line? Who types may have something there that would give way to this request;
    /// whether it does only the body tells.
    ///
    /// # Errors
    /// `no_worker`, `caller_limit`, `stream_full`, `lane_full` or `fair_share`.
    pub fn check(&self, asker: Asker<'_>, feature: &Feature, model: &ModelName) -> Result<(), ExchangeError> {
        let is_typing = feature.lane == Lane::Keystroke;
        let waits = |lane: &mut LaneState| lane.people.waits(asker.key);
        let replaces = is_typing && self.line(model).with(feature.lane, waits);
        self.weigh(Asker { replaces, ..asker }, feature, model, Instant::now())
            .map(|_| ())
    }

    /// Takes a place in line.
    ///
    /// # Errors
    /// As [`Admission::check`].
    pub fn admit(
        &self,
        asker: Asker<'_>,
        feature: &Feature,
        model: &ModelName,
    ) -> Result<Place, ExchangeError> {
        self.admit_at(asker, feature, model, Instant::now())
    }

    fn admit_at(
        &self,
        asker: Asker<'_>,
        feature: &Feature,
        model: &ModelName,
        now: Instant,
    ) -> Result<Place, ExchangeError> {
        let wait = self.weigh(asker, feature, model, now)?;
        let line = self.line(model);
        Ok(line.enter((asker.key, asker.limit), &feature.name, feature.lane, wait, now))
    }

    /// Seconds until a newcomer would have a slot, or why it may not wait for one.
    fn weigh(
        &self,
        asker: Asker<'_>,
        feature: &Feature,
        model: &ModelName,
        now: Instant,
    ) -> Result<f64, ExchangeError> {
        let capacity = self.fleet.capacity(model);
        if capacity.is_deserted() {
            return Err(ExchangeError::new(
                FailureKind::ModelUnavailable,
                "no_worker",
                format!("no worker serves model {model} at present"),
            ));
        }
        let line = self.line(model);
        let (held, oldest) = line.with(feature.lane, |lane| lane.people.open(asker.key, &feature.name));
        if u32::try_from(held).unwrap_or(u32::MAX) >= asker.limit {
            return Err(caller_limit(after(oldest, now)));
        }
        if self.stream_was_full(now) {
            return Err(stream_full());
        }
        if capacity.slots == 0 {
            return Ok(0.0);
        }
        let gives_way = f64::from(u8::from(asker.replaces));
        let prospect = self.prospect(&line, &capacity, feature.lane, gives_way, now);
        let bound = Duration::from_millis(feature.first_byte_within_ms).as_secs_f64() * (1.0 - RESERVE);
        let late = prospect.wait + prospect.first_byte.min(bound) - bound;
        // Whoever finds a free slot is never too late: there is nothing to wait for.
        if late > 0.0 && prospect.wait > 0.0 {
            line.with(feature.lane, |lane| {
                lane.note_refusal((asker.key, asker.limit), now);
            });
            return Err(overloaded(
                "lane_full",
                format!("too much work is waiting for model {model}; try again later"),
                Duration::from_secs_f64(late),
            ));
        }
        let mut idle = prospect.idle;
        // Where more are idle the queue is seldom asked ([`Admission::is_pressed`]), and hardly anybody has to wait.
        if idle <= prospect.slots / 2.0 {
            idle -= line.with(feature.lane, |lane| lane.unseen(prospect.slots, now));
        }
        if People::is_contested(prospect.slots, idle) {
            let stands_back = line.with(feature.lane, |lane| {
                let contest = Contest {
                    slots: prospect.slots,
                    idle,
                    wait: prospect.wait,
                    slot_time: lane.slot_time(),
                    part: lane.part(),
                };
                let lately = lane.lately();
                let oldest = lane.people.stands_back(asker.key, &contest, lately, now)?;
                lane.note_refusal((asker.key, asker.limit), now);
                Some(oldest)
            });
            if let Some(oldest) = stands_back {
                return Err(overloaded(
                    "fair_share",
                    "others are waiting and you have more than your share under way; wait for one to end",
                    after(oldest, now),
                ));
            }
        }
        Ok(prospect.wait)
    }

    /// The caller's own limit is reached, as the stream says for all brokers.
    #[must_use]
    pub fn caller_limit(&self, asker: Asker<'_>, feature: &Feature, model: &ModelName) -> ExchangeError {
        let line = self.line(model);
        let (usual, oldest) = line.with(feature.lane, |lane| {
            (lane.slot_time(), lane.people.open(asker.key, &feature.name).1)
        });
        let now = Instant::now();
        // Without one of its requests here, one at another broker ends in about a slot time.
        let guess = now + Duration::from_secs_f64(usual);
        caller_limit(after(oldest.or(Some(guess)), now))
    }

    /// The stream took nothing more: for a moment nobody is to ask it again.
    #[must_use]
    pub fn stream_full(&self) -> ExchangeError {
        let until = Instant::now() + FULL_FOR;
        *self.full_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        stream_full()
    }

    fn stream_was_full(&self, now: Instant) -> bool {
        let until = self.full_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| now < until)
    }

    /// What the stream, asked at `asked`, says of one lane and model, all brokers together.
    pub fn note_depth(
        &self,
        lane: Lane,
        model: &ModelName,
        pending: u64,
        unacknowledged: u64,
        asked: Instant,
    ) {
        self.line(model).note_depth(lane, pending, unacknowledged, asked);
    }

    /// Is so much in line for the model that the other brokers' part matters now?
    #[must_use]
    pub fn is_pressed(&self, model: &ModelName) -> bool {
        let capacity = self.fleet.capacity(model);
        let loads = self.line(model).loads(Instant::now());
        let there: f64 = loads.iter().map(|load| load.queued + load.running).sum();
        there > 0.0 && there >= f64::from(capacity.slots) / 2.0
    }

    /// What is to be expected of one model.
    #[must_use]
    pub fn outlook(&self, model: &ModelName) -> Outlook {
        let now = Instant::now();
        let (line, capacity) = (self.line(model), self.fleet.capacity(model));
        let loads = line.loads(now);
        let wait = |lane| self.prospect(&line, &capacity, lane, 0.0, now).wait;
        Outlook {
            work: loads.iter().map(Load::work).sum(),
            slots: if capacity.is_away { 0 } else { capacity.slots },
            wait: Lane::ALL.map(wait),
            slot_time: Lane::ALL.map(|lane| loads[line::index(lane)].slot_time),
        }
    }

    /// What a newcomer finds to whom so many queued requests give way. Models that share a server share its slots, so
    /// their work is ahead of it too.
    fn prospect(
        &self,
        own: &Line,
        capacity: &Arc<Capacity>,
        lane: Lane,
        gives_way: f64,
        now: Instant,
    ) -> Prospect {
        let mut loads = own.loads(now);
        let queued = &mut loads[line::index(lane)].queued;
        *queued = (*queued - gives_way).max(0.0);
        let first_byte = loads[line::index(lane)].first_byte;
        let mut pool = Pool::new(&loads);
        let neighbours = own.neighbours(capacity, |model| self.line(model));
        for (line, part) in neighbours.iter().filter(|(line, _)| !line.is_empty()) {
            pool.add(&line.loads(now), *part);
        }
        let slots = f64::from(capacity.slots);
        let prospect = match lane {
            Lane::Keystroke => pool.first_lane(slots),
            Lane::Interactive => pool.lower_lane(slots, f64::from(capacity.kept), 1),
            Lane::Background => pool.lower_lane(slots, f64::from(capacity.kept), 2),
        };
        Prospect {
            first_byte,
            ..prospect
        }
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
        let line = lines
            .entry(model.clone())
            .or_insert_with(|| Arc::new(Line::new()));
        Arc::clone(line)
    }
}

fn after(due: Option<Instant>, now: Instant) -> Duration {
    due.map_or(MIN_RETRY_AFTER, |due| due.saturating_duration_since(now))
}

fn overloaded(reason: &'static str, message: impl Into<String>, retry_after: Duration) -> ExchangeError {
    ExchangeError {
        retry_after: Some(retry_after.mul_f64(RETRY_MARGIN).max(MIN_RETRY_AFTER)),
        ..ExchangeError::new(FailureKind::Overloaded, reason, message)
    }
}

fn caller_limit(retry_after: Duration) -> ExchangeError {
    overloaded(
        "caller_limit",
        "you have as many requests under way as you may; wait for one to end",
        retry_after,
    )
}

fn stream_full() -> ExchangeError {
    overloaded(
        "stream_full",
        "the queue is full; try again later",
        MIN_RETRY_AFTER,
    )
}

#[cfg(test)]
mod tests;
