//! Many minutes of mixed load: does anything grow that should not?
//!
//! Unary chats, streamed chats and code completions at a steady rate, each at its own due moment whatever became of those
//! before it on its connection. Once a second every process is looked at. After a fifth of the time, in which caches and
//! buffers fill, a line is laid through the memory (least squares), and the most descriptors and threads of the first
//! quarter are compared with those of the last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::runtime::Runtime;

use super::check::Shape;
use super::cpu::{Holding, Process};
use super::load::Target;
use super::pace::paced;
use super::report::Row;
use super::target::Servers;
use super::throughput::{serves, taking_part};
use super::{GENERATOR, MODEL, Options};
use crate::table;

/// Connections of each kind of request.
const CONNECTIONS: usize = 8;
/// Of the whole time, the part that does not count.
const WARM_UP: f64 = 0.2;
const EVERY: Duration = Duration::from_secs(1);
/// Growth over the time that counts as flat: so much of the mean, or so many bytes where that is more.
const FLAT_PART: f64 = 0.1;
const FLAT_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
/// Descriptors and threads that may come to those of the beginning.
const FLAT_COUNT: usize = 4;
/// PostgreSQL's processes come and go as it likes; it is shown, but does not fail a run.
const SHOWN_ONLY: &str = "postgres";

/// One process over the time that counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grown {
    /// Its name.
    pub name: String,
    /// Memory of its own, mean in bytes.
    pub memory: f64,
    /// How much the line through it rises in a minute.
    pub bytes_per_minute: f64,
    /// Most descriptors in the first and in the last quarter.
    pub descriptors: (usize, usize),
    /// Most threads likewise.
    pub threads: (usize, usize),
    /// Nothing of it grows.
    pub flat: bool,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Soak {
    /// Requests a second that were due.
    pub rate: f64,
    /// Each kind of request.
    pub rows: Vec<Row>,
    /// Each process.
    pub grown: Vec<Grown>,
}

/// Runs the load and looks at the processes.
pub(super) fn measure(
    options: &Options,
    servers: &Servers,
    code: Option<Target>,
    runtime: &Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<Soak> {
    let mut kinds = Vec::new();
    for (request, shape) in [("unary", Shape::Chat), ("stream", Shape::ChatStream)] {
        let ways = servers.ways(options, shape, options.tokens)?;
        kinds.extend(
            ways.into_iter()
                .filter(|way| way.over == "broker")
                .map(|way| (request, way.target)),
        );
    }
    kinds.extend(code.map(|target| ("code completion", target)));
    anyhow::ensure!(!kinds.is_empty(), "this scenario needs a broker");
    let processes: Vec<_> = taking_part(options, "broker")
        .into_iter()
        .filter(|process| {
            process.name != MODEL && process.name != GENERATOR && serves(options, "broker", &process.name)
        })
        .collect();
    let whole = Duration::from_secs(options.seconds);
    let (measured, looks) = runtime.block_on(async {
        let began = Instant::now();
        let targets: Vec<_> = kinds.iter().map(|(_, target)| Arc::new(target.clone())).collect();
        let load = tokio::spawn(paced(targets, CONNECTIONS, options.rate, began, whole));
        let mut looks: Vec<(Duration, Vec<Holding>)> = Vec::new();
        while began.elapsed() < whole {
            tokio::time::sleep(EVERY).await;
            looks.push((began.elapsed(), Holding::of_all(&processes)?));
            if looks.len().is_multiple_of(10) {
                progress(&told(
                    began.elapsed(),
                    whole,
                    &processes,
                    looks.last().map(|(_, look)| look),
                ));
            }
        }
        anyhow::Ok((load.await?, looks))
    })?;
    let counts = whole.mul_f64(WARM_UP);
    let looks: Vec<_> = looks.into_iter().filter(|(at, _)| *at >= counts).collect();
    let rows = kinds.iter().zip(measured);
    Ok(Soak {
        rate: options.rate,
        rows: rows
            .map(|((request, _), measured)| {
                Row::new(("soak", *request, "broker"), CONNECTIONS, measured, |_| false)
            })
            .collect(),
        grown: processes
            .iter()
            .enumerate()
            .map(|(index, process)| Grown::of(process, index, &looks))
            .collect(),
    })
}

fn told(at: Duration, whole: Duration, processes: &[Process], look: Option<&Vec<Holding>>) -> String {
    let memory: Vec<_> = processes
        .iter()
        .zip(look.into_iter().flatten())
        .map(|(process, holding)| {
            format!(
                "{} {:.1} MiB",
                process.name,
                holding.memory as f64 / f64::from(1 << 20)
            )
        })
        .collect();
    format!(
        "soak: {} of {} s; {}",
        at.as_secs(),
        whole.as_secs(),
        memory.join(", ")
    )
}

impl Grown {
    /// The process with this index in each look.
    fn of(process: &Process, index: usize, looks: &[(Duration, Vec<Holding>)]) -> Self {
        let memory: Vec<_> = looks
            .iter()
            .map(|(at, look)| (at.as_secs_f64() / 60.0, look[index].memory as f64))
            .collect();
        let mean = memory.iter().map(|(_, bytes)| bytes).sum::<f64>() / memory.len().max(1) as f64;
        let bytes_per_minute = slope(&memory);
        let most = |part: &[(Duration, Vec<Holding>)], of: fn(&Holding) -> usize| {
            part.iter()
                .map(|(_, look)| of(&look[index]))
                .max()
                .unwrap_or_default()
        };
        let quarter = looks.len() / 4;
        let ends = |of| {
            (
                most(&looks[..quarter], of),
                most(&looks[looks.len() - quarter..], of),
            )
        };
        let (descriptors, threads) = (
            ends(|holding| holding.descriptors),
            ends(|holding| holding.threads),
        );
        let minutes = memory.last().map_or(0.0, |last| last.0) - memory.first().map_or(0.0, |first| first.0);
        let steady = |(first, last): (usize, usize)| last <= first + FLAT_COUNT;
        let flat = bytes_per_minute * minutes <= (mean * FLAT_PART).max(FLAT_BYTES)
            && steady(descriptors)
            && steady(threads);
        Self {
            name: process.name.clone(),
            memory: mean,
            bytes_per_minute,
            descriptors,
            threads,
            flat: flat || process.name == SHOWN_ONLY,
        }
    }
}

/// The rise of the line that fits best through these points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len().max(1) as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| {
        (x + point.0 / count, y + point.1 / count)
    });
    let (mut above, mut below) = (0.0, 0.0);
    for point in points {
        above += (point.0 - x) * (point.1 - y);
        below += (point.0 - x).powi(2);
    }
    if below > 0.0 { above / below } else { 0.0 }
}

