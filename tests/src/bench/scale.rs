//! Does a request cost the same however many workers run and models are configured, and what do they cost idle?
//!
//! Each step starts workers of its own, waits until all is quiet, and measures a window without any request and one with
//! the same load as in every other step.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::check::Shape;
use super::cpu::{Process, exact};
use super::report::Row;
use super::target::{Kind, Servers};
use super::throughput::{serves, taking_part, window};
use super::{MODEL, Options};
use crate::table;

/// Requests at a time in every step: so few that even one worker has idle slots, and that programs wake up for each.
const CONCURRENCY: usize = 4;
/// Slots of a worker where there are many, and of the one that serves many models.
const SMALL: usize = 16;
const LARGE: usize = 64;
/// From the workers' readiness until all that follows it is over.
const QUIET: Duration = Duration::from_secs(4);
/// The features that GitLab has support levels for.
const FEATURES: [&str; 16] = [
    "duo_chat",
    "code_completion",
    "code_generation",
    "git_suggestions",
    "discussion_summary",
    "issue_description_generation",
    "test_generation",
    "merge_request_template_population",
    "suggested_reviewers",
    "merge_request_summary",
    "code_review_summary",
    "vulnerability_explanation",
    "vulnerability_resolution",
    "code_explanation",
    "root_cause_analysis",
    "value_stream_forecasting",
];

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct ScaleRow {
    /// So many workers, or models.
    pub count: usize,
    /// CPU time without any request, in hundredths of a core; of the workers their mean.
    pub idle: Vec<Idle>,
    /// CPU time an answer beyond what would have been used idle, in microseconds.
    pub cpu_us_beyond_idle: Option<f64>,
    /// With the load.
    #[serde(flatten)]
    pub row: Row,
}

/// What one process, or the mean worker, uses without any request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Idle {
    /// Its name.
    pub name: String,
    /// Hundredths of a core.
    pub percent: f64,
}

