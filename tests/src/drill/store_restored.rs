//! The store of NATS is replaced by an older copy of itself, as after a power cut that took what was not yet on disk, or
//! damaged: the requests that are under way are published again, and the copy's old ones are nobody's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use duo_contract::subject::LIVE_STREAM;
use tokio::time::sleep;

use super::Size;
use super::queue_trouble::{Scene, builder};
use super::report::{Report, millis};
use crate::harness::PATIENCE;
use crate::harness::cluster::sum;

/// What may pass, once the server is back, until answers come again and streams go on.
const RECOVERY: Duration = Duration::from_secs(6);

/// The whole store is as it was some time ago.
pub(super) async fn restored(size: Size) -> Report {
    let mut scene = Scene::begin("store-restored", builder().lease("2s"), size).await;
    // A copy that is whole: the server is down for it.
    let copy = scene.cluster.folder().join("copy");
    scene.cluster.nats.kill().await;
    let store = scene.cluster.nats.store().to_owned();
    copy_all(&store, &copy);
    scene.cluster.nats.restart().await;
    sleep(size.span(6, 30)).await;
    let from = scene.history.now();
    // What is acknowledged and in nobody else's hands yet is lost with the disk; see docs/drills.md. Here the writer is
    // let finish, so that the audit log can be held against what the clients saw.
    replace(&mut scene, &store, |store| {
        fs::remove_dir_all(store).expect("the store can be removed");
        copy_all(&copy, store);
    })
    .await;
    scene.struck("store replaced by an older copy", from);
    let again = scene.answered_again(PATIENCE).await;
    let away = scene.history.now() - from;
    let (mut report, cluster) = scene.end(away + RECOVERY).await;
    report.figure("answered again after", millis(again));
    let republished = sum(
        &cluster.metrics().await.expect("it runs"),
        "duo_republished_total",
    );
    report.figure("requests published again", republished.to_string());
    report.finish(cluster)
}

/// The blocks of the live stream are damaged.
pub(super) async fn damaged(size: Size) -> Report {
    let mut scene = Scene::begin("store-damaged", builder().lease("2s"), size).await;
    let store = scene.cluster.nats.store().to_owned();
    let rounds = if size.short { 1 } else { 8 };
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        let from = scene.history.now();
        let place = scene
            .random
            .span(Duration::ZERO..Duration::from_secs(1))
            .as_secs_f64();
        let mut flipped = 0;
        replace(&mut scene, &store, |store| {
            for block in blocks(store, LIVE_STREAM) {
                flipped += usize::from(flip(&block, place));
            }
        })
        .await;
        scene.struck("blocks of the live stream damaged", from);
        assert!(flipped > 0, "there was nothing to damage");
        slowest = slowest.max(scene.answered_again(PATIENCE).await);
        sleep(Duration::from_secs(3)).await;
    }
    let (mut report, cluster) = scene.end(RECOVERY).await;
    report.figure("answered again after", millis(slowest));
    report.finish(cluster)
}

/// Kills the server, changes its files, and starts it again.
async fn replace(scene: &mut Scene, store: &Path, change: impl FnOnce(&Path)) {
    scene.cluster.nats.kill().await;
    change(store);
    scene.cluster.nats.restart().await;
}

/// Copies a folder with all that is in it.
pub(super) fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_all(&path, &copy);
        } else {
            fs::copy(&path, &copy).expect("it can be copied");
        }
    }
}

/// The files in which a stream's messages are.
fn blocks(folder: &Path, stream: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(blocks(&path, stream));
        } else if path.extension().is_some_and(|end| end == "blk")
            && path.components().any(|part| part.as_os_str() == stream)
        {
            found.push(path);
        }
    }
    found
}

/// Turns one bit round in the middle of a file; false where it is empty.
fn flip(path: &Path, place: f64) -> bool {
    let mut bytes = fs::read(path).expect("it can be read");
    let index = (bytes.len() as f64 * place) as usize;
    let Some(byte) = bytes.get_mut(index) else {
        return false;
    };
    *byte ^= 1;
    fs::write(path, bytes).expect("it can be written");
    true
}
