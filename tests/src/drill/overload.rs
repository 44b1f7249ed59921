//! Two and five times as much as the model server can do, with the product in front of it and without.
//!
//! Good is an answer that comes within the deadline of a completion. With the product almost all that the slots can do
//! is good, and the rest is refused at once; without it the requests stand in the model server's own line until their
//! clients have given up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;
use tokio::time::{Instant, sleep_until};

use super::Size;
use super::plot::{Curve, Plot};
use super::pressure::{Fate, ID, Range, Shot, Source, quantile};
use super::report::{Report, millis};
use crate::bench::cpu::{Process, Usage};
use crate::harness::cluster::completion;
use crate::harness::{Cluster, PATIENCE, until};
use crate::sim::{Settings, Sim};

const SLOTS: usize = 20;
/// How long the model server holds a slot, in milliseconds.
const SLOT_MS: u64 = 250;
/// What is offered, in capacities.
const FACTORS: [u32; 2] = [2, 5];
const PEOPLE: usize = 100;
/// After that a completion is worth nothing.
const DEADLINE: Duration = Duration::from_millis(2500);
/// Least part of the capacity that has to be good.
const GOOD: f64 = 0.95;
/// What the short form demands: others use the machine meanwhile.
const GOOD_SHORT: f64 = 0.5;
/// Until the line stands, nothing is counted.
const RAMP: Duration = Duration::from_secs(1);
/// A refusal may take so long, in 99 of 100 cases.
const REFUSED_WITHIN: Duration = Duration::from_millis(5);
/// After the load everything is normal again within this.
const NORMAL_WITHIN: Duration = Duration::from_secs(5);
/// What memory may grow by, beside a fifth: caches and buffers of a few connections more.
const GROWTH: u64 = 16 << 20;

pub(super) async fn run(size: Size) -> Report {
    let mut report = Report::new("overload", size);
    let mut plot = Plot::new("Good answers a second", capacity());
    let factors = if size.short { &FACTORS[1..] } else { &FACTORS };
    for &factor in factors {
        let span = size.span(5, 60);
        with_product(factor, span, size, &mut report, &mut plot).await;
        without(factor, span, size, &mut report, &mut plot).await;
    }
    report.plot = Some(plot.svg());
    report
}

fn capacity() -> f64 {
    SLOTS as f64 * 1000.0 / SLOT_MS as f64
}

fn sim() -> Settings {
    Settings {
        slots: SLOTS,
        tokens: 1,
        ttft_ms: SLOT_MS,
        ..Settings::default()
    }
}

async fn with_product(factor: u32, span: Duration, size: Size, report: &mut Report, plot: &mut Plot) {
    let mut cluster = Cluster::builder().sim(sim()).slots(SLOTS).start().await;
    cluster.slots_known().await;
    let range = Range::new(vec![cluster.address_of(0)], DEADLINE + Duration::from_secs(1));
    let load = people(&cluster, "load", PEOPLE, capacity() * f64::from(factor));
    // Memory is what it is once every connection and cache is there.
    range
        .fire(&load, span.min(Duration::from_secs(4)), size.seed + 1)
        .await;
    let processes = processes(&mut cluster);
    let before = Usage::of_all(&processes).expect("they run");
    let start = Instant::now();
    let after = async {
        sleep_until(start + span).await;
        let used = Usage::of_all(&processes).expect("they run");
        let probe = people(&cluster, "probe", 1, 10.0);
        (used, range.fire(&probe, NORMAL_WITHIN + RAMP, size.seed).await)
    };
    let (shots, (used, probes)) = tokio::join!(range.fire(&load, span, size.seed), after);
    let found = Found::of(&shots, span);
    let name = format!("{factor}x with the product");
    found.tell(&name, report, plot);
    report.seconds += span.as_secs_f64();
    let least = if size.short { GOOD_SHORT } else { GOOD };
    report.demand(found.good >= least, || {
        format!(
            "{name}: only {:.1} % of the capacity was good",
            found.good * 100.0
        )
    });
    report.demand(found.other == 0, || {
        format!("{name}: {} requests broke", found.other)
    });
    report.demand(size.short || found.refused_p99 <= REFUSED_WITHIN, || {
        format!("{name}: refusals took {:?} (p99)", found.refused_p99)
    });
    memory(&name, &before, &used, report);
    normal(&name, &probes, size, report);
    deadlines(&name, &cluster, report).await;
    cluster.assert_clean().await;
}