/// Steps of 1 to 64 workers.
pub(super) fn workers(
    options: &Options,
    servers: &Servers,
    runtime: &Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<Vec<ScaleRow>> {
    let models = [options.model.clone(), "codegemma".to_owned()];
    let mut rows = Vec::new();
    for count in options.workers.iter().copied() {
        progress(&format!("workers: {count}"));
        let step = Step {
            scenario: "workers",
            count,
            workers: count,
            slots: SMALL,
            models: &models,
        };
        rows.push(step.measure(options, servers, runtime)?);
    }
    Ok(rows)
}

/// Steps of 1 to 200 models, all of sixteen features, served by one worker and asked in turn.
pub(super) fn models(
    options: &Options,
    servers: &Servers,
    runtime: &Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<Vec<ScaleRow>> {
    let rows = models_in_turn(options, servers, runtime, progress);
    // The local set-up's own configuration has fewer features, and would find models of these that are gone.
    let inactive = FEATURES
        .iter()
        .map(|feature| ((*feature).to_owned(), "inactive".into()));
    options
        .programs
        .apply(&json!({"models": [listed(&options.model)], "features": inactive.collect::<Map<_, _>>()}))?;
    rows
}

fn models_in_turn(
    options: &Options,
    servers: &Servers,
    runtime: &Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<Vec<ScaleRow>> {
    let mut rows = Vec::new();
    for count in options.models.iter().copied() {
        progress(&format!("models: {count}"));
        let models: Vec<_> = (0..count).map(|number| format!("model-{number:03}")).collect();
        options.programs.apply(&configuration(&models))?;
        let step = Step {
            scenario: "models",
            count,
            workers: 1,
            slots: LARGE,
            models: &models,
        };
        rows.push(step.measure(options, servers, runtime)?);
    }
    Ok(rows)
}

/// Sixteen features, shared among the models.
fn configuration(models: &[String]) -> Value {
    let features: Map<_, _> = FEATURES
        .iter()
        .zip(models.iter().cycle())
        .map(|(feature, model)| {
            (
                (*feature).to_owned(),
                json!({"model": model, "acknowledge": "benchmark"}),
            )
        })
        .collect();
    let models: Vec<_> = models.iter().map(|name| listed(name)).collect();
    json!({"models": models, "features": features})
}

fn listed(name: &str) -> Value {
    json!({"name": name, "family": "codegemma_7b", "context_tokens": 32768, "max_output_tokens": 4096})
}

struct Step<'a> {
    scenario: &'static str,
    count: usize,
    workers: usize,
    slots: usize,
    models: &'a [String],
}

impl Step<'_> {
    fn measure(&self, options: &Options, servers: &Servers, runtime: &Runtime) -> anyhow::Result<ScaleRow> {
        let model_server = options.direct.as_str();
        let mut workers = options
            .programs
            .workers(self.workers, self.slots, self.models, model_server)?;
        runtime.block_on(async {
            workers.ready(servers.http()).await?;
            servers.until_served(options, self.models).await
        })?;
        let mut options = options.clone();
        options.pids.extend(workers.processes());
        thread::sleep(QUIET);
        let (idle, together) = idle(&options)?;
        let kind = Kind {
            shape: Shape::Chat,
            tokens: options.tokens,
            bytes: 0,
            count: self.models.len().max(64),
        };
        let ways = servers.ways_of(&options, kind)?;
        let mut way = ways
            .into_iter()
            .find(|way| way.over == "broker")
            .context("this scenario needs a broker")?;
        let own = format!("\"model\":\"{}\"", options.model);
        if self.scenario == "models" {
            for (ask, model) in way.target.asks.iter_mut().zip(self.models.iter().cycle()) {
                ask.body = ask.body.replacen(&own, &format!("\"model\":\"{model}\""), 1);
            }
        }
        let row = window(
            &options,
            (self.scenario, "unary", "broker"),
            &way.target,
            CONCURRENCY,
        )?;
        let beyond = row
            .cpu_us
            .zip(row.per_second)
            .map(|(cpu, answers)| cpu - together * 1e4 / answers);
        Ok(ScaleRow {
            count: self.count,
            idle,
            cpu_us_beyond_idle: beyond,
            row,
        })
    }
}

/// What the broker's system uses while nobody asks: the workers as their mean, and all but
/// PostgreSQL together.
fn idle(options: &Options) -> io::Result<(Vec<Idle>, f64)> {
    let processes: Vec<_> = taking_part(options, "broker")
        .into_iter()
        .filter(|process| process.name != MODEL && serves(options, "broker", &process.name))
        .collect();
    let used = |processes: &[Process]| processes.iter().map(exact).collect::<io::Result<Vec<_>>>();
    let (before, began) = (used(&processes)?, Instant::now());
    thread::sleep(Duration::from_secs(options.seconds));
    let (after, span) = (used(&processes)?, began.elapsed());
    let mut all: Vec<(Idle, f64)> = Vec::new();
    for (process, (before, after)) in processes.iter().zip(before.iter().zip(after)) {
        let percent = after.saturating_sub(*before).as_secs_f64() / span.as_secs_f64() * 100.0;
        let name = process.name.split("-").next().unwrap_or_default().to_owned();
        match all.iter_mut().find(|(idle, _)| idle.name == name) {
            Some((idle, count)) => {
                idle.percent += percent;
                *count += 1.0;
            }
            None => all.push((Idle { name, percent }, 1.0)),
        }
    }
    // PostgreSQL cleans up when it likes, and would take from the one window what the other has.
    let steady = all.iter().filter(|(idle, _)| idle.name != "postgres");
    let together = steady.map(|(idle, _)| idle.percent).sum();
    let each = all
        .into_iter()
        .map(|(idle, count)| Idle {
            percent: idle.percent / count,
            ..idle
        })
        .collect();
    Ok((each, together))
}

/// CPU time of an answer beyond idle in the dearest step, as a factor of that in the first.
#[must_use]
pub fn growth(rows: &[ScaleRow]) -> Option<f64> {
    largest(rows.iter().filter_map(|row| row.cpu_us_beyond_idle))
}

/// The largest value as a factor of the first.
fn largest(mut values: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    let all = values.clone();
    let first = values.next()?;
    all.map(|value| value / first).max_by(f64::total_cmp)
}

/// The table's lines, and what they come to.
pub(super) fn lines(rows: &[ScaleRow]) -> Vec<String> {
    let parts = ["broker", "worker", "nats", "postgres"];
    let cells: Vec<_> = rows
        .iter()
        .map(|scale| {
            let row = &scale.row;
            let mut cells = vec![
                scale.count.to_string(),
                format!("{:.0}", row.per_second.unwrap_or_default()),
                format!("{:.2}", row.whole_us.p50 / 1000.0),
                format!("{:.2}", row.whole_us.p99 / 1000.0),
                format!("{:.0}", scale.cpu_us_beyond_idle.unwrap_or_default()),
                format!("{:.0}", row.cpu_us.unwrap_or_default()),
            ];
            cells.extend(parts.map(|name| format!("{:.0}", row.share(name).unwrap_or_default())));
            cells.extend(parts.map(|name| {
                let idle = scale.idle.iter().find(|idle| idle.name == name);
                idle.map_or_else(String::new, |idle| format!("{:.2}", idle.percent))
            }));
            cells.push(row.resident_bytes.map_or_else(String::new, |bytes| {
                format!("{:.0}", bytes as f64 / f64::from(1 << 20))
            }));
            cells
        })
        .collect();
    let headings = [
        "COUNT",
        "ANSWERS/S",
        "P50",
        "P99",
        "BEYOND IDLE",
        "CPU",
        "BROKER",
        "WORKERS",
        "NATS",
        "POSTGRES",
        "IDLE BROKER",
        "A WORKER",
        "NATS",
        "POSTGRES",
        "MEMORY",
    ];
    let mut lines = table::lines(2, &headings, &cells);
    if let Some(growth) = growth(rows) {
        let verdict = if growth <= 1.2 {
            "flat within a fifth"
        } else {
            "NOT flat within a fifth"
        };
        lines.push(format!(
            "  CPU time an answer beyond idle: {growth:.2} times that of the first line at most; {verdict}"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_largest_factor_of_the_first_step() {
        assert_eq!(largest([100.0, 110.0, 70.0].into_iter()), Some(1.1));
        assert_eq!(largest(std::iter::empty()), None);
    }

    #[test]
    fn sixteen_features_are_shared_among_the_models() {
        let config = configuration(&["a".to_owned(), "b".to_owned()]);
        assert_eq!(config["features"].as_object().unwrap().len(), 16);
        assert_eq!(config["features"]["code_completion"]["model"], "b");
    }
}
