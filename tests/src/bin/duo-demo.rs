//! `duo-demo`: a code completion, a code generation and a chat question, as GitLab sends them.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use duo_system_tests::demo::{Options, Screen, run};

/// Sends one code completion, one code generation and one chat question to a broker, as GitLab would.
///
/// It shows the tokens as they arrive, what the queue took of the time, and the audit records that resulted. It
/// ends with 0 only if all three answers came whole and their audit records say completed.
/// ./deploy/local/up runs it; by hand, against a set-up that runs:
///
///   . .local/env && duo-demo
#[derive(Parser)]
#[command(name = "duo-demo", version, verbatim_doc_comment)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Set to anything, it turns colours off
    #[arg(long, env = "NO_COLOR", hide = true, default_value = "")]
    no_color: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { options, no_color } = Arguments::parse();
    let mut screen = Screen::standard(options.json, !no_color.is_empty());
    let report = run(&options, &mut screen).await?;
    if options.json {
        let json = serde_json::to_string_pretty(&report)?;
        writeln!(std::io::stdout(), "{json}").context("cannot print the report")?;
    }
    Ok(if report.passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
