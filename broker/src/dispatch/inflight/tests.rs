//! Turns of one request, without I/O: who may speak, and what the client gets.

use duo_contract::audit::Who;
use duo_contract::envelope::Endpoint;
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::snapshot::{BodyPolicy, Feature, Model};
use prometheus::Registry;

use bytes::Bytes;
use duo_contract::audit::{AuditKind, Outcome};
use duo_contract::claim::FIRST_ATTEMPT;
use duo_contract::failure::Failure;
use duo_contract::frame::{FrameKind, ReplyFrame, Summary, Tokens};
use futures_util::FutureExt as _;

use super::*;
use crate::admission::{Admission, Asker};
use crate::audit::AuditLog;
use crate::audit::sink::{AuditSink, TestRecords};
use crate::fleet::Fleet;
use crate::metrics::Metrics;

mod dead;
mod model;

const LEASE: Duration = Duration::from_secs(5);

pub(super) struct Bench {
    pub(super) inflight: InFlight,
    metrics: Metrics,
    admission: Admission,
    records: TestRecords,
    pub(super) start: Instant,
}

impl Bench {
    pub(super) fn new(stream: bool) -> Self {
        let bench = Self::unadmitted(stream);
        bench.inflight.admitted();
        bench
    }

    /// NATS has not acknowledged its *admitted* record yet.
    fn unadmitted(stream: bool) -> Self {
        let metrics = Metrics::new(&Registry::new());
        let (sink, mut records) = AuditSink::for_test(metrics.clone());
        let audit = AuditLog::new("b", sink, metrics.clone());
        let record = audit.open(Who::default(), "/v1/chat/completions", None, None);
        let name = ModelName::parse("m").expect("a name");
        let feature = Feature {
            name: FeatureName::parse("duo_chat").expect("a name"),
            active: true,
            model: Some(name.clone()),
            lane: Lane::Interactive,
            first_byte_within_ms: 50_000,
            end_within_ms: 600_000,
            bodies: BodyPolicy::None,
        };
        let model = Model {
            name,
            family: "f".into(),
            context_tokens: 1,
            max_output_tokens: 1,
        };
        let admission = Admission::new(Fleet::default());
        let asker = Asker {
            key: "k",
            limit: 8,
            replaces: false,
        };
        let place = admission
            .admit(asker, &feature, &model.name)
            .expect("there is room");
        let routed = RoutedRequest {
            feature,
            model,
            revision: 1,
        };
        let work = Work {
            endpoint: Endpoint::ChatCompletions,
            body: Bytes::from_static(b"{}"),
            stream,
            prompt: None,
            supersede_key: None,
        };
        drop(record.admit());
        let admitted = records.next().expect("it was written");
        assert_eq!(admitted.kind, AuditKind::Admitted);
        let start = record.received();
        let task = Task { record, routed, work };
        let inflight = InFlight::new(
            task,
            Rules {
                lease: LEASE,
                max_attempts: 2,
            },
            place,
            start,
            start,
        );
        assert_eq!(inflight.stored(1, 10, start), Todo::default());
        Self {
            inflight,
            metrics,
            admission,
            records,
            start,
        }
    }

    fn claim(&self, delivery: u64, worker: &str, after: Duration) -> ClaimReply {
        self.claim_of(1, 10, delivery, worker, after).0
    }

    fn claim_of(
        &self,
        publication: u32,
        sequence: u64,
        delivery: u64,
        worker: &str,
        after: Duration,
    ) -> (ClaimReply, Todo) {
        let claim = ClaimRequest {
            request_id: self.inflight.request_id,
            publication,
            stream_sequence: sequence,
            delivery,
            worker: worker.into(),
            job: None,
            server: Some("gpu0".into()),
        };
        self.inflight.claim(&claim, self.start + after)
    }

    fn frame(&self, attempt: u32, number: u32, kind: FrameKind) -> FrameAnswer {
        self.inflight
            .frame(
                ReplyFrame {
                    attempt,
                    number,
                    kind,
                },
                None,
                self.start,
            )
            .0
    }

