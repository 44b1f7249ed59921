//! A burst before a fleet that is played in its own time: is the time that a refusal states the time at which a
//! newcomer is admitted?

use std::collections::VecDeque;

use super::*;

/// How finely time is played.
const TICK: Duration = Duration::from_millis(2);
/// Ticks between looks at the queue.
const LOOK_EVERY: u32 = 50;
/// What the impatient feature waits for.
const PATIENCE_MS: u64 = 2000;

/// One broker, one server, and the stream between them.
struct Stage {
    admission: Admission,
    now: Instant,
    ticks: u32,
    slots: usize,
    slot_time: Duration,
    /// How long a slot is held is off by up to this part of it.
    jitter: f64,
    /// How much later the broker knows what it has stored, and the stream what is over.
    lag: Duration,
    /// Published, in order: since when.
    waiting: VecDeque<(Instant, Place)>,
    /// With a worker: when it had its first byte, and until when.
    served: Vec<(Instant, Instant, Option<Place>)>,
    random: u64,
}

impl Stage {
    fn new(slots: u32, slot_time: Duration, jitter: f64, lag: Duration) -> Self {
        let kept = duo_contract::presence::kept_for_keystroke(slots);
        Self {
            admission: admission(slots),
            now: Instant::now(),
            ticks: 0,
            slots: (slots - kept) as usize,
            slot_time,
            jitter,
            lag,
            waiting: VecDeque::new(),
            served: Vec::new(),
            random: 1,
        }
    }

    /// Between -1 and 1.
    fn random(&mut self) -> f64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        f64::from(u32::try_from(self.random >> 33).expect("31 bits")) / f64::from(1_u32 << 30) - 1.0
    }

    /// So many people ask at once and can wait.
    fn burst(&mut self, count: usize) {
        let patient = feature(Lane::Interactive, 600_000);
        for number in 0..count {
            let key = format!("{}-{number}", self.ticks);
            let place = self
                .admission
                .admit_at(asker(&key), &patient, &model(), self.now)
                .expect("room");
            self.waiting.push_back((self.now, place));
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        self.ticks += 1;
        let now = self.now;
        for (_, until, place) in &mut self.served {
            if *until <= now
                && let Some(place) = place.take()
            {
                place.first_byte(now);
                place.served(now);
            }
        }
        let lag = self.lag;
        self.served
            .retain(|(_, until, place)| place.is_some() || *until + lag > now);
        for (since, place) in &mut self.waiting {
            if *since + lag <= now {
                place.stored();
            }
        }
        let busy =
            |served: &[(_, _, Option<Place>)]| served.iter().filter(|(.., place)| place.is_some()).count();
        while busy(&self.served) < self.slots {
            let Some((_, mut place)) = self.waiting.pop_front() else {
                break;
            };
            place.claimed(now);
            let took = self.slot_time.mul_f64(1.0 + self.jitter * self.random());
            self.served.push((now, now + took, Some(place)));
        }
        if self.ticks.is_multiple_of(LOOK_EVERY) {
            let count = |count: usize| u64::try_from(count).expect("few");
            let (pending, held) = (count(self.waiting.len()), count(self.served.len()));
            self.admission
                .note_depth(Lane::Interactive, &model(), pending, held, now);
        }
    }

    fn play(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            self.tick();
        }
    }

    /// How somebody else in a hurry fares, who would ask now.
    fn hurry(&self) -> Result<(), ExchangeError> {
        let impatient = feature(Lane::Interactive, PATIENCE_MS);
        let key = format!("hurry-{}", self.ticks);
        self.admission
            .weigh(asker(&key), &impatient, &model(), self.now)
            .map(|_| ())
    }
}

/// A burst that takes `wait` seconds, and somebody in a hurry `after` it: the time stated, and after which it would have
/// been admitted.
fn stated_and_real(mut stage: Stage, wait: f64, after: Duration) -> (Duration, Duration) {
    // What it learns from.
    stage.burst(128);
    while !stage.served.is_empty() || !stage.waiting.is_empty() {
        stage.tick();
    }
    let rate = stage.slots as f64 / stage.slot_time.as_secs_f64();
    stage.burst((wait * rate) as usize);
    stage.play(after);
    let refused = stage.hurry().expect_err("a full lane");
    assert_eq!(refused.reason, "lane_full");
    let asked = stage.now;
    while stage.hurry().is_err() {
        stage.tick();
    }
    (refused.retry_after.expect("a time"), stage.now - asked)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn at_a_fixed_pace_who_retries_when_told_is_admitted_and_who_does_well_before_is_not(
        slots in 2_u32..24,
        slot_ms in 50_u64..800,
        lag_ms in 0_u64..60,
        wait in 5.5_f64..15.0,
        after_ms in 0_u64..300,
    ) {
        let stage = Stage::new(slots, Duration::from_millis(slot_ms), 0.0, Duration::from_millis(lag_ms));
        let (stated, real) = stated_and_real(stage, wait, Duration::from_millis(after_ms));
        // As the header says it.
        let seconds = stated.as_secs_f64().ceil();
        prop_assert!(real.as_secs_f64() <= seconds, "{stated:?} stated, admitted after {real:?}");
        prop_assert!(seconds < 4.0 || real.as_secs_f64() >= 0.7 * seconds, "{stated:?} stated, admitted after {real:?}");
    }

    #[test]
    fn at_a_varying_pace_the_stated_time_is_nearly_right(
        slots in 2_u32..24,
        slot_ms in 50_u64..800,
        jitter in 0.0_f64..0.3,
        lag_ms in 0_u64..60,
        wait in 5.5_f64..15.0,
    ) {
        let stage = Stage::new(slots, Duration::from_millis(slot_ms), jitter, Duration::from_millis(lag_ms));
        let (stated, real) = stated_and_real(stage, wait, Duration::ZERO);
        let part = real.as_secs_f64() / stated.as_secs_f64();
        prop_assert!((0.85..=1.15).contains(&part), "{stated:?} stated, admitted after {real:?}");
    }
}
