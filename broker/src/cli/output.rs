//! Where text leaves the program: lines, tables and JSON on standard output, words for people on standard error.

use std::io::{self, Write as _};

use clap::ValueEnum;
use serde::Serialize;

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns for people.
    Table,
    /// For programs.
    Json,
}

/// Prints a line of the result.
pub(super) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Says something to the person, beside the result.
pub(super) fn say(text: &str) {
    // Where even standard error is gone there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints the result as one JSON document.
pub(super) fn json(result: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(result)?)?;
    Ok(())
}

/// Prints rows in columns as wide as their widest cell, numbers to the right.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(at, title)| {
            let cells = rows.iter().map(|row| row[at].chars().count());
            cells.chain([title.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    line(&aligned(header.iter().copied(), &widths))?;
    for row in rows {
        line(&aligned(row.iter().map(String::as_str), &widths))?;
    }
    Ok(())
}

fn aligned<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let cells: Vec<_> = cells
        .zip(widths)
        .map(|(cell, width)| {
            let is_number = cell.starts_with(|c: char| c.is_ascii_digit())
                && cell.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '+');
            if is_number {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        })
        .collect();
    cells.join("  ").trim_end().to_owned()
}

/// A moment for people: UTC, to the second.
pub(super) fn moment(moment: time::OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    moment
        .to_offset(time::UtcOffset::UTC)
        .format(format)
        .unwrap_or_else(|_| moment.unix_timestamp().to_string())
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