    pub(super) fn next(&self) -> Option<Option<Result<ReplyEvent, ExchangeError>>> {
        self.inflight.poll()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        while let Some(Some(Ok(ReplyEvent::Chunks(chunks)))) = self.next() {
            text.push_str(&String::from_utf8_lossy(&chunks));
        }
        text
    }

    fn ended(&self, outcome: Outcome) -> u64 {
        self.metrics.ended.with_label_values(&[outcome.as_str()]).get()
    }
}

fn chunk(text: &str) -> FrameKind {
    let line = format!(
        "{{\"id\":\"a\",\"created\":1,\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}"
    );
    FrameKind::Chunk(line.into())
}

fn done() -> FrameKind {
    FrameKind::Done {
        summary: Summary::default(),
        body: Bytes::new(),
    }
}

fn failed(kind: FailureKind) -> FrameKind {
    FrameKind::Failed(FailedAttempt {
        worker: "w".into(),
        failure: Failure::new(kind, "it failed"),
        model_calls: 1,
        output_tokens: None,
        leaving: false,
    })
}

#[test]
fn the_same_delivery_gets_the_same_answer_however_often_it_asks() {
    let bench = Bench::new(true);
    assert_eq!(
        bench.claim(1, "w", Duration::ZERO),
        ClaimReply::Proceed { attempt: 1 }
    );
    assert_eq!(
        bench.claim(1, "w", Duration::ZERO),
        ClaimReply::Proceed { attempt: 1 }
    );
}

#[test]
fn an_answer_that_overtakes_its_admission_is_recorded_as_what_the_client_is_told() {
    for admitted in [true, false] {
        let bench = Bench::unadmitted(false);
        bench.claim(1, "w", Duration::ZERO);
        assert_eq!(bench.frame(1, 0, done()), FrameAnswer::Confirmed);
        assert_eq!(bench.ended(Outcome::Completed), 0);
        if admitted {
            bench.inflight.admitted();
        } else {
            let error = ExchangeError::new(FailureKind::ModelUnavailable, "audit_unavailable", "try again");
            assert_eq!(bench.inflight.fail(error, bench.start), Todo::default());
        }
        assert_eq!(bench.ended(Outcome::Completed), u64::from(admitted));
        assert_eq!(bench.ended(Outcome::Failed), u64::from(!admitted));
    }
}

#[test]
fn a_redelivery_under_a_living_attempt_is_handed_back_and_never_acked() {
    let bench = Bench::new(true);
    assert_eq!(
        bench.claim(1, "w", Duration::ZERO),
        ClaimReply::Proceed { attempt: 1 }
    );
    let ClaimReply::Busy { delay_ms } = bench.claim(2, "other", Duration::from_secs(2)) else {
        panic!("a living attempt must be left alone")
    };
    assert_eq!(delay_ms, 3000);
}

#[test]
fn a_silent_attempt_is_replaced_and_can_change_nothing_after() {
    let bench = Bench::new(true);
    assert_eq!(
        bench.claim(1, "w", Duration::ZERO),
        ClaimReply::Proceed { attempt: 1 }
    );
    let (answer, todo) = bench.claim_of(1, 10, 2, "other", LEASE);
    assert_eq!(answer, ClaimReply::Proceed { attempt: 2 });
    assert_eq!(todo.cancel, Some(("w".into(), CancelReason::Replaced)));
    assert_eq!(bench.frame(1, 0, chunk("late")), FrameAnswer::Stale);
    assert_eq!(bench.frame(1, 0, done()), FrameAnswer::Stale);
    assert_eq!(bench.frame(2, 0, chunk("x")), FrameAnswer::Confirmed);
    assert!(bench.text().contains("\"x\""));
}

