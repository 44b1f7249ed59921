//! Which ends leave a dead letter, and what it tells.

use super::*;

/// The letter that the last of these turns leaves.
fn letter_of(todo: Todo) -> duo_contract::dead::DeadHead {
    todo.dead.expect("a dead letter").head
}

#[test]
fn a_request_that_takes_every_worker_down_is_dead_with_their_stories() {
    let bench = Bench::new(true);
    let silence = LEASE + Duration::from_secs(1);
    bench.claim(1, "w1", Duration::ZERO);
    bench.claim(2, "w2", silence);
    let (answer, todo) = bench.claim_of(1, 10, 3, "w3", silence * 2);
    assert_eq!(answer, ClaimReply::Gone);
    let head = letter_of(todo);
    assert_eq!((head.reason.as_str(), head.attempts), ("workers_lost", 2));
    let workers: Vec<_> = head.stories.iter().map(|story| story.worker.as_str()).collect();
    assert_eq!(workers, ["w1", "w2"]);
    assert!(
        head.stories
            .iter()
            .all(|story| story.end == AttemptEnd::Lost && story.server.as_deref() == Some("gpu0"))
    );
    assert!(!head.replayable, "the feature keeps no bodies");
}

#[test]
fn what_the_client_did_or_what_ran_out_of_time_is_no_dead_letter() {
    let cases = [
        (FailureKind::InvalidRequest, false),
        (FailureKind::DeadlineExceeded, false),
        (FailureKind::Cancelled, false),
        (FailureKind::Internal, true),
    ];
    for (kind, dies) in cases {
        let bench = Bench::new(false);
        bench.claim(1, "w", Duration::ZERO);
        let frame = ReplyFrame {
            attempt: 1,
            number: 0,
            kind: failed(kind),
        };
        let (answer, todo) = bench.inflight.frame(frame, None, bench.start);
        assert_eq!(answer, FrameAnswer::Confirmed, "{kind}");
        assert_eq!(todo.dead.is_some(), dies, "{kind}");
    }
    for stop in [Stop::ClientGone, Stop::SlowReader, Stop::Overdue, Stop::Leaving] {
        let bench = Bench::new(true);
        bench.claim(1, "w", Duration::ZERO);
        assert_eq!(bench.inflight.stop(stop, bench.start).dead, None, "{stop:?}");
    }
    let never_tried = ExchangeError::new(FailureKind::ModelUnavailable, "queue_unavailable", "away");
    let bench = Bench::new(true);
    assert_eq!(bench.inflight.fail(never_tried, bench.start).dead, None);
}

#[test]
fn what_attempts_met_is_told_in_order_and_without_end() {
    let bench = Bench::new(false);
    let all = 40;
    for number in 1..=all {
        bench.claim(u64::from(number), &format!("w{number}"), Duration::ZERO);
        let leaving = FrameKind::Failed(FailedAttempt {
            leaving: true,
            ..match failed(FailureKind::ModelUnavailable) {
                FrameKind::Failed(failed) => failed,
                _ => unreachable!("it is a failure"),
            }
        });
        bench.frame(number, 0, leaving);
    }
    bench.claim(u64::from(all) + 1, "last", Duration::ZERO);
    let frame = ReplyFrame {
        attempt: all + 1,
        number: 0,
        kind: failed(FailureKind::Internal),
    };
    let head = letter_of(bench.inflight.frame(frame, None, bench.start).1);
    let numbers: Vec<_> = head.stories.iter().map(|story| story.attempt).collect();
    assert_eq!(numbers.len(), duo_contract::dead::MOST_STORIES);
    assert!(numbers.is_sorted() && numbers[0] == 1 && numbers.last() == Some(&41));
    assert_eq!(head.stories[0].end, AttemptEnd::HandedBack);
    assert_eq!(
        head.stories.last().map(|story| story.failure),
        Some(Some(FailureKind::Internal))
    );
}
