//! The worker against a real nats-server, with an owner and a model server
//! that the tests play by hand.

#[path = "worker/harness.rs"]
mod harness;
#[path = "worker/model_server.rs"]
mod model_server;
#[path = "worker/pulls.rs"]
mod pulls;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use duo_contract::cancel::{CancelReason, Order};
use duo_contract::claim::{ClaimReply, Have};
use duo_contract::envelope::Endpoint;
use duo_contract::failure::{FailureKind, RetryRule};
use duo_contract::frame::{FailedAttempt, FrameAnswer, FrameKind, ReplyFrame};
use duo_contract::presence::Presence;
use duo_contract::{name::Lane, subject};
use futures_util::StreamExt as _;
use harness::{Bed, PATIENCE, RunningWorker, WorkerSettings, lines};
use model_server::FakeServer;

const BODY: &str = r#"{"messages":[{"role":"user","content":"hi"}],"x_unknown":1}"#;
const COMPLETION: &str = r#"{"prompt":"x = "}"#;
const WHOLE: &str = r#"{"choices":[{"index":0,"message":{"content":"yes"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;

fn chunk(text: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#)
}

const LAST: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;

async fn bed() -> (Bed, FakeServer, RunningWorker) {
    let server = FakeServer::start().await;
    let bed = Bed::new(server.url.clone()).await;
    let worker = RunningWorker::start(&bed, WorkerSettings::default()).await;
    (bed, server, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_reaches_its_owner_frame_by_frame() {
    let (mut bed, mut server, worker) = bed().await;
    let mut head = bed.head(Endpoint::ChatCompletions, true);
    head.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    bed.publish(head, BODY).await;

    let call = server.call().await;
    assert_eq!(call.body["model"], "tiny");
    assert_eq!(call.body["x_unknown"], 1);
    let traceparent = call.headers["traceparent"].to_str().expect("text").to_owned();
    assert!(
        traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
        "{traceparent}"
    );
    let claim = bed.owner.claim().await;
    assert_eq!(
        (claim.publication, claim.delivery, &claim.worker),
        (1, 1, &worker.name)
    );

    let feed = call.stream().await;
    feed.event(&chunk("a")).await;
    let first = bed.owner.frame().await;
    assert_eq!(
        (first.attempt, first.number),
        (1, 0),
        "the first chunk leaves at once"
    );
    feed.send(&format!(
        "data: {}\n\n: ping\n\ndata: {}\n",
        chunk("b"),
        chunk("c")
    ))
    .await;
    assert_eq!(lines(&[bed.owner.frame().await]), [chunk("b")]);
    feed.send(&format!("\ndata: {LAST}\n\n")).await;
    feed.send("data: [DONE]\n\n").await;
    drop(feed);
    let frames = bed.owner.frames().await;
    assert_eq!(lines(&frames), [chunk("c"), LAST.to_owned()]);
    let Some(FrameKind::Done { summary, .. }) = frames.last().map(|frame| &frame.kind) else {
        panic!("{frames:?}")
    };
    assert_eq!(
        (summary.finish_reason.as_deref(), summary.model_calls),
        (Some("stop"), 1)
    );
    assert_eq!(summary.worker, worker.name);
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_comes_in_one_frame() {
    let (mut bed, mut server, _worker) = bed().await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    server.call().await.answer(200, WHOLE).await;
    let frames = bed.owner.frames().await;
    assert_eq!(frames.len(), 1);
    assert_eq!(lines(&frames), [WHOLE]);
    let FrameKind::Done { summary, .. } = &frames[0].kind else {
        panic!("{frames:?}")
    };
    assert_eq!((summary.input_tokens, summary.output_tokens), (Some(3), Some(1)));
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_of_llama_server_is_asked_for_as_a_stream() {
    let mut server = FakeServer::start().await;
    let mut bed = Bed::new(server.url.clone()).await;
    let settings = WorkerSettings {
        kind: "llama",
        ..WorkerSettings::default()
    };
    let worker = RunningWorker::start(&bed, settings).await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    let call = server.call().await;
    assert_eq!(
        (&call.body["stream"], &call.body["model"], &call.body["x_unknown"]),
        (&true.into(), &"tiny".into(), &1.into())
    );
    let feed = call.stream().await;
    for event in [&chunk("a"), &chunk("b"), LAST, "[DONE]"] {
        feed.event(event).await;
    }
    drop(feed);
    let frames = bed.owner.frames().await;
    assert_eq!(
        lines(&frames),
        [
            r#"{"choices":[{"finish_reason":"stop","index":0,"message":{"content":"ab","role":"assistant"}}],"object":"chat.completion"}"#
        ]
    );
    assert_eq!(frames.len(), 1, "in one frame: {frames:?}");
    bed.drained().await;

    // What breaks off has reached nobody, so the server is asked again.
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    let feed = server.call().await.stream().await;
    feed.event(&chunk("a")).await;
    feed.break_off().await;
    // A server that answers whole all the same, as one in between may, is good too.
    server.call().await.answer(200, WHOLE).await;
    assert_eq!(lines(&bed.owner.frames().await), [WHOLE]);
    bed.drained().await;

    while bed.owner.claims.try_recv().is_ok() {}
    let request_id = bed
        .publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    bed.owner.claim().await;
    let feed = server.call().await.stream().await;
    feed.event(&chunk("a")).await;
    let beat = bed.owner.frame().await;
    assert_eq!(beat.kind, FrameKind::Heartbeat, "the attempt is under way");
    let order = Order::Cancel {
        request_id,
        reason: CancelReason::ClientGone,
    };
    bed.owner.order(&worker.name, order).await;
    tokio::time::timeout(PATIENCE, feed.closed())
        .await
        .expect("closed");
    let frames = bed.owner.frames().await;
    assert!(
        matches!(&frames[..], [ReplyFrame { kind: FrameKind::Failed(failed), .. }]
        if failed.failure.kind == FailureKind::Cancelled),
        "{frames:?}"
    );
    bed.drained().await;

    let several = r#"{"messages":[],"n":2}"#;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), several)
        .await;
    let call = server.call().await;
    assert!(call.body.get("stream").is_none(), "{}", call.body);
    call.answer(200, WHOLE).await;
    assert_eq!(lines(&bed.owner.frames().await), [WHOLE]);
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_closes_the_model_servers_connection() {
    let (mut bed, mut server, worker) = bed().await;
    for stream in [true, false] {
        let request_id = bed
            .publish(bed.head(Endpoint::ChatCompletions, stream), BODY)
            .await;
        bed.owner.claim().await;
        let call = server.call().await;
        let order = Order::Cancel {
            request_id,
            reason: CancelReason::ClientGone,
        };
        if stream {
            let feed = call.stream().await;
            feed.event(&chunk("a")).await;
            bed.owner.frame().await;
            bed.owner.order(&worker.name, order).await;
            tokio::time::timeout(PATIENCE, feed.closed())
                .await
                .expect("closed");
        } else {
            bed.owner.order(&worker.name, order).await;
            tokio::time::timeout(PATIENCE, call.closed())
                .await
                .expect("closed");
        }
        bed.drained().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_in_mid_stream_is_a_failure() {
    let (mut bed, mut server, _worker) = bed().await;
    let deaths: [&[&str]; 4] = [
        &[],
        &["data: [DONE]\n\n"],
        &[
            r#"data: {"error":{"message":"EngineCore died","code":500}}"#,
            "\n\n",
            "data: [DONE]\n\n",
        ],
        &[
            r#"data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"abort"}]}"#,
            "\n\n",
        ],
    ];
    for death in deaths {
        bed.publish(bed.head(Endpoint::ChatCompletions, true), BODY).await;
        let feed = server.call().await.stream().await;
        feed.event(&chunk("a")).await;
        assert_eq!(lines(&[bed.owner.frame().await]), [chunk("a")]);
        for part in death {
            feed.send(part).await;
        }
        if death.is_empty() {
            feed.break_off().await
        } else {
            drop(feed)
        }
        let frames = bed.owner.frames().await;
        assert_eq!(frames.len(), 1, "the error itself is not handed on: {frames:?}");
        let FrameKind::Failed(failed) = &frames[0].kind else {
            panic!("{frames:?}")
        };
        assert_eq!(failed.failure.kind, FailureKind::ModelServerFault);
        assert_eq!(frames[0].number, 1);
    }
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_stream_is_a_failure_and_comments_do_not_help() {
    let server = FakeServer::start().await;
    let mut bed = Bed::new(server.url.clone()).await;
    let extra = vec![("DUO_MODEL_IDLE_TIMEOUT", "500ms")];
    let _worker = RunningWorker::start(
        &bed,
        WorkerSettings {
            extra,
            ..WorkerSettings::default()
        },
    )
    .await;
    let mut server = server;
    bed.publish(bed.head(Endpoint::ChatCompletions, true), BODY).await;
    let feed = server.call().await.stream().await;
    feed.event(&chunk("a")).await;
    let pinging = tokio::spawn(async move {
        for _ in 0..8 {
            feed.send(": ping\n\n").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        feed.closed().await;
    });
    let frames = bed.owner.frames().await;
    assert!(
        matches!(&frames[1].kind, FrameKind::Failed(failed)
        if failed.failure.kind == FailureKind::ModelServerFault),
        "{frames:?}"
    );
    pinging.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_goes_on_with_an_answer_is_given_up_after_the_idle_timeout() {
    // A chat goes on at vLLM with one call, at llama-server after questions.
    for kind in ["vllm", "llama"] {
        let mut server = FakeServer::start().await;
        let mut bed = Bed::new(server.url.clone()).await;
        let settings = WorkerSettings {
            kind,
            extra: vec![("DUO_MODEL_IDLE_TIMEOUT", "500ms")],
            ..WorkerSettings::default()
        };
        let _worker = RunningWorker::start(&bed, settings).await;
        let mut head = bed.head(Endpoint::ChatCompletions, true);
        // No first attempt, so no call begins beside the claim.
        head.publication = 2;
        let have = Have {
            text: "yes".to_owned(),
            pieces: vec![3],
            ..Have::default()
        };
        let answer = ClaimReply::Continue { attempt: 2, have };
        bed.owner.will_answer(answer).await;
        bed.publish(head, BODY).await;
        bed.owner.claim().await;
        let claimed = Instant::now();
        let call = match kind {
            "vllm" => Some(server.call().await),
            _ => None,
        };
        let frames = bed.owner.frames().await;
        // Far from any deadline of the request, and from what several such waits in a row would take.
        assert!(
            claimed.elapsed() < Duration::from_secs(4),
            "{:?}",
            claimed.elapsed()
        );
        assert!(
            matches!(&frames[..], [ReplyFrame { kind: FrameKind::Failed(failed), .. }]
            if failed.failure.kind == FailureKind::ModelServerFault && failed.failure.retry() != RetryRule::Never),
            "{kind}: {frames:?}"
        );
        if let Some(call) = call {
            tokio::time::timeout(PATIENCE, call.closed())
                .await
                .expect("closed");
        }
        bed.drained().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_not_retried_and_carries_the_servers_error() {
    let (mut bed, mut server, _worker) = bed().await;
    bed.publish(bed.head(Endpoint::ChatCompletions, true), BODY).await;
    server
        .call()
        .await
        .answer(
            400,
            r#"{"error":{"message":"too long","type":"BadRequestError"}}"#,
        )
        .await;
    let frames = bed.owner.frames().await;
    let FrameKind::Failed(failed) = &frames[0].kind else {
        panic!("{frames:?}")
    };
    assert_eq!(failed.failure.kind, FailureKind::InvalidRequest);
    assert_eq!(failed.failure.upstream_status, Some(400));
    assert_eq!(
        failed.failure.upstream_error.as_deref(),
        Some(r#"{"message":"too long","type":"BadRequestError"}"#)
    );
    assert_eq!(server.shared.calls.load(Ordering::SeqCst), 1);
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_before_its_first_data_is_called_again() {
    let (mut bed, mut server, _worker) = bed().await;
    bed.publish(bed.head(Endpoint::ChatCompletions, true), BODY).await;
    server.call().await.answer(503, "busy").await;
    let feed = server.call().await.stream().await;
    feed.event(r#"{"error":"out of memory"}"#).await;
    drop(feed);
    // The fault is worth two calls only; the third never comes.
    let frames = bed.owner.frames().await;
    let FrameKind::Failed(failed) = &frames[0].kind else {
        panic!("{frames:?}")
    };
    assert_eq!(failed.model_calls, 2);

    bed.publish(bed.head(Endpoint::ChatCompletions, true), BODY).await;
    server.call().await.answer(503, "busy").await;
    let feed = server.call().await.stream().await;
    feed.event(&chunk("a")).await;
    feed.event(LAST).await;
    drop(feed);
    let frames = bed.owner.frames().await;
    assert_eq!(lines(&frames), [chunk("a"), LAST.to_owned()]);
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_word_decides_what_becomes_of_the_message() {
    let (mut bed, mut server, _worker) = bed().await;
    // Gone: the call is dropped and the message removed.
    bed.owner.will_answer(ClaimReply::Gone).await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    tokio::time::timeout(PATIENCE, server.call().await.closed())
        .await
        .expect("closed");
    bed.drained().await;

    // Busy: handed back, and asked again at the next delivery.
    bed.owner.claim().await;
    bed.owner.will_answer(ClaimReply::Busy { delay_ms: 100 }).await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    assert_eq!(bed.owner.claim().await.delivery, 1);
    drop(server.call().await);
    assert_eq!(bed.owner.claim().await.delivery, 2);

    // Hand back: the failure's delivery comes again.
    bed.owner
        .will_answer_last(FrameAnswer::HandBack { delay_ms: 0 })
        .await;
    server.call().await.answer(404, "no such model").await;
    assert!(matches!(bed.owner.frames().await[0].kind, FrameKind::Failed(_)));
    assert_eq!(bed.owner.claim().await.delivery, 3);

    // Missing: the frames are sent again, then the last.
    bed.owner
        .will_answer_last(FrameAnswer::Missing { from: 0, until: 1 })
        .await;
    server.call().await.answer(200, WHOLE).await;
    for _ in 0..3 {
        assert_eq!(lines(&[bed.owner.frame().await]), [WHOLE]);
    }
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_overtakes_its_claim_comes_whole_once_there_is_leave() {
    let (mut bed, mut server, _worker) = bed().await;
    bed.owner.will_miss_a_claim().await;
    bed.owner
        .will_answer_last(FrameAnswer::Missing { from: 0, until: 1 })
        .await;
    bed.publish(bed.head(Endpoint::ChatCompletions, true), BODY).await;
    let feed = server.call().await.stream().await;
    let claim = bed.owner.claim().await;
    feed.event(&chunk("a")).await;
    assert_eq!(Some(bed.owner.early_frame().await), claim.job);
    // In one piece: read apart, the last event would be a frame before the end's.
    feed.send(&format!("data: {LAST}\n\ndata: [DONE]\n\n")).await;
    assert_eq!(Some(bed.owner.early_frame().await), claim.job);
    assert_eq!(bed.owner.claim().await, claim, "asked again");
    let frames: Vec<_> = [bed.owner.frame().await, bed.owner.frame().await].into();
    assert!(matches!(frames[0].kind, FrameKind::Done { .. }), "{frames:?}");
    assert_eq!(
        (frames[1].attempt, frames[1].number, lines(&frames[1..])),
        (1, 0, vec![chunk("a")])
    );
    let last = bed.owner.frame().await;
    assert_eq!(lines(&[last]), [LAST]);
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_delivery_of_what_was_begun_before_is_handed_back_and_then_continued() {
    let (mut bed, mut server, _worker) = bed().await;
    let have = Have {
        text: "a".to_owned(),
        ..Have::default()
    };
    for attempt in [2, 3] {
        let have = have.clone();
        bed.owner
            .will_answer(ClaimReply::Continue { attempt, have })
            .await;
    }
    bed.owner
        .will_answer_last(FrameAnswer::HandBack { delay_ms: 0 })
        .await;
    bed.publish(bed.head(Endpoint::Completions, true), COMPLETION)
        .await;
    // The call beside the claim is dropped.
    let call = server.call().await;
    assert_eq!(bed.owner.claim().await.delivery, 1);
    let left = bed.owner.frame().await;
    assert_eq!((left.attempt, left.number), (2, 0));
    let FrameKind::Failed(FailedAttempt { leaving: true, .. }) = left.kind else {
        panic!("{left:?}")
    };
    tokio::time::timeout(PATIENCE, call.closed())
        .await
        .expect("closed");
    assert_eq!(bed.owner.claim().await.delivery, 2);
    let call = server.call().await;
    assert_eq!(call.body["prompt"], "x = a");
    call.answer(500, "{}").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_brings_heartbeats_and_keeps_the_lease() {
    let (mut bed, mut server, _worker) = bed().await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    let call = server.call().await;
    let begun = Instant::now();
    let mut heartbeats = 0;
    while begun.elapsed() < harness::LEASE * 2 {
        assert_eq!(bed.owner.frame().await.kind, FrameKind::Heartbeat);
        heartbeats += 1;
    }
    assert!(heartbeats >= 4, "{heartbeats} in two leases");
    call.answer(200, WHOLE).await;
    bed.owner.frames().await;
    bed.owner.claim().await;
    assert!(bed.owner.claims.is_empty(), "the lease held: no second delivery");
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_nats_restart_the_next_request_is_served_within_a_second() {
    let (mut bed, mut server, _worker) = bed().await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    server.call().await.answer(200, WHOLE).await;
    bed.owner.frames().await;
    bed.drained().await;

    bed.nats.stop();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    bed.nats.restart().await;
    let back = Instant::now();
    // The test's own client has to be back to publish at all.
    while bed.client.connection_state() != async_nats::connection::State::Connected {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    server.call().await.answer(200, WHOLE).await;
    bed.owner.frames().await;
    let took = back.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_nats_in_mid_stream_ends_in_a_whole_answer() {
    let (mut bed, mut server, _worker) = bed().await;
    bed.publish(bed.head(Endpoint::ChatCompletions, true), BODY).await;
    let feed = server.call().await.stream().await;
    feed.event(&chunk("a")).await;
    bed.owner.frame().await;
    bed.nats.stop();
    feed.event(&chunk("b")).await;
    bed.nats.restart().await;
    // What was sent meanwhile may be lost, so it is asked for.
    bed.owner
        .will_answer_last(FrameAnswer::Missing { from: 1, until: 3 })
        .await;
    feed.event(LAST).await;
    drop(feed);
    let mut frames = bed.owner.frames().await;
    frames.extend(bed.owner.frames().await);
    frames.sort_by_key(|frame| frame.number);
    frames.dedup_by_key(|frame| frame.number);
    assert_eq!(lines(&frames), [chunk("b"), LAST.to_owned()]);
    let numbers: Vec<_> = frames.iter().map(|frame| frame.number).collect();
    assert!(
        numbers.iter().copied().eq(1..=numbers.len() as u32),
        "{numbers:?}"
    );
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_taken_than_there_are_slots_and_keystroke_goes_first() {
    let server = FakeServer::start().await;
    let bed = Bed::new(server.url.clone()).await;
    let mut server = server;
    let _worker = RunningWorker::start(
        &bed,
        WorkerSettings {
            slots: 1,
            ..WorkerSettings::default()
        },
    )
    .await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    let first = server.call().await;
    for lane in [
        Lane::Interactive,
        Lane::Interactive,
        Lane::Keystroke,
        Lane::Keystroke,
    ] {
        let mut head = bed.head(Endpoint::ChatCompletions, false);
        head.lane = lane;
        bed.publish(head, &format!(r#"{{"lane":"{lane}"}}"#)).await;
    }
    assert!(server.calls.try_recv().is_err());
    first.answer(200, WHOLE).await;
    let mut order = Vec::new();
    for _ in 0..4 {
        let call = server.call().await;
        assert!(server.calls.try_recv().is_err(), "one at a time");
        order.push(call.body["lane"].as_str().expect("text").to_owned());
        call.answer(200, WHOLE).await;
    }
    assert_eq!(order, ["keystroke", "keystroke", "interactive", "interactive"]);
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_runs_and_hands_back_the_rest() {
    let server = FakeServer::start().await;
    let mut bed = Bed::new(server.url.clone()).await;
    let mut server = server;
    let extra = vec![("DUO_DRAIN_GRACE", "1s")];
    let worker = RunningWorker::start(
        &bed,
        WorkerSettings {
            extra,
            ..WorkerSettings::default()
        },
    )
    .await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    let quick = server.call().await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    let slow = server.call().await;
    bed.owner.claim().await;
    bed.owner.claim().await;
    bed.owner.will_answer_last(FrameAnswer::Confirmed).await;
    bed.owner
        .will_answer_last(FrameAnswer::HandBack { delay_ms: 0 })
        .await;
    worker.begin_drain();
    quick.answer(200, WHOLE).await;
    assert!(matches!(bed.owner.frames().await[0].kind, FrameKind::Done { .. }));
    worker.ended().await;
    let said = bed.owner.frames().await;
    assert!(
        matches!(&said[0].kind, FrameKind::Failed(failed) if failed.leaving),
        "the owner is told: {said:?}"
    );
    tokio::time::timeout(PATIENCE, slow.closed())
        .await
        .expect("closed");

    let context = async_nats::jetstream::new(bed.client.clone());
    let workers = context
        .get_key_value(subject::WORKERS_BUCKET)
        .await
        .expect("a bucket");
    let keys: Vec<_> = workers.keys().await.expect("keys").collect().await;
    assert!(keys.is_empty(), "{keys:?}");

    let begun = Instant::now();
    let _next = RunningWorker::start(&bed, WorkerSettings::default()).await;
    assert_eq!(bed.owner.claim().await.delivery, 2);
    assert!(begun.elapsed() < harness::LEASE / 2, "handed back, not timed out");
    server.call().await.answer(200, WHOLE).await;
    bed.owner.frames().await;
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_model_server_is_away_requests_wait_in_the_queue() {
    let (mut bed, mut server, worker) = bed().await;
    server.shared.loading.store(true, Ordering::SeqCst);
    let context = async_nats::jetstream::new(bed.client.clone());
    let workers = context
        .get_key_value(subject::WORKERS_BUCKET)
        .await
        .expect("a bucket");
    let breaker = async |wanted: &str| {
        let seen = async {
            loop {
                if let Some(value) = workers.get(&worker.name).await.expect("readable") {
                    let presence = Presence::decode(&value).expect("a presence");
                    if format!("{:?}", presence.models[0].breaker) == wanted {
                        return presence;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen)
            .await
            .expect("the breaker changes")
    };
    let presence = breaker("Tripped").await;
    assert_eq!((presence.models[0].slots, presence.draining), (4, false));
    let ready = reqwest::get(format!("http://{}/readyz", worker.admin))
        .await
        .expect("answers");
    assert_eq!(ready.status(), 503);
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(bed.owner.claims.is_empty());
    server.shared.loading.store(false, Ordering::SeqCst);
    server.call().await.answer(200, WHOLE).await;
    assert_eq!(bed.owner.claim().await.delivery, 1);
    bed.owner.frames().await;
    breaker("Passing").await;
    let metrics = reqwest::get(format!("http://{}/metrics", worker.admin))
        .await
        .expect("answers");
    let metrics = metrics.text().await.expect("text");
    assert!(
        metrics.contains("duo_worker_outcomes_total{outcome=\"answered\"} 1"),
        "{metrics}"
    );
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_names_what_is_wrong_and_takes_no_message() {
    let server = FakeServer::start().await;
    let bed = Bed::new(server.url.clone()).await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    let settings = WorkerSettings::default();
    let (config, _folder) = harness::read_config(&bed.nats, &bed.key_line, &server.url, &settings);
    let findings = duo_workers::check::check(config).await;
    assert!(findings.iter().all(|finding| finding.ok), "{findings:#?}");

    let context = async_nats::jetstream::new(bed.client.clone());
    let stream = context.get_stream(subject::LIVE_STREAM).await.expect("a stream");
    let name = subject::consumer(Lane::Interactive, &harness::model());
    let consumer = stream.consumer_info(&name).await.expect("a consumer");
    assert_eq!(
        (consumer.num_pending, consumer.num_ack_pending),
        (1, 0),
        "no message was taken"
    );

    stream.delete_consumer(&name).await.expect("deleted");
    let (config, _folder) =
        harness::read_config(&bed.nats, &bed.key_line, "http://127.0.0.1:1/v1", &settings);
    let findings = duo_workers::check::check(config).await;
    let wrong: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.ok)
        .map(|finding| &finding.text)
        .collect();
    assert_eq!(wrong.len(), 2, "{findings:#?}");
    assert!(wrong[0].contains("configure model \"mistral-0.3\"") && wrong[1].contains("cannot be reached"));
}