#[test]
fn frames_out_of_order_reach_the_client_in_order() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    assert_eq!(
        bench.frame(1, 1, chunk("b")),
        FrameAnswer::Missing { from: 0, until: 1 }
    );
    assert!(bench.next().is_none(), "nothing may pass a gap");
    assert_eq!(bench.frame(1, 0, chunk("a")), FrameAnswer::Confirmed);
    assert_eq!(
        bench.frame(1, 0, chunk("a")),
        FrameAnswer::Confirmed,
        "a second copy is dropped"
    );
    let text = bench.text();
    assert!(text.find("\"a\"}") < text.find("\"b\"}"), "{text}");
}

#[test]
fn a_last_frame_after_a_gap_asks_for_what_is_missing() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    assert_eq!(bench.frame(1, 0, chunk("a")), FrameAnswer::Confirmed);
    assert_eq!(
        bench.frame(1, 3, done()),
        FrameAnswer::Missing { from: 1, until: 3 }
    );
    assert_eq!(bench.frame(1, 1, chunk("b")), FrameAnswer::Confirmed);
    assert_eq!(bench.frame(1, 2, chunk("c")), FrameAnswer::Confirmed);
    assert_eq!(bench.frame(1, 3, done()), FrameAnswer::Confirmed);
    assert_eq!(
        bench.frame(1, 3, done()),
        FrameAnswer::Confirmed,
        "asked again, answered again"
    );
    assert_eq!(bench.ended(Outcome::Completed), 1);
}

#[test]
fn a_failure_before_the_first_chunk_goes_to_another_worker_until_attempts_are_spent() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    assert!(matches!(
        bench.frame(1, 0, failed(FailureKind::ModelUnavailable)),
        FrameAnswer::HandBack { .. }
    ));
    assert!(matches!(
        bench.frame(1, 0, failed(FailureKind::ModelUnavailable)),
        FrameAnswer::HandBack { .. }
    ));
    assert_eq!(
        bench.claim(2, "other", Duration::ZERO),
        ClaimReply::Proceed { attempt: 2 }
    );
    assert_eq!(
        bench.frame(2, 0, failed(FailureKind::ModelUnavailable)),
        FrameAnswer::Confirmed
    );
    assert!(matches!(bench.next(), Some(Some(Err(error))) if error.kind == FailureKind::ModelUnavailable));
    assert_eq!(bench.next(), Some(None));
    assert_eq!(bench.claim(3, "w", Duration::ZERO), ClaimReply::Gone);
    assert_eq!(bench.ended(Outcome::Failed), 1);
}

#[test]
fn what_the_model_server_calls_bad_is_never_tried_again() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    assert_eq!(
        bench.frame(1, 0, failed(FailureKind::InvalidRequest)),
        FrameAnswer::Confirmed
    );
    assert!(matches!(bench.next(), Some(Some(Err(error))) if error.kind == FailureKind::InvalidRequest));
}

#[test]
fn a_stream_under_way_is_continued_with_what_the_client_has() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    bench.frame(1, 0, chunk("hel"));
    let answer = bench.claim(2, "other", LEASE);
    let ClaimReply::Continue { attempt: 2, have } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(have.text, "hel");
}

#[test]
fn an_answer_that_cannot_be_continued_is_cut_and_never_looks_whole() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    let line = r#"{"choices":[{"index":1,"delta":{"content":"a second choice"}}]}"#;
    bench.frame(1, 0, FrameKind::Chunk(line.into()));
    assert_eq!(bench.claim(2, "other", LEASE), ClaimReply::Gone);
    assert!(matches!(bench.next(), Some(Some(Ok(ReplyEvent::Chunks(_))))));
    assert!(matches!(bench.next(), Some(Some(Err(_)))));
    assert_eq!(bench.ended(Outcome::Failed), 1);
}

#[test]
fn a_client_that_leaves_frees_message_and_worker_once() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    let todo = bench.inflight.stop(Stop::ClientGone, bench.start);
    assert_eq!(todo.cancel, Some(("w".into(), CancelReason::ClientGone)));
    assert_eq!((todo.delete, todo.forget), (Some(10), false));
    assert_eq!(
        bench.inflight.stop(Stop::ClientGone, bench.start),
        Todo::default()
    );
    assert_eq!(bench.claim(2, "w", Duration::ZERO), ClaimReply::Gone);
    assert!(bench.inflight.write_late_end(bench.start + LEASE, false).forget);
    assert_eq!(bench.ended(Outcome::Cancelled), 1);
}

