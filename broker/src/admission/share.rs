//! Who holds how much of one lane and model, and who has to stand back when
//! people compete for it.
//!
//! A person may use whatever slots are idle. When hardly any is, one who has
//! lately wanted clearly more than an equal share gives way to the others: of such
//! a person only `slots ÷ active people`, at least one, may be queued or
//! running, and no more often than an equal share of the slots serves. Lately is
//! what decides, not the moment: of ten people who ask equally often some hold
//! two slots while others hold none, and nobody is to be refused for that.
//!
//! What a person wants is what it asks for, refused or not, or the slots that it
//! has, whichever is more. Were it only the slots, one who is made to give way
//! would soon have had little, and could begin again: it would be let in just as
//! often as takes it to the bound, and the others' wait is longest there. As many
//! as it may have under way at once it may ask for without wanting much: who is
//! refused and comes again when it was told to is not greedy.
//!
//! One slot in [`SPARE_ONE_IN`], at least one, is not lent to such a person:
//! with every slot always taken the others would always have to wait for one.
//!
//! A broker knows its own requests only. Its part of the line, which it knows,
//! stands for its part of what each person has: where that allows less than one
//! request at a time, one is let in only as often as it would then be. And it
//! sees less of what each person asks for, so that lately is as much longer.
//!
//! A service client (an API token, or GitLab without a person) is many people
//! at once: it counts as limit ÷ [`PERSON_LIMIT`] people, but never as more
//! than all active people together, so that however high its limit is, half of
//! a contested lane stays with the people.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use duo_contract::name::FeatureName;

use crate::caller::PERSON_LIMIT;

/// More than this many equal shares is clearly more. Ten people who ask
/// equally often stay below it by chance alone.
const CLEARLY_MORE: f64 = 1.5;
/// Of so many slots one is left to people who have no more than their share.
const SPARE_ONE_IN: f64 = 8.0;
/// Lately, for all brokers together: so many slot times, within these bounds, in seconds.
const LATELY_SLOT_TIMES: f64 = 16.0;
const LATELY_LEAST: f64 = 5.0;
const LATELY_MOST: f64 = 120.0;
/// Who holds nothing and has lately wanted less of a slot than this is not active.
const TRACE: f64 = 0.01;
/// How long a count of the active ones may be used.
const COUNT_FOR: Duration = Duration::from_millis(50);

/// Everybody who has or lately had a request in one lane and model.
#[derive(Debug, Default)]
pub(super) struct People {
    by_key: HashMap<String, Person>,
    counted: Option<(Instant, Active)>,
}

#[derive(Debug)]
struct Person {
    /// Requests it may have under way for one feature.
    limit: u32,
    /// Requests under way, by feature: when each should be over.
    open: Vec<(FeatureName, BTreeMap<u64, Instant>)>,
    held: usize,
    use_: Use,
    /// When a request was last admitted.
    entered: Instant,
}

/// Slots, averaged over lately.
#[derive(Debug)]
struct Use {
    /// In use now.
    slots: u32,
    /// In use.
    average: f64,
    /// That would be in use if nothing asked for had to wait or were refused.
    asked: f64,
    /// What a person may ask for at once without wanting much: all that its limit allows.
    burst: f64,
    at: Instant,
}

/// The active ones together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Active {
    /// How many people.
    pub(super) people: f64,
    /// How many people they and the service clients count as.
    weight: f64,
    /// Slots that all of them want.
    wanted: f64,
}

impl Use {
    fn turn(&mut self, now: Instant, lately: f64) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        let kept = (-since / lately).exp();
        self.average = self.average * kept + f64::from(self.slots) * (1.0 - kept);
        self.asked *= kept;
        self.at = now;
    }

    /// Slots that it lately wanted; nobody can want more than there are.
    fn wanted(&self, slots: f64) -> f64 {
        self.average.max(self.asked - self.burst).min(slots)
    }
}

impl Person {
    fn is_active(&self) -> bool {
        self.held > 0 || self.use_.average.max(self.use_.asked) > TRACE
    }

    fn is_service(&self) -> bool {
        self.limit > PERSON_LIMIT
    }

    /// As how many people it counts beside so many.
    fn weight(&self, people: f64) -> f64 {
        (f64::from(self.limit) / f64::from(PERSON_LIMIT))
            .min(people.max(1.0))
            .max(1.0)
    }
}

/// The span that counts as lately where a slot is held for `slot_time` seconds, to a broker with this part of the line.
pub(super) fn lately(slot_time: f64, part: f64) -> f64 {
    let together = (slot_time * LATELY_SLOT_TIMES).clamp(LATELY_LEAST, LATELY_MOST);
    // By chance a part of the requests varies more than all of them: people who ask equally often would seem not to.
    (together / part.max(f64::MIN_POSITIVE)).min(LATELY_MOST)
}

impl People {
    /// A request is asked for that holds a slot for `slot_time` seconds, admitted or not.
    pub(super) fn ask(&mut self, (key, limit): (&str, u32), slot_time: f64, lately: f64, now: Instant) {
        let use_ = &mut self.person(key, limit, now).use_;
        use_.turn(now, lately);
        use_.asked += slot_time / lately;
        use_.burst = f64::from(PERSON_LIMIT) * slot_time / lately;
    }

    fn person(&mut self, key: &str, limit: u32, now: Instant) -> &mut Person {
        if !self.by_key.contains_key(key) {
            self.counted = None;
        }
        self.by_key.entry(key.to_owned()).or_insert_with(|| Person {
            limit,
            open: Vec::new(),
            held: 0,
            use_: Use {
                slots: 0,
                average: 0.0,
                asked: 0.0,
                burst: 0.0,
                at: now,
            },
            entered: now,
        })
    }

