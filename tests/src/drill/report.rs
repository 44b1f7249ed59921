//! What a drill found, for people and for programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::Size;
use crate::harness::Cluster;
use crate::table;

/// Breaches that are listed; the rest are only counted.
const LISTED: usize = 40;

/// What a drill found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Its name.
    pub drill: String,
    /// Its seed.
    pub seed: u64,
    /// How long load was sent, in seconds.
    pub seconds: f64,
    /// What became of the requests.
    pub counts: Counts,
    /// Failures by what the audit log says of them: outcome and reason.
    pub failures: BTreeMap<String, u64>,
    /// Injected faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// What else was measured, in the order of measuring.
    pub figures: Vec<(String, String)>,
    /// What must not be, and was.
    pub breaches: Vec<String>,
    /// A picture of it, as SVG.
    #[serde(skip)]
    pub plot: Option<String>,
    /// Where the logs are, when they were kept.
    pub logs: Option<PathBuf>,
}

/// What became of the requests.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Counts {
    /// All of them.
    pub requests: u64,
    /// The client has the right answer, whole and byte for byte.
    pub completed: u64,
    /// The client was told that there is no answer.
    pub failed: u64,
    /// The connection was cut with a broker that was killed.
    pub cut: u64,
    /// The client left.
    pub hung_up: u64,
    /// Of the requests whose broker was killed, those that another broker recorded as abandoned.
    pub abandoned: u64,
    /// No answer and no failure, a cut without a killed broker, or no terminal record.
    pub lost: u64,
    /// Two terminal records, or two requests out of one.
    pub duplicated: u64,
    /// Something else than the answer, or a part that looks whole.
    pub corrupted: u64,
    /// The terminal record says something else than the client saw.
    pub misrecorded: u64,
    /// Places held at the end: in the stream, at its consumers, at brokers, slots of workers.
    pub leaked: u64,
    /// Generations that run at the model server for nobody.
    pub orphans: u64,
    /// Longest time between two pieces of a stream that came whole, in milliseconds.
    pub longest_gap_ms: u64,
}

impl Report {
    /// An empty one.
    pub fn new(drill: &str, size: Size) -> Self {
        Self {
            drill: drill.to_owned(),
            seed: size.seed,
            ..Self::default()
        }
    }

    /// Was nothing found that must not be?
    pub fn passed(&self) -> bool {
        self.breaches.is_empty()
    }

    /// Adds a figure.
    pub fn figure(&mut self, name: &str, value: impl Into<String>) {
        self.figures.push((name.to_owned(), value.into()));
    }

    /// Notes a breach unless `holds`.
    pub fn demand(&mut self, holds: bool, breach: impl FnOnce() -> String) {
        if !holds {
            self.breaches.push(breach());
        }
    }

    /// Ends the drill: on a breach the logs stay.
    pub fn finish(mut self, mut cluster: Cluster) -> Self {
        if !self.passed() {
            self.logs = Some(cluster.keep());
        }
        self
    }

    /// Lines for a person.
    pub fn lines(&self) -> Vec<String> {
        let verdict = if self.passed() { "passed" } else { "FAILED" };
        let mut lines = vec![format!(
            "{}: {verdict} (seed {}, {:.0} s of load)",
            self.drill, self.seed, self.seconds
        )];
        let counts = &self.counts;
        let rows = [
            ("requests", counts.requests),
            ("completed", counts.completed),
            ("failed, told so", counts.failed),
            ("cut with their broker", counts.cut),
            ("hung up by us", counts.hung_up),
            ("recorded as abandoned", counts.abandoned),
            ("LOST", counts.lost),
            ("DUPLICATED", counts.duplicated),
            ("CORRUPTED", counts.corrupted),
            ("MISRECORDED", counts.misrecorded),
            ("LEAKED", counts.leaked),
            ("ORPHANS", counts.orphans),
        ];
        let row = |name: &str, value: String| vec![name.to_owned(), value];
        let mut all: Vec<_> = rows
            .iter()
            .map(|(name, count)| row(name, count.to_string()))
            .collect();
        all.push(row(
            "longest gap in a stream",
            format!("{} ms", counts.longest_gap_ms),
        ));
        for (reason, count) in &self.failures {
            all.push(row(&format!("failed: {reason}"), count.to_string()));
        }
        for (fault, count) in &self.faults {
            all.push(row(&format!("fault: {fault}"), count.to_string()));
        }
        for (name, value) in &self.figures {
            all.push(row(name, value.clone()));
        }
        lines.extend(table::lines(2, &["WHAT", "COUNT"], &all));
        for breach in self.breaches.iter().take(LISTED) {
            lines.push(format!("  BREACH: {breach}"));
        }
        if let Some(more) = self.breaches.len().checked_sub(LISTED).filter(|more| *more > 0) {
            lines.push(format!("  and {more} breaches more"));
        }
        if let Some(logs) = &self.logs {
            lines.push(format!("  logs and files: {}", logs.display()));
        }
        lines
    }
}

/// A span in milliseconds, for a table.
pub fn millis(span: Duration) -> String {
    format!("{} ms", span.as_millis())
}