/// The failure with which a worker answers an order to stop.
fn stopped(output_tokens: u64) -> FrameKind {
    FrameKind::Failed(FailedAttempt {
        worker: "w".into(),
        failure: Failure::new(FailureKind::Cancelled, "stopped"),
        model_calls: 1,
        output_tokens: Some(output_tokens),
        leaving: false,
    })
}

#[test]
fn the_record_of_a_stopped_request_says_what_its_worker_had_spent() {
    let mut bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    bench.frame(1, 0, chunk("a"));
    let _ = bench.inflight.stop(Stop::ClientGone, bench.start);
    assert_eq!(
        bench.frame(1, 1, FrameKind::Heartbeat),
        FrameAnswer::Stale,
        "its order was lost"
    );
    assert!(bench.records.next().is_none());
    assert_eq!(bench.frame(1, 4, stopped(4)), FrameAnswer::Confirmed);
    let end = bench
        .records
        .next()
        .and_then(|record| record.end)
        .expect("a record");
    assert_eq!((end.outcome, end.output_tokens), (Outcome::Cancelled, Some(4)));
    assert_eq!(bench.frame(1, 4, stopped(9)), FrameAnswer::Confirmed);
    assert!(bench.records.next().is_none(), "one record");
}

#[test]
fn the_record_of_a_stopped_request_does_not_wait_long_for_its_worker() {
    let mut bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    bench.frame(1, 0, chunk("a"));
    let _ = bench.inflight.stop(Stop::ClientGone, bench.start);
    let soon = bench.start + Duration::from_millis(900);
    assert_eq!(bench.inflight.write_late_end(soon, false), Todo::default());
    let late = bench.start + Duration::from_millis(1100);
    assert!(bench.inflight.write_late_end(late, false).forget);
    let end = bench
        .records
        .next()
        .and_then(|record| record.end)
        .expect("a record");
    assert_eq!(end.output_tokens, Some(1), "what the owner has received");
}

#[test]
fn a_silent_worker_is_told_to_stop_when_its_request_ends_by_a_claim() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    let line = r#"{"choices":[{"index":1,"delta":{"content":"x"}}]}"#;
    bench.frame(1, 0, FrameKind::Chunk(line.into()));
    let (answer, todo) = bench.claim_of(1, 10, 2, "w", LEASE);
    assert_eq!(answer, ClaimReply::Gone);
    assert_eq!(todo.cancel.map(|(worker, _)| worker).as_deref(), Some("w"));
}

fn claim_of_first_delivery(bench: &Bench) -> ClaimRequest {
    ClaimRequest {
        request_id: bench.inflight.request_id,
        publication: 1,
        stream_sequence: 10,
        delivery: 1,
        worker: "w".into(),
        job: None,
        server: None,
    }
}

#[test]
fn one_delivery_counted_twice_begins_one_attempt() {
    let bench = Bench::new(true);
    let claim = |worker: &str, job: u128| ClaimRequest {
        worker: worker.into(),
        job: Some(Uuid::from_u128(job)),
        ..claim_of_first_delivery(&bench)
    };
    let ask = |worker, job| bench.inflight.claim(&claim(worker, job), bench.start).0;
    assert_eq!(ask("w", 1), ClaimReply::Proceed { attempt: 1 });
    assert!(matches!(ask("other", 2), ClaimReply::Busy { .. }));
    assert!(
        matches!(ask("w", 3), ClaimReply::Busy { .. }),
        "a new job of the same worker"
    );
    assert_eq!(ask("w", 1), ClaimReply::Proceed { attempt: 1 });
}

