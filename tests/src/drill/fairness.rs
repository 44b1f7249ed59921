//! One person sends fifty times as much as nine others, who wait hardly longer than when all ten send alike.
//!
//! First ten people ask equally often, so that the slots are 90 % busy. Then nine of them go on, and the tenth asks
//! fifty times as often as each. The others' mean wait, from acceptance to a worker's claim as the audit log has it,
//! may be half as long again. Once with one broker, once with two.

use std::net::SocketAddr;
use std::time::Duration;

use sqlx::Row as _;

use super::Size;
use super::pressure::{Fate, ID, Range, Shot, Source, mean, quantile};
use super::report::{Report, millis};
use crate::harness::cluster::completion;
use crate::harness::{Cluster, PATIENCE, until};
use crate::sim::Settings;

const SLOTS: usize = 8;
/// How long the model server holds a slot, in milliseconds.
const SLOT_MS: u64 = 200;
const PEOPLE: usize = 10;
const BUSY: f64 = 0.9;
/// How much more often the greedy one asks.
const GREED: f64 = 50.0;
/// The others may wait so many times as long.
const LONGER: f64 = 1.5;
/// What the short form allows: it sees too few requests to tell more, on a machine that is busy with other tests.
const LONGER_SHORT: f64 = 4.0;
/// The nine may have so many of their requests refused; the short form counts them only.
const REFUSED: f64 = 0.05;

pub(super) async fn run(size: Size) -> Report {
    let mut report = Report::new("fairness", size);
    let all = if size.short { 2..=2 } else { 1..=2 };
    for brokers in all {
        with_brokers(brokers, size, &mut report).await;
    }
    report
}

