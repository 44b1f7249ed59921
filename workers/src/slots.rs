//! The slots of one model server: how many requests it takes at once, and how
//! they are shared between lanes.
//!
//! A slot is taken before a delivery is accepted, travels with the job, and is
//! given back when it is dropped, whatever the way out. How many there are may
//! change while some are held ([`auto`] says when): fewer take effect as held
//! ones come back.

pub mod auto;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duo_contract::name::Lane;
use duo_contract::presence::kept_for_keystroke;
use prometheus::IntGauge;
use tokio::sync::Notify;

/// The slots of one model server.
#[derive(Debug)]
pub struct SlotPool {
    state: Mutex<State>,
    freed: Notify,
    gauges: SlotGauges,
}

/// Where a pool shows its state.
#[derive(Debug, Clone)]
pub struct SlotGauges {
    /// All slots.
    pub total: IntGauge,
    /// Slots in use.
    pub in_use: IntGauge,
}

/// How a pool has been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Slots in use now; more than there are while fewer are to take effect.
    pub in_use: usize,
    /// Has a lane found no room since this was last asked?
    pub was_full: bool,
}

#[derive(Debug)]
struct State {
    total: usize,
    keystroke: usize,
    /// Held by lanes below keystroke.
    lower: usize,
    /// Of these, held by background work.
    background: usize,
    was_full: bool,
}

/// One slot, free again when dropped.
#[derive(Debug)]
pub struct Slot {
    pool: Arc<SlotPool>,
    lane: Lane,
}

