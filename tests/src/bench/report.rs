//! Results as tables for people and as JSON for programs.

mod plot;
mod tables;

use std::fs;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::audit::Audit;
use super::audit_log::AuditLog;
use super::cpu::Usage;
use super::load::Measured;
use super::prompts::PromptsRow;
use super::scale::ScaleRow;
use super::soak::Soak;
use super::stages::StagesRow;

/// Where latencies lie, in microseconds. From all samples, not from buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each is the percentile its name says")]
pub struct Spread {
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub mean: f64,
}

/// One line of results.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `hop` or `throughput`.
    pub scenario: &'static str,
    /// What was asked: `unary`, `stream` or `code completion`.
    pub request: &'static str,
    /// `direct` to the model server, through the `broker`, or through the peer of this name.
    pub over: String,
    /// Connections with one request under way each.
    pub concurrency: usize,
    /// Requests whose latency was counted.
    pub requests: usize,
    /// Right answers within the window, a second; not for `hop`, whose requests take turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// To the first text, in microseconds.
    pub first_us: Spread,
    /// To the end, in microseconds.
    pub whole_us: Spread,
    /// What each process that takes part used within the window.
    pub used: Vec<Usage>,
    /// CPU time a right answer, in microseconds: of all processes of the system, without model server and generator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<f64>,
    /// Resident memory of the same processes at the window's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Wrong or missing answers.
    pub wrong: u64,
    /// The first few of them in words.
    pub told: Vec<String>,
    #[serde(skip)]
    ended: u64,
}

/// What came of many streams at once on one way.
#[derive(Clone, Debug, Serialize)]
pub struct StreamsRow {
    /// `direct`, `broker` or a peer's name.
    pub over: String,
    /// Streams open at once.
    pub streams: usize,
    /// Milliseconds between two tokens, as the model server says them.
    pub pace_ms: u64,
    /// Tokens of each stream.
    pub tokens: usize,
    /// Streams that ended right.
    pub ended: usize,
    /// Tokens that did not come.
    pub missing: u64,
    /// Gaps of more than three paces.
    pub stalls: usize,
    /// From a stream's due moment to its first token, in microseconds.
    pub first_us: Spread,
    /// Between two tokens of a stream, in microseconds.
    pub gap_us: Spread,
    /// How much later than its first token and the pace would have it a token came, in microseconds.
    pub late_us: Spread,
    /// Tokens within the window, a second.
    pub tokens_per_second: f64,
    /// CPU time a token, in microseconds, of all processes of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_token: Option<f64>,
    /// Resident memory beyond that of the idle programs (broker and worker, or the peer), for each stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_stream: Option<u64>,
    /// What each process that takes part used within the window.
    pub used: Vec<Usage>,
    /// Wrong or missing answers.
    pub wrong: u64,
    /// The first few of them in words.
    pub told: Vec<String>,
}

/// The machine the figures are from.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    cores: usize,
    cpu: String,
    kernel: String,
}

/// All of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// When it ended.
    pub at: String,
    /// Where.
    pub machine: Machine,
    /// The windows' length in seconds.
    pub seconds: u64,
    /// Threads of the generator.
    pub threads: usize,
    /// Tokens in an answer.
    pub tokens: usize,
    /// Settings of the simulated model server.
    pub model_server: serde_json::Value,
    /// The results of `hop` and `throughput`.
    pub rows: Vec<Row>,
    /// Where the time of a hop goes.
    pub stages: Vec<StagesRow>,
    /// Those of `prompts`.
    pub prompts: Vec<PromptsRow>,
    /// Those of `workers` and `models`.
    pub scale: Vec<ScaleRow>,
    /// What came of `audit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// What came of `audit-log`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_log: Option<AuditLog>,
    /// Those of `jobs`.
    pub jobs: Vec<Row>,
    /// What came of `soak`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soak: Option<Soak>,
    /// Those of `streams`.
    pub streams: Vec<StreamsRow>,
}

