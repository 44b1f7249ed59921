//! How long a slot is held, and how long a newcomer waits for one. Plain
//! arithmetic, in seconds.

use std::time::{Duration, Instant};

/// The quick mean forgets with this time constant, so that a change is followed within seconds.
const QUICK: Memory = Memory {
    span: 1.0,
    least: 8.0,
};
/// The steady mean forgets with this one, so that a steady load is known within a few percent.
const STEADY: Memory = Memory {
    span: 10.0,
    least: 32.0,
};
/// The load has changed when the two means are apart by so many standard errors.
const CHANGED: f64 = 3.0;
/// A sample is far from the mean by so many standard deviations, and the load has changed after so many such in a row.
const FAR: f64 = 3.0;
const FAR_IN_A_ROW: f64 = 4.0;
/// Halvings of the interval in which a wait is looked for: to a microsecond in a second.
const HALVINGS: usize = 24;

/// How fast a mean forgets.
#[derive(Debug, Clone, Copy)]
struct Memory {
    /// Time constant, seconds.
    span: f64,
    /// So many samples are kept however old they are.
    least: f64,
}

/// A mean of durations that forgets.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    count: f64,
    sum: f64,
    squares: f64,
    at: Option<Instant>,
}

impl Mean {
    fn note(&mut self, seconds: f64, now: Instant, memory: Memory) {
        let since = self
            .at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let kept = (-since.as_secs_f64() / memory.span).exp();
        let kept = kept.max((memory.least / self.count).min(1.0));
        self.count = self.count * kept + 1.0;
        self.sum = self.sum * kept + seconds;
        self.squares = self.squares * kept + seconds * seconds;
        self.at = Some(now);
    }

    fn mean(&self) -> f64 {
        self.sum / self.count
    }

    fn deviation(&self) -> f64 {
        let variance = self.squares / self.count - self.mean().powi(2);
        variance.max(0.0).sqrt()
    }

    fn standard_error(&self) -> f64 {
        self.deviation() / self.count.sqrt()
    }
}

/// How long something usually takes: the mean of what was seen, or a guess
/// before anything was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usual {
    quick: Mean,
    steady: Mean,
    /// The newest samples, if each is far from the steady mean.
    far: Mean,
    guess: f64,
}

impl Usual {
    pub(super) fn new(guess: Duration) -> Self {
        Self {
            quick: Mean::default(),
            steady: Mean::default(),
            far: Mean::default(),
            guess: guess.as_secs_f64(),
        }
    }

    pub(super) fn note(&mut self, took: Duration, now: Instant) {
        let seconds = took.as_secs_f64();
        if self.is_far(seconds) {
            self.far.note(seconds, now, QUICK);
        } else {
            self.far = Mean::default();
        }
        if self.far.count >= FAR_IN_A_ROW {
            // What was seen before tells nothing any more, however few samples there are in a second.
            self.quick = self.far;
            self.steady = self.far;
            self.far = Mean::default();
            return;
        }
        self.quick.note(seconds, now, QUICK);
        self.steady.note(seconds, now, STEADY);
        let apart = (self.quick.mean() - self.steady.mean()).abs();
        if self.quick.count >= QUICK.least && apart > CHANGED * self.quick.standard_error() {
            self.steady = self.quick;
        }
    }

    fn is_far(&self, seconds: f64) -> bool {
        self.steady.count >= QUICK.least
            && (seconds - self.steady.mean()).abs() > FAR * self.steady.deviation()
    }

    /// In seconds.
    pub(super) fn seconds(&self) -> f64 {
        if self.steady.count > 0.0 {
            self.steady.mean()
        } else {
            self.guess
        }
    }
}

/// When a slot that was taken `age` seconds ago will be free, in seconds. One
/// that has outlived the usual time is taken to go on for as long again as it
/// is over: that follows a model server that has become slow before anything ends there.
pub(super) fn left(age: f64, usual: f64) -> f64 {
    (usual - age).abs()
}

/// Slots that are free after so many seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Free {
    pub(super) after: f64,
    /// How many; it need not be whole, since a few may stand for many.
    pub(super) count: f64,
}

