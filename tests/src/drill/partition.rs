//! The network between one program and NATS is cut both ways or one way, or it is slow.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Size;
use super::queue_trouble::{Scene, builder};
use super::report::{Report, millis};
use crate::harness::cluster::sum;
use crate::harness::{PATIENCE, Weather, until};

/// The lease of these drills, and what a stall may take beside it.
const LEASE: &str = "1s";
/// The longest stall: the lease, the next worker's start, and what a cut of only one way adds until it is noticed.
const STALL: Duration = Duration::from_secs(3);
/// A broker that is alone refuses; what it has is answered when it is back.
const RECOVERY: Duration = Duration::from_secs(5);
/// Every way in which a line can be cut.
const CUTS: [(&str, Weather); 3] = [
    ("cut both ways", Weather::CUT),
    (
        "cut towards the program",
        Weather {
            up_cut: false,
            ..Weather::CUT
        },
    ),
    (
        "cut towards NATS",
        Weather {
            down_cut: false,
            ..Weather::CUT
        },
    ),
];
/// A distant site on a bad line: 200 ms each way, and one piece in fifty comes late.
const FAR: Weather = Weather {
    up_cut: false,
    down_cut: false,
    delay: Duration::from_millis(200),
    late_one_in: 50,
};

/// A worker loses NATS while it works: another goes on, and what the first says later changes nothing.
pub(super) async fn worker(size: Size) -> Report {
    let scene = Scene::begin("partition-worker", builder().linked().lease(LEASE), size).await;
    let span = size.span(3, 60);
    for (what, weather) in CUTS {
        let from = scene.history.now();
        scene.cluster.links[1].set(weather);
        sleep(span).await;
        scene.cluster.links[1].heal();
        scene.struck(what, from);
        serves_again(&scene).await;
    }
    let (mut report, cluster) = scene.end(STALL).await;
    let continued = cluster.sim.stats().continued;
    report.figure("answers continued elsewhere", continued.to_string());
    report.demand(continued > 0, || "no answer was continued".to_owned());
    report.finish(cluster)
}

/// The broker loses NATS: its clients are told, and its streams go on when it is back.
pub(super) async fn broker(size: Size) -> Report {
    let mut scene = Scene::begin("partition-broker", builder().linked().lease(LEASE), size).await;
    // Workers give up an owner of whom nothing is heard for a lease, and every cut costs a long answer an attempt.
    scene.allow(&["failed: workers_lost"]);
    let span = size.span(3, 20);
    for (what, weather) in CUTS {
        let from = scene.history.now();
        scene.cluster.links[0].set(weather);
        sleep(span).await;
        scene.cluster.links[0].heal();
        scene.struck(what, from);
        scene.answered_again(PATIENCE).await;
        sleep(Duration::from_secs(1)).await;
    }
    let (report, cluster) = scene.end(span + RECOVERY).await;
    report.finish(cluster)
}

/// The broker is far from NATS, on a bad line: slower, and nothing else.
pub(super) async fn far(size: Size) -> Report {
    let scene = Scene::begin("slow-network", builder().linked(), size).await;
    let from = scene.history.now();
    scene.cluster.links[0].set(FAR);
    sleep(size.span(8, 60)).await;
    scene.cluster.links[0].heal();
    scene.struck("200 ms and late packets", from);
    let before = scene.cluster.sim.stats().started;
    let (mut report, cluster) = scene.end(STALL).await;
    let twice = cluster.sim.stats().continued;
    report.figure("generations", before.to_string());
    report.demand(twice == 0, || format!("{twice} answers were begun twice"));
    report.finish(cluster)
}

/// Waits until the worker that was cut off takes deliveries again.
async fn serves_again(scene: &Scene) {
    let taken = async || {
        let metrics = scene.cluster.worker_metrics(0).await?;
        Ok::<_, String>(sum(&metrics, "duo_worker_deliveries_total"))
    };
    let before = taken().await.expect("the worker runs");
    let healed = Instant::now();
    until(
        "the worker that was cut off works again",
        PATIENCE,
        async || match taken().await? {
            now if now > before => Ok(()),
            now => Err(format!(
                "{now} deliveries, as before, {}",
                millis(healed.elapsed())
            )),
        },
    )
    .await;
    sleep(Duration::from_secs(1)).await;
}
