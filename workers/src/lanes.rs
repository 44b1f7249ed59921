//! Which consumer is pulled next: the lanes' order and their shares.
//!
//! Only decides; [`crate::consumer`] pulls. While slots are plentiful every
//! line keeps pulls waiting at the server. When they are scarce a freed slot
//! is offered in lane order by probes, pulls that are answered at once, so
//! that a lower lane is asked only when the higher one has nothing.

use std::time::Duration;

use duo_contract::name::Lane;
use duo_process::retry::RetryPolicy;
use tokio::time::Instant;

/// Most pulls of one consumer that wait at the server.
const MOST_WAITING: usize = 32;
/// Every so many probes the lower lane is asked first: its guaranteed share.
const LOWER_FIRST_EVERY: u32 = 8;
/// Pause after a consumer that is not there, growing to the cap.
const REST_BASE: Duration = Duration::from_millis(50);
const REST_CAP: Duration = Duration::from_millis(500);

/// How a pull behaves when nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// It stays at the server until a message comes.
    Waiting,
    /// It is answered at once.
    Probe,
}

/// The lines of one model server, one per consumer.
#[derive(Debug)]
pub struct Lines {
    lines: Vec<Line>,
    slots: usize,
    probes: u32,
    rest: RetryPolicy,
}

#[derive(Debug)]
struct Line {
    lane: Lane,
    waiting: usize,
    probing: usize,
    backlog: Backlog,
    /// Failed pulls in a row, and no pull before this moment.
    failures: u32,
    resting_until: Option<Instant>,
}

/// What is known about messages waiting for a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backlog {
    Unknown,
    Empty,
    Some(u64),
}

impl Lines {
    /// One line per lane given, for a server of `slots` slots.
    #[must_use]
    pub fn new(lanes: impl IntoIterator<Item = Lane>, slots: usize) -> Self {
        let line = |lane| Line {
            lane,
            waiting: 0,
            probing: 0,
            backlog: Backlog::Unknown,
            failures: 0,
            resting_until: None,
        };
        Self {
            lines: lanes.into_iter().map(line).collect(),
            slots,
            probes: 0,
            rest: RetryPolicy::try_new(REST_BASE, REST_CAP, u32::MAX).expect("valid constants"),
        }
    }

    /// The server's slots have become more or fewer.
    pub fn resize(&mut self, slots: usize) {
        self.slots = slots;
    }

    /// The pulls to send now, given the room that each lane has; they count as sent.
    pub fn plan(&mut self, room: impl Fn(Lane) -> usize, now: Instant) -> Vec<(usize, Pull)> {
        let free = room(Lane::Keystroke);
        let scarce = free < self.lines.len().max(self.slots / 4);
        let under_way: usize = self.lines.iter().map(|line| line.probing).sum();
        let mut unpromised = free.saturating_sub(under_way);
        let mut pulls = Vec::new();
        for (index, line) in self.lines.iter_mut().enumerate() {
            let want = room(line.lane).min(MOST_WAITING);
            if want == 0 {
                // By the time there is room again this will be stale.
                if line.waiting == 0 && line.backlog == Backlog::Empty {
                    line.backlog = Backlog::Unknown;
                }
                continue;
            }
            if line.resting_until.is_some_and(|until| until > now) {
                continue;
            }
            line.resting_until = None;
            if !scarce || line.backlog == Backlog::Empty {
                let more = want.saturating_sub(line.waiting + line.probing);
                line.waiting += more;
                pulls.extend(std::iter::repeat_n((index, Pull::Waiting), more));
            }
        }
        // Slot by slot, so that slots that come free together are shared as those that come one by one.
        while scarce && unpromised > 0 {
            let wants = |&index: &usize| self.lines[index].wants_probe(&room);
            let Some(index) = self.order().into_iter().find(wants) else {
                break;
            };
            self.lines[index].probing += 1;
            self.probes = self.probes.wrapping_add(1);
            unpromised -= 1;
            pulls.push((index, Pull::Probe));
        }
        pulls
    }

    /// A pull, if it is known which, brought a delivery, behind which `pending` messages wait.
    pub fn delivered(&mut self, index: usize, pull: Option<Pull>, pending: u64) {
        let line = match pull {
            Some(pull) => self.answered(index, pull),
            None => &mut self.lines[index],
        };
        line.failures = 0;
        line.backlog = if pending == 0 {
            Backlog::Empty
        } else {
            Backlog::Some(pending)
        };
    }

    /// The delivery just counted found no slot and went back.
    pub fn handed_back(&mut self, index: usize) {
        let backlog = &mut self.lines[index].backlog;
        *backlog = match *backlog {
            Backlog::Some(count) => Backlog::Some(count + 1),
            Backlog::Unknown | Backlog::Empty => Backlog::Some(1),
        };
    }

