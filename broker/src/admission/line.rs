//! What stands in line for one model, lane by lane, and the place that a
//! request holds there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duo_contract::name::{FeatureName, Lane, ModelName};

use super::estimate::{self, Free, Usual};
use super::share::{self, People, Turn};
use crate::fleet::Capacity;

/// How long a slot is held, before anything is known: what people wait for
/// while they type is short.
const GUESS: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(2),
];
/// How much of what a look at the queue shows goes into the mean of this
/// broker's part: a second's looks under pressure.
const PART_STEP: f64 = 0.1;
/// How long the stream may hold a message whose request is over: the worker's
/// acknowledgement is on its way.
const SETTLING: Duration = Duration::from_millis(30);
/// Ends are remembered for longer than a look at the queue takes.
const ENDED_FOR: Duration = Duration::from_secs(1);
/// Points that stand for the slots of a lane in an estimate, at most.
const POINTS: usize = 64;

/// The line of one model.
#[derive(Debug)]
pub struct Line {
    state: Mutex<State>,
    /// Is nothing in it? Whoever looks at the lines of many models need not look at those.
    is_empty: AtomicBool,
    neighbours: Mutex<Option<Neighbours>>,
}

#[derive(Debug)]
pub(super) struct State {
    lanes: [LaneState; 3],
    tickets: u64,
}

/// The lines of the models that share slots with this line's, and the part of their slots that these are.
#[derive(Debug, Clone)]
pub(super) struct Neighbours {
    /// What they were found for.
    capacity: Arc<Capacity>,
    lines: Arc<[(Arc<Line>, f64)]>,
}

/// One lane of a line.
#[derive(Debug)]
pub(super) struct LaneState {
    /// Requests of this broker that no worker has.
    queued: usize,
    /// When each of this broker's requests that a worker has was taken, oldest first.
    running: VecDeque<Instant>,
    /// When those were over that the stream may still hold, oldest first.
    ended: VecDeque<Instant>,
    others: Others,
    /// This broker's part of all in line, averaged over a while.
    part: f64,
    /// When the queue was last asked.
    looked: Option<Instant>,
    slot_time: Usual,
    first_byte: Usual,
    pub(super) people: People,
}

/// What the other brokers had in line when the queue was last asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Others {
    queued: usize,
    running: usize,
}

/// Work of one lane, all brokers together.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) queued: f64,
    pub(super) running: f64,
    /// Seconds that a slot is held.
    pub(super) slot_time: f64,
    /// Seconds from then on to the first byte.
    pub(super) first_byte: f64,
    /// When the slots of those that run will be free.
    pub(super) slots: Vec<Free>,
}

impl Load {
    /// Slot seconds of work that waits or runs.
    pub(super) fn work(&self) -> f64 {
        let running: f64 = self.slots.iter().map(|free| free.after * free.count).sum();
        self.queued * self.slot_time + running
    }
}

pub(super) fn index(lane: Lane) -> usize {
    match lane {
        Lane::Keystroke => 0,
        Lane::Interactive => 1,
        Lane::Background => 2,
    }
}

#[expect(clippy::cast_precision_loss, reason = "nothing here comes near 2^52")]
fn real(count: usize) -> f64 {
    count as f64
}

impl State {
    fn is_empty(&self) -> bool {
        self.lanes.iter().all(LaneState::is_empty)
    }
}

impl LaneState {
    fn new(lane: usize) -> Self {
        Self {
            queued: 0,
            running: VecDeque::new(),
            ended: VecDeque::new(),
            others: Others::default(),
            part: 1.0,
            looked: None,
            slot_time: Usual::new(GUESS[lane]),
            first_byte: Usual::new(Duration::ZERO),
            people: People::default(),
        }
    }

    fn is_empty(&self) -> bool {
        self.queued == 0 && self.running.is_empty() && self.others == Others::default()
    }

    pub(super) fn load(&self, now: Instant) -> Load {
        let slot_time = self.slot_time.seconds();
        let running = real(self.running.len() + self.others.running);
        Load {
            queued: real(self.queued + self.others.queued),
            running,
            slot_time,
            first_byte: self.first_byte.seconds(),
            slots: self.slots(running, slot_time, now),
        }
    }