async fn with_brokers(brokers: usize, size: Size, report: &mut Report) {
    let sim = Settings {
        tokens: 1,
        ttft_ms: SLOT_MS,
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .slots(SLOTS)
        .brokers(brokers)
        .start()
        .await;
    cluster.slots_known().await;
    let targets: Vec<SocketAddr> = (0..brokers).map(|number| cluster.address_of(number)).collect();
    let range = Range::new(targets, Duration::from_secs(10));
    let span = size.span(5, 90);
    let rate = BUSY * SLOTS as f64 * 1000.0 / SLOT_MS as f64 / PEOPLE as f64;
    let people = |phase: &str, greed: f64| -> Vec<Source> {
        (0..PEOPLE)
            .map(|number| {
                let factor = if number == 0 { greed } else { 1.0 };
                person(&cluster, phase, number, rate * factor)
            })
            .collect()
    };
    let warm_up = span.min(Duration::from_secs(3));
    range.fire(&people("warm", 1.0), warm_up, size.seed).await;
    let equal = range.fire(&people("equal", 1.0), span, size.seed).await;
    let greedy = range.fire(&people("greedy", GREED), span, size.seed).await;
    report.seconds += 2.0 * span.as_secs_f64();
    let (equal, greedy) = (
        Phase::of(&cluster, "equal", &equal).await,
        Phase::of(&cluster, "greedy", &greedy).await,
    );
    for (name, phase) in [("equal", &equal), ("greedy", &greedy)] {
        let shown = format!(
            "{} (p90 {}), first byte {}, refused {}, the tenth: {} of {}",
            millis_of(phase.wait),
            millis_of(phase.wait_p90),
            millis_of(phase.first_byte),
            phase.refused,
            phase.greedy_answered,
            phase.greedy_asked,
        );
        report.figure(&format!("{brokers} broker, {name}: the nine waited"), shown);
        report.counts.requests += phase.asked;
        report.counts.completed += phase.answered;
    }
    let ratio = greedy.wait.as_secs_f64() / equal.wait.as_secs_f64().max(1e-6);
    report.figure(&format!("{brokers} broker: times as long"), format!("{ratio:.2}"));
    let most = if size.short { LONGER_SHORT } else { LONGER };
    report.demand(ratio <= most, || {
        format!("{brokers} broker: the nine waited {ratio:.2} times as long, more than {most}")
    });
    for (name, phase) in [("equal", &equal), ("greedy", &greedy)] {
        let part = phase.refused as f64 / phase.asked.max(1) as f64;
        report.demand(size.short || part <= REFUSED, || {
            format!(
                "{brokers} broker, {name}: {:.1} % of the nine's requests were refused",
                part * 100.0
            )
        });
        report.demand(phase.broken == 0, || {
            format!("{brokers} broker, {name}: {} broke", phase.broken)
        });
    }
    cluster.assert_clean().await;
}

fn person(cluster: &Cluster, phase: &str, number: usize, rate: f64) -> Source {
    let headers = cluster.rails_headers(&format!("person-{number}")).into_iter();
    let mut body = completion("x = ", false);
    // Completions of one file would take each other's places.
    body["current_file"]["file_name"] = format!("{ID}.py").into();
    Source {
        name: format!("{phase}-{number}"),
        path: "/v2/code/completions",
        headers: headers
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect(),
        body: body.to_string().into(),
        rate,
    }
}

/// What the nine met.
struct Phase {
    asked: u64,
    answered: u64,
    refused: u64,
    broken: u64,
    wait: Duration,
    wait_p90: Duration,
    first_byte: Duration,
    greedy_asked: u64,
    greedy_answered: u64,
}

impl Phase {
    async fn of(cluster: &Cluster, phase: &str, shots: &[Shot]) -> Self {
        let (tenth, nine): (Vec<&Shot>, Vec<&Shot>) = shots.iter().partition(|shot| shot.source == 0);
        let count = |shots: &[&Shot], wanted: fn(&Fate) -> bool| {
            shots.iter().filter(|shot| wanted(&shot.fate)).count() as u64
        };
        let answered = |fate: &Fate| *fate == Fate::Answered;
        let firsts: Vec<_> = nine
            .iter()
            .filter(|shot| answered(&shot.fate))
            .map(|shot| shot.first)
            .collect();
        let mut waits = waits(cluster, phase, count(&nine, answered)).await;
        Self {
            asked: nine.len() as u64,
            answered: count(&nine, answered),
            refused: count(&nine, |fate| matches!(fate, Fate::Refused(..))),
            broken: count(&nine, |fate| matches!(fate, Fate::Broken(_))),
            wait: mean(&waits),
            wait_p90: quantile(&mut waits, 0.9),
            first_byte: mean(&firsts),
            greedy_asked: tenth.len() as u64,
            greedy_answered: count(&tenth, answered),
        }
    }
}

/// The waits of the nine in the audit log, once all are there.
async fn waits(cluster: &Cluster, phase: &str, answered: u64) -> Vec<Duration> {
    let sql = "SELECT queue_wait_us FROM audit_events WHERE kind = 'ended' AND outcome = 'completed' \
               AND correlation_id LIKE $1 AND correlation_id NOT LIKE $2";
    let mut waits = Vec::new();
    until("the audit log has every end", PATIENCE, async || {
        let rows = sqlx::query(sql)
            .bind(format!("{phase}-%"))
            .bind(format!("{phase}-0-%"))
            .fetch_all(cluster.database.pool())
            .await
            .map_err(|error| error.to_string())?;
        let found = rows.len() as u64;
        let micros = rows.iter().map(|row| row.get::<Option<i64>, _>(0).unwrap_or(0));
        waits = micros
            .map(|micros| Duration::from_micros(micros.unsigned_abs()))
            .collect();
        if found >= answered {
            Ok(())
        } else {
            Err(format!("{found} of {answered}"))
        }
    })
    .await;
    waits
}

fn millis_of(span: Duration) -> String {
    match span {
        short if short < Duration::from_millis(100) => format!("{:.1} ms", short.as_secs_f64() * 1000.0),
        long => millis(long),
    }
}
