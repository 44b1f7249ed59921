//! Verifies an export without a database: lines of JSON, one record each.

use std::io::{self, BufRead};

use super::super::canonical::Canonical;
use super::super::tree::{Hash, Tree};
use super::{Options, Place, Problem, Report};

/// Verifies the records that `lines` holds, in whatever order. Roots can be recomputed where the records begin with
/// number 0; for others it is found whether one is missing, and no more.
///
/// # Errors
/// The lines cannot be read.
pub fn verify_export(
    lines: impl BufRead,
    options: &Options,
    mut progress: impl FnMut(u64),
) -> io::Result<Report> {
    let mut records: Vec<(u64, Hash)> = Vec::new();
    let mut unreadable = Vec::new();
    let mut canonical = Canonical::default();
    for (number, line) in (1..).zip(lines.lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        match canonical.json(&line) {
            Ok(seq) => records.push((seq, canonical.leaf_hash())),
            Err(error) => unreadable.push(Problem::Line {
                line: number,
                why: error.to_string(),
            }),
        }
        if number % 65_536 == 0 {
            progress(number);
        }
    }
    records.sort_by_key(|(seq, _)| *seq);
    let end = options.to.unwrap_or(u64::MAX);
    records.retain(|(seq, _)| (options.from..end).contains(seq));
    let from = records.first().map_or(options.from, |(seq, _)| *seq);
    let to = records.last().map_or(from, |(seq, _)| seq + 1);
    let mut report = Report::new(from, to);
    for problem in unreadable {
        report.add(problem);
    }
    let mut file = options.file.clone();
    file.sort_by_key(|checkpoint| checkpoint.size);
    for checkpoint in &file {
        report.checkpoint(checkpoint);
        if let Some(keys) = &options.keys {
            report.signatures += 1;
            if !keys.prove(checkpoint) {
                let (size, place) = (checkpoint.size, Place::File);
                report.add(Problem::Signature { size, place });
            }
        }
    }
    let mut file = file.iter().peekable();
    let mut tree = Tree::default();
    let mut tiles = Vec::new();
    let mut expected = from;
    // A tree can be made of the records from the first one on, as long as none is missing.
    let mut is_whole = from == 0 && !options.is_selection;
    for (seq, leaf) in records {
        report.records += 1;
        if seq < expected {
            report.add(Problem::Twice { seq });
            continue;
        }
        if expected < seq && !options.is_selection {
            let (from, to) = (expected, seq - 1);
            report.add(Problem::Missing { from, to });
            is_whole = false;
        }
        expected = seq + 1;
        if is_whole {
            tree.append(leaf, &mut tiles);
            tiles.clear();
        }
        while let Some(checkpoint) = file.next_if(|checkpoint| checkpoint.size <= expected) {
            if !is_whole || checkpoint.size != tree.size() {
                continue;
            }
            report.roots += 1;
            if checkpoint.root != tree.root() {
                let (size, place) = (checkpoint.size, Place::File);
                report.add(Problem::Root { size, place });
            }
        }
    }
    if from == 0 && options.to.is_none() && !options.is_selection {
        for checkpoint in file {
            let (place, signed, there) = (Place::File, checkpoint.size, expected);
            report.add(Problem::Shrunk { place, signed, there });
        }
    }
    report.unsigned = to.saturating_sub(report.signed.max(from));
    Ok(report)
}