async fn without(factor: u32, span: Duration, size: Size, report: &mut Report, plot: &mut Plot) {
    let sim = Sim::start(sim()).await.expect("a simulated server");
    let load: Vec<_> = (0..PEOPLE)
        .map(|number| Source {
            name: format!("direct-{number}"),
            path: "/v1/completions",
            headers: String::new(),
            body: json!({"model": "sim", "prompt": format!("{ID} x = "), "max_tokens": 1})
                .to_string()
                .into(),
            rate: capacity() * f64::from(factor) / PEOPLE as f64,
        })
        .collect();
    let address: SocketAddr = sim.address();
    let range = Range::new(vec![address], DEADLINE + Duration::from_secs(1));
    let shots = range.fire(&load, span, size.seed).await;
    Found::of(&shots, span).tell(&format!("{factor}x without"), report, plot);
}

fn people(cluster: &Cluster, name: &str, count: usize, rate: f64) -> Vec<Source> {
    let mut body = completion("x = ", false);
    // Completions of one file would take each other's places.
    body["current_file"]["file_name"] = format!("{ID}.py").into();
    let body: Arc<str> = body.to_string().into();
    (0..count)
        .map(|number| {
            let name = format!("{name}-{number}");
            let headers = cluster.rails_headers(&name).into_iter();
            Source {
                headers: headers
                    .map(|(name, value)| format!("{name}: {value}\r\n"))
                    .collect(),
                name,
                path: "/v2/code/completions",
                body: Arc::clone(&body),
                rate: rate / count as f64,
            }
        })
        .collect()
}

fn processes(cluster: &mut Cluster) -> Vec<Process> {
    let process = |name: &str, pid: nix::unistd::Pid| Process {
        name: name.to_owned(),
        pid: u32::try_from(pid.as_raw()).expect("a process number"),
    };
    let broker = process("broker", cluster.broker.pid());
    vec![broker, process("worker", cluster.worker(0).pid())]
}

/// What became of a load.
struct Found {
    asked: u64,
    answered: u64,
    refused: u64,
    late: u64,
    other: u64,
    /// Part of the capacity that was good.
    good: f64,
    refused_p99: Duration,
    answer_p50: Duration,
    /// Good answers of each second.
    by_second: Vec<f64>,
}

impl Found {
    fn of(shots: &[Shot], span: Duration) -> Self {
        let mut found = Self {
            asked: shots.len() as u64,
            answered: 0,
            refused: 0,
            late: 0,
            other: 0,
            good: 0.0,
            refused_p99: Duration::ZERO,
            answer_p50: Duration::ZERO,
            by_second: vec![0.0; span.as_secs() as usize],
        };
        let (mut refusals, mut answers, mut counted) = (Vec::new(), Vec::new(), 0_u64);
        for shot in shots {
            match &shot.fate {
                Fate::Answered if shot.whole <= DEADLINE => {
                    found.answered += 1;
                    answers.push(shot.whole);
                    let at = shot.due + shot.whole;
                    if let Some(second) = found.by_second.get_mut(at.as_secs() as usize) {
                        *second += 1.0;
                    }
                    counted += u64::from(at >= RAMP && at < span);
                }
                Fate::Refused(reason, _) if reason != "deadline_exceeded" && !reason.contains("deadline") => {
                    found.refused += 1;
                    refusals.push(shot.whole);
                }
                Fate::Answered | Fate::Late | Fate::Refused(..) => found.late += 1,
                Fate::Broken(_) => found.other += 1,
            }
        }
        found.good = counted as f64 / ((span - RAMP).as_secs_f64() * capacity());
        found.refused_p99 = quantile(&mut refusals, 0.99);
        found.answer_p50 = quantile(&mut answers, 0.5);
        found
    }