/// Seconds until a newcomer has a slot when `ahead` requests stand before it,
/// each of which holds a slot for `slot_time`. That is `ahead` × `slot_time` ÷
/// slots, but exact about the round under way: slots that were taken together
/// are free together.
pub(super) fn wait(ahead: f64, slot_time: f64, slots: &[Free]) -> f64 {
    /// Counts are sums of fractions.
    const ROUNDING: f64 = 1e-6;
    let total: f64 = slots.iter().map(|free| free.count).sum();
    let needed = ahead.max(0.0) + 1.0 - ROUNDING;
    if total <= 0.0 {
        return 0.0;
    }
    let slot_time = slot_time.max(1e-6);
    let turns_by = |seconds: f64| -> f64 {
        let open = slots.iter().filter(|free| free.after <= seconds);
        open.map(|free| free.count * (((seconds - free.after) / slot_time).floor() + 1.0))
            .sum()
    };
    if turns_by(0.0) >= needed {
        return 0.0;
    }
    let last = slots.iter().map(|free| free.after).fold(0.0, f64::max);
    let (mut early, mut late) = (0.0, last + slot_time * (needed / total).ceil());
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(early, late);
        if turns_by(middle) >= needed {
            late = middle;
        } else {
            early = middle;
        }
    }
    late
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(usual: &mut Usual, from: Instant, samples: impl IntoIterator<Item = (f64, f64)>) {
        for (at, took) in samples {
            usual.note(Duration::from_secs_f64(took), from + Duration::from_secs_f64(at));
        }
    }

    #[test]
    fn before_anything_was_seen_the_guess_counts_and_then_no_more() {
        let mut usual = Usual::new(Duration::from_millis(500));
        assert!((usual.seconds() - 0.5).abs() < 1e-9);
        feed(&mut usual, Instant::now(), [(0.0, 4.0)]);
        assert!((usual.seconds() - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_steady_load_is_known_within_a_few_percent() {
        let mut usual = Usual::new(Duration::ZERO);
        // Times between 0.1 s and 1.9 s, their order scrambled; 50 a second.
        let times = (0..2000_u32).map(|i| {
            let part = f64::from(i.wrapping_mul(2_654_435_761) % 1000) / 1000.0;
            (f64::from(i) / 50.0, 0.1 + 1.8 * part)
        });
        let start = Instant::now();
        let mut worst: f64 = 0.0;
        for (number, sample) in times.enumerate() {
            feed(&mut usual, start, [sample]);
            if number > 200 {
                worst = worst.max((usual.seconds() - 1.0).abs());
            }
        }
        assert!(worst < 0.12, "{worst}");
    }

    #[test]
    fn a_change_is_followed_within_seconds() {
        let mut usual = Usual::new(Duration::ZERO);
        let start = Instant::now();
        feed(&mut usual, start, (0..2000).map(|i| (f64::from(i) / 100.0, 0.1)));
        feed(
            &mut usual,
            start,
            (0..500).map(|i| (20.0 + f64::from(i) / 100.0, 0.4)),
        );
        assert!((usual.seconds() / 0.4 - 1.0).abs() < 0.06, "{}", usual.seconds());
    }

    #[test]
    fn a_great_change_is_followed_at_once_however_rare_samples_are() {
        let mut usual = Usual::new(Duration::ZERO);
        let start = Instant::now();
        // Between 0.38 s and 0.42 s.
        let before = (0..200_u32).map(|i| (f64::from(i) / 10.0, 0.38 + 0.01 * f64::from(i % 5)));
        feed(&mut usual, start, before);
        feed(&mut usual, start, [(30.0, 5.5), (30.0, 5.5), (30.0, 5.5)]);
        assert!(usual.seconds() < 1.0, "three may be chance: {}", usual.seconds());
        feed(&mut usual, start, [(30.0, 5.5)]);
        assert!((usual.seconds() - 5.5).abs() < 1e-6, "{}", usual.seconds());
    }

    #[test]
    fn slots_that_were_taken_together_are_free_together() {
        let together = [Free {
            after: 0.7,
            count: 4.0,
        }];
        let in_turn: Vec<_> = (1..=4)
            .map(|turn| Free {
                after: f64::from(turn) / 4.0,
                count: 1.0,
            })
            .collect();
        let near = |left: f64, right: f64| assert!((left - right).abs() < 1e-4, "{left} is not {right}");
        near(wait(0.0, 1.0, &together), 0.7);
        near(wait(3.0, 1.0, &together), 0.7);
        near(wait(4.0, 1.0, &together), 1.7);
        near(wait(0.0, 1.0, &in_turn), 0.25);
        near(wait(4.0, 1.0, &in_turn), 1.25);
        near(wait(39.0, 1.0, &in_turn), 10.0);
        near(
            wait(
                0.0,
                1.0,
                &[Free {
                    after: 0.0,
                    count: 1.0,
                }],
            ),
            0.0,
        );
        near(wait(9.0, 1.0, &[]), 0.0);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_negative_and_never_shorter_behind_more(
            ahead in 0.0_f64..1e5,
            more in 0.0_f64..1e3,
            slot_time in 0.0_f64..600.0,
            slots in proptest::collection::vec((0.0_f64..600.0, 0.0_f64..100.0), 0..20),
        ) {
            let slots: Vec<_> = slots.into_iter().map(|(after, count)| Free { after, count }).collect();
            let short = wait(ahead, slot_time, &slots);
            let long = wait(ahead + more, slot_time, &slots);
            prop_assert!(short.is_finite() && short >= 0.0);
            prop_assert!(long >= short - 1e-3 * long.max(1.0), "{long} < {short}");
        }

        #[test]
        fn a_mean_lies_between_what_was_seen(samples in proptest::collection::vec((0.0_f64..5.0, 0.0_f64..100.0), 1..200)) {
            let (mut usual, mut at) = (Usual::new(Duration::from_secs(7)), Instant::now());
            for (pause, took) in &samples {
                at += Duration::from_secs_f64(*pause);
                usual.note(Duration::from_secs_f64(*took), at);
            }
            let least = samples.iter().map(|(_, took)| *took).fold(f64::MAX, f64::min);
            let most = samples.iter().map(|(_, took)| *took).fold(0.0, f64::max);
            prop_assert!(usual.seconds() >= least - 1e-6 && usual.seconds() <= most + 1e-6);
        }
    }
}
