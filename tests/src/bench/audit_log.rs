//! The audit log with many records: pages, counts, an export, a verification, new records, and a day that is dropped.
//!
//! `duo-broker audit generate` makes the records: those of many days, and a day of its own before them, which is dropped at
//! the end while new records come in. Everything is asked of the real programs, and compared with what SQL counts.

mod bulk;
mod flow;
mod reads;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::runtime::Runtime;

use self::bulk::Bulk;
use self::flow::Flow;
use super::Options;
use super::cpu::{Process, Usage};
use super::report::Spread;
use super::target::Servers;
use super::throughput::taking_part;
use crate::table;

/// Most records of the export, of the verification and of the day that is dropped.
const MILLION: u64 = 1_000_000;
/// New records a second.
const RATE: u64 = 5000;
/// How long the broker may take to sign what was made.
const PATIENCE: Duration = Duration::from_secs(1800);
const LOOK: Duration = Duration::from_millis(100);

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct AuditLog {
    /// Records that were made, without those of the day that is dropped.
    pub records: u64,
    /// Over how many days.
    pub days: u16,
    /// Seconds that making all of them took.
    pub made_seconds: f64,
    /// Seconds from then until all were under a signed checkpoint.
    pub signed_seconds: f64,
    /// What was asked again and again.
    pub asked: Vec<Asked>,
    /// The export.
    pub export: Bulk,
    /// The verification.
    pub verify: Bulk,
    /// New records at a steady pace.
    pub flow: Flow,
    /// The same while a day was dropped.
    pub beside_drop: Flow,
    /// Records of that day.
    pub dropped: u64,
    /// Seconds that dropping it took, as the broker says.
    pub drop_seconds: f64,
    /// What was wrong.
    pub wrong: Vec<String>,
}

/// One kind of question.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// Which.
    pub what: &'static str,
    /// How often.
    pub times: usize,
    /// Pages that were given back before they were full, since their time was up.
    pub cut: usize,
    /// To the whole answer, in microseconds.
    pub took_us: Spread,
    /// CPU time each in microseconds, by process.
    pub cpu_us: Vec<(String, f64)>,
}

/// Whom to ask.
struct Door<'a> {
    options: &'a Options,
    servers: &'a Servers,
    token: &'a str,
    pool: PgPool,
    processes: Vec<Process>,
    /// Records that were made occurred from here on.
    since: OffsetDateTime,
    /// The midnight before which they did.
    until: OffsetDateTime,
}

