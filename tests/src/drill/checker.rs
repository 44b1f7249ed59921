//! Decides whether every promise was kept: it compares what the clients saw with the audit log, and looks for
//! whatever is still held once nothing is to be done any more.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream;
use duo_contract::subject::{AUDIT_STREAM, LIVE_STREAM};
use futures_util::TryStreamExt as _;
use sqlx::Row as _;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::Size;
use super::history::{Asked, End, History};
use super::report::{Report, millis};
use crate::harness::Cluster;
use crate::harness::cluster::{UNENDED, sum};

/// Longest until everything has come to rest after the last request.
const REST: Duration = Duration::from_secs(40);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// A broker that dies so soon after an answer has not always told NATS of its end.
const UNTOLD: Duration = Duration::from_secs(2);
/// A connection that no broker took was to go to one that was killed about then.
const UNREACHED: Duration = Duration::from_secs(1);

/// What a drill demands beside the promises that hold in every drill.
#[derive(Debug)]
pub struct Checker {
    report: Report,
    allowed: Vec<&'static str>,
}

/// What the audit log holds of one request, by correlation id.
#[derive(Debug, Default)]
struct Recorded {
    requests: Vec<String>,
    /// The broker that admitted it, and when.
    admitted: Option<(usize, OffsetDateTime)>,
    ends: Vec<String>,
}

impl Checker {
    /// A checker for the drill `drill`, which allows no failure.
    pub fn new(drill: &str, size: Size) -> Self {
        Self {
            report: Report::new(drill, size),
            allowed: Vec::new(),
        }
    }

