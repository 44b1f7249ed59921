//! The only nats-server is killed and started again, or stands still: nothing is lost, and work goes on when it is back.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Size;
use super::queue_trouble::{Scene, builder};
use super::report::{Report, millis};

/// Time between two faults.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(800)..Duration::from_millis(2500);
/// How long a killed server is away.
const AWAY: std::ops::Range<Duration> = Duration::from_millis(10)..Duration::from_millis(1500);
/// What may pass, once the server is back, until answers come again.
const RECOVERY: Duration = Duration::from_secs(3);

/// `kill -9` and start again on the same files, again and again.
pub(super) async fn restart(size: Size) -> Report {
    let mut scene = Scene::begin("nats-restart", builder(), size).await;
    let until = Instant::now() + size.span(8, 60);
    let mut away = Duration::ZERO;
    while Instant::now() < until {
        sleep(scene.random.span(PAUSE)).await;
        let from = scene.history.now();
        scene.cluster.nats.kill().await;
        sleep(scene.random.span(AWAY)).await;
        scene.cluster.nats.restart().await;
        away = away.max(scene.history.now() - from);
        scene.struck("nats killed", from);
    }
    let (mut report, cluster) = scene.end(away + RECOVERY).await;
    report.figure("longest that the server was away", millis(away));
    report.finish(cluster)
}

/// `SIGSTOP`, and `SIGCONT` long after.
pub(super) async fn pause(size: Size) -> Report {
    let mut scene = Scene::begin("nats-pause", builder(), size).await;
    let span = size.span(6, 20);
    let from = scene.history.now();
    scene.cluster.nats.freeze(0, true);
    sleep(span).await;
    scene.cluster.nats.freeze(0, false);
    scene.struck("nats frozen", from);
    // A frozen server serves nobody; a worker that has given up its lease by then is replaced.
    scene.allow(&["failed: workers_lost"]);
    let again = scene.answered_again(span + RECOVERY * 4).await;
    let (mut report, cluster) = scene.end(span + RECOVERY * 2).await;
    report.figure("answered again after", millis(again));
    report.finish(cluster)
}