    /// A pull found nothing.
    pub fn empty(&mut self, index: usize, pull: Pull) {
        let line = self.answered(index, pull);
        line.failures = 0;
        line.backlog = Backlog::Empty;
    }

    /// A pull was lost with its connection or inbox.
    pub fn lost(&mut self, index: usize, pull: Pull) {
        self.answered(index, pull).backlog = Backlog::Unknown;
    }

    /// A pull was refused: the line rests. True for the first time in a row.
    pub fn refused(&mut self, index: usize, pull: Pull, now: Instant) -> bool {
        let rest = self.rest;
        let line = self.answered(index, pull);
        line.backlog = Backlog::Unknown;
        let resting = line.resting_until.is_some_and(|until| until > now);
        if !resting {
            line.failures = line.failures.saturating_add(1);
            // Never shorter than half the ceiling: there may be many workers and consumers.
            let pause = rest.delay(line.failures).max(rest.ceiling(line.failures) / 2);
            line.resting_until = Some(now + pause);
        }
        line.failures == 1 && !resting
    }

    /// The end of the earliest rest.
    #[must_use]
    pub fn rested_at(&self) -> Option<Instant> {
        self.lines.iter().filter_map(|line| line.resting_until).min()
    }

    /// Forgets rests: the connection is new.
    pub fn wake(&mut self) {
        for line in &mut self.lines {
            line.resting_until = None;
        }
    }

    fn answered(&mut self, index: usize, pull: Pull) -> &mut Line {
        let line = &mut self.lines[index];
        let count = match pull {
            Pull::Waiting => &mut line.waiting,
            Pull::Probe => &mut line.probing,
        };
        *count = count.saturating_sub(1);
        line
    }

    /// Lane order, the lowest first every so often; within a lane each line in turn, in the usual order as in the other.
    fn order(&self) -> Vec<usize> {
        let count = self.lines.len();
        let lower_turns = self.probes / LOWER_FIRST_EVERY;
        let is_lower_first = self.probes % LOWER_FIRST_EVERY == LOWER_FIRST_EVERY - 1;
        let turn = if is_lower_first {
            lower_turns
        } else {
            self.probes - lower_turns
        };
        let first = usize::try_from(turn).unwrap_or(0) % count.max(1);
        let mut order: Vec<usize> = (0..count).map(|offset| (first + offset) % count).collect();
        order.sort_by_key(|&index| self.lines[index].lane);
        if is_lower_first {
            order.reverse();
        }
        order
    }
}