/// Asks one thing after the other.
pub(super) fn measure(
    options: &Options,
    servers: &Servers,
    runtime: &Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<AuditLog> {
    runtime.block_on(async {
        let database = options
            .database
            .as_deref()
            .context("this scenario needs DUO_DATABASE_URL")?;
        let until = OffsetDateTime::now_utc().replace_time(time::Time::MIDNIGHT);
        let door = Door {
            options,
            servers,
            token: options
                .auditor_token
                .as_deref()
                .context("this scenario needs DUO_AUDITOR_TOKEN")?,
            pool: PgPool::connect(database).await?,
            processes: taking_part(options, "broker")
                .into_iter()
                .filter(|process| ["broker", "nats", "postgres"].contains(&process.name.as_str()))
                .collect(),
            since: until - time::Duration::days(options.days.into()),
            until,
        };
        all(&door, progress).await
    })
}

async fn all(door: &Door<'_>, progress: &impl Fn(&str)) -> anyhow::Result<AuditLog> {
    let options = door.options;
    let mut wrong = Vec::new();
    let ago = options.days + 5;
    let dropped = options.records.min(MILLION);
    progress(&format!(
        "audit-log: making {} records",
        options.records + dropped
    ));
    let began = Instant::now();
    bulk::generate(options, dropped, 1, ago).await?;
    if !options.made {
        bulk::generate(options, options.records, options.days, 1).await?;
    }
    let made_seconds = began.elapsed().as_secs_f64();
    progress("audit-log: until all are signed");
    let began = Instant::now();
    door.until_signed().await?;
    let signed_seconds = began.elapsed().as_secs_f64();
    // Records that come over days are looked at by autovacuum meanwhile; these came at once.
    sqlx::query("VACUUM (ANALYZE)").execute(&door.pool).await?;
    progress("audit-log: pages");
    let mut asked = reads::pages(door, &mut wrong).await?;
    progress("audit-log: counts");
    asked.extend(reads::counts(door, &mut wrong).await?);
    progress("audit-log: an export");
    let export = bulk::export(door, &mut wrong).await?;
    progress("audit-log: a verification");
    let verify = bulk::verify(door, &mut wrong).await?;
    progress(&format!("audit-log: {RATE} new records a second"));
    let window = tokio::time::sleep(Duration::from_secs(options.seconds));
    let (flow, ()) = flow::run(door, RATE, window, &mut wrong).await?;
    progress("audit-log: the same while a day is dropped");
    let retention = bulk::Retention::start(options, options.days + 2)?;
    let (beside_drop, drop_seconds) = flow::run(door, RATE, retention.dropped(door), &mut wrong).await?;
    let drop_seconds = drop_seconds?;
    let day = (door.until - time::Duration::days(ago.into())).date();
    if door.exists(day).await? {
        wrong.push(format!("the partition of {day} is still there"));
    }
    Ok(AuditLog {
        records: options.records,
        days: options.days,
        made_seconds,
        signed_seconds,
        asked,
        export,
        verify,
        flow,
        beside_drop,
        dropped,
        drop_seconds,
        wrong,
    })
}

impl Door<'_> {
    async fn until_signed(&self) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let signed: Option<i64> = sqlx::query_scalar("SELECT max(size) FROM audit_checkpoints")
                .fetch_one(&self.pool)
                .await?;
            let size: i64 = sqlx::query_scalar("SELECT size FROM audit_head")
                .fetch_one(&self.pool)
                .await?;
            if signed == Some(size) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{signed:?} of {size} records are signed");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Records that occurred from one moment up to another.
    async fn counted(&self, since: OffsetDateTime, until: OffsetDateTime) -> anyhow::Result<u64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM audit_events WHERE occurred_at >= $1 AND occurred_at < $2",
        )
        .bind(since)
        .bind(until)
        .fetch_one(&self.pool)
        .await?;
        Ok(count.unsigned_abs())
    }

    async fn exists(&self, day: time::Date) -> anyhow::Result<bool> {
        let there = sqlx::query_scalar(
            "SELECT to_regclass('audit_events_' || to_char($1::date, 'YYYYMMDD')) IS NOT NULL",
        )
        .bind(day)
        .fetch_one(&self.pool)
        .await?;
        Ok(there)
    }

    fn used(&self) -> anyhow::Result<Vec<Usage>> {
        Ok(Usage::of_all(&self.processes)?)
    }

    /// CPU time since then, for each of so many, in microseconds.
    fn used_since(&self, before: Vec<Usage>, count: u64) -> anyhow::Result<Vec<(String, f64)>> {
        let used = Usage::between(before, self.used()?);
        let each = |used: Usage| (used.name, used.cpu.as_secs_f64() * 1e6 / count.max(1) as f64);
        Ok(used.into_iter().map(each).collect())
    }
}

/// The tables' lines.
pub(super) fn lines(log: &AuditLog) -> Vec<String> {
    let share = |used: &[(String, f64)], name: &str| {
        let found = used.iter().find(|(of, _)| of == name);
        found.map_or(0.0, |(_, us)| us / 1000.0)
    };
    let cells: Vec<_> = log
        .asked
        .iter()
        .map(|asked| {
            let spread = asked.took_us;
            let mut cells = vec![
                asked.what.to_owned(),
                asked.times.to_string(),
                asked.cut.to_string(),
            ];
            cells.extend(
                [spread.p50, spread.p95, spread.p99, spread.max].map(|us| format!("{:.1}", us / 1000.0)),
            );
            cells.extend(["broker", "postgres"].map(|name| format!("{:.1}", share(&asked.cpu_us, name))));
            cells
        })
        .collect();
    let headings = [
        "ASKED", "TIMES", "CUT", "P50", "P95", "P99", "MAX", "BROKER", "POSTGRES",
    ];
    let mut lines = table::lines(2, &headings, &cells);
    lines.push(format!(
        "  Made in {:.0} s, {:.0} a second; all signed {:.0} s later",
        log.made_seconds,
        (log.records + log.dropped) as f64 / log.made_seconds,
        log.signed_seconds
    ));
    for (what, bulk) in [("export", &log.export), ("verification", &log.verify)] {
        lines.push(format!("  {}", bulk.line(what)));
    }
    lines.push(format!("  {}", log.flow.line("new records")));
    lines.push(format!("  {}", log.beside_drop.line("beside the drop")));
    lines.push(format!(
        "  A day of {} records was dropped in {:.2} s",
        log.dropped, log.drop_seconds
    ));
    lines.extend(log.wrong.iter().map(|wrong| format!("WRONG: {wrong}")));
    lines
}