impl Spread {
    /// The spread of samples in nanoseconds.
    #[must_use]
    pub fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let (Some(last), count) = (samples.last(), samples.len()) else {
            return Self::default();
        };
        // The smallest sample that this share of all samples does not exceed.
        let at = |share: f64| micros(samples[((count as f64 * share).ceil() as usize).clamp(1, count) - 1]);
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(*last),
            mean: samples.iter().map(|sample| micros(*sample)).sum::<f64>() / count as f64,
        }
    }
}

impl Row {
    /// What came of one load; `system` processes count towards `cpu_us`.
    #[must_use]
    pub fn new(
        (scenario, request, over): (&'static str, &'static str, &str),
        concurrency: usize,
        measured: Measured,
        system: impl Fn(&str) -> bool,
    ) -> Self {
        let seconds = measured.window.as_secs_f64();
        let ours: Vec<_> = measured.used.iter().filter(|used| system(&used.name)).collect();
        let cpu: Duration = ours.iter().map(|used| used.cpu).sum();
        Self {
            scenario,
            request,
            over: over.to_owned(),
            concurrency,
            requests: measured.samples.len(),
            per_second: (seconds > 0.0).then(|| measured.ended as f64 / seconds),
            first_us: Spread::of(measured.samples.iter().map(|sample| sample.first).collect()),
            whole_us: Spread::of(measured.samples.iter().map(|sample| sample.whole).collect()),
            cpu_us: per_answer(cpu, measured.ended).filter(|_| !ours.is_empty()),
            resident_bytes: (!ours.is_empty()).then(|| ours.iter().map(|used| used.resident).sum()),
            used: measured.used,
            wrong: measured.wrong,
            told: measured.told,
            ended: measured.ended,
        }
    }
}

impl Row {
    /// CPU time a right answer of the processes whose names begin like this, in microseconds.
    pub(super) fn share(&self, name: &str) -> Option<f64> {
        let used = self.used.iter().filter(|used| used.name.starts_with(name));
        per_answer(used.map(|used| used.cpu).sum(), self.ended)
    }
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpus.lines().find_map(|line| line.strip_prefix("model name"));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: name
                .unwrap_or_default()
                .trim_start_matches([' ', '\t', ':'])
                .to_owned(),
            kernel: kernel.trim().to_owned(),
        }
    }
}

impl Report {
    /// The moment of now, for the report.
    #[must_use]
    pub fn now() -> String {
        OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
    }

    /// The rows of all scenarios that have such.
    pub(super) fn all_rows(&self) -> impl Iterator<Item = &Row> {
        let prompts = self.prompts.iter().map(|row| &row.row);
        self.rows
            .iter()
            .chain(prompts)
            .chain(self.scale.iter().map(|row| &row.row))
            .chain(
                self.audit
                    .iter()
                    .flat_map(|audit| audit.cost.rows.iter().chain(&audit.rows)),
            )
            .chain(&self.jobs)
            .chain(self.soak.iter().flat_map(|soak| &soak.rows))
    }

    /// True when every answer was right, there were answers, no record was lost, and nothing grew.
    #[must_use]
    pub fn all_right(&self) -> bool {
        let some = self.all_rows().next().is_some() || !self.streams.is_empty() || self.audit_log.is_some();
        let rows = self.all_rows().all(|row| row.wrong == 0 && row.requests > 0);
        let kept = self.audit.as_ref().is_none_or(|audit| audit.missing == 0)
            && self.audit_log.as_ref().is_none_or(|log| log.wrong.is_empty());
        let flat = self
            .soak
            .iter()
            .flat_map(|soak| &soak.grown)
            .all(|grown| grown.flat);
        some && rows && kept && flat && self.streams.iter().all(|row| row.wrong == 0 && row.missing == 0)
    }
}

fn per_answer(cpu: Duration, answers: u64) -> Option<f64> {
    (answers > 0).then(|| cpu.as_secs_f64() * 1e6 / answers as f64)
}

fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_sample() {
        let spread = Spread::of((1..=1000).rev().map(|micro| micro * 1000).collect());
        assert_eq!((spread.p50, spread.p99, spread.p999), (500.0, 990.0, 999.0));
        assert_eq!((spread.max, spread.mean), (1000.0, 500.5));
        let one = Spread::of(vec![7000]);
        assert_eq!((one.p50, one.p999, one.max), (7.0, 7.0, 7.0));
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