#[test]
fn an_early_frame_counts_for_the_job_that_has_leave_alone() {
    let bench = Bench::new(true);
    let job = |number| Some(Uuid::from_u128(number));
    let early = |number, kind, job| {
        let frame = ReplyFrame {
            attempt: FIRST_ATTEMPT,
            number,
            kind,
        };
        bench.inflight.frame(frame, job, bench.start).0
    };
    assert_eq!(
        early(0, chunk("early"), job(1)),
        FrameAnswer::Stale,
        "nobody has leave yet"
    );
    let claim = ClaimRequest {
        job: job(1),
        ..claim_of_first_delivery(&bench)
    };
    assert_eq!(
        bench.inflight.claim(&claim, bench.start).0,
        ClaimReply::Proceed {
            attempt: FIRST_ATTEMPT
        }
    );
    // Another job that takes itself for the first attempt, a delivery having been counted twice.
    assert_eq!(early(0, chunk("foreign"), job(2)), FrameAnswer::Stale);
    assert_eq!(early(0, chunk("a"), job(1)), FrameAnswer::Confirmed);
    assert_eq!(early(1, done(), job(2)), FrameAnswer::Stale);
    assert_eq!(early(1, done(), job(1)), FrameAnswer::Confirmed);
    assert_eq!(
        early(1, done(), job(2)),
        FrameAnswer::Stale,
        "over, but not by it"
    );
    let text = bench.text();
    assert!(
        text.contains(r#""content":"a""#) && !text.contains("foreign"),
        "{text}"
    );
}

#[test]
fn a_reader_that_is_too_slow_is_cancelled_with_bounded_memory() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    let big = "x".repeat(CLIENT_BUFFER / 4);
    for number in 0..5 {
        bench.frame(1, number, chunk(&big));
    }
    let _ = bench.inflight.write_late_end(bench.start, true);
    assert_eq!(bench.ended(Outcome::Cancelled), 1);
    assert!(bench.inflight.overdue(bench.start).is_none());
}

#[test]
fn deadlines_depend_on_whether_anything_was_sent() {
    let bench = Bench::new(true);
    let late = bench.start + Duration::from_secs(51);
    assert_eq!(bench.inflight.overdue(late), Some(Stop::Expired));
    bench.claim(1, "w", Duration::ZERO);
    bench.frame(1, 0, chunk("a"));
    assert_eq!(bench.inflight.overdue(late), None);
    assert_eq!(
        bench.inflight.overdue(bench.start + Duration::from_secs(601)),
        Some(Stop::Overdue)
    );
}

#[test]
fn who_waits_in_vain_for_another_attempt_hears_how_the_last_one_failed() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    bench.frame(1, 0, failed(FailureKind::ModelServerFault));
    let late = bench.start + Duration::from_secs(51);
    let _ = bench.inflight.stop(Stop::Expired, late);
    assert!(matches!(bench.next(), Some(Some(Err(error))) if error.kind == FailureKind::ModelServerFault));
    assert_eq!(bench.ended(Outcome::Expired), 1);
}

#[test]
fn a_lost_message_is_published_again_once_and_its_old_copy_is_gone() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    let late = bench.start + LEASE * 2;
    assert_eq!(bench.inflight.lost_suspect(late), Some(10));
    let (publication, todo) = bench.inflight.next_publication(10, late).expect("it is gone");
    assert_eq!(publication, 2);
    assert_eq!(todo.cancel, Some(("w".into(), CancelReason::Replaced)));
    assert_eq!(bench.inflight.next_publication(10, late), None);
    assert_eq!(bench.inflight.stored(2, 11, bench.start), Todo::default());
    assert_eq!(
        bench.claim(2, "w", LEASE * 2),
        ClaimReply::Gone,
        "a lower publication is gone"
    );
    assert_eq!(
        bench.claim_of(2, 11, 1, "w", LEASE * 2).0,
        ClaimReply::Proceed { attempt: 2 }
    );
}

/// Would a client that waits go on?
fn is_woken(bench: &Bench) -> bool {
    bench.inflight.wake.notified().now_or_never().is_some()
}

