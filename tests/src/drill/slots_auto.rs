//! `slots: auto` under overload: the model server's own line stays short, it is kept busy, and fewer slots follow when it
//! can do less.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Size;
use super::asking::{Form, busy_token, keep_asking, worker_metric};
use super::report::{Report, millis};
use crate::harness::{Cluster, PATIENCE, until};
use crate::sim::Settings;

/// What the model server runs at once, and what it is cut down to.
const CAPACITY: usize = 24;
const LESS: usize = 8;
/// One slot in eight is kept for completions, so that many slots keep the server busy with other work.
const BEST_FIXED: usize = CAPACITY + CAPACITY / 7 + 1;
/// Bounds in the worker file.
const BOUNDS: (usize, usize) = (4, 128);
const CLIENTS: usize = 100;
/// Requests that may wait in the server's own line, on average and at a look.
const MEAN_LINE: f64 = 4.0;
const LONGEST_LINE: u64 = 16;
/// Share of the best throughput that is to be reached.
const LEAST_SHARE: f64 = 0.85;
/// How long the slots may take to follow.
const FOLLOWS: Duration = Duration::from_secs(8);
/// How long the slots may take from their least number until the line stays short.
const SETTLES: Duration = Duration::from_secs(10);
/// How long a line is short that stays short: six of the worker's looks.
const STAYS: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

pub(super) async fn run(size: Size) -> Report {
    let mut report = Report::new("slots-auto", size);
    let sim = Settings {
        slots: CAPACITY,
        tokens: 10,
        ttft_ms: 100,
        pace_ms: 30,
        kv_tokens: 100_000,
        ..Settings::default()
    };
    let span = size.span(4, 30);
    let form = Form {
        chat: true,
        stream: false,
        words: 10,
    };
    let fixed = Cluster::builder()
        .sim(sim.clone())
        .slots(BEST_FIXED)
        .start()
        .await;
    let token = busy_token(&fixed).await;
    let asking = keep_asking(&fixed, &token, form, CLIENTS);
    sleep(Duration::from_secs(1)).await;
    let best = watch(&fixed, span).await;
    drop(asking);
    fixed.assert_clean().await;
    drop(fixed);

    let cluster = Cluster::builder()
        .sim(sim)
        .slots_auto(BOUNDS.0, BOUNDS.1)
        .start()
        .await;
    let token = busy_token(&cluster).await;
    let asking = keep_asking(&cluster, &token, form, CLIENTS);
    let began = Instant::now();
    slots_are(&cluster, |slots| slots >= CAPACITY).await;
    report.figure("slots reach the capacity after", millis(began.elapsed()));
    // Growth doubles until it has gone too far once, and is cut then: the line that this made has to go.
    let settled = line_stays_short(&cluster).await;
    report.figure("the server's own line stays short after", millis(settled - began));
    report.demand(settled - began <= SETTLES, || {
        format!("the slots took {} to settle", millis(settled - began))
    });
    let seen = watch(&cluster, span).await;
    report.seconds = (span * 2).as_secs_f64();
    report.figure(
        &format!("requests a second, {BEST_FIXED} slots"),
        format!("{:.1}", best.rate),
    );
    report.figure("requests a second, auto", format!("{:.1}", seen.rate));
    report.figure("the server's own line, mean", format!("{:.2}", seen.mean_line));
    report.figure("the server's own line, longest", seen.longest_line.to_string());
    report.demand(seen.rate >= best.rate * LEAST_SHARE, || {
        format!(
            "{:.1} requests a second, where {BEST_FIXED} slots reach {:.1}",
            seen.rate, best.rate
        )
    });
    report.demand(
        seen.mean_line <= MEAN_LINE && seen.longest_line <= LONGEST_LINE,
        || {
            format!(
                "the server's own line was {:.2} long on average, {} at most",
                seen.mean_line, seen.longest_line
            )
        },
    );
    cluster.sim.set(|sim| sim.slots = LESS);
    let began = Instant::now();
    slots_are(&cluster, |slots| slots <= LESS * 2).await;
    let took = began.elapsed();
    report.figure("slots follow a third of the capacity after", millis(took));
    report.demand(took <= FOLLOWS, || {
        format!("the slots took {} to follow", millis(took))
    });
    drop(asking);
    cluster.assert_clean().await;
    report.finish(cluster)
}

struct Seen {
    rate: f64,
    mean_line: f64,
    longest_line: u64,
}

async fn watch(cluster: &Cluster, span: Duration) -> Seen {
    let (before, began) = (cluster.sim.stats().finished, Instant::now());
    let (mut looks, mut waited, mut longest_line) = (0_u64, 0, 0);
    while began.elapsed() < span {
        let waiting = cluster.sim.stats().waiting;
        looks += 1;
        waited += waiting;
        longest_line = longest_line.max(waiting);
        sleep(LOOK).await;
    }
    Seen {
        rate: (cluster.sim.stats().finished - before) as f64 / began.elapsed().as_secs_f64(),
        mean_line: waited as f64 / looks.max(1) as f64,
        longest_line,
    }
}

/// Waits until the server's own line stays short; when that began.
async fn line_stays_short(cluster: &Cluster) -> Instant {
    let mut since = Instant::now();
    until("the server's own line stays short", PATIENCE, async || {
        let waiting = cluster.sim.stats().waiting;
        if waiting > LONGEST_LINE {
            since = Instant::now();
        }
        if since.elapsed() >= STAYS {
            Ok(since)
        } else {
            Err(format!("{waiting} wait"))
        }
    })
    .await
}

async fn slots_are(cluster: &Cluster, enough: impl Fn(usize) -> bool) {
    until("the worker's slots follow", PATIENCE, async || {
        let slots = worker_metric(cluster, 0, "duo_worker_slots")
            .await
            .unwrap_or_default();
        if enough(slots as usize) {
            Ok(())
        } else {
            Err(slots.to_string())
        }
    })
    .await;
}
