//! What a request costs by the size of its body.
//!
//! Unary chats of growing size, a few at a time. What the broker's side of an answer costs should be a fixed part and one
//! that grows with the bytes; the step from one size to the next tells what a further KiB costs there.

use serde::Serialize;

use super::Options;
use super::check::Shape;
use super::report::Row;
use super::target::{Kind, Servers};
use super::throughput::window;
use crate::table;

/// Requests at a time: latencies of little load, but not CPU time of programs that wake up for each.
const CONCURRENCY: usize = 4;
/// Different bodies of each size.
const BODIES: usize = 8;
/// Context that the largest body fits into, in tokens.
const CONTEXT: u64 = 4 << 20;

/// One size on one way.
#[derive(Clone, Debug, Serialize)]
pub struct PromptsRow {
    /// KiB of the body.
    pub kib: usize,
    /// CPU time that each KiB beyond the size before costs, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_further_kib: Option<f64>,
    /// What was measured.
    #[serde(flatten)]
    pub row: Row,
}

/// One window for each size and way.
pub(super) fn measure(
    options: &Options,
    servers: &Servers,
    runtime: &tokio::runtime::Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<Vec<PromptsRow>> {
    if options.broker.is_some() {
        options.programs.apply(&serde_json::json!({
            "models": [
                {"name": options.model, "family": "mistral_7b", "context_tokens": CONTEXT, "max_output_tokens": 4096},
                {"name": "codegemma", "family": "codegemma_7b", "context_tokens": 8192, "max_output_tokens": 1024},
            ],
            "features": {"code_completion": {"model": "codegemma"}},
        }))?;
    }
    runtime.block_on(servers.set(&serde_json::json!({"context": CONTEXT})))?;
    let mut rows: Vec<PromptsRow> = Vec::new();
    for kib in options.sizes.iter().copied() {
        let kind = Kind {
            shape: Shape::Chat,
            tokens: options.tokens,
            bytes: kib * 1024,
            count: BODIES,
        };
        for way in servers.ways_of(options, kind)? {
            progress(&format!("prompts: {kib} KiB, {}", way.over));
            let row = window(options, ("prompts", "unary", &way.over), &way.target, CONCURRENCY)?;
            let before = rows.iter().rev().find(|before| before.row.over == row.over);
            let further = before.and_then(|before| {
                let bytes = kib.checked_sub(before.kib).filter(|more| *more > 0)?;
                Some((row.cpu_us? - before.row.cpu_us?) / bytes as f64)
            });
            rows.push(PromptsRow {
                kib,
                cpu_us_per_further_kib: further,
                row,
            });
        }
    }
    Ok(rows)
}

/// The table's lines.
pub(super) fn lines(rows: &[PromptsRow]) -> Vec<String> {
    let cells: Vec<_> = rows
        .iter()
        .map(
            |PromptsRow {
                 kib,
                 row,
                 cpu_us_per_further_kib,
             }| {
                let number = |value: Option<f64>, digits| {
                    value.map_or_else(String::new, |value| format!("{value:.digits$}"))
                };
                let mut cells = vec![
                    kib.to_string(),
                    row.over.clone(),
                    number(row.per_second, 0),
                    format!("{:.2}", row.whole_us.p50 / 1000.0),
                    format!("{:.2}", row.whole_us.p99 / 1000.0),
                    number(row.cpu_us, 0),
                    number(*cpu_us_per_further_kib, 2),
                ];
                let shares = ["broker", "worker", "nats", "postgres"];
                cells.extend(shares.map(|name| {
                    row.share(name)
                        .filter(|_| row.cpu_us.is_some())
                        .map_or_else(String::new, |cpu| format!("{cpu:.0}"))
                }));
                cells
            },
        )
        .collect();
    let headings = [
        "KIB",
        "OVER",
        "ANSWERS/S",
        "P50",
        "P99",
        "CPU",
        "A FURTHER KIB",
        "BROKER",
        "WORKER",
        "NATS",
        "POSTGRES",
    ];
    table::lines(2, &headings, &cells)
}
