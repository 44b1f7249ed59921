//! Somebody deletes the live stream, or the consumers, under load: they are made again, and what was lost with them is
//! published again.

use std::time::Duration;

use async_nats::jetstream;
use duo_contract::subject::{AUDIT_STREAM, LIVE_STREAM};
use futures_util::TryStreamExt as _;
use tokio::time::{Instant, sleep};

use super::Size;
use super::queue_trouble::{Scene, builder};
use super::report::{Report, millis};
use crate::harness::PATIENCE;

/// What may pass until answers come again.
const RECOVERY: Duration = Duration::from_secs(6);
/// Pulls are served again within this, as the table of failure drills demands.
const PULLS: Duration = Duration::from_secs(15);
/// Time between two faults.
const PAUSE: Duration = Duration::from_secs(3);

/// The live stream, with every request that waits or runs.
pub(super) async fn stream(size: Size) -> Report {
    let scene = Scene::begin("stream-deleted", builder().lease("2s"), size).await;
    let until = Instant::now() + size.span(6, 60);
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let from = scene.history.now();
        let context = jetstream::new(scene.cluster.nats.connect().await);
        context.delete_stream(LIVE_STREAM).await.expect("it is there");
        scene.struck("stream deleted", from);
        slowest = slowest.max(scene.answered_again(PATIENCE).await);
        sleep(PAUSE).await;
    }
    let (mut report, cluster) = scene.end(RECOVERY).await;
    report.figure("answered again after", millis(slowest));
    report.finish(cluster)
}

/// Every consumer: those that workers pull from and the one that moves audit records.
pub(super) async fn consumer(size: Size) -> Report {
    let scene = Scene::begin("consumer-deleted", builder().lease("2s"), size).await;
    let until = Instant::now() + size.span(6, 60);
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let from = scene.history.now();
        let context = jetstream::new(scene.cluster.nats.connect().await);
        for stream in [LIVE_STREAM, AUDIT_STREAM] {
            let stream = context.get_stream(stream).await.expect("it is there");
            let names: Vec<String> = stream.consumer_names().try_collect().await.expect("their names");
            for name in names {
                stream.delete_consumer(&name).await.expect("it is there");
            }
        }
        scene.struck("consumers deleted", from);
        slowest = slowest.max(scene.answered_again(PATIENCE).await);
        sleep(PAUSE).await;
    }
    let (mut report, cluster) = scene.end(PULLS).await;
    report.figure("answered again after", millis(slowest));
    report.finish(cluster)
}
