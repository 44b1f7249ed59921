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

/// Most messages of one consumer that pulls at the server wait for.
const MOST_WAITING: usize = 32;
/// What waits is topped up when so large a part of it is gone: a pull for each message would cost as much as the message.
const TOP_UP_PART: usize = 4;
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

/// What is asked of one consumer, or was: pulls of one kind, for so many messages together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// How they behave.
    pub pull: Pull,
    /// Messages.
    pub count: usize,
}

impl Ask {
    const PROBE: Self = Self {
        pull: Pull::Probe,
        count: 1,
    };
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
    /// Messages that pulls at the server wait for.
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
    pub fn plan(&mut self, room: impl Fn(Lane) -> usize, now: Instant) -> Vec<(usize, Ask)> {
        let rooms = Lane::ALL.map(room);
        let room = |lane: Lane| rooms[lane as usize];
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
                if line.waiting == 0 || more > want / TOP_UP_PART {
                    line.waiting += more;
                    let pull = Pull::Waiting;
                    pulls.extend((more > 0).then_some((index, Ask { pull, count: more })));
                }
            }
        }
        // Slot by slot, so that slots that come free together are shared as those that come one by one.
        while scarce && unpromised > 0 {
            let Some(index) = self.next_probe(room) else {
                break;
            };
            self.lines[index].probing += 1;
            self.probes = self.probes.wrapping_add(1);
            unpromised -= 1;
            pulls.push((index, Ask::PROBE));
        }
        pulls
    }

    /// A pull, if it is known which, brought a delivery, behind which `pending` messages wait.
    pub fn delivered(&mut self, index: usize, pull: Option<Pull>, pending: u64) {
        let line = match pull {
            Some(pull) => self.answered(index, Ask { pull, count: 1 }),
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

    /// Pulls found nothing more.
    pub fn empty(&mut self, index: usize, ask: Ask) {
        let line = self.answered(index, ask);
        line.failures = 0;
        line.backlog = Backlog::Empty;
    }

    /// Pulls were lost with their connection or inbox.
    pub fn lost(&mut self, index: usize, ask: Ask) {
        self.answered(index, ask).backlog = Backlog::Unknown;
    }

    /// A pull was refused: the line rests. True for the first time in a row.
    pub fn refused(&mut self, index: usize, ask: Ask, now: Instant) -> bool {
        let rest = self.rest;
        let line = self.answered(index, ask);
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

    fn answered(&mut self, index: usize, Ask { pull, count }: Ask) -> &mut Line {
        let line = &mut self.lines[index];
        let left = match pull {
            Pull::Waiting => &mut line.waiting,
            Pull::Probe => &mut line.probing,
        };
        *left = left.saturating_sub(count);
        line
    }

    /// The line that the next slot is offered to, if one wants it: in lane order, the lowest first every so often;
    /// within a lane each line in turn, in the usual order as in the other.
    fn next_probe(&self, room: impl Fn(Lane) -> usize) -> Option<usize> {
        let count = self.lines.len();
        let lower_turns = self.probes / LOWER_FIRST_EVERY;
        let is_lower_first = self.probes % LOWER_FIRST_EVERY == LOWER_FIRST_EVERY - 1;
        let turn = if is_lower_first {
            lower_turns
        } else {
            self.probes - lower_turns
        };
        let first = usize::try_from(turn).unwrap_or(0) % count.max(1);
        let wants = |index: &usize| self.lines[*index].wants_probe(&room);
        let willing = (0..count).map(|offset| (first + offset) % count).filter(wants);
        if is_lower_first {
            willing.max_by_key(|&index| self.lines[index].lane)
        } else {
            willing.min_by_key(|&index| self.lines[index].lane)
        }
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

    fn waiting(index: usize, count: usize) -> (usize, Ask) {
        let pull = Pull::Waiting;
        (index, Ask { pull, count })
    }

    fn probe(index: usize) -> (usize, Ask) {
        (index, Ask::PROBE)
    }

    #[tokio::test]
    async fn with_many_free_slots_each_line_waits_for_as_many_messages_and_is_topped_up() {
        let mut lines = lines(8);
        let now = Instant::now();
        assert_eq!(lines.plan(|_| 8, now), [waiting(0, 8), waiting(1, 8)]);
        assert!(lines.plan(|_| 8, now).is_empty());
        for _ in 0..2 {
            lines.delivered(1, Some(Pull::Waiting), 0);
            assert!(lines.plan(|_| 8, now).is_empty(), "enough waits");
        }
        lines.delivered(1, Some(Pull::Waiting), 0);
        assert_eq!(lines.plan(|_| 8, now), [waiting(1, 3)]);
        lines.empty(0, waiting(0, 8).1);
        assert_eq!(lines.plan(|_| 8, now), [waiting(0, 8)]);
    }

    #[tokio::test]
    async fn a_scarce_slot_is_offered_to_keystroke_first() {
        let mut lines = lines(1);
        let now = Instant::now();
        assert_eq!(lines.plan(|_| 1, now), [probe(0)]);
        assert!(lines.plan(|_| 1, now).is_empty(), "the slot is promised");
        lines.empty(0, Ask::PROBE);
        assert_eq!(lines.plan(|_| 1, now), [waiting(0, 1), probe(1)]);
        lines.delivered(1, Some(Pull::Probe), 5);
        assert!(lines.plan(|_| 0, now).is_empty());
        // Keystroke's pull still waits, so it has nothing: the slot is interactive's.
        assert_eq!(lines.plan(|_| 1, now), [probe(1)]);
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
        let ask = waiting(0, 4).1;
        assert_eq!(lines.plan(|_| 4, Instant::now()), [(0, ask)]);
        assert!(lines.refused(0, ask, Instant::now()));
        for _ in 0..20 {
            assert!(lines.plan(|_| 4, Instant::now()).is_empty());
            let until = lines.rested_at().expect("resting");
            assert!(until <= Instant::now() + REST_CAP);
            tokio::time::sleep_until(until).await;
            let again = lines.plan(|_| 1, Instant::now());
            assert_eq!(again.len(), 1);
            assert!(!lines.refused(0, again[0].1, Instant::now()), "said once");
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
                for (index, ask) in pulls {
                    prop_assert_eq!(ask, Ask::PROBE);
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
                for (index, Ask { pull, count }) in lines.plan(|_| free, now) {
                    waiting.extend(std::iter::repeat_n((index, pull), count));
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
                        lines.empty(index, Ask::PROBE);
                    } else {
                        kept.push((index, pull));
                    }
                }
                waiting = kept;
            }
        }
    }
}