impl SlotPool {
    /// A pool of `total` slots.
    #[must_use]
    pub fn new(total: usize, gauges: SlotGauges) -> Arc<Self> {
        gauges.total.set(gauge_value(total));
        let state = State {
            total,
            keystroke: 0,
            lower: 0,
            background: 0,
            was_full: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            freed: Notify::new(),
            gauges,
        })
    }

    /// All slots.
    #[must_use]
    pub fn total(&self) -> usize {
        self.lock().total
    }

    /// Slots in use now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.lock().in_use()
    }

    /// How it has been used since this was last asked.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut state = self.lock();
        Usage {
            in_use: state.in_use(),
            was_full: std::mem::take(&mut state.was_full),
        }
    }

    /// Changes the number of slots; held ones stay held.
    pub fn resize(&self, total: usize) {
        let mut state = self.lock();
        let grows = total > state.total;
        state.total = total;
        drop(state);
        self.gauges.total.set(gauge_value(total));
        if grows {
            self.freed.notify_one();
        }
    }

    /// Free slots that `lane` may take.
    #[must_use]
    pub fn room(&self, lane: Lane) -> usize {
        self.lock().room(lane)
    }

    /// Takes a slot for `lane` if it may have one.
    #[must_use]
    pub fn take(self: &Arc<Self>, lane: Lane) -> Option<Slot> {
        let mut state = self.lock();
        if state.room(lane) == 0 {
            state.was_full = true;
            return None;
        }
        match lane {
            Lane::Keystroke => state.keystroke += 1,
            Lane::Interactive | Lane::Background => state.lower += 1,
        }
        state.background += usize::from(lane == Lane::Background);
        state.was_full |= state.room(lane) == 0;
        drop(state);
        self.gauges.in_use.inc();
        Some(Slot {
            pool: Arc::clone(self),
            lane,
        })
    }

    /// Returns when a slot has been given back, or slots have been added, since the last call.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn in_use(&self) -> usize {
        self.keystroke + self.lower
    }

    /// Keystroke may fill every slot; lower lanes leave it one in eight, at least
    /// one, unless there is only one slot at all. Background work leaves a quarter
    /// to people: its requests are long, and end together when they begin together.
    fn room(&self, lane: Lane) -> usize {
        let free = self.total.saturating_sub(self.in_use());
        match lane {
            Lane::Keystroke => free,
            Lane::Interactive | Lane::Background => {
                let slots = u32::try_from(self.total).unwrap_or(u32::MAX);
                let kept = usize::try_from(kept_for_keystroke(slots)).unwrap_or(usize::MAX);
                let room = free.min(self.total.saturating_sub(kept.saturating_add(self.lower)));
                if lane == Lane::Interactive {
                    return room;
                }
                let for_people = kept.max(self.total / 4);
                room.min(
                    self.total
                        .saturating_sub(for_people.saturating_add(self.background)),
                )
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        match self.lane {
            Lane::Keystroke => state.keystroke -= 1,
            Lane::Interactive | Lane::Background => state.lower -= 1,
        }
        state.background -= usize::from(self.lane == Lane::Background);
        drop(state);
        self.pool.gauges.in_use.dec();
        self.pool.freed.notify_one();
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(total: usize) -> Arc<SlotPool> {
        let gauge = |name| IntGauge::new(name, "Slots.").expect("a name");
        SlotPool::new(
            total,
            SlotGauges {
                total: gauge("slots"),
                in_use: gauge("slots_in_use"),
            },
        )
    }

    #[test]
    fn keystroke_keeps_one_slot_in_eight() {
        let pool = pool(8);
        let held: Vec<_> = std::iter::from_fn(|| pool.take(Lane::Interactive)).collect();
        assert_eq!(held.len(), 7);
        let last = pool.take(Lane::Keystroke).expect("the kept slot");
        assert!(pool.take(Lane::Keystroke).is_none());
        drop(last);
        assert_eq!((pool.room(Lane::Keystroke), pool.room(Lane::Interactive)), (1, 0));
    }

    #[test]
    fn background_work_leaves_a_quarter_to_people() {
        let pool = pool(16);
        let jobs: Vec<_> = std::iter::from_fn(|| pool.take(Lane::Background)).collect();
        assert_eq!(jobs.len(), 12);
        let people: Vec<_> = std::iter::from_fn(|| pool.take(Lane::Interactive)).collect();
        assert_eq!(people.len(), 2, "two are kept for completions");
        drop(jobs);
        assert_eq!(
            (pool.room(Lane::Background), pool.room(Lane::Interactive)),
            (12, 12)
        );
    }

    #[test]
    fn a_single_slot_serves_every_lane() {
        let pool = pool(1);
        drop(pool.take(Lane::Background).expect("a slot"));
        let slot = pool.take(Lane::Interactive).expect("a slot");
        assert!(pool.take(Lane::Keystroke).is_none());
        drop(slot);
        assert!(pool.take(Lane::Keystroke).is_some());
    }

    #[tokio::test]
    async fn a_dropped_slot_is_free_and_wakes_the_consumer() {
        let pool = pool(2);
        let slot = pool.take(Lane::Keystroke);
        assert_eq!(pool.in_use(), 1);
        drop(slot);
        pool.freed().await;
        assert_eq!(pool.in_use(), 0);
    }

    #[tokio::test]
    async fn added_slots_wake_the_consumer_and_removed_ones_go_as_they_come_back() {
        let pool = pool(1);
        let first = pool.take(Lane::Keystroke);
        assert!(pool.usage().was_full);
        assert!(!pool.usage().was_full, "asked since");
        pool.resize(3);
        pool.freed().await;
        let second = pool.take(Lane::Keystroke);
        pool.resize(1);
        assert_eq!((pool.in_use(), pool.room(Lane::Keystroke)), (2, 0));
        drop(first);
        assert!(
            pool.take(Lane::Keystroke).is_none(),
            "the other slot is the only one"
        );
        drop(second);
        assert_eq!(pool.room(Lane::Keystroke), 1);
    }

    #[derive(Debug, Clone)]
    enum Turn {
        Take(Lane),
        Drop(usize),
        Resize(usize),
    }

    fn turn() -> impl Strategy<Value = Turn> {
        let lane = prop_oneof![
            Just(Lane::Keystroke),
            Just(Lane::Interactive),
            Just(Lane::Background)
        ];
        prop_oneof![
            3 => lane.prop_map(Turn::Take),
            2 => any::<usize>().prop_map(Turn::Drop),
            1 => (1..40_usize).prop_map(Turn::Resize),
        ]
    }

    proptest! {
        #[test]
        fn no_slot_leaks_however_the_number_changes(
            total in 1..40_usize,
            turns in proptest::collection::vec(turn(), 1..200),
        ) {
            let pool = pool(total);
            let mut held = Vec::new();
            for turn in turns {
                match turn {
                    Turn::Take(lane) => {
                        let room = pool.room(lane);
                        let slot = pool.take(lane);
                        prop_assert_eq!(slot.is_some(), room > 0);
                        if slot.is_some() {
                            prop_assert!(held.len() < pool.total(), "never more than there are");
                        }
                        held.extend(slot);
                    }
                    Turn::Drop(index) if !held.is_empty() => drop(held.swap_remove(index % held.len())),
                    Turn::Drop(_) => {}
                    Turn::Resize(total) => pool.resize(total),
                }
                prop_assert_eq!(pool.in_use(), held.len());
                prop_assert!(pool.room(Lane::Background) <= pool.room(Lane::Interactive));
                prop_assert!(pool.room(Lane::Interactive) <= pool.room(Lane::Keystroke));
            }
            held.clear();
            prop_assert_eq!(pool.room(Lane::Keystroke), pool.total());
            prop_assert_eq!(pool.gauges.in_use.get(), 0);
        }
    }
}