    /// A few of our own stand for all; where there are none, slots are taken
    /// to have begun at any time.
    fn slots(&self, running: f64, slot_time: f64, now: Instant) -> Vec<Free> {
        if running == 0.0 {
            return Vec::new();
        }
        let own = self.running.len();
        if own == 0 {
            let points = self.others.running.min(POINTS);
            let count = running / real(points);
            let spread = |point| (real(point) + 0.5) / real(points) * slot_time;
            return (0..points)
                .map(|point| Free {
                    after: spread(point),
                    count,
                })
                .collect();
        }
        let step = own.div_ceil(POINTS);
        let chosen = self.running.iter().step_by(step);
        let count = running / real(own.div_ceil(step));
        chosen
            .map(|since| {
                let age = now.saturating_duration_since(*since).as_secs_f64();
                Free {
                    after: estimate::left(age, slot_time),
                    count,
                }
            })
            .collect()
    }

    pub(super) fn lately(&self) -> f64 {
        share::lately(self.slot_time.seconds(), self.part)
    }

    /// This broker's part of all that is in line.
    pub(super) fn part(&self) -> f64 {
        self.part
    }

    pub(super) fn slot_time(&self) -> f64 {
        self.slot_time.seconds()
    }

    /// So many of `slots` the other brokers may have filled since the queue was last asked: their part of what has
    /// changed hands.
    pub(super) fn unseen(&self, slots: f64, now: Instant) -> f64 {
        let Some(looked) = self.looked else { return 0.0 };
        let age = now.saturating_duration_since(looked).as_secs_f64();
        let turned = (age / self.slot_time.seconds().max(1e-6)).min(1.0);
        (1.0 - self.part) * slots * turned
    }

    fn note_end(&mut self, now: Instant) {
        while self.ended.front().is_some_and(|at| *at + ENDED_FOR < now) {
            self.ended.pop_front();
        }
        self.ended.push_back(now);
    }

    /// Somebody asked for a slot in vain.
    pub(super) fn note_refusal(&mut self, asker: (&str, u32), now: Instant) {
        let lately = self.lately();
        self.people.ask(asker, self.slot_time.seconds(), lately, now);
    }
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                lanes: [0, 1, 2].map(LaneState::new),
                tickets: 0,
            }),
            is_empty: AtomicBool::new(true),
            neighbours: Mutex::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at one lane and may change it.
    pub(super) fn with<T>(&self, lane: Lane, look: impl FnOnce(&mut LaneState) -> T) -> T {
        let mut state = self.state();
        let seen = look(&mut state.lanes[index(lane)]);
        self.is_empty.store(state.is_empty(), Ordering::Release);
        seen
    }

    /// Is nothing in line, in any lane and of any broker as far as is known?
    pub(super) fn is_empty(&self) -> bool {
        self.is_empty.load(Ordering::Acquire)
    }

    /// The lines that share slots with this one, as `capacity` says; `find` is asked for them when that is new.
    pub(super) fn neighbours(
        &self,
        capacity: &Arc<Capacity>,
        find: impl Fn(&ModelName) -> Arc<Line>,
    ) -> Arc<[(Arc<Line>, f64)]> {
        let mut known = self.neighbours.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known
            .as_ref()
            .filter(|known| Arc::ptr_eq(&known.capacity, capacity))
        {
            return Arc::clone(&known.lines);
        }
        let lines: Arc<[_]> = capacity
            .neighbours
            .iter()
            .map(|(model, part)| (find(model), *part))
            .collect();
        *known = Some(Neighbours {
            capacity: Arc::clone(capacity),
            lines: Arc::clone(&lines),
        });
        lines
    }

    /// The work of every lane.
    pub(super) fn loads(&self, now: Instant) -> [Load; 3] {
        let state = self.state();
        [0, 1, 2].map(|lane| state.lanes[lane].load(now))
    }

    /// What the stream says of one lane, all brokers together: messages that
    /// no worker has got, and messages that one has.
    ///
    /// The stream and this broker never know the same at the same moment, least
    /// of all in a burst. So whatever this broker has stands in the stream, if
    /// it is stored or not, and so does what it had just before the stream was
    /// asked at `asked`: only the surplus is the others'.
    pub(super) fn note_depth(&self, lane: Lane, pending: u64, unacknowledged: u64, asked: Instant) {
        let as_count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let (pending, held) = (as_count(pending), as_count(unacknowledged));
        self.with(lane, |lane| {
            let gone = lane.ended.partition_point(|at| *at + SETTLING < asked);
            let leaving = lane.ended.len() - gone;
            let own = lane.running.len() + lane.queued;
            // A message that a worker has got but not claimed yet is still queued here, so the sum decides.
            let others = pending.saturating_add(held).saturating_sub(own + leaving);
            let running = held.saturating_sub(lane.running.len() + leaving).min(others);
            lane.others = Others {
                queued: others - running,
                running,
            };
            lane.looked = Some(asked);
            if own + others > 0 {
                lane.part += (real(own) / real(own + others) - lane.part) * PART_STEP;
            }
        });
    }

    /// Requests of this broker that wait, by lane, and that run.
    #[must_use]
    pub fn counts(&self) -> ([usize; 3], usize) {
        let state = self.state();
        let queued = [0, 1, 2].map(|lane| state.lanes[lane].queued);
        (queued, state.lanes.iter().map(|lane| lane.running.len()).sum())
    }

    /// Takes a place for a request that should have its slot in `wait` seconds.
    pub(super) fn enter(
        self: &Arc<Self>,
        asker: (&str, u32),
        feature: &FeatureName,
        lane: Lane,
        wait: f64,
        now: Instant,
    ) -> Place {
        let mut state = self.state();
        state.tickets += 1;
        let ticket = state.tickets;
        let held = &mut state.lanes[index(lane)];
        held.queued += 1;
        let due = now + Duration::from_secs_f64(wait + held.slot_time());
        let lately = held.lately();
        held.people.ask(asker, held.slot_time(), lately, now);
        held.people.enter(asker, feature, ticket, due, now);
        self.is_empty.store(false, Ordering::Release);
        Place {
            line: Arc::clone(self),
            lane,
            key: asker.0.to_owned(),
            feature: feature.clone(),
            ticket,
            stored: false,
            slot_since: None,
            held: Duration::ZERO,
        }
    }
}

