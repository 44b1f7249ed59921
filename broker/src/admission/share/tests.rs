//! Who stands back, and who does not.

use super::*;

fn feature() -> FeatureName {
    FeatureName::parse("duo_chat").expect("a name")
}

/// So many slots, all of them taken; what is asked for comes at once.
fn contest(slots: f64) -> Contest {
    Contest {
        slots,
        idle: 0.0,
        wait: 0.0,
        slot_time: 1e9,
        part: 1.0,
    }
}

/// `key` holds `slots` slots from `start` on.
fn hold(people: &mut People, key: &str, limit: u32, slots: u64, start: Instant) {
    for ticket in 0..slots {
        people.enter((key, limit), &feature(), ticket, start, start);
        let turn = Turn {
            has_slot: true,
            due: start,
            now: start,
        };
        people.turn(key, &feature(), ticket, &turn, 5.0);
    }
}

#[test]
fn who_has_clearly_more_than_an_equal_share_stands_back() {
    let (mut people, start) = (People::default(), Instant::now());
    hold(&mut people, "greedy", PERSON_LIMIT, 5, start);
    hold(&mut people, "one", PERSON_LIMIT, 2, start);
    hold(&mut people, "two", PERSON_LIMIT, 1, start);
    let now = start + Duration::from_secs(10);
    assert!(people.stands_back("greedy", &contest(8.0), 5.0, now).is_some());
    assert!(people.stands_back("one", &contest(8.0), 5.0, now).is_none());
    assert!(people.stands_back("stranger", &contest(8.0), 5.0, now).is_none());
}

#[test]
fn slots_are_lent_but_not_the_last_one_and_an_equal_share_is_always_there() {
    let (mut people, start) = (People::default(), Instant::now());
    hold(&mut people, "greedy", PERSON_LIMIT, 1, start);
    hold(&mut people, "other", PERSON_LIMIT, 1, start);
    hold(&mut people, "greedy", PERSON_LIMIT, 5, start);
    let now = start + Duration::from_secs(10);
    let with = |idle, slot_time, part| Contest {
        idle,
        slot_time,
        part,
        ..contest(16.0)
    };
    let mut stands = |contest| people.stands_back("greedy", &contest, 5.0, now).is_some();
    assert!(!stands(with(3.0, 1e9, 1.0)), "three are idle and two are left");
    assert!(!stands(with(2.0, 1e9, 1.0)), "it has fewer than its eight");
    assert!(stands(with(0.0, 1e9, 1.0)));
    assert!(!stands(with(0.0, 79.0, 1.0)), "ten seconds, eight slots");
    assert!(
        stands(with(0.0, 79.0, 0.5)),
        "the other broker lets it in as well"
    );
}

#[test]
fn with_less_than_one_at_a_time_here_it_is_let_in_as_often_as_that() {
    let (mut people, start) = (People::default(), Instant::now());
    hold(&mut people, "greedy", PERSON_LIMIT, 4, start);
    for ticket in 0..4 {
        people.leave("greedy", &feature(), ticket);
    }
    for person in 0..7 {
        hold(&mut people, &person.to_string(), PERSON_LIMIT, 1, start);
    }
    let mut stands = |after, part| {
        let contest = Contest {
            idle: 1.0,
            wait: 1.0,
            slot_time: 1.0,
            part,
            ..contest(8.0)
        };
        let now = start + Duration::from_secs(after);
        people.stands_back("greedy", &contest, 5.0, now).is_some()
    };
    assert!(!stands(3, 1.0), "its only one is over");
    assert!(stands(3, 0.5), "the other broker may have one of it");
    assert!(!stands(5, 0.5), "two of two seconds each");
}

#[test]
fn who_asks_too_often_gives_way_though_little_was_granted() {
    let (mut people, start) = (People::default(), Instant::now());
    for key in ["often", "a", "b", "c"] {
        hold(&mut people, key, PERSON_LIMIT, 1, start);
    }
    let at = |tick: u32| start + Duration::from_millis(50) * tick;
    for tick in 0..100 {
        people.ask(("often", PERSON_LIMIT), 0.2, 5.0, at(tick));
        if tick % 10 == 0 {
            for key in ["a", "b", "c"] {
                people.ask((key, PERSON_LIMIT), 0.2, 5.0, at(tick));
            }
        }
    }
    let now = at(100);
    assert!(people.stands_back("often", &contest(8.0), 5.0, now).is_some());
    assert!(people.stands_back("a", &contest(8.0), 5.0, now).is_none());
    let equally = ["d", "e", "f", "g"];
    let mut people = People::default();
    for tick in 0..100 {
        for key in equally {
            people.ask((key, PERSON_LIMIT), 0.2, 5.0, at(tick));
        }
    }
    assert!(
        equally
            .iter()
            .all(|key| people.stands_back(key, &contest(8.0), 5.0, now).is_none())
    );
}

#[test]
fn the_only_active_person_never_stands_back() {
    let (mut people, start) = (People::default(), Instant::now());
    hold(&mut people, "alone", PERSON_LIMIT, 8, start);
    let now = start + Duration::from_secs(60);
    assert!(people.stands_back("alone", &contest(1.0), 5.0, now).is_none());
}

#[test]
fn a_service_is_many_people_but_never_more_than_all_others() {
    let (mut people, start) = (People::default(), Instant::now());
    hold(&mut people, "service", 1000, 8, start);
    for person in 0..8 {
        hold(&mut people, &person.to_string(), PERSON_LIMIT, 1, start);
    }
    let now = start + Duration::from_secs(10);
    let active = people.active(now, 5.0, 16.0);
    assert!(
        (active.people - 8.0).abs() < 1e-9 && (active.weight - 16.0).abs() < 1e-9,
        "{active:?}"
    );
    assert!(
        people.stands_back("service", &contest(16.0), 5.0, now).is_none(),
        "half is its share"
    );
    let (mut people, start) = (People::default(), Instant::now());
    hold(&mut people, "service", 1000, 15, start);
    hold(&mut people, "person", PERSON_LIMIT, 1, start);
    let now = start + Duration::from_secs(10);
    assert!(people.stands_back("service", &contest(16.0), 5.0, now).is_some());
}

#[test]
fn who_has_left_is_forgotten_after_a_while() {
    let (mut people, start) = (People::default(), Instant::now());
    hold(&mut people, "gone", PERSON_LIMIT, 1, start);
    let turn = Turn {
        has_slot: false,
        due: start,
        now: start + Duration::from_secs(1),
    };
    people.turn("gone", &feature(), 0, &turn, 5.0);
    people.leave("gone", &feature(), 0);
    assert!(people.active(start + Duration::from_secs(2), 5.0, 16.0).people > 0.0);
    assert!(people.active(start + Duration::from_secs(60), 5.0, 16.0).people < 1.0);
    assert!(people.by_key.is_empty());
}
