//! Who is admitted, when, and what is left behind.

use duo_contract::name::FeatureName;
use duo_contract::presence::{BreakerState, Presence, ServedModel};
use duo_contract::snapshot::BodyPolicy;
use proptest::prelude::*;

use super::*;

mod burst;
mod crowd;

fn model() -> ModelName {
    ModelName::parse("m").expect("a name")
}

fn feature(lane: Lane, first_byte_within_ms: u64) -> Feature {
    Feature {
        name: FeatureName::parse("duo_chat").expect("a name"),
        active: true,
        model: Some(model()),
        lane,
        first_byte_within_ms,
        end_within_ms: first_byte_within_ms,
        bodies: BodyPolicy::None,
    }
}

fn asker(key: &str) -> Asker<'_> {
    Asker {
        key,
        limit: 8,
        replaces: false,
    }
}

/// Admission before one server with so many slots.
fn admission(slots: u32) -> Admission {
    let fleet = Fleet::default();
    if slots > 0 {
        let served = ServedModel {
            model: model(),
            server: "local".into(),
            slots,
            in_flight: 0,
            breaker: BreakerState::Passing,
            tools: false,
        };
        let presence = Presence {
            worker: "w".into(),
            version: "1".into(),
            started_at_ms: 0,
            draining: false,
            models: vec![served],
        };
        fleet.put(presence, 1);
    }
    Admission::new(fleet)
}

/// Lets the mean slot time be `seconds`.
fn usual(admission: &Admission, lane: Lane, seconds: f64) {
    let line = admission.line(&model());
    let mut place = line.enter(("a", 8), &feature(lane, 1).name, lane, 0.0, Instant::now());
    let since = Instant::now();
    place.claimed(since);
    place.served(since + Duration::from_secs_f64(seconds));
}

fn reason(refused: Result<Place, ExchangeError>) -> String {
    refused.expect_err("a refusal").reason.into_owned()
}

#[test]
fn what_gives_way_is_not_ahead() {
    let admission = admission(1);
    usual(&admission, Lane::Keystroke, 1.0);
    let feature = feature(Lane::Keystroke, 2000);
    let mut runs = admission
        .admit(asker("a"), &feature, &model())
        .expect("a slot is free");
    runs.claimed(Instant::now());
    let _older = admission.admit(asker("b"), &feature, &model()).expect("room");
    assert_eq!(
        reason(admission.admit(asker("c"), &feature, &model())),
        "lane_full"
    );
    assert!(admission.check(asker("c"), &feature, &model()).is_err());
    // Before the body is read, whose older request waits may be let pass.
    assert!(admission.check(asker("b"), &feature, &model()).is_ok());
    assert_eq!(
        reason(admission.admit(asker("b"), &feature, &model())),
        "lane_full"
    );
    let newer = Asker {
        replaces: true,
        ..asker("b")
    };
    assert!(admission.admit(newer, &feature, &model()).is_ok());
}

/// Admits requests of different people until one is refused.
fn fill(admission: &Admission, feature: &Feature) -> (Vec<Place>, ExchangeError) {
    let mut places = Vec::new();
    for number in 0..10_000 {
        match admission.admit(asker(&number.to_string()), feature, &model()) {
            Ok(mut place) => {
                place.stored();
                places.push(place);
            }
            Err(refusal) => return (places, refusal),
        }
    }
    panic!("the line has no end");
}

#[test]
fn a_lane_is_full_when_its_wait_is_longer_than_the_feature_allows() {
    let admission = admission(4);
    usual(&admission, Lane::Keystroke, 1.0);
    let feature = feature(Lane::Keystroke, 8000);
    let (places, refusal) = fill(&admission, &feature);
    // Seven seconds after the reserve: four run at once, and four more each second.
    assert!((29..=32).contains(&places.len()), "{}", places.len());
    assert_eq!(refusal.reason, "lane_full");
    assert!(
        refusal
            .retry_after
            .is_some_and(|after| after <= Duration::from_secs(2))
    );
}

