//! Who may try a failed request again, and who is waited for.

use duo_contract::failure::Failure;
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame};

use super::super::tests::Bench;
use super::*;

/// A request on its second delivery, after worker `w` failed it so.
fn failed_by_w(failure: Failure) -> Bench {
    let bench = Bench::new(true);
    claim(&bench, "w", Duration::ZERO);
    let failed = FailedAttempt {
        worker: "w".into(),
        failure,
        model_calls: 2,
        output_tokens: None,
        leaving: false,
    };
    let frame = ReplyFrame {
        attempt: 1,
        number: 0,
        kind: FrameKind::Failed(failed),
    };
    let (answer, _) = bench.inflight.frame(frame, None, bench.start);
    assert!(matches!(answer, FrameAnswer::HandBack { .. }), "{answer:?}");
    bench
}

fn question(bench: &Bench, worker: &str) -> ClaimRequest {
    serde_json::from_value(serde_json::json!({
        "request_id": bench.inflight.request_id, "publication": 1, "stream_sequence": 10, "delivery": 2,
        "worker": worker,
    }))
    .expect("a claim")
}

fn claim(bench: &Bench, worker: &str, after: Duration) -> ClaimReply {
    bench
        .inflight
        .claim(&question(bench, worker), bench.start + after)
        .0
}

fn elsewhere(bench: &Bench, takers: &[&str], after: Duration) -> Option<ClaimReply> {
    assert!(bench.inflight.was_failed_by("w"));
    let takers: Vec<_> = takers.iter().map(|&taker| taker.to_owned()).collect();
    let answer = bench
        .inflight
        .elsewhere(&question(bench, "w"), &takers, bench.start + after);
    answer.map(|(reply, _)| reply)
}

fn fault() -> Failure {
    Failure::new(FailureKind::ModelServerFault, "the model server failed")
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_worker_that_failed_leaves_the_request_to_one_that_has_not() {
    let bench = failed_by_w(fault());
    assert!(!bench.inflight.was_failed_by("v"));
    assert!(matches!(
        elsewhere(&bench, &["v", "w"], SECOND),
        Some(ClaimReply::Busy { .. })
    ));
    assert_eq!(elsewhere(&bench, &["w"], SECOND), None, "nobody else is there");
    assert_eq!(
        elsewhere(&bench, &["v", "w"], SECOND * 30),
        None,
        "half of its time has passed"
    );
}

#[test]
fn a_refused_key_is_not_tried_twice_by_the_same_worker() {
    let mut failure = Failure::new(
        FailureKind::ModelUnavailable,
        "the model server refused the worker's key",
    );
    failure.upstream_status = Some(401);
    let bench = failed_by_w(failure);
    assert!(matches!(
        elsewhere(&bench, &["v", "w"], SECOND),
        Some(ClaimReply::Busy { .. })
    ));
    assert_eq!(elsewhere(&bench, &["w"], SECOND), Some(ClaimReply::Gone));
    let error = match bench.next() {
        Some(Some(Err(error))) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        error.message,
        "the model server refused the worker's key (tried 1 time by 1 worker, 2 calls in all)"
    );
}

#[test]
fn the_servers_own_time_is_kept_when_nobody_else_is_there() {
    let mut failure = Failure::new(FailureKind::Overloaded, "the model server has too much to do");
    failure.retry_after_ms = Some(5_000);
    let bench = failed_by_w(failure);
    assert!(matches!(
        elsewhere(&bench, &["w"], SECOND * 4),
        Some(ClaimReply::Busy { .. })
    ));
    assert_eq!(elsewhere(&bench, &["w"], SECOND * 5), None);
    assert!(
        bench
            .inflight
            .without_taker(Vec::new, bench.start + SECOND * 5)
            .is_none()
    );
}

#[test]
fn a_busy_worker_that_has_not_failed_it_is_waited_for() {
    let bench = failed_by_w(fault());
    let stop = |takers: &[&str], after| {
        let takers: Vec<_> = takers.iter().map(|&taker| taker.to_owned()).collect();
        bench.inflight.without_taker(|| takers, bench.start + after)
    };
    assert_eq!(stop(&["v"], SECOND * 40), None);
    assert_eq!(stop(&["w"], SECOND * 40), Some(Stop::NoTaker));
}
