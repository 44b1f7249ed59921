//! The slots of one model server: how many requests it takes at once, and how
//! they are shared between lanes.
//!
//! A slot is taken before a delivery is accepted, travels with the job, and is
//! given back when it is dropped, whatever the way out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use duo_contract::name::Lane;
use prometheus::IntGauge;
use tokio::sync::Notify;

/// The slots of one model server.
#[derive(Debug)]
pub struct SlotPool {
    total: usize,
    held: Mutex<Held>,
    freed: Notify,
    in_use: IntGauge,
}

#[derive(Debug, Default)]
struct Held {
    keystroke: usize,
    /// Held by lanes below keystroke.
    lower: usize,
}

/// One slot, free again when dropped.
#[derive(Debug)]
pub struct Slot {
    pool: Arc<SlotPool>,
    lane: Lane,
}

impl SlotPool {
    /// A pool of `total` slots that shows its use in `in_use`.
    #[must_use]
    pub fn new(total: u32, in_use: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            total: usize::try_from(total).unwrap_or(usize::MAX),
            held: Mutex::default(),
            freed: Notify::new(),
            in_use,
        })
    }

    /// All slots.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Slots in use now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        let held = self.lock();
        held.keystroke + held.lower
    }

    /// Free slots that `lane` may take.
    #[must_use]
    pub fn room(&self, lane: Lane) -> usize {
        room(self.total, &self.lock(), lane)
    }

    /// Takes a slot for `lane` if it may have one.
    #[must_use]
    pub fn take(self: &Arc<Self>, lane: Lane) -> Option<Slot> {
        let mut held = self.lock();
        if room(self.total, &held, lane) == 0 {
            return None;
        }
        match lane {
            Lane::Keystroke => held.keystroke += 1,
            Lane::Interactive | Lane::Background => held.lower += 1,
        }
        self.in_use.inc();
        Some(Slot {
            pool: Arc::clone(self),
            lane,
        })
    }

    /// Returns when a slot has been given back since the last call.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keystroke may fill every slot; lower lanes leave it one in eight, at least
/// one, unless there is only one slot at all.
fn room(total: usize, held: &Held, lane: Lane) -> usize {
    let free = total.saturating_sub(held.keystroke + held.lower);
    match lane {
        Lane::Keystroke => free,
        Lane::Interactive | Lane::Background => {
            let kept = if total > 1 { (total / 8).max(1) } else { 0 };
            free.min(total.saturating_sub(kept + held.lower))
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.pool.lock();
        match self.lane {
            Lane::Keystroke => held.keystroke -= 1,
            Lane::Interactive | Lane::Background => held.lower -= 1,
        }
        drop(held);
        self.pool.in_use.dec();
        self.pool.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(total: u32) -> Arc<SlotPool> {
        SlotPool::new(total, IntGauge::new("slots", "Slots.").expect("a name"))
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
    fn a_single_slot_serves_every_lane() {
        let pool = pool(1);
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
}
