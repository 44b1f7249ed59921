//! The results as tables.

use super::super::stages::StagesRow;
use super::super::{audit, audit_log, jobs, prompts, scale, soak};
use super::{Machine, Report, Row, Spread, StreamsRow, per_answer};
use crate::table;

impl Report {
    /// The tables, line by line.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let Machine { cores, cpu, kernel } = &self.machine;
        let mut lines = vec![format!(
            "{cores} cores of {cpu}, Linux {kernel}; {} tokens an answer",
            self.tokens
        )];
        for (title, table) in self.sections() {
            lines.extend([String::new(), title]);
            lines.extend(table);
        }
        for row in self.streams.iter().filter(|row| row.wrong > 0) {
            lines.push(format!(
                "WRONG: {} streams, {}: {} answers",
                row.streams, row.over, row.wrong
            ));
            lines.extend(row.told.iter().map(|told| format!("  {told}")));
        }
        for row in self.all_rows().filter(|row| row.wrong > 0 || row.requests == 0) {
            lines.push(String::new());
            let Row {
                scenario,
                request,
                over,
                wrong,
                ..
            } = row;
            lines.push(format!(
                "WRONG: {scenario}, {request}, {over}: {wrong} answers of {}",
                row.requests as u64 + wrong
            ));
            lines.extend(row.told.iter().map(|told| format!("  {told}")));
        }
        lines
    }

    /// What was measured: a title and a table each.
    fn sections(&self) -> Vec<(String, Vec<String>)> {
        let mut sections = self.hop_and_throughput();
        let mut add = |title: &str, table: Vec<String>| sections.push((title.to_owned(), table));
        if !self.prompts.is_empty() {
            add(
                "prompts: unary, four at a time; latencies in milliseconds, CPU time an answer in microseconds",
                prompts::lines(&self.prompts),
            );
        }
        if let Some(scale) = self.scale.first() {
            let title = format!(
                "{}: unary, {} at a time; latencies in milliseconds, CPU time an answer in microseconds, idle in percent of a \
                 core, memory in MiB",
                scale.row.scenario, scale.row.concurrency
            );
            add(&title, scale::lines(&self.scale));
        }
        if !self.jobs.is_empty() {
            add(
                "jobs: latencies of the 202 in milliseconds, CPU time a job in microseconds",
                jobs::lines(&self.jobs),
            );
        }
        if let Some(audit) = &self.audit {
            add(
                "audit: unary, 32 at a time; latencies in milliseconds, CPU time an answer in microseconds",
                audit::lines(audit),
            );
        }
        if let Some(log) = &self.audit_log {
            let title = format!(
                "audit-log: {} records of {} days; milliseconds, also of CPU time",
                log.records, log.days
            );
            add(&title, audit_log::lines(log));
        }
        if let Some(soak) = &self.soak {
            let (rate, seconds) = (soak.rate, self.seconds);
            add(
                &format!("soak: {rate} requests a second for {seconds} s; latencies in milliseconds"),
                soak::lines(soak),
            );
        }
        if let Some(row) = self.streams.first() {
            let title = format!(
                "streams: a token every {} ms; milliseconds, CPU time a token in microseconds, memory a stream in KiB",
                row.pace_ms
            );
            add(&title, streams(&self.streams));
        }
        sections
    }

    fn hop_and_throughput(&self) -> Vec<(String, Vec<String>)> {
        let mut sections = Vec::new();
        let rows = |scenario| self.rows.iter().filter(move |row| row.scenario == scenario);
        if rows("hop").next().is_some() {
            let table = self.hop(&rows("hop").collect::<Vec<_>>());
            sections.push(("hop: one request at a time, in milliseconds".to_owned(), table));
        }
        if !self.stages.is_empty() {
            let title = "hop: its stages, to the first data of the answer; means and medians in milliseconds";
            sections.push((title.to_owned(), stages(&self.stages)));
        }
        let mut levels: Vec<_> = rows("throughput").map(|row| row.concurrency).collect();
        levels.dedup();
        for level in levels {
            let rows: Vec<_> = rows("throughput")
                .filter(|row| row.concurrency == level)
                .collect();
            let title = format!(
                "throughput: {level} at a time; latencies in milliseconds, CPU time an answer in microseconds, memory in MiB"
            );
            sections.push((title, throughput(&rows)));
            let ours: Vec<_> = rows.into_iter().filter(|row| row.over == "broker").collect();
            if !ours.is_empty() {
                let title = format!("CPU time an answer in microseconds, {level} at a time");
                sections.push((title, shares(&ours)));
            }
        }
        sections
    }

    fn hop(&self, rows: &[&Row]) -> Vec<String> {
        let mut cells = Vec::new();
        for row in rows {
            let measures: &[_] = if row.request == "stream" {
                &[("first token", row.first_us), ("whole stream", row.whole_us)]
            } else {
                &[("unary", row.whole_us)]
            };
            for (name, spread) in measures {
                let direct = rows
                    .iter()
                    .find(|other| other.request == row.request && other.over == "direct");
                let direct = direct.map(|other| {
                    if *name == "first token" {
                        other.first_us
                    } else {
                        other.whole_us
                    }
                });
                let added = |of: fn(&Spread) -> f64| match direct {
                    Some(direct) if row.over != "direct" => milliseconds(of(spread) - of(&direct)),
                    _ => String::new(),
                };
                cells.push(vec![
                    (*name).to_owned(),
                    row.over.clone(),
                    row.requests.to_string(),
                    milliseconds(spread.p50),
                    milliseconds(spread.p99),
                    milliseconds(spread.max),
                    added(|spread| spread.p50),
                    added(|spread| spread.p99),
                ]);
            }
        }
        cells.sort_by_key(|cells| {
            ["unary", "first token", "whole stream"]
                .iter()
                .position(|name| *name == cells[0])
        });
        table::lines(
            2,
            &[
                "REQUEST",
                "OVER",
                "REQUESTS",
                "P50",
                "P99",
                "MAX",
                "ADDED P50",
                "ADDED P99",
            ],
            &cells,
        )
    }
}