#[test]
fn lower_lanes_do_not_count_on_the_slots_kept_for_keystroke() {
    let admission = admission(8);
    usual(&admission, Lane::Interactive, 1.0);
    usual(&admission, Lane::Keystroke, 1.0);
    let outlook = |admission: &Admission| admission.outlook(&model());
    let lower = feature(Lane::Interactive, 600_000);
    let mut places: Vec<_> = (0..7)
        .map(|number| {
            admission
                .admit(asker(&number.to_string()), &lower, &model())
                .expect("room")
        })
        .collect();
    for place in &mut places {
        place.claimed(Instant::now());
    }
    let wait = outlook(&admission).wait;
    assert!(wait[0] < 1e-9 && (0.9..1.1).contains(&wait[1]), "{wait:?}");
}

#[test]
fn what_other_brokers_have_in_line_is_ahead_too() {
    let (mine, theirs) = (admission(4), admission(4));
    for one in [&mine, &theirs] {
        usual(one, Lane::Keystroke, 1.0);
    }
    let feature = feature(Lane::Keystroke, 8000);
    let (places, _) = fill(&theirs, &feature);
    let count = u64::try_from(places.len()).expect("a count");
    for one in [&mine, &theirs] {
        // The stream says the same to both.
        one.note_depth(Lane::Keystroke, &model(), count - 4, 4, Instant::now());
    }
    assert_eq!(reason(mine.admit(asker("new"), &feature, &model())), "lane_full");
    assert_eq!(
        theirs.line(&model()).loads(Instant::now())[0].queued,
        32.0_f64.min(count as f64)
    );
    drop(places);
    theirs.note_depth(Lane::Keystroke, &model(), 0, 0, Instant::now());
    mine.note_depth(Lane::Keystroke, &model(), 0, 0, Instant::now());
    assert!(mine.admit(asker("new"), &feature, &model()).is_ok());
}

#[test]
fn a_message_that_is_neither_claimed_nor_stored_is_counted_once() {
    let admission = admission(4);
    let feature = feature(Lane::Keystroke, 8000);
    let mut stored = admission.admit(asker("a"), &feature, &model()).expect("room");
    stored.stored();
    let _unstored = admission.admit(asker("b"), &feature, &model()).expect("room");
    // A worker has got the stored one and has not claimed it yet.
    admission.note_depth(Lane::Keystroke, &model(), 0, 1, Instant::now());
    let load = &admission.line(&model()).loads(Instant::now())[0];
    assert!(
        (load.queued - 2.0).abs() < 1e-9 && load.running < 1e-9,
        "{load:?}"
    );
}

#[test]
fn a_caller_at_its_limit_is_told_when_its_oldest_request_should_be_over() {
    let admission = admission(100);
    usual(&admission, Lane::Interactive, 20.0);
    let feature = feature(Lane::Interactive, 60_000);
    let mut places: Vec<_> = (0..8)
        .map(|_| admission.admit(asker("a"), &feature, &model()).expect("room"))
        .collect();
    let begun = Instant::now()
        .checked_sub(Duration::from_secs(13))
        .expect("a machine that is up");
    places[0].claimed(begun);
    let refusal = admission
        .check(asker("a"), &feature, &model())
        .expect_err("the ninth");
    assert_eq!(refusal.reason, "caller_limit");
    let after = refusal.retry_after.expect("a time").as_secs_f64();
    assert!((7.1..7.3).contains(&after), "{after}");
    assert!(admission.check(asker("b"), &feature, &model()).is_ok());
    places.remove(0);
    assert!(admission.check(asker("a"), &feature, &model()).is_ok());
}

#[test]
fn a_full_stream_is_left_alone_for_a_moment() {
    let admission = admission(1);
    let feature = feature(Lane::Interactive, 60_000);
    assert_eq!(admission.stream_full().reason, "stream_full");
    assert_eq!(
        reason(admission.admit(asker("a"), &feature, &model())),
        "stream_full"
    );
}