/// A request's place in line; it moves on when a worker claims the request,
/// back when the worker gives it up, and goes when it is dropped.
#[derive(Debug)]
pub struct Place {
    line: Arc<Line>,
    lane: Lane,
    key: String,
    feature: FeatureName,
    ticket: u64,
    stored: bool,
    slot_since: Option<Instant>,
    /// How long earlier attempts had a slot.
    held: Duration,
}

impl Place {
    /// The stream holds the request.
    pub fn stored(&mut self) {
        self.stored = true;
    }

    /// A worker has taken the request.
    pub fn claimed(&mut self, now: Instant) {
        self.stored();
        if self.slot_since.is_some() {
            return;
        }
        self.slot_since = Some(now);
        self.line.with(self.lane, |lane| {
            lane.queued -= 1;
            let at = lane.running.partition_point(|since| *since <= now);
            lane.running.insert(at, now);
            let turn = Turn {
                has_slot: true,
                due: now + Duration::from_secs_f64(lane.slot_time()),
                now,
            };
            let lately = lane.lately();
            lane.people
                .turn(&self.key, &self.feature, self.ticket, &turn, lately);
        });
    }

    /// The worker that had the request does not have it any more, since `at`:
    /// it waits again.
    pub fn released(&mut self, at: Instant) {
        let Some(since) = self.slot_since.take() else {
            return;
        };
        self.held += at.saturating_duration_since(since);
        self.line.with(self.lane, |lane| {
            let found = lane.running.partition_point(|other| *other < since);
            lane.running.remove(found);
            lane.queued += 1;
            let turn = Turn {
                has_slot: false,
                due: at + Duration::from_secs_f64(lane.slot_time()),
                now: at,
            };
            let lately = lane.lately();
            lane.people
                .turn(&self.key, &self.feature, self.ticket, &turn, lately);
        });
    }

    /// The first byte of the answer is there.
    pub fn first_byte(&self, now: Instant) {
        if let Some(since) = self.slot_since {
            let took = now.saturating_duration_since(since);
            self.line.with(self.lane, |lane| lane.first_byte.note(took, now));
        }
    }

    /// The request has had its slot for as long as it needed one: by all
    /// attempts together, whether they ended well or its client left.
    pub fn served(mut self, now: Instant) {
        if self.slot_since.is_some() {
            self.released(now);
            let held = self.held;
            self.line.with(self.lane, |lane| lane.slot_time.note(held, now));
        }
        self.over(now);
    }

    /// The request is over; its message goes next.
    fn over(&mut self, now: Instant) {
        if std::mem::take(&mut self.stored) {
            self.line.with(self.lane, |lane| lane.note_end(now));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = Instant::now();
        self.released(now);
        self.over(now);
        self.line.with(self.lane, |lane| {
            lane.queued -= 1;
            lane.people.leave(&self.key, &self.feature, self.ticket);
        });
    }
}
