//! Pulls: none is forgotten, none waits in vain, and none takes more than there is room for.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use duo_contract::envelope::Endpoint;
use duo_contract::name::Lane;
use duo_contract::subject;
use futures_util::StreamExt as _;

use super::harness::{Bed, PATIENCE, RunningWorker, WorkerSettings, model};
use super::model_server::FakeServer;
use super::{BODY, WHOLE, bed};

#[tokio::test(flavor = "multi_thread")]
async fn pulls_that_a_new_leader_knows_nothing_of_are_sent_again_within_seconds() {
    let server = FakeServer::start().await;
    let bed = Bed::new(server.url.clone()).await;
    // A leader that hangs: it takes pulls and shows no sign of life.
    let context = jetstream::new(bed.client.clone());
    context
        .delete_stream(subject::LIVE_STREAM)
        .await
        .expect("it was there");
    let consumer = subject::consumer(Lane::Interactive, &model());
    let pulls = subject::pull(subject::LIVE_STREAM, &consumer);
    let mut pulls = bed.client.subscribe(pulls).await.expect("subscribes");
    bed.client.flush().await.expect("flushes");
    let _worker = RunningWorker::start(&bed, WorkerSettings::default()).await;
    let first = tokio::time::timeout(PATIENCE, pulls.next()).await;
    assert!(first.expect("a pull in time").is_some());
    let sent = Instant::now();
    let mut counted = 1;
    loop {
        let next = tokio::time::timeout(PATIENCE, pulls.next()).await;
        assert!(next.expect("another pull in time").is_some());
        if sent.elapsed() > Duration::from_secs(1) {
            break;
        }
        counted += 1;
    }
    let silent = sent.elapsed();
    assert!(
        silent < Duration::from_secs(8),
        "{counted} pulls, and the next after {silent:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_late_into_a_waiting_pull_is_handed_out_at_once() {
    let (mut bed, mut server, _worker) = bed().await;
    // Long enough for beats to have come: a client that takes one for the end of the pull goes blind here.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    let published = Instant::now();
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    let claim = bed.owner.claim().await;
    let took = published.elapsed();
    assert_eq!(claim.delivery, 1);
    assert!(took < Duration::from_millis(500), "{took:?}");
    server.call().await.answer(200, WHOLE).await;
    bed.owner.frames().await;
    bed.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_worker_holds_one_lease_and_the_rest_run_elsewhere() {
    let mut server = FakeServer::start().await;
    let bed = Bed::new(server.url.clone()).await;
    let one_slot = || WorkerSettings {
        slots: 1,
        ..WorkerSettings::default()
    };
    let _busy = RunningWorker::start(&bed, one_slot()).await;
    bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
        .await;
    let held = server.call().await;
    for _ in 0..5 {
        bed.publish(bed.head(Endpoint::ChatCompletions, false), BODY)
            .await;
    }
    let leased = async || {
        let context = jetstream::new(bed.client.clone());
        let consumer: PullConsumer = context
            .get_consumer_from_stream(
                subject::consumer(Lane::Interactive, &model()),
                subject::LIVE_STREAM,
            )
            .await
            .expect("it is there");
        consumer.cached_info().num_ack_pending
    };
    assert_eq!(leased().await, 1);
    let _idle = RunningWorker::start(&bed, one_slot()).await;
    for _ in 0..5 {
        server.call().await.answer(200, WHOLE).await;
    }
    bed.drained_to(1).await;
    assert_eq!(leased().await, 1);
    assert!(
        server.calls.try_recv().is_err(),
        "the held one is not called again"
    );
    held.answer(200, WHOLE).await;
    bed.drained().await;
}
