//! A second worker is started in front of a backlog: it takes load at once, and the backlog drains faster.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Size;
use super::asking::{Form, busy_token, keep_asking, worker_metric};
use super::report::{Report, millis};
use crate::harness::{Cluster, PATIENCE, until};
use crate::sim::Settings;

/// Slots of each worker, and the clients that ask without a pause: a backlog for both.
const SLOTS: usize = 8;
const CLIENTS: usize = 40;
/// A worker that has started may take so long until its first delivery.
const FIRST_DELIVERY: Duration = Duration::from_secs(1);
/// Twice the slots serve at least so many times as much.
const LEAST_GAIN: f64 = 1.6;
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(5);

pub(super) async fn run(size: Size) -> Report {
    let mut report = Report::new("scale-out", size);
    let sim = Settings {
        tokens: 10,
        ttft_ms: 100,
        pace_ms: 30,
        ..Settings::default()
    };
    let mut cluster = Cluster::builder().sim(sim).slots(SLOTS).workers(2).start().await;
    cluster.kill_worker(1).await;
    let token = busy_token(&cluster).await;
    let form = Form {
        chat: true,
        stream: false,
        words: 10,
    };
    let asking = keep_asking(&cluster, &token, form, CLIENTS);
    let span = size.span(3, 15);
    let alone = rate(&cluster, span).await;
    let started = Instant::now();
    cluster.worker(1).again();
    let (up, first) = first_delivery(&cluster, 1).await;
    sleep(Duration::from_millis(500)).await;
    let both = rate(&cluster, span).await;
    report.seconds = (span * 2).as_secs_f64();
    report.figure("requests a second, one worker", format!("{alone:.1}"));
    report.figure("requests a second, two workers", format!("{both:.1}"));
    report.figure("process start to operations port", millis(up - started));
    report.figure("operations port to first delivery", millis(first - up));
    report.demand(first - up < FIRST_DELIVERY, || {
        format!(
            "the second worker's first delivery came {} after it was up",
            millis(first - up)
        )
    });
    report.demand(both >= alone * LEAST_GAIN, || {
        format!("two workers serve {both:.1} a second, one served {alone:.1}")
    });
    drop(asking);
    cluster.ready(PATIENCE).await;
    cluster.assert_clean().await;
    report.finish(cluster)
}

/// Answers a second.
async fn rate(cluster: &Cluster, span: Duration) -> f64 {
    sleep(Duration::from_millis(500)).await;
    let (before, began) = (cluster.sim.stats().finished, Instant::now());
    sleep(span).await;
    (cluster.sim.stats().finished - before) as f64 / began.elapsed().as_secs_f64()
}

/// When a worker that starts answers at its operations port, and when it has its first delivery.
async fn first_delivery(cluster: &Cluster, number: usize) -> (Instant, Instant) {
    until("the worker is up", PATIENCE, async || {
        cluster.worker_metrics(number).await.map(|_| ())
    })
    .await;
    let up = Instant::now();
    while worker_metric(cluster, number, "duo_worker_deliveries_total")
        .await
        .unwrap_or_default()
        == 0.0
    {
        if up.elapsed() > PATIENCE {
            break;
        }
        sleep(LOOK).await;
    }
    (up, Instant::now())
}
