//! `duo-bench`: measures what the queue adds and what it carries.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use duo_system_tests::bench::{Options, run};

/// Measures the broker against the model server behind it and other gateways, with every byte of every answer checked.
///
/// It needs a simulated model server without delays, and for all but the direct figures a broker in front of it.
/// ./tests/bench/run starts everything and this; by hand, against a set-up that runs:
///
///   . .local/env
///   duo-bench hop --direct http://127.0.0.1:18080
///
/// It ends with 0 only if every answer was right.
#[derive(Parser)]
#[command(name = "duo-bench", version, verbatim_doc_comment)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Arguments::parse().options;
    let report = run(&options, |step| {
        drop(writeln!(std::io::stderr(), "measuring {step}"))
    })?;
    if let Some(path) = &options.json {
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.plot {
        std::fs::write(path, report.plot()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    writeln!(std::io::stdout(), "{}", report.lines().join("\n")).context("cannot print the results")?;
    Ok(if report.all_right() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