/// The table's lines, and what they come to.
pub(super) fn lines(soak: &Soak) -> Vec<String> {
    let cells: Vec<_> = soak
        .rows
        .iter()
        .map(|row| {
            vec![
                row.request.to_owned(),
                row.requests.to_string(),
                format!("{:.2}", row.whole_us.p50 / 1000.0),
                format!("{:.2}", row.whole_us.p99 / 1000.0),
                format!("{:.2}", row.whole_us.max / 1000.0),
                row.wrong.to_string(),
            ]
        })
        .collect();
    let mut lines = table::lines(2, &["REQUEST", "ANSWERS", "P50", "P99", "MAX", "WRONG"], &cells);
    lines.push(String::new());
    let cells: Vec<_> = soak
        .grown
        .iter()
        .map(|grown| {
            vec![
                grown.name.clone(),
                format!("{:.1}", grown.memory / f64::from(1 << 20)),
                format!("{:+.1}", grown.bytes_per_minute / 1024.0),
                format!("{} {}", grown.descriptors.0, grown.descriptors.1),
                format!("{} {}", grown.threads.0, grown.threads.1),
                if grown.flat { "yes" } else { "NO" }.to_owned(),
            ]
        })
        .collect();
    let headings = [
        "PROCESS",
        "MEMORY MIB",
        "KIB A MINUTE",
        "DESCRIPTORS",
        "THREADS",
        "FLAT",
    ];
    lines.extend(table::lines(2, &headings, &cells));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(
        memory: impl Fn(u64) -> u64,
        descriptors: impl Fn(u64) -> usize,
    ) -> Vec<(Duration, Vec<Holding>)> {
        let look = |second| {
            let holding = Holding {
                memory: memory(second),
                descriptors: descriptors(second),
                threads: 3,
            };
            (Duration::from_secs(second), vec![holding])
        };
        (60..=660).map(look).collect()
    }

    #[test]
    fn a_steady_rise_is_not_flat_and_a_swing_is() {
        let process: Process = "broker=1".parse().unwrap();
        let grown = |memory: fn(u64) -> u64| Grown::of(&process, 0, &looks(memory, |_| 20));
        let rising = grown(|second| 50_000_000 + second * 20_000);
        assert!(
            (rising.bytes_per_minute - 1_200_000.0).abs() < 1.0 && !rising.flat,
            "{rising:?}"
        );
        assert!(grown(|second| 50_000_000 + second % 7 * 1_000_000).flat);
        let leaking = Grown::of(&process, 0, &looks(|_| 1, |second| second as usize));
        assert!(!leaking.flat && leaking.descriptors.1 > leaking.descriptors.0);
    }
}