    /// A request of `key` is admitted under `ticket`, and should be over at `due`.
    pub(super) fn enter(
        &mut self,
        (key, limit): (&str, u32),
        feature: &FeatureName,
        ticket: u64,
        due: Instant,
        now: Instant,
    ) {
        let person = self.person(key, limit, now);
        person.limit = limit;
        person.held += 1;
        person.entered = now;
        match person.open.iter_mut().find(|(name, _)| name == feature) {
            Some((_, open)) => {
                open.insert(ticket, due);
            }
            None => person
                .open
                .push((feature.clone(), BTreeMap::from([(ticket, due)]))),
        }
    }

    /// The request has a slot and should be over at `due`, or has lost it again.
    pub(super) fn turn(&mut self, key: &str, feature: &FeatureName, ticket: u64, turn: &Turn, lately: f64) {
        let Some(person) = self.by_key.get_mut(key) else {
            return;
        };
        person.use_.turn(turn.now, lately);
        if turn.has_slot {
            person.use_.slots += 1;
        } else {
            person.use_.slots = person.use_.slots.saturating_sub(1);
        }
        let open = person.open.iter_mut().find(|(name, _)| name == feature);
        if let Some(due) = open.and_then(|(_, open)| open.get_mut(&ticket)) {
            *due = turn.due;
        }
    }

    /// The request is over.
    pub(super) fn leave(&mut self, key: &str, feature: &FeatureName, ticket: u64) {
        let Some(person) = self.by_key.get_mut(key) else {
            return;
        };
        if let Some(index) = person.open.iter().position(|(name, _)| name == feature) {
            let open = &mut person.open[index].1;
            if open.remove(&ticket).is_some() {
                person.held -= 1;
            }
            if open.is_empty() {
                person.open.swap_remove(index);
            }
        }
    }

    /// Requests of `key` for `feature` that are under way, and when the oldest should be over.
    pub(super) fn open(&self, key: &str, feature: &FeatureName) -> (usize, Option<Instant>) {
        let open = self.by_key.get(key).and_then(|person| {
            let open = person.open.iter().find(|(name, _)| name == feature);
            open.map(|(_, open)| open)
        });
        let oldest = open.and_then(|open| open.values().next().copied());
        (open.map_or(0, BTreeMap::len), oldest)
    }

    /// Has `key` a request that no worker has taken yet?
    pub(super) fn waits(&self, key: &str) -> bool {
        let person = self.by_key.get(key);
        person.is_some_and(|person| person.held > usize::try_from(person.use_.slots).unwrap_or(usize::MAX))
    }

    /// Has `key` to stand back where others compete with it? Then when its
    /// oldest request should be over.
    pub(super) fn stands_back(
        &mut self,
        key: &str,
        contest: &Contest,
        lately: f64,
        now: Instant,
    ) -> Option<Option<Instant>> {
        let active = self.active(now, lately, contest.slots);
        let person = self.by_key.get_mut(key)?;
        person.use_.turn(now, lately);
        let weight = person.weight(active.people);
        let equal = weight / active.weight.max(weight);
        let wanted = person.use_.wanted(contest.slots);
        if wanted <= CLEARLY_MORE * equal * active.wanted.max(wanted) {
            return None;
        }
        let share = (contest.slots * equal).max(f64::MIN_POSITIVE);
        let since = now.saturating_duration_since(person.entered).as_secs_f64();
        let cap = share.floor().max(1.0) * contest.part;
        // Were one let in whenever it has none here, it would have one at every broker.
        let is_due = cap >= 1.0 || since * cap >= contest.wait + contest.slot_time;
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 requests")]
        let has_room = (person.held as f64) < cap.ceil() && is_due;
        let spare = (contest.slots / SPARE_ONE_IN).floor().max(1.0);
        let in_turn = since * share * contest.part >= contest.slot_time;
        if contest.idle >= 1.0 + spare || (has_room && (contest.idle >= 1.0 || in_turn)) {
            return None;
        }
        let oldest = person.open.iter().filter_map(|(_, open)| open.first_key_value());
        Some(oldest.min_by_key(|(ticket, _)| **ticket).map(|(_, due)| *due))
    }

    /// Is it worth asking who stands back?
    pub(super) fn is_contested(slots: f64, idle: f64) -> bool {
        idle < 1.0 + (slots / SPARE_ONE_IN).floor().max(1.0)
    }

    /// The active ones together; whoever is not any more is forgotten.
    pub(super) fn active(&mut self, now: Instant, lately: f64, slots: f64) -> Active {
        if let Some((at, active)) = self.counted
            && now.saturating_duration_since(at) < COUNT_FOR
        {
            return active;
        }
        self.by_key.retain(|_, person| {
            person.use_.turn(now, lately);
            person.is_active()
        });
        let everybody = || self.by_key.values();
        let people = everybody().filter(|person| !person.is_service()).count();
        #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2^52 people")]
        let people = people as f64;
        let active = Active {
            people,
            weight: everybody().map(|person| person.weight(people)).sum(),
            wanted: everybody().map(|person| person.use_.wanted(slots)).sum(),
        };
        self.counted = Some((now, active));
        active
    }

    /// Requests under way.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.by_key.values().map(|person| person.held).sum()
    }
}

/// What people compete for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contest {
    /// Slots of the lane.
    pub(super) slots: f64,
    /// Of these, those that surely nobody has or waits for.
    pub(super) idle: f64,
    /// Seconds that a newcomer waits for one.
    pub(super) wait: f64,
    /// Seconds that a slot is held.
    pub(super) slot_time: f64,
    /// This broker's part of all that is in line.
    pub(super) part: f64,
}

/// A change of a request that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) has_slot: bool,
    pub(super) due: Instant,
    pub(super) now: Instant,
}

#[cfg(test)]
mod tests;
