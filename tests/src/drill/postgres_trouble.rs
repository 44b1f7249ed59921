//! PostgreSQL is away, killed, stalled, or its disk is full: no client notices, and every request has its records in the
//! end. Records wait in NATS meanwhile.

use std::fs;
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep};

use super::Size;
use super::disk::Disk;
use super::history::End;
use super::queue_trouble::{Scene, builder};
use super::report::{Report, millis};
use crate::harness::{PATIENCE, Postgres, until};

/// Longest time between two answers: that of a calm load.
const GAP: Duration = Duration::from_secs(1);
/// Time between two kills.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_millis(2500);
/// How long a killed server is away.
const AWAY: std::ops::Range<Duration> = Duration::from_millis(10)..Duration::from_millis(3000);
/// Size of the disk: an empty server has 60 MB, most of it the write-ahead log.
const DISK: &str = "size=160m";

fn server(scene: &mut Scene) -> &mut Postgres {
    scene.cluster.postgres.as_mut().expect("a server of its own")
}

/// Stopped, ten minutes.
pub(super) async fn away(size: Size) -> Report {
    let mut scene = Scene::begin("postgres-away", builder().own_postgres(), size).await;
    let from = scene.history.now();
    server(&mut scene).stop();
    sleep(size.span(8, 600)).await;
    server(&mut scene).start_again().await;
    scene.struck("postgres away", from);
    unnoticed(scene).await
}

/// `kill -9` of all its processes and start again, again and again.
pub(super) async fn killed(size: Size) -> Report {
    let mut scene = Scene::begin("postgres-kill", builder().own_postgres(), size).await;
    let end = Instant::now() + size.span(8, 120);
    while Instant::now() < end {
        sleep(scene.random.span(PAUSE)).await;
        let from = scene.history.now();
        server(&mut scene).kill();
        sleep(scene.random.span(AWAY)).await;
        server(&mut scene).start_again().await;
        scene.struck("postgres killed", from);
    }
    unnoticed(scene).await
}

/// `SIGSTOP` of all its processes, and `SIGCONT` long after: connections are open and silent.
pub(super) async fn stalled(size: Size) -> Report {
    let mut scene = Scene::begin("postgres-pause", builder().own_postgres(), size).await;
    let from = scene.history.now();
    server(&mut scene).freeze(true);
    sleep(size.span(8, 120)).await;
    server(&mut scene).freeze(false);
    scene.struck("postgres frozen", from);
    unnoticed(scene).await
}

/// No byte can be written; with room again the server is started anew, whatever had become of it.
pub(super) async fn full(size: Size) -> Report {
    let disk = match Disk::mount(DISK) {
        Ok(disk) => disk,
        Err(error) => {
            let mut report = Report::new("postgres-disk-full", size);
            report.figure(
                "not run: a tmpfs cannot be mounted (it takes root)",
                error.to_string(),
            );
            return report;
        }
    };
    let builder = builder().own_postgres_below(disk.path());
    let mut scene = Scene::begin("postgres-disk-full", builder, size).await;
    let from = scene.history.now();
    let filler = disk.fill();
    refuses(scene.cluster.database.url()).await;
    sleep(size.span(8, 60)).await;
    fs::remove_file(filler).expect("it is ours");
    server(&mut scene).stop();
    server(&mut scene).start_again().await;
    scene.struck("disk full", from);
    let report = unnoticed(scene).await;
    drop(disk);
    report
}

/// Waits until the server cannot store a row.
async fn refuses(url: &str) {
    until("PostgreSQL stores nothing", PATIENCE, async || {
        let stored = async {
            let mut connection = PgConnection::connect(url).await?;
            sqlx::raw_sql(
                "CREATE TABLE more AS SELECT repeat('x', 7000) FROM generate_series(1, 100); DROP TABLE more",
            )
            .execute(&mut connection)
            .await
        };
        match stored.await {
            Ok(_stored) => Err("it stored something".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
}

/// Checks, and demands that every request was answered as on any other day.
async fn unnoticed(scene: Scene) -> Report {
    let history = scene.history.clone();
    let (mut report, cluster) = scene.end(GAP).await;
    let all = history.all();
    let missed: Vec<_> = all
        .iter()
        .filter(|asked| asked.end != End::Whole)
        .take(5)
        .map(|asked| {
            format!(
                "{:?} after {}",
                asked.end,
                millis(asked.ended.saturating_sub(asked.sent))
            )
        })
        .collect();
    report.demand(missed.is_empty(), || {
        format!("clients noticed: {}", missed.join("; "))
    });
    report.figure("requests meanwhile and around it", all.len().to_string());
    report.finish(cluster)
}