impl Line {
    /// Has it messages, as far as is known, that no pull of its own will bring?
    fn wants_probe(&self, room: impl Fn(Lane) -> usize) -> bool {
        let backlog = match self.backlog {
            Backlog::Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Backlog::Unknown => 1,
            Backlog::Empty => return false,
        };
        let room = room(self.lane).min(MOST_WAITING).min(backlog);
        self.waiting == 0 && self.resting_until.is_none() && self.probing < room
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(slots: usize) -> Lines {
        Lines::new([Lane::Keystroke, Lane::Interactive], slots)
    }

    #[tokio::test]
    async fn with_many_free_slots_each_line_waits_with_as_many_pulls() {
        let mut lines = lines(8);
        let pulls = lines.plan(|_| 8, Instant::now());
        assert_eq!(pulls.iter().filter(|(line, _)| *line == 0).count(), 8);
        assert_eq!(pulls.iter().filter(|(line, _)| *line == 1).count(), 8);
        assert!(lines.plan(|_| 8, Instant::now()).is_empty());
        lines.delivered(1, Some(Pull::Waiting), 0);
        assert_eq!(lines.plan(|_| 8, Instant::now()), [(1, Pull::Waiting)]);
    }

    #[tokio::test]
    async fn a_scarce_slot_is_offered_to_keystroke_first() {
        let mut lines = lines(1);
        let now = Instant::now();
        assert_eq!(lines.plan(|_| 1, now), [(0, Pull::Probe)]);
        assert!(lines.plan(|_| 1, now).is_empty(), "the slot is promised");
        lines.empty(0, Pull::Probe);
        assert_eq!(lines.plan(|_| 1, now), [(0, Pull::Waiting), (1, Pull::Probe)]);
        lines.delivered(1, Some(Pull::Probe), 5);
        assert!(lines.plan(|_| 0, now).is_empty());
        // Keystroke's pull still waits, so it has nothing: the slot is interactive's.
        assert_eq!(lines.plan(|_| 1, now), [(1, Pull::Probe)]);
    }

    #[tokio::test]
    async fn the_lower_lane_has_a_guaranteed_share() {
        let mut lines = lines(1);
        let now = Instant::now();
        let mut served = [0, 0];
        for line in 0..2 {
            lines.lines[line].backlog = Backlog::Some(1000);
        }
        for _ in 0..80 {
            let pulls = lines.plan(|_| 1, now);
            assert_eq!(pulls.len(), 1);
            served[pulls[0].0] += 1;
            lines.delivered(pulls[0].0, Some(Pull::Probe), 1000);
        }
        assert_eq!(served, [70, 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_consumer_that_is_not_there_is_asked_again_within_half_a_second() {
        let mut lines = Lines::new([Lane::Interactive], 4);
        let pulls = lines.plan(|_| 4, Instant::now());
        let first: Vec<_> = pulls
            .iter()
            .map(|_| lines.refused(0, Pull::Waiting, Instant::now()))
            .collect();
        assert_eq!(first, [true, false, false, false]);
        for _ in 0..20 {
            assert!(lines.plan(|_| 4, Instant::now()).is_empty());
            let until = lines.rested_at().expect("resting");
            assert!(until <= Instant::now() + REST_CAP);
            tokio::time::sleep_until(until).await;
            assert_eq!(lines.plan(|_| 1, Instant::now()).len(), 1);
            assert!(!lines.refused(0, Pull::Waiting, Instant::now()), "said once");
        }
    }

    proptest! {
        /// However many slots come free at once and however many models share them: where every line has work, the
        /// lower lane has one slot in eight and no more, and each line of a lane about as many as the others.
        #[test]
        fn the_shares_hold_however_slots_come_free(
            models in 1..5_usize,
            freed in proptest::collection::vec(1..4_usize, 300..400),
        ) {
            let lanes = (0..models).flat_map(|_| [Lane::Keystroke, Lane::Interactive]);
            let mut lines = Lines::new(lanes, 16);
            let now = Instant::now();
            for line in &mut lines.lines {
                line.backlog = Backlog::Some(1000);
            }
            let mut served = vec![0_usize; 2 * models];
            for count in freed {
                let pulls = lines.plan(|_| count, now);
                prop_assert_eq!(pulls.len(), count);
                for (index, pull) in pulls {
                    prop_assert_eq!(pull, Pull::Probe);
                    served[index] += 1;
                    lines.delivered(index, Some(Pull::Probe), 1000);
                }
            }
            let all: usize = served.iter().sum();
            let lower: usize = served.iter().skip(1).step_by(2).sum();
            prop_assert_eq!(lower, all / 8, "{:?}", served);
            for lane in 0..2 {
                let of_lane: Vec<_> = served.iter().skip(lane).step_by(2).collect();
                let (least, most) = (of_lane.iter().min(), of_lane.iter().max());
                prop_assert!(most.zip(least).is_some_and(|(most, least)| **most - **least <= 2), "{served:?}");
            }
        }

        /// A server under any load: pulls never go beyond a line's room, probes never beyond the free slots, and
        /// whatever waits is served in the end.
        #[test]
        fn no_line_starves_and_no_pull_goes_beyond_the_room(
            slots in 1..12_usize,
            queued in proptest::collection::vec(0..60_u64, 2),
            holds in 1..6_usize,
        ) {
            let mut lines = lines(slots);
            let now = Instant::now();
            let mut left = queued.clone();
            let mut running: Vec<usize> = Vec::new();
            let mut waiting: Vec<(usize, Pull)> = Vec::new();
            let mut turns = 0;
            while left.iter().sum::<u64>() > 0 {
                turns += 1;
                prop_assert!(turns < 2000, "something waits for ever: {left:?}");
                running.iter_mut().for_each(|time| *time -= 1);
                running.retain(|time| *time > 0);
                let free = slots - running.len();
                for (index, pull) in lines.plan(|_| free, now) {
                    waiting.push((index, pull));
                }
                let probes = waiting.iter().filter(|(_, pull)| *pull == Pull::Probe).count();
                prop_assert!(probes <= slots);
                for index in 0..2 {
                    let of_line = waiting.iter().filter(|(line, _)| *line == index).count();
                    prop_assert!(of_line <= slots, "{of_line} pulls of line {index}");
                }
                let mut kept = Vec::new();
                for (index, pull) in std::mem::take(&mut waiting) {
                    if left[index] > 0 {
                        left[index] -= 1;
                        lines.delivered(index, Some(pull), left[index]);
                        if running.len() < slots {
                            running.push(holds);
                        } else {
                            left[index] += 1;
                            lines.handed_back(index);
                        }
                    } else if pull == Pull::Probe {
                        lines.empty(index, pull);
                    } else {
                        kept.push((index, pull));
                    }
                }
                waiting = kept;
            }
        }
    }
}
