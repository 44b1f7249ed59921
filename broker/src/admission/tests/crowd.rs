//! A crowd before several brokers that share one server, played in its own time: how long do nine people wait when the
//! tenth asks fifty times as often as each of them?

use std::collections::VecDeque;

use super::*;

/// How finely time is played.
const TICK: Duration = Duration::from_millis(1);
/// Ticks between a broker's looks at the queue under pressure, how many of these it leaves out without, and how long it
/// takes until it has the answer.
const LOOK_EVERY: usize = 100;
const LOOKS_LEFT_OUT: usize = 10;
const LOOK_TAKES: usize = 3;
/// Until a worker can have what was admitted, and until a broker knows that a worker has it.
const STORING: Duration = Duration::from_millis(3);
const TELLING: Duration = Duration::from_millis(2);
/// Until the stream knows that a request is over.
const SETTLING: Duration = Duration::from_millis(4);
const SLOTS: usize = 8;
const SLOT_TIME: Duration = Duration::from_millis(200);
const PEOPLE: usize = 10;

/// A request that a worker has.
struct Served {
    told: Instant,
    until: Instant,
    place: Option<Place>,
    is_claimed: bool,
}

/// Brokers, the stream, and one server.
struct Crowd {
    brokers: Vec<Admission>,
    /// What the stream answered each of them and when it was asked: on its way.
    looks: Vec<Option<(u64, u64, Instant)>>,
    /// Ticks by which each broker looks later than the first.
    phase: usize,
    start: Instant,
    ticks: usize,
    /// Admitted, in order: since when, and by whom.
    waiting: VecDeque<(Instant, usize, Place)>,
    served: Vec<Served>,
    random: u64,
}

/// What a phase showed.
#[derive(Debug, Default)]
struct Seen {
    /// Waits of the nine, in seconds.
    waited: f64,
    answered: f64,
    refused: f64,
    busy: f64,
    ticks: f64,
}

impl Seen {
    fn wait(&self) -> f64 {
        self.waited / self.answered
    }

    fn busy(&self) -> f64 {
        self.busy / self.ticks / SLOTS as f64
    }
}

/// From 0 to 1.
fn random(state: &mut u64) -> f64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    f64::from(u32::try_from(*state >> 33).expect("31 bits")) / f64::from(1_u32 << 31)
}

impl Crowd {
    fn new(brokers: usize, phase: usize, seed: u64) -> Self {
        let slots = u32::try_from(SLOTS).expect("few");
        Self {
            brokers: (0..brokers).map(|_| admission(slots)).collect(),
            looks: vec![None; brokers],
            phase,
            start: Instant::now(),
            ticks: 0,
            waiting: VecDeque::new(),
            served: Vec::new(),
            random: seed,
        }
    }

    fn now(&self) -> Instant {
        self.start + TICK * u32::try_from(self.ticks).expect("minutes")
    }

    fn random(&mut self) -> f64 {
        random(&mut self.random)
    }

    fn below(&mut self, count: usize) -> usize {
        ((self.random() * count as f64) as usize).min(count - 1)
    }

    fn ask(&mut self, person: usize, feature: &Feature, seen: &mut Seen) {
        let broker = self.below(self.brokers.len());
        let now = self.now();
        let admitted = self.brokers[broker].admit_at(asker(&person.to_string()), feature, &model(), now);
        match admitted {
            Ok(place) => self.waiting.push_back((now, person, place)),
            Err(_) if person > 0 => seen.refused += 1.0,
            Err(_) => {}
        }
    }

