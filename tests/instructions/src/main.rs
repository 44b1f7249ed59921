//! Counts the instructions of the hot paths under valgrind and compares them with committed figures.
//!
//! Wall time on a shared machine says nothing about a change of a few percent; the number of instructions does, and
//! hardly differs between runs. Each path runs in a process of its own under callgrind, which counts what happens
//! within one function ([`paths`]). Whole programs are among the paths: a broker and a worker in this process on one
//! thread, with stand-ins for what is around them. The kernel's work is not counted.

mod broker;
mod figures;
mod inputs;
mod nats;
mod paths;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use duo_process::telemetry::{self, LogFormat};

/// As in both programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(
    about = "Counts the instructions of the hot paths and compares them with committed figures",
    version
)]
struct Options {
    /// File of the committed figures.
    #[arg(long, value_name = "FILE", required_unless_present = "path")]
    figures: Option<PathBuf>,
    /// Writes the figures that were counted into the file.
    #[arg(long)]
    update: bool,
    /// Runs one path, as valgrind is told to.
    #[arg(long, value_name = "NAME", hide = true)]
    path: Option<String>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the program's output")]
fn main() -> ExitCode {
    let options = Options::parse();
    let done = match (&options.path, &options.figures) {
        (Some(path), _) => run(path).map(|count| {
            println!("{count}");
            true
        }),
        (None, Some(figures)) => figures::compare(figures, options.update),
        (None, None) => Ok(false),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs a path: how many of its runs were counted.
fn run(name: &str) -> anyhow::Result<usize> {
    // As shipped: a line for each request.
    telemetry::init("info", LogFormat::Json)?;
    let path = paths::PATHS.iter().find(|path| path.name == name);
    (path.with_context(|| format!("there is no path {name:?}"))?.run)()
}
