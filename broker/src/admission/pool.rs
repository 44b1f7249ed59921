//! What is ahead of a newcomer of one lane: the lanes of every model that its
//! model shares slots with.

use super::estimate::{self, Free};
use super::line::Load;

/// Lower lanes are offered one freed slot in so many first, as workers do.
const LOWER_FIRST_EVERY: f64 = 8.0;

/// What a newcomer finds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prospect {
    /// Seconds until it has a slot.
    pub(super) wait: f64,
    /// Seconds from then on to its first byte.
    pub(super) first_byte: f64,
    /// Slots that its lane may have.
    pub(super) slots: f64,
    /// Of these, those that nobody has or waits for.
    pub(super) idle: f64,
}

/// The work of all models that share slots.
#[derive(Debug)]
pub(super) struct Pool {
    queued: [f64; 3],
    /// Slot seconds of what is queued.
    work: [f64; 3],
    /// The slot time to use where nothing is queued.
    usual: [f64; 3],
    running: [f64; 3],
    slots: [Vec<Free>; 3],
}

impl Pool {
    pub(super) fn new(own: &[Load; 3]) -> Self {
        let mut pool = Self {
            queued: [0.0; 3],
            work: [0.0; 3],
            usual: [0, 1, 2].map(|lane| own[lane].slot_time),
            running: [0.0; 3],
            slots: Default::default(),
        };
        pool.add(own, 1.0);
        pool
    }

    pub(super) fn add(&mut self, loads: &[Load; 3], part: f64) {
        for (lane, load) in loads.iter().enumerate() {
            self.queued[lane] += load.queued * part;
            self.work[lane] += load.queued * load.slot_time * part;
            self.running[lane] += load.running * part;
            let slots = load.slots.iter().map(|free| Free {
                count: free.count * part,
                ..*free
            });
            self.slots[lane].extend(slots);
        }
    }

    /// Keystroke may have every slot, and is offered all but the lower lanes' share first.
    pub(super) fn first_lane(&self, slots: f64) -> Prospect {
        let idle = slots - self.running.iter().sum::<f64>();
        let lower_waits = self.queued[1] + self.queued[2] > 0.0;
        let share = if lower_waits {
            LOWER_FIRST_EVERY / (LOWER_FIRST_EVERY - 1.0)
        } else {
            1.0
        };
        let all = self.slots.iter().flatten().copied();
        Prospect {
            wait: wait(self.queued[0] * share, self.slot_time(0..=0), all, idle),
            first_byte: 0.0,
            slots,
            idle: idle - self.queued[0],
        }
    }

    /// The lanes below share what keystroke leaves them: never the slots that
    /// are kept for it, but always a few.
    pub(super) fn lower_lane(&self, slots: f64, kept: f64, lane: usize) -> Prospect {
        let keystroke = self.running[0] + self.queued[0];
        let least = (slots / LOWER_FIRST_EVERY).max(1.0).min(slots);
        let serving = (slots - keystroke.max(kept)).clamp(least, slots);
        // Keystroke's requests in slots that these lanes count on.
        let lent = (keystroke + serving - slots).clamp(0.0, serving);
        let running = self.running[1] + self.running[2];
        let scale = if running > serving { serving / running } else { 1.0 };
        let below = self.slots[1..].iter().flatten().map(|free| Free {
            count: free.count * scale,
            ..*free
        });
        let lent = Free {
            after: self.slot_time(0..=0),
            count: (lent - running * (1.0 - scale)).clamp(0.0, serving),
        };
        let idle = serving - running * scale - lent.count;
        let ahead: f64 = self.queued[1..=lane].iter().sum();
        let busy = below.chain(std::iter::once(lent));
        Prospect {
            wait: wait(ahead, self.slot_time(1..=lane), busy, idle),
            first_byte: 0.0,
            slots: serving,
            idle: idle - ahead,
        }
    }

    /// The mean slot time of what is queued in these lanes.
    fn slot_time(&self, lanes: std::ops::RangeInclusive<usize>) -> f64 {
        let queued: f64 = self.queued[lanes.clone()].iter().sum();
        if queued > 0.0 {
            self.work[lanes].iter().sum::<f64>() / queued
        } else {
            self.usual[*lanes.end()]
        }
    }
}

fn wait(ahead: f64, slot_time: f64, busy: impl Iterator<Item = Free>, idle: f64) -> f64 {
    let mut slots: Vec<Free> = busy.collect();
    slots.push(Free {
        after: 0.0,
        count: idle.max(0.0),
    });
    estimate::wait(ahead, slot_time, &slots)
}
