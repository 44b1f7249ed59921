//! The disk of NATS is full: nothing more is admitted and everybody is told so, nothing that was acknowledged is lost.
//!
//! The store is on a small tmpfs, which only root may mount.

use std::fs;
use std::time::Duration;

use tokio::time::sleep;

use super::Size;
use super::disk::Disk;
use super::history::End;
use super::queue_trouble::{Scene, builder};
use super::report::{Report, millis};
use crate::harness::{NatsPlan, PATIENCE, until};

/// Size of the disk: room for every stream's files, and little more.
const DISK: &str = "size=64m";
/// What may pass, once there is room and the server is back, until answers come again.
const RECOVERY: Duration = Duration::from_secs(4);

pub(super) async fn run(size: Size) -> Report {
    let disk = match Disk::mount(DISK) {
        Ok(disk) => disk,
        Err(error) => {
            let mut report = Report::new("disk-full", size);
            report.figure(
                "not run: a tmpfs cannot be mounted (it takes root)",
                error.to_string(),
            );
            return report;
        }
    };
    let plan = NatsPlan {
        store: Some(disk.path().to_owned()),
        ..NatsPlan::default()
    };
    let mut scene = Scene::begin("disk-full", builder().nats(plan), size).await;
    // Presence cannot be stored either, so the workers seem to be gone when it lasts.
    scene.allow(&["refused: no_worker", "failed: workers_lost"]);
    let from = scene.history.now();
    let filler = disk.fill();
    let red = until("readiness is red", PATIENCE, async || {
        let ready = scene.cluster.readiness().await?;
        match ready.contains("NATS does not store") {
            true => Ok(scene.history.now() - from),
            false => Err(ready),
        }
    })
    .await;
    sleep(size.span(8, 30)).await;
    let shed =
        |asked: &super::Asked| matches!(asked.end, End::Failed { status: 503, .. }) && asked.sent > from;
    let told = scene.history.count_of(shed);
    fs::remove_file(filler).expect("it is ours");
    // A stream that could not be written stays still until the server is started again.
    scene.cluster.nats.kill().await;
    scene.cluster.nats.restart().await;
    scene.struck("disk full", from);
    let full = scene.history.now() - from;
    let again = scene.answered_again(PATIENCE).await;
    until("readiness is green again", PATIENCE, async || {
        match scene.cluster.readiness().await? {
            ready if ready == "ok" => Ok(()),
            ready => Err(ready),
        }
    })
    .await;
    let (mut report, cluster) = scene.end(full + RECOVERY).await;
    report.figure("/readyz red after", millis(red));
    report.figure("answered again after", millis(again));
    report.demand(told > 0, || {
        "nobody was told that nothing can be stored".to_owned()
    });
    let report = report.finish(cluster);
    drop(disk);
    report
}
