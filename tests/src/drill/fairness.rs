//! One person sends fifty times as much as nine others, who wait hardly longer than when all ten send alike.
//!
//! First ten people ask equally often, so that the slots are 90 % busy: how often that is follows from how long a slot
//! is held, and how busy they were is measured. Then nine of them go on, and the tenth asks fifty times as often as each.
//! The others' mean wait, from acceptance to a worker's claim as the audit log has it, may be half as long again. Once
//! with one broker, once with two.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
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
/// The part of all slot time that is to be in use, and what passes for it.
const BUSY: f64 = 0.9;
const BUSY_ENOUGH: RangeInclusive<f64> = 0.88..=0.92;
/// So often the rate is set anew until the slots are that busy.
const TRIES: usize = 5;
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
    let people = |phase: &str, rate: f64, greed: f64| -> Vec<Source> {
        (0..PEOPLE)
            .map(|number| {
                let factor = if number == 0 { greed } else { 1.0 };
                person(&cluster, phase, number, rate * factor)
            })
            .collect()
    };
    let mut rate = BUSY * SLOTS as f64 * 1000.0 / SLOT_MS as f64 / PEOPLE as f64;
    let warm_up = span.min(Duration::from_secs(4));
    let warm = range.fire(&people("warm", rate, 1.0), warm_up, size.seed).await;
    let warm = Phase::of(&cluster, "warm", &warm, warm_up).await;
    rate = BUSY * SLOTS as f64 / warm.slot_time / PEOPLE as f64;
    let mut equal = None;
    for number in 1..=TRIES {
        let name = format!("equal{number}");
        let shots = range.fire(&people(&name, rate, 1.0), span, size.seed).await;
        let phase = Phase::of(&cluster, &name, &shots, span).await;
        let busy = phase.busy;
        equal = Some(phase);
        report.seconds += span.as_secs_f64();
        if size.short || BUSY_ENOUGH.contains(&busy) {
            break;
        }
        rate *= BUSY / busy;
    }
    let equal = equal.expect("at least one try");
    let greedy = range.fire(&people("greedy", rate, GREED), span, size.seed).await;
    let greedy = Phase::of(&cluster, "greedy", &greedy, span).await;
    report.seconds += span.as_secs_f64();
    for (name, phase) in [("equal", &equal), ("greedy", &greedy)] {
        let shown = format!(
            "{} (p90 {}), first byte {}, refused {}, the tenth: {} of {}; slots {:.1} % busy",
            millis_of(phase.wait),
            millis_of(phase.wait_p90),
            millis_of(phase.first_byte),
            phase.refused,
            phase.greedy_answered,
            phase.greedy_asked,
            phase.busy * 100.0,
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
    report.demand(size.short || BUSY_ENOUGH.contains(&equal.busy), || {
        format!(
            "{brokers} broker: with all alike the slots were {:.1} % busy",
            equal.busy * 100.0
        )
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

/// What the nine met, and how busy all kept the slots.
struct Phase {
    /// The part of all slot time that was in use.
    busy: f64,
    /// Seconds that a slot was held, on average.
    slot_time: f64,
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
    async fn of(cluster: &Cluster, phase: &str, shots: &[Shot], span: Duration) -> Self {
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
        let all = count(&nine, answered) + count(&tenth, answered);
        let served = served(cluster, phase, all).await;
        let held: f64 = served.iter().map(|one| one.held.as_secs_f64()).sum();
        let others = served.iter().filter(|one| !one.is_greedy);
        let mut waits: Vec<_> = others.map(|one| one.wait).collect();
        Self {
            busy: held / (SLOTS as f64 * span.as_secs_f64()),
            slot_time: held / served.len().max(1) as f64,
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

/// A completed request as the audit log has it.
struct Served {
    is_greedy: bool,
    /// From acceptance to a worker's claim.
    wait: Duration,
    /// From then to the end.
    held: Duration,
}

/// What the audit log says of a phase, once it has every end.
async fn served(cluster: &Cluster, phase: &str, answered: u64) -> Vec<Served> {
    let sql = "SELECT correlation_id LIKE $2, coalesce(queue_wait_us, 0), coalesce(duration_us, 0) FROM audit_events \
               WHERE kind = 'ended' AND outcome = 'completed' AND correlation_id LIKE $1";
    let span = |micros: i64| Duration::from_micros(micros.unsigned_abs());
    let mut served = Vec::new();
    until("the audit log has every end", PATIENCE, async || {
        let rows = sqlx::query(sql)
            .bind(format!("{phase}-%"))
            .bind(format!("{phase}-0-%"))
            .fetch_all(cluster.database.pool())
            .await
            .map_err(|error| error.to_string())?;
        let found = rows.len() as u64;
        let of = |row: &sqlx::postgres::PgRow| {
            let (wait, all) = (span(row.get(1)), span(row.get(2)));
            Served {
                is_greedy: row.get(0),
                wait,
                held: all.saturating_sub(wait),
            }
        };
        served = rows.iter().map(of).collect();
        if found >= answered {
            Ok(())
        } else {
            Err(format!("{found} of {answered}"))
        }
    })
    .await;
    served
}

fn millis_of(span: Duration) -> String {
    match span {
        short if short < Duration::from_millis(100) => format!("{:.1} ms", short.as_secs_f64() * 1000.0),
        long => millis(long),
    }
}