#[test]
fn without_a_worker_no_more_is_taken_than_the_last_one_could_serve() {
    let admission = admission(2);
    usual(&admission, Lane::Keystroke, 0.5);
    admission.fleet.remove("w");
    let (places, refusal) = fill(&admission, &feature(Lane::Keystroke, 2000));
    assert!((6..=9).contains(&places.len()), "{}", places.len());
    assert_eq!(refusal.reason, "lane_full");
    let stranger = Admission::new(Fleet::default());
    assert!(
        stranger
            .check(asker("a"), &feature(Lane::Keystroke, 2000), &model())
            .is_ok()
    );
}

/// One event in the life of a few requests.
#[derive(Debug, Clone, Copy)]
enum Step {
    Admit { person: u8 },
    Store(usize),
    Claim(usize),
    Release(usize),
    Serve(usize),
    Drop(usize),
    Depth { pending: u64, held: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u8..5).prop_map(|person| Step::Admit { person }),
        2 => any::<usize>().prop_map(Step::Store),
        3 => any::<usize>().prop_map(Step::Claim),
        1 => any::<usize>().prop_map(Step::Release),
        2 => any::<usize>().prop_map(Step::Serve),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => (0_u64..50, 0_u64..50).prop_map(|(pending, held)| Step::Depth { pending, held }),
    ]
}

proptest! {
    #[test]
    fn no_place_leaks_and_no_estimate_is_negative_in_whatever_order(
        steps in proptest::collection::vec(step(), 0..200),
        slots in 0_u32..6,
    ) {
        let admission = admission(slots);
        let feature = feature(Lane::Interactive, 60_000);
        let mut places: Vec<Place> = Vec::new();
        let start = Instant::now();
        for (tick, step) in steps.into_iter().enumerate() {
            let now = start + Duration::from_millis(10 * u64::try_from(tick).expect("few"));
            let count = places.len();
            match step {
                Step::Admit { person } => {
                    let key = person.to_string();
                    let admitted = admission.admit(asker(&key), &feature, &model());
                    places.extend(admitted);
                }
                Step::Depth { pending, held } => {
                    admission.note_depth(Lane::Interactive, &model(), pending, held, now);
                }
                _ if count == 0 => {}
                Step::Store(index) => places[index % count].stored(),
                Step::Claim(index) => places[index % count].claimed(now),
                Step::Release(index) => places[index % count].released(now),
                Step::Serve(index) => places.swap_remove(index % count).served(now),
                Step::Drop(index) => drop(places.swap_remove(index % count)),
            }
            let outlook = admission.outlook(&model());
            let all = outlook.wait.iter().chain(&outlook.slot_time).chain([&outlook.work]);
            prop_assert!(all.into_iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0), "{outlook:?}");
            let (queued, running) = admission.line(&model()).counts();
            prop_assert_eq!(queued.iter().sum::<usize>() + running, places.len());
        }
        drop(places);
        let line = admission.line(&model());
        prop_assert_eq!(line.counts(), ([0, 0, 0], 0));
        prop_assert_eq!(line.with(Lane::Interactive, |lane| lane.people.held()), 0);
    }

    #[test]
    fn the_only_active_person_is_not_refused_while_a_slot_is_free(
        slots in 1_u32..8,
        held in 0_usize..8,
        seconds in 0.01_f64..30.0,
    ) {
        let admission = admission(slots);
        usual(&admission, Lane::Keystroke, seconds);
        let feature = feature(Lane::Keystroke, 2000);
        let mut places = Vec::new();
        for _ in 0..held.min(usize::try_from(slots).expect("few")) {
            let mut place = admission.admit(asker("a"), &feature, &model()).expect("a slot is free");
            place.claimed(Instant::now());
            places.push(place);
        }
        let free = usize::try_from(slots).expect("few") > places.len();
        prop_assert_eq!(admission.check(asker("a"), &feature, &model()).is_ok() || !free, true);
    }
}
