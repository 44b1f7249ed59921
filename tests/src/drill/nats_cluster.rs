//! Three nats-servers, of which one dies, stands still or hands over, or of which two die.
//!
//! The bounds are those of nats-server itself and a little more: a follower of a stream that hears nothing of its leader
//! stands for election after four to nine seconds, and nothing can be stored before there is a new one.

use std::time::Duration;

use duo_contract::subject::{AUDIT_STREAM, LIVE_STREAM};
use tokio::time::{Instant, sleep};

use super::Size;
use super::queue_trouble::{Scene, clustered};
use super::report::{Report, millis};
use crate::harness::PATIENCE;

/// Longest that nats-server takes to begin an election, and what the election and the next answer take.
const ELECTION: Duration = Duration::from_secs(9 + 1);
/// A server that hangs is noticed, another is connected to, and there may be an election too.
const HANGING: Duration = Duration::from_secs(15);
/// A leader that is asked to hand over does so at once.
const HANDOVER: Duration = Duration::from_secs(6);
/// Time between two faults.
const PAUSE: Duration = Duration::from_secs(2);

/// The server that leads the live stream is killed.
pub(super) async fn leader_kill(size: Size) -> Report {
    let mut scene = Scene::begin("nats-leader-kill", clustered(), size).await;
    let until = Instant::now() + size.span(3, 60);
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let leader = leader(&scene).await;
        let from = scene.history.now();
        scene.cluster.nats.kill_server(leader).await;
        slowest = slowest.max(scene.answered_again(PATIENCE * 2).await);
        scene.cluster.nats.restart_server(leader).await;
        scene.struck("leader killed", from);
        sleep(PAUSE).await;
    }
    let (mut report, cluster) = scene.end(ELECTION).await;
    report.figure("answered again after", millis(slowest));
    report.finish(cluster)
}

/// The server that leads the live stream stands still for a while.
pub(super) async fn leader_pause(size: Size) -> Report {
    let mut scene = Scene::begin("nats-leader-pause", clustered(), size).await;
    let rounds = if size.short { 1 } else { 2 };
    for _ in 0..rounds {
        let leader = leader(&scene).await;
        freeze(&mut scene, leader, size).await;
    }
    let (report, cluster) = scene.end(HANGING).await;
    report.finish(cluster)
}

/// Each server in turn stands still: the one that the broker is connected to, those of the workers, the leader.
pub(super) async fn server_pause(size: Size) -> Report {
    let mut scene = Scene::begin("nats-server-pause", clustered(), size).await;
    for number in 0..scene.cluster.nats.count() {
        freeze(&mut scene, number, size).await;
    }
    let (report, cluster) = scene.end(HANGING).await;
    report.finish(cluster)
}

/// Leaders are made to hand over, again and again.
pub(super) async fn leader_change(size: Size) -> Report {
    let mut scene = Scene::begin("nats-leader-change", clustered(), size).await;
    let until = Instant::now() + size.span(8, 60);
    while Instant::now() < until {
        let from = scene.history.now();
        for stream in [LIVE_STREAM, AUDIT_STREAM] {
            // Refused while an election is under way: the next round asks again.
            if scene.cluster.nats.step_down(stream).await.is_ok() {
                scene.struck("leader changed", from);
            }
        }
        sleep(scene.random.span(PAUSE / 4..PAUSE)).await;
    }
    let (report, cluster) = scene.end(HANDOVER).await;
    report.finish(cluster)
}

/// Two of three servers are down: nothing can be stored, and everybody is told so.
pub(super) async fn two_down(size: Size) -> Report {
    let mut scene = Scene::begin("nats-two-down", clustered(), size).await;
    let span = size.span(8, 20);
    let from = scene.history.now();
    for number in [0, 1] {
        scene.cluster.nats.kill_server(number).await;
    }
    sleep(span).await;
    for number in [0, 1] {
        scene.cluster.nats.begin_restart(number);
    }
    scene.struck("two of three killed", from);
    let again = scene.answered_again(PATIENCE * 2).await;
    let refused = scene.history.count_of(|asked| {
        let told = matches!(asked.end, super::End::Failed { status: 503, .. });
        told && asked.sent > from
    });
    let (mut report, cluster) = scene.end(span + ELECTION * 2).await;
    report.figure("answered again after", millis(again));
    report.demand(refused > 0, || {
        "nobody was told that nothing can be stored".to_owned()
    });
    report.finish(cluster)
}

async fn leader(scene: &Scene) -> usize {
    crate::harness::until("the live stream has a leader", PATIENCE, async || {
        scene.cluster.nats.leader_of(LIVE_STREAM).await
    })
    .await
}

async fn freeze(scene: &mut Scene, server: usize, size: Size) {
    let from = scene.history.now();
    scene.cluster.nats.freeze(server, true);
    sleep(size.span(5, 20)).await;
    scene.cluster.nats.freeze(server, false);
    scene.struck("server frozen", from);
    scene.answered_again(PATIENCE).await;
    sleep(PAUSE).await;
}