#[test]
fn a_claim_that_ends_the_request_wakes_its_client() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    bench.claim(2, "x", LEASE);
    assert!(!is_woken(&bench));
    assert_eq!(bench.claim(3, "y", LEASE * 2), ClaimReply::Gone);
    assert!(is_woken(&bench));
    assert!(matches!(bench.next(), Some(Some(Err(error))) if error.reason == "workers_lost"));
}

#[test]
fn a_gap_that_grows_too_long_ends_the_request_and_wakes_its_client() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    for number in 1..=5000 {
        bench.frame(1, number, chunk("a"));
    }
    assert!(is_woken(&bench));
    assert!(matches!(bench.next(), Some(Some(Err(_)))));
}

#[test]
fn a_gap_with_too_many_bytes_behind_it_ends_the_request() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    let big = "x".repeat(CLIENT_BUFFER);
    for number in 1..=3 {
        bench.frame(1, number, chunk(&big));
        // A copy takes no more room.
        bench.frame(1, number, chunk(&big));
        assert_eq!(bench.ended(Outcome::Failed), 0, "{number}");
    }
    bench.frame(1, 4, chunk(&big));
    assert!(matches!(bench.next(), Some(Some(Err(_)))));
}

#[test]
fn one_big_frame_may_wait_and_frees_its_room() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    for round in 0..3 {
        let tokens = Tokens {
            prompt: vec![1; CLIENT_BUFFER * 2],
            ..Tokens::default()
        };
        let FrameKind::Chunk(line) = chunk("b") else {
            panic!("a chunk")
        };
        bench.frame(1, round * 2 + 1, FrameKind::Tokens(tokens, line));
        bench.frame(1, round * 2, chunk("a"));
    }
    assert_eq!(bench.ended(Outcome::Failed), 0);
}

#[test]
fn every_gap_is_asked_for_at_once_and_again_when_the_order_was_lost() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    let frame = |number, kind, after| {
        let frame = ReplyFrame {
            attempt: 1,
            number,
            kind,
        };
        bench.inflight.frame(frame, None, bench.start + after).1.resend
    };
    let order = |from, until| Some(("w".to_owned(), 1, from, until));
    let soon = Duration::from_millis(10);
    let later = Duration::from_secs(1);
    assert_eq!(frame(1, chunk("b"), Duration::ZERO), order(0, 1));
    assert_eq!(frame(3, chunk("d"), soon), None, "it was asked for just now");
    assert_eq!(
        frame(4, FrameKind::Heartbeat, later),
        order(0, 4),
        "the order was lost"
    );
    assert_eq!(frame(0, chunk("a"), later), order(2, 3), "the second gap");
    assert_eq!(frame(2, chunk("c"), later), None);
    assert_eq!(
        frame(5, FrameKind::Heartbeat, later),
        order(4, 5),
        "a gap before a silence"
    );
}

#[test]
fn a_message_stored_after_the_end_is_deleted() {
    let bench = Bench::new(true);
    let late = bench.start + LEASE * 2;
    let (publication, _) = bench.inflight.next_publication(10, late).expect("it is gone");
    assert_eq!(bench.inflight.stop(Stop::ClientGone, late).delete, None);
    assert_eq!(
        bench.inflight.stored(publication, 12, bench.start).delete,
        Some(12)
    );
    assert_eq!(bench.inflight.stored(publication, 12, bench.start).delete, None);
}

#[test]
fn a_publication_that_could_not_be_stored_is_tried_again() {
    let bench = Bench::new(true);
    let late = bench.start + LEASE * 2;
    let (publication, _) = bench.inflight.next_publication(10, late).expect("it is gone");
    bench.inflight.not_stored(publication, 10);
    assert_eq!(bench.inflight.lost_suspect(late + LEASE * 2), Some(10));
    let again = bench.inflight.next_publication(10, late + LEASE * 2);
    assert_eq!(again.map(|(publication, _)| publication), Some(3));
}

