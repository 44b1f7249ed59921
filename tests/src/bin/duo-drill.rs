//! `duo-drill`: failure drills with a checker.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Parser;
use duo_system_tests::drill::{ALL, ASIDE, Drill, Size, find};
use duo_system_tests::harness::model_server::Kind;

/// Sends load, breaks something on purpose, and checks afterwards that every promise was kept.
///
/// Each drill starts its own brokers, workers, NATS, PostgreSQL and simulated model server on free ports of 127.0.0.1.
/// ./tests/drills/run builds everything and this; by hand, beside programs that are built:
///
///   duo-drill list
///   duo-drill worker-kill --seed 7 --seconds 60
///
/// It ends with 0 only if nothing was lost, duplicated, corrupted or leaked, and every demand of the drill was met.
#[derive(Parser)]
#[command(name = "duo-drill", version, verbatim_doc_comment)]
struct Arguments {
    /// A drill's name, `all` for each of them, or `list`
    drill: String,
    /// Where all randomness comes from; the same seed gives the same choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long load is sent; each drill has its own default
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// The short form, as the tests run it
    #[arg(long)]
    short: bool,
    /// Faults that the mix injects
    #[arg(long, value_name = "N")]
    faults: Option<u64>,
    /// How many of them are kills
    #[arg(long, value_name = "N")]
    kills: Option<u64>,
    /// The real model server of real-cuts: llama or vllm
    #[arg(long, value_name = "KIND", default_value = "llama", value_parser = model_server)]
    kind: Kind,
    /// Cuts that real-cuts makes
    #[arg(long, value_name = "N")]
    cuts: Option<u64>,
    /// Write the picture of the drill here, as SVG, if it draws one
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Also write the results here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.drill == "list" {
        for drill in ALL.iter().chain(ASIDE) {
            print(&format!("{:<18} {}", drill.name, drill.shows))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let drills: Vec<&Drill> = match (arguments.drill.as_str(), find(&arguments.drill)) {
        ("all", _) => ALL.iter().collect(),
        (_, Some(drill)) => vec![drill],
        (name, None) => bail!("no drill is called {name:?}; `list` shows them all"),
    };
    let size = Size {
        seed: arguments.seed,
        seconds: arguments.seconds,
        short: arguments.short,
        faults: arguments.faults,
        kills: arguments.kills,
        model_server: arguments.kind,
        cuts: arguments.cuts,
    };
    let mut reports = Vec::new();
    for drill in drills {
        drop(writeln!(std::io::stderr(), "{}: {}", drill.name, drill.shows));
        let report = (drill.run)(size).await;
        print(&report.lines().join("\n"))?;
        if let (Some(path), Some(plot)) = (&arguments.plot, &report.plot) {
            std::fs::write(path, plot).with_context(|| format!("cannot write {}", path.display()))?;
        }
        reports.push(report);
    }
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&reports)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if reports.iter().all(|report| report.passed()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn model_server(name: &str) -> Result<Kind, &'static str> {
    Kind::named(name).ok_or("llama or vllm")
}

fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot print the results")
}