    fn tell(&self, name: &str, report: &mut Report, plot: &mut Plot) {
        report.counts.requests += self.asked;
        report.counts.completed += self.answered;
        report.counts.failed += self.refused + self.late;
        report.figure(
            &format!("{name}: good, of the capacity"),
            format!("{:.1} %", self.good * 100.0),
        );
        let line = format!(
            "{} / {} / {} / {}",
            self.asked, self.answered, self.refused, self.late
        );
        report.figure(&format!("{name}: asked / in time / refused / too late"), line);
        report.figure(&format!("{name}: answers p50"), millis(self.answer_p50));
        let refused = format!("{:.1} ms", self.refused_p99.as_secs_f64() * 1000.0);
        report.figure(&format!("{name}: refusals p99"), refused);
        plot.curves.push(Curve {
            name: name.to_owned(),
            values: self.by_second.clone(),
        });
    }
}

fn memory(name: &str, before: &[Usage], after: &[Usage], report: &mut Report) {
    for (before, after) in before.iter().zip(after) {
        let (from, to) = (before.resident >> 20, after.resident >> 20);
        report.figure(
            &format!("{name}: memory of the {}", after.name),
            format!("{from} to {to} MiB"),
        );
        let most = before.resident + before.resident / 5 + GROWTH;
        report.demand(after.resident <= most, || {
            format!("{name}: the {} grew from {from} to {to} MiB", after.name)
        });
    }
}

/// From when on do all probes get their answer as if nothing had been?
fn normal(name: &str, probes: &[Shot], size: Size, report: &mut Report) {
    let usual = Duration::from_millis(2 * SLOT_MS);
    let is_normal = |shot: &&Shot| shot.fate == Fate::Answered && shot.whole <= usual;
    let last_bad = probes.iter().rev().find(|shot| !is_normal(shot));
    let since = last_bad.map_or(Duration::ZERO, |shot| shot.due);
    report.figure(&format!("{name}: normal again after"), millis(since));
    report.demand(size.short || since <= NORMAL_WITHIN, || {
        format!("{name}: not normal again after {}", millis(since))
    });
}

/// Nothing that had waited beyond its deadline reached the model server.
async fn deadlines(name: &str, cluster: &Cluster, report: &mut Report) {
    let sql = "SELECT count(*) FILTER (WHERE queue_wait_us > $1), coalesce(sum(attempts), 0)::bigint \
               FROM audit_events WHERE kind = 'ended'";
    let deadline = DEADLINE.as_micros() as i64;
    let mut counts = (0, 0);
    until("every request has its record", PATIENCE, async || {
        let open = cluster.metric("duo_requests_open").await?;
        let backlog = cluster.messages(duo_contract::subject::AUDIT_STREAM).await?;
        if open > 0.0 || backlog > 0 {
            return Err(format!("{open} open, {backlog} records not written"));
        }
        let row = sqlx::query(sql)
            .bind(deadline)
            .fetch_one(cluster.database.pool())
            .await
            .map_err(|error| error.to_string())?;
        counts = (row.get::<i64, _>(0), row.get::<i64, _>(1));
        Ok(())
    })
    .await;
    let (late, attempts) = counts;
    let started = cluster.sim.stats().started as i64;
    report.figure(
        &format!("{name}: generations begun, attempts"),
        format!("{started}, {attempts}"),
    );
    report.demand(late == 0, || {
        format!("{name}: {late} requests were taken after their deadline")
    });
    // A first delivery's call begins beside its claim, so one begins now and then that no claim allowed.
    report.demand(started <= attempts + attempts / 100 + 5, || {
        format!("{name}: {started} generations for {attempts} attempts")
    });
}