    /// Failures that are honest here, as `outcome` or `outcome: reason` of the audit log.
    pub fn allow(mut self, failures: &[&'static str]) -> Self {
        self.allowed.extend(failures);
        self
    }

    /// Waits until everything rests, and checks.
    ///
    /// # Panics
    /// The cluster cannot be asked.
    pub async fn check(mut self, cluster: &Cluster, history: &History) -> Report {
        let over = history.now();
        self.report.seconds = over.as_secs_f64();
        self.rest(cluster).await;
        self.report
            .figure("everything at rest after", millis(history.now() - over));
        let recorded = recorded(cluster).await;
        for asked in history.all() {
            self.look_at(&asked, recorded.get(&asked.id), history);
        }
        let strange = "SELECT count(*) FROM audit_late_ends";
        let late = cluster.database.count(strange).await.expect("PostgreSQL answers");
        self.report.counts.duplicated += late as u64;
        self.report.demand(late == 0, || {
            format!("{late} terminal records came after the first of their request")
        });
        let rejects = "SELECT count(*) FROM audit_rejects";
        let rejects = cluster.database.count(rejects).await.expect("PostgreSQL answers");
        self.report
            .demand(rejects == 0, || format!("{rejects} audit records were rejected"));
        let faults = history.strikes().into_iter();
        self.report.faults = faults.map(|(word, count)| (word.to_owned(), count)).collect();
        self.report
    }

    /// One request: exactly one end, and the same one for the client and for the auditor.
    fn look_at(&mut self, asked: &Asked, recorded: Option<&Recorded>, history: &History) {
        let counts = &mut self.report.counts;
        counts.requests += 1;
        let none = Recorded::default();
        let recorded = recorded.unwrap_or(&none);
        // The balancer may not know yet which broker has a client that left at once, and a broker that was frozen or
        // just starting heard of the client after it had left.
        let admitted = recorded.admitted.map(|(number, at)| (number, history.at(at)));
        let died = |slack| {
            let owner = admitted.map(|(number, _)| number).or(asked.broker);
            let until = admitted.map_or(asked.ended, |(_, at)| at.max(asked.ended)) + slack;
            match owner {
                Some(number) => history.broker_died(number, asked.sent, until),
                // It never reached one; the one that it was to reach has just gone.
                None => history.some_broker_died(asked.sent.saturating_sub(UNREACHED), until + UNREACHED),
            }
        };
        let told = recorded.ends.first().map(String::as_str);
        let abandoned = told.is_some_and(|told| told.starts_with("abandoned"));
        counts.abandoned += u64::from(abandoned);
        let mut breach = None;
        match &asked.end {
            End::Whole => {
                counts.completed += 1;
                if asked.kind.is_stream() {
                    let gap = asked.longest_gap.as_millis() as u64;
                    counts.longest_gap_ms = counts.longest_gap_ms.max(gap);
                }
                if told.is_some_and(|told| told != "completed") && !abandoned {
                    counts.misrecorded += 1;
                    breach = Some("misrecorded");
                }
            }
            End::Failed { .. } => {
                counts.failed += 1;
                let reason = told.unwrap_or("without a record");
                *self.report.failures.entry(reason.to_owned()).or_default() += 1;
                if is(reason, "completed") {
                    counts.misrecorded += 1;
                    breach = Some("misrecorded");
                } else if told.is_some() && !abandoned && !allows(&self.allowed, reason) {
                    breach = Some("failed for a reason that is not allowed here");
                }
            }
            End::Cut if died(Duration::ZERO) => counts.cut += 1,
            // It was thawed after the deadline and died before it could tell NATS.
            End::Cut if asked.kind.is_raw() && abandoned && died(UNTOLD) => counts.cut += 1,
            // A raw stream has no other way to say that it is not whole.
            End::Cut if asked.kind.is_raw() && told.is_some_and(|told| allows(&self.allowed, told)) => {
                counts.failed += 1;
                let reason = told.unwrap_or_default().to_owned();
                *self.report.failures.entry(reason).or_default() += 1;
            }
            End::Cut => {
                counts.lost += 1;
                breach = Some("cut, and its broker lives");
            }
            End::HungUp(_) => counts.hung_up += 1,
            End::Silent => {
                counts.lost += 1;
                breach = Some("lost, no answer and no failure");
            }
            End::Corrupt(_) => {
                counts.corrupted += 1;
                breach = Some("corrupted");
            }
        }
        if recorded.ends.len() > 1 || recorded.requests.len() > 1 {
            counts.duplicated += 1;
            breach = breach.or(Some("duplicated"));
        }
        // A client that left at once may not have been heard at all; any other was.
        let heard = !recorded.requests.is_empty() || matches!(asked.end, End::Whole | End::Failed { .. });
        // A refusal of a broker that dies at once may not have been told to NATS; what was admitted has been.
        let untold = recorded.requests.is_empty() && died(UNTOLD);
        if heard && recorded.ends.is_empty() && !untold {
            counts.lost += 1;
            breach = breach.or(Some("lost, no terminal record"));
        }
        if abandoned && !died(UNTOLD) {
            counts.misrecorded += 1;
            breach = breach.or(Some("abandoned, and its broker lives"));
        }
        if let Some(breach) = breach {
            let text = format!("{breach}: {asked}; the audit log says {recorded:?}");
            self.report.breaches.push(text);
        }
    }

    /// Waits until nothing is queued, running or held anywhere; what still is, is leaked.
    async fn rest(&mut self, cluster: &Cluster) {
        let began = Instant::now();
        loop {
            let held = held(cluster).await;
            if held.is_empty() {
                return;
            }
            if began.elapsed() < REST {
                sleep(LOOK).await;
                continue;
            }
            for (what, count) in &held {
                let is_orphan = *what == GENERATIONS;
                let counter = if is_orphan {
                    &mut self.report.counts.orphans
                } else {
                    &mut self.report.counts.leaked
                };
                *counter += *count as u64;
            }
            let text = format!("still held {REST:?} after the last request: {held:?}");
            self.report.breaches.push(text);
            return;
        }
    }
}

/// Is what the audit log says of a failure among these?
fn allows(allowed: &[&str], told: &str) -> bool {
    allowed.iter().any(|allowed| is(told, allowed))
}

/// Is a record's `outcome: reason` what is meant by the outcome, or by outcome and reason?
fn is(told: &str, meant: &str) -> bool {
    told == meant || told.split(':').next() == Some(meant)
}

const GENERATIONS: &str = "generations at the model server";

/// What is held now, by name; empty when everything rests.
async fn held(cluster: &Cluster) -> Vec<(&'static str, f64)> {
    let stats = cluster.sim.stats();
    let mut held = vec![(GENERATIONS, (stats.running + stats.waiting) as f64)];
    let mut add = |what, count: Result<f64, String>| {
        // Who cannot be asked does not rest yet.
        held.push((what, count.unwrap_or(1.0)));
    };
    for (what, stream) in [
        ("messages in the live stream", LIVE_STREAM),
        ("audit records in NATS", AUDIT_STREAM),
    ] {
        let count = cluster.messages(stream).await;
        add(what, count.map(|count| count as f64));
    }
    add("deliveries not acknowledged", unacknowledged(cluster).await);
    let unended = cluster.database.count(UNENDED).await;
    add("requests without an end", unended.map(|count| count as f64));
    for number in 0..cluster.brokers() {
        let metrics = cluster.broker_metrics(number).await;
        add(
            "requests open at a broker",
            metrics.map(|text| sum(&text, "duo_requests_open")),
        );
    }
    for number in 0..cluster.workers() {
        let metrics = cluster.worker_metrics(number).await;
        add(
            "slots of a worker",
            metrics.map(|text| sum(&text, "duo_worker_slots_in_use")),
        );
    }
    held.retain(|(_, count)| *count != 0.0);
    held
}

/// Deliveries that hold a place of `max_ack_pending`.
async fn unacknowledged(cluster: &Cluster) -> Result<f64, String> {
    let client = cluster.nats.try_connect().await?;
    let stream = jetstream::new(client).get_stream(LIVE_STREAM).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let consumers: Vec<_> = stream
        .consumers()
        .try_collect()
        .await
        .map_err(|error| error.to_string())?;
    Ok(consumers
        .iter()
        .map(|consumer| consumer.num_ack_pending as f64)
        .sum())
}

/// The number of the broker, from 0, whose instance has this name: the second is `b2`, and each start adds to it.
fn number_of(instance: &str) -> Option<usize> {
    let name = instance.split('-').next()?;
    let number: usize = name.strip_prefix('b')?.parse().ok()?;
    number.checked_sub(1)
}

async fn recorded(cluster: &Cluster) -> HashMap<String, Recorded> {
    let sql = "SELECT correlation_id, request_id::text, kind, broker, outcome, reason, occurred_at FROM audit_events \
         WHERE correlation_id IS NOT NULL AND kind IN ('admitted', 'ended') ORDER BY occurred_at";
    let rows = sqlx::query(sql).fetch_all(cluster.database.pool()).await;
    let mut all: HashMap<String, Recorded> = HashMap::new();
    for row in rows.expect("PostgreSQL answers") {
        let entry = all.entry(row.get(0)).or_default();
        let request: String = row.get(1);
        if !entry.requests.contains(&request) {
            entry.requests.push(request);
        }
        if row.get::<&str, _>(2) == "admitted" {
            entry.admitted = number_of(row.get(3)).map(|number| (number, row.get(6)));
        } else {
            let (outcome, reason): (String, Option<String>) = (row.get(4), row.get(5));
            entry.ends.push(match reason {
                Some(reason) => format!("{outcome}: {reason}"),
                None => outcome,
            });
        }
    }
    all
}
