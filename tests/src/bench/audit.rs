//! What the audit log costs, and how fast its writer works off a backlog.
//!
//! The audit log cannot be switched off: a broker that was built without one, for this alone, is what it is compared with
//! ([`unaudited`]). Then there is a window while PostgreSQL is held up (all its processes stopped by signal): each request still
//! has its records in NATS before its client sees anything, but nobody carries them on. What was held up is the backlog
//! whose working off is measured then.

mod unaudited;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::runtime::Runtime;

pub use self::unaudited::Cost;
use super::Options;
use super::check::Shape;
use super::cpu::{Process, Usage, family};
use super::report::Row;
use super::target::Servers;
use super::throughput::{taking_part, window};
use crate::table;

/// Requests at a time.
const CONCURRENCY: usize = 32;
/// PostgreSQL's name among the processes.
const POSTGRES: &str = "postgres";
/// Longest time in which the backlog is to be gone.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(20);

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// With and without records.
    pub cost: Cost,
    /// With and without the way into PostgreSQL.
    pub rows: Vec<Row>,
    /// Records of the backlog.
    pub backlog: u64,
    /// Of them, those that did not come into PostgreSQL.
    pub missing: u64,
    /// Seconds from the first written record of the backlog to the last.
    pub seconds: f64,
    /// CPU time for each record of it, in microseconds.
    pub used_us: Vec<(String, f64)>,
}

/// Stopped processes; dropped, they go on.
struct HeldUp(Vec<u32>);

impl HeldUp {
    fn new(process: &Process) -> anyhow::Result<Self> {
        let held = Self(family(process)?);
        held.signal(Signal::SIGSTOP)?;
        Ok(held)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        for pid in &self.0 {
            kill(Pid::from_raw(i32::try_from(*pid)?), signal)
                .with_context(|| format!("process {pid} takes no signal"))?;
        }
        Ok(())
    }
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        // One that has ended needs none.
        let _ = self.signal(Signal::SIGCONT);
    }
}

/// Two windows and a backlog.
pub(super) fn measure(
    options: &Options,
    servers: &Servers,
    runtime: &Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<Audit> {
    let ways = servers.ways(options, Shape::Chat, options.tokens)?;
    let way = ways.into_iter().find(|way| way.over == "broker");
    let target = way.context("this scenario needs a broker")?.target;
    let postgres = options.pids.iter().find(|process| process.name == POSTGRES);
    let postgres = postgres.context("this scenario needs --pid postgres=PID")?;
    let load = |request| window(options, ("audit", request, "broker"), &target, CONCURRENCY);
    progress("audit: records into PostgreSQL");
    let on = load("carried on")?;
    runtime.block_on(until_written(options, servers))?;
    progress("audit: records held up");
    let held = HeldUp::new(postgres)?;
    let off = load("held up")?;
    let backlog = runtime.block_on(counted(options, servers))?;
    progress("audit: working off the backlog");
    let processes = taking_part(options, "broker");
    let before = Usage::of_all(&processes)?;
    drop(held);
    let (seconds, missing) = runtime.block_on(drained(options, servers, backlog))?;
    let used = Usage::between(before, Usage::of_all(&processes)?);
    let records = backlog.missing();
    let per_record = |used: &Usage| {
        (
            used.name.clone(),
            used.cpu.as_secs_f64() * 1e6 / records.max(1) as f64,
        )
    };
    let used_us: Vec<_> = used
        .iter()
        .filter(|used| ["broker", "nats", POSTGRES].contains(&used.name.as_str()))
        .map(per_record)
        .collect();
    let cost = unaudited::measure(options, servers, &target, runtime, progress)?;
    Ok(Audit {
        cost,
        rows: vec![on, off],
        backlog: records,
        missing,
        seconds,
        used_us,
    })
}

/// Waits until all records are in PostgreSQL.
async fn until_written(options: &Options, servers: &Servers) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while counted(options, servers).await?.missing() > 0 {
        ensure!(Instant::now() < until, "the audit log is not written in time");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Waits until the backlog is in PostgreSQL: seconds from its first record, and what is missing.
async fn drained(options: &Options, servers: &Servers, backlog: Counted) -> anyhow::Result<(f64, u64)> {
    let until = Instant::now() + PATIENCE;
    let mut began = None;
    loop {
        let now = counted(options, servers).await?;
        if now.written > backlog.written {
            began.get_or_insert_with(Instant::now);
        }
        let seconds = began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        if now.missing() == 0 || Instant::now() > until {
            return Ok((seconds, now.missing()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the broker has counted so far.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counted {
    /// Records that it made.
    made: u64,
    /// Records that are in PostgreSQL.
    written: u64,
}

impl Counted {
    fn of(page: &str) -> Self {
        let sum = |name: &str| {
            let values = page.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                rest.starts_with([' ', '{'])
                    .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
            });
            values.sum::<f64>() as u64
        };
        Self {
            made: sum("duo_requests_admitted_total") + sum("duo_requests_ended_total"),
            written: sum("duo_audit_written_total"),
        }
    }

    fn missing(self) -> u64 {
        self.made.saturating_sub(self.written)
    }
}

async fn counted(options: &Options, servers: &Servers) -> anyhow::Result<Counted> {
    let url = options
        .metrics
        .first()
        .context("this scenario needs --metrics URL of the broker")?;
    Ok(Counted::of(&servers.text(url).await?))
}

/// The table's lines, and what they come to.
pub(super) fn lines(audit: &Audit) -> Vec<String> {
    let parts = ["broker", "worker", "nats", POSTGRES];
    let rows = audit.cost.rows.iter().chain(&audit.rows);
    let cells: Vec<_> = rows
        .map(|row| {
            let mut cells = vec![
                row.request.to_owned(),
                format!("{:.0}", row.per_second.unwrap_or_default()),
                format!("{:.2}", row.whole_us.p50 / 1000.0),
                format!("{:.2}", row.whole_us.p99 / 1000.0),
                format!("{:.0}", row.cpu_us.unwrap_or_default()),
            ];
            cells.extend(parts.map(|name| format!("{:.0}", row.share(name).unwrap_or_default())));
            cells
        })
        .collect();
    let headings = [
        "RECORDS",
        "ANSWERS/S",
        "P50",
        "P99",
        "CPU",
        "BROKER",
        "WORKER",
        "NATS",
        "POSTGRES",
    ];
    let mut lines = table::lines(2, &headings, &cells);
    lines.push(audit.cost.line());
    let used: Vec<_> = audit
        .used_us
        .iter()
        .map(|(name, us)| format!("{name} {us:.1}"))
        .collect();
    lines.push(format!(
        "  A backlog of {} records was written in {:.2} s, {:.0} a second; CPU time a record in microseconds: {}",
        audit.backlog,
        audit.seconds,
        audit.backlog as f64 / audit.seconds.max(f64::MIN_POSITIVE),
        used.join(", ")
    ));
    if audit.missing > 0 {
        lines.push(format!(
            "WRONG: {} records are missing in PostgreSQL",
            audit.missing
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_and_not_written_is_missing() {
        let page = "# HELP duo_audit_written_total x\nduo_requests_admitted_total 7\n\
            duo_requests_ended_total{outcome=\"completed\"} 4\nduo_requests_ended_total{outcome=\"failed\"} 1\n\
            duo_audit_written_total 9\nduo_audit_written_total_other 100\n";
        let counted = Counted::of(page);
        assert_eq!(counted, Counted { made: 12, written: 9 });
        assert_eq!(counted.missing(), 3);
    }
}