fn stages(rows: &[StagesRow]) -> Vec<String> {
    let mut headings = vec!["STAGE".to_owned()];
    let mut columns = Vec::new();
    for row in rows {
        headings.extend(["MEAN", "P50"].map(|what| format!("{} {what}", row.request.to_uppercase())));
        let mut column = row.stages.clone();
        column.extend([
            row.sum(),
            row.left(),
            row.client,
            row.direct,
            row.added(),
            row.claim,
        ]);
        columns.push(column);
    }
    let Some(first) = columns.first() else {
        return Vec::new();
    };
    let line = |(index, name): (usize, &str)| {
        let cells = columns.iter().flat_map(|column| {
            let stage = column[index];
            [milliseconds(stage.mean_us), milliseconds(stage.p50_us)]
        });
        std::iter::once(name.to_owned()).chain(cells).collect()
    };
    let cells: Vec<_> = first
        .iter()
        .map(|stage| stage.name)
        .enumerate()
        .map(line)
        .collect();
    table::lines(
        2,
        &headings.iter().map(String::as_str).collect::<Vec<_>>(),
        &cells,
    )
}

fn throughput(rows: &[&Row]) -> Vec<String> {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            vec![
                row.request.to_owned(),
                row.over.clone(),
                format!("{:.0}", row.per_second.unwrap_or_default()),
                milliseconds(row.first_us.p50),
                milliseconds(row.whole_us.p50),
                milliseconds(row.whole_us.p99),
                milliseconds(row.whole_us.max),
                row.cpu_us.map_or_else(String::new, |cpu| format!("{cpu:.0}")),
                row.resident_bytes.map_or_else(String::new, mebibytes),
                row.wrong.to_string(),
            ]
        })
        .collect();
    table::lines(
        2,
        &[
            "REQUEST",
            "OVER",
            "ANSWERS/S",
            "FIRST P50",
            "P50",
            "P99",
            "MAX",
            "CPU",
            "MEMORY",
            "WRONG",
        ],
        &cells,
    )
}

fn streams(rows: &[StreamsRow]) -> Vec<String> {
    let added = |row: &StreamsRow| {
        let direct = rows
            .iter()
            .find(|other| other.over == "direct" && other.streams == row.streams)?;
        (row.over != "direct").then(|| milliseconds(row.gap_us.p99 - direct.gap_us.p99))
    };
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            vec![
                row.streams.to_string(),
                row.over.clone(),
                format!("{:.0}", row.tokens_per_second),
                milliseconds(row.first_us.p50),
                milliseconds(row.first_us.p99),
                milliseconds(row.gap_us.p50),
                milliseconds(row.gap_us.p99),
                added(row).unwrap_or_default(),
                milliseconds(row.late_us.p99),
                row.stalls.to_string(),
                row.missing.to_string(),
                row.cpu_us_per_token
                    .map_or_else(String::new, |cpu| format!("{cpu:.1}")),
                row.bytes_per_stream
                    .map_or_else(String::new, |bytes| format!("{:.1}", bytes as f64 / 1024.0)),
            ]
        })
        .collect();
    table::lines(
        2,
        &[
            "STREAMS",
            "OVER",
            "TOKENS/S",
            "FIRST P50",
            "FIRST P99",
            "GAP P50",
            "GAP P99",
            "ADDED P99",
            "LATE P99",
            "STALLS",
            "MISSING",
            "CPU",
            "MEMORY",
        ],
        &cells,
    )
}

fn shares(rows: &[&Row]) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for used in rows.iter().flat_map(|row| &row.used) {
        if !names.contains(&used.name.as_str()) {
            names.push(&used.name);
        }
    }
    let mut headings = vec!["REQUEST", "SYSTEM"];
    headings.extend(&names);
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![row.request.to_owned()];
            cells.push(row.cpu_us.map_or_else(String::new, |cpu| format!("{cpu:.0}")));
            cells.extend(names.iter().map(|name| {
                let used = row.used.iter().find(|used| used.name == *name);
                let cpu = used.and_then(|used| per_answer(used.cpu, row.ended));
                cpu.map_or_else(String::new, |cpu| format!("{cpu:.0}"))
            }));
            cells
        })
        .collect();
    table::lines(2, &headings, &cells)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

fn milliseconds(microseconds: f64) -> String {
    format!("{:.3}", microseconds / 1000.0)
}