    fn tick(&mut self, seen: &mut Seen) {
        self.ticks += 1;
        let now = self.now();
        for one in &mut self.served {
            if !one.is_claimed && one.told <= now {
                one.is_claimed = true;
                if let Some(place) = &mut one.place {
                    place.claimed(one.told);
                }
            }
            if one.until <= now
                && let Some(place) = one.place.take()
            {
                place.served(now);
            }
        }
        self.served
            .retain(|one| one.place.is_some() || one.until + SETTLING > now);
        while self.served.iter().filter(|one| one.place.is_some()).count() < SLOTS {
            let ready = self
                .waiting
                .front()
                .is_some_and(|(since, ..)| *since + STORING <= now);
            let Some((since, person, mut place)) = self.waiting.pop_front_if(|_| ready) else {
                break;
            };
            place.stored();
            if person > 0 {
                seen.waited += (now - since).as_secs_f64();
                seen.answered += 1.0;
            }
            let took = SLOT_TIME.mul_f64(0.95 + 0.1 * self.random());
            self.served.push(Served {
                told: now + TELLING,
                until: now + took,
                place: Some(place),
                is_claimed: false,
            });
        }
        let ready = self
            .waiting
            .iter()
            .filter(|(since, ..)| *since + STORING <= now)
            .count();
        seen.busy += self.served.iter().filter(|one| one.place.is_some()).count() as f64;
        seen.ticks += 1.0;
        for broker in 0..self.brokers.len() {
            let turn = (self.ticks + LOOK_EVERY * 10 - self.phase * broker) % LOOK_EVERY;
            let is_seldom = (self.ticks / LOOK_EVERY).is_multiple_of(LOOKS_LEFT_OUT);
            if turn == 0 && (is_seldom || self.brokers[broker].is_pressed(&model())) {
                let count = |count: usize| u64::try_from(count).expect("few");
                self.looks[broker] = Some((count(ready), count(self.served.len()), now));
            }
            if turn == LOOK_TAKES
                && let Some((pending, held, asked)) = self.looks[broker].take()
            {
                self.brokers[broker].note_depth(Lane::Keystroke, &model(), pending, held, asked);
            }
        }
    }

    /// Everybody asks `rate` times a second, the first person `greed` times as often.
    fn play(&mut self, rate: f64, greed: f64, span: Duration, seed: u64) -> Seen {
        let feature = feature(Lane::Keystroke, 60_000);
        let mut seen = Seen::default();
        let mut due = [0.0; PEOPLE];
        // Everybody has its own, so that the nine ask at the same times however often the tenth does.
        let mut dice: Vec<u64> = (1..=PEOPLE as u64)
            .map(|person| (seed << 40) ^ (person << 20))
            .collect();
        for dice in &mut dice {
            // The first numbers still resemble each other.
            for _ in 0..8 {
                random(dice);
            }
        }
        let mut until_next = |person: usize| {
            let rate = if person == 0 { rate * greed } else { rate };
            -(1.0 - random(&mut dice[person])).ln() / rate
        };
        for (person, due) in due.iter_mut().enumerate() {
            *due = until_next(person);
        }
        let ticks = span.as_millis() as usize;
        for tick in 0..ticks {
            let at = tick as f64 * TICK.as_secs_f64();
            for (person, due) in due.iter_mut().enumerate() {
                while *due <= at {
                    self.ask(person, &feature, &mut seen);
                    *due += until_next(person);
                }
            }
            self.tick(&mut seen);
        }
        seen
    }
}

/// How many times as long the nine wait beside the greedy one, with so many brokers that look so many ticks apart.
fn times_as_long(brokers: usize, phase: usize) -> f64 {
    let span = Duration::from_secs(120);
    let rate = 0.9 * SLOTS as f64 / SLOT_TIME.as_secs_f64() / PEOPLE as f64;
    let mut crowd = Crowd::new(brokers, phase, 1);
    crowd.play(rate, 1.0, Duration::from_secs(4), 2);
    let equal = crowd.play(rate, 1.0, span, 1);
    let greedy = crowd.play(rate, 50.0, span, 1);
    for seen in [&equal, &greedy] {
        assert!(seen.refused <= 0.01 * seen.answered, "{seen:?}");
    }
    assert!((0.86..=0.94).contains(&equal.busy()), "{equal:?}");
    assert!(greedy.busy() >= 0.93, "what is idle is lent: {greedy:?}");
    greedy.wait() / equal.wait()
}

#[test]
fn one_broker_keeps_nine_people_from_waiting_for_a_greedy_one() {
    let times = times_as_long(1, 0);
    assert!(times <= 1.4, "{times}");
}

#[test]
fn two_brokers_do_not_lend_the_same_slot_twice() {
    for phase in [0, 20, 50] {
        let times = times_as_long(2, phase);
        assert!(times <= 1.5, "looks {phase} ticks apart: {times}");
    }
}

#[test]
fn a_greedy_person_may_use_slots_that_really_are_idle() {
    for brokers in 1..=2 {
        let mut crowd = Crowd::new(brokers, 50, 1);
        // The nine need a tenth of the slots.
        let rate = 0.1 * SLOTS as f64 / SLOT_TIME.as_secs_f64() / PEOPLE as f64;
        crowd.play(rate, 200.0, Duration::from_secs(4), 2);
        let seen = crowd.play(rate, 200.0, Duration::from_secs(60), 1);
        assert!(seen.busy() >= 0.6, "{brokers} broker: {seen:?}");
    }
}