#[test]
fn a_leaving_worker_costs_no_attempt_and_the_next_one_need_not_wait() {
    let bench = Bench::new(true);
    for round in 1..=5 {
        assert_eq!(
            bench.claim(u64::from(round), "w", Duration::ZERO),
            ClaimReply::Proceed { attempt: round }
        );
        let leaving = FrameKind::Failed(FailedAttempt {
            worker: "w".into(),
            failure: Failure::new(FailureKind::ModelUnavailable, "it leaves"),
            model_calls: 0,
            output_tokens: None,
            leaving: true,
        });
        assert_eq!(
            bench.frame(round, 0, leaving),
            FrameAnswer::HandBack { delay_ms: 0 }
        );
    }
}

#[test]
fn a_worker_that_replaces_itself_is_not_ordered_to_stop() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    let (answer, todo) = bench.claim_of(1, 10, 2, "w", LEASE);
    assert_eq!(answer, ClaimReply::Proceed { attempt: 2 });
    assert_eq!(todo.cancel, None);
}

#[test]
fn only_what_nobody_has_begun_gives_way_to_a_newer_request() {
    let begun = Bench::new(true);
    begun.claim(1, "w", Duration::ZERO);
    assert_eq!(begun.inflight.give_way(begun.start), Todo::default());
    begun.frame(1, 0, chunk("a"));
    begun.frame(1, 1, failed(FailureKind::ModelServerFault));
    assert!(begun.inflight.is_queued());
    assert_eq!(begun.inflight.give_way(begun.start), Todo::default());
    let queued = Bench::new(true);
    assert!(queued.inflight.give_way(queued.start).forget);
    assert_eq!(queued.ended(Outcome::Cancelled), 1);
}

#[test]
fn a_big_piece_is_not_the_readers_fault() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    bench.frame(1, 0, chunk(&"x".repeat(CLIENT_BUFFER * 2)));
    assert_eq!(bench.ended(Outcome::Cancelled), 0);
    assert_eq!(bench.text().len() / CLIENT_BUFFER, 2);
    bench.frame(1, 1, chunk("a"));
    assert_eq!(bench.ended(Outcome::Cancelled), 0);
}

#[test]
fn a_handed_back_request_that_nobody_takes_ends_with_the_true_reason() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    bench.frame(1, 0, failed(FailureKind::ModelServerFault));
    let stop = |after| {
        bench
            .inflight
            .without_taker(Vec::new, bench.start + Duration::from_secs(after))
    };
    assert_eq!(stop(2), None);
    assert_eq!(stop(4), Some(Stop::NoTaker));
    let late = bench.start + Duration::from_secs(4);
    let _ = bench.inflight.stop(Stop::NoTaker, late);
    assert!(matches!(bench.next(), Some(Some(Err(error))) if error.kind == FailureKind::ModelServerFault));
    assert_eq!(bench.ended(Outcome::Failed), 1);
}

#[test]
fn a_server_that_may_be_starting_gets_longer() {
    let bench = Bench::new(true);
    bench.claim(1, "w", Duration::ZERO);
    bench.frame(1, 0, failed(FailureKind::ModelUnavailable));
    let stop = |after| {
        bench
            .inflight
            .without_taker(Vec::new, bench.start + Duration::from_secs(after))
    };
    assert_eq!(stop(9), None);
    assert_eq!(stop(11), Some(Stop::NoTaker));
}

#[test]
fn each_stage_is_counted_once_and_on_the_brokers_clock() {
    let bench = Bench::new(true);
    let stages = &bench.metrics.stages;
    bench.claim(1, "w", Duration::from_millis(30));
    bench.claim(1, "w", Duration::from_millis(40));
    bench.frame(1, 0, FrameKind::Chunk(Bytes::from_static(b"{}")));
    bench.frame(1, 1, FrameKind::Chunk(Bytes::from_static(b"{}")));
    assert!(bench.inflight.poll().is_some() && bench.inflight.poll().is_some());
    let all = [
        &stages.admit,
        &stages.publish,
        &stages.wait,
        &stages.work,
        &stages.reply,
    ];
    assert_eq!(all.map(|stage| stage.get_sample_count()), [1; 5]);
    assert_eq!(stages.wait.get_sample_sum(), 0.03);
}
