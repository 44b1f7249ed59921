//! `duo-broker audit verify`: is the log as it was written?

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use duo_broker::audit::note::{Checkpoint, VerifyingKeys};
use duo_broker::audit::verify::{Options, Report, verify, verify_export};
use duo_process::config::Env;

use crate::cli::output::{self, Format, say};
use crate::cli::store;

pub(super) const EXAMPLES: &str = "Examples:
  duo-broker audit verify --key audit-key.pub --checkpoints /var/backups/duo/checkpoints
  duo-broker audit verify --from 1000000 --to 2000000
  duo-broker audit verify --key audit-key.pub --checkpoints checkpoints export.ndjson      without a database

Without --key the keys of DUO_AUDIT_KEY_FILE are used. Only a file of checkpoints that whoever may change the database cannot
change finds a database that was put back to an older state. Exit codes: 0 all is as it was written, 1 it is not.";

/// How long nothing is said about how far it is.
const SILENT: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// From the record with this number on.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    from: u64,
    /// Before the record with this number, and on to the next checkpoint.
    #[arg(long, value_name = "SEQ")]
    to: Option<u64>,
    /// The log's public keys, a file that `duo-broker audit key --public` has written.
    #[arg(long, value_name = "PUBFILE")]
    key: Option<PathBuf>,
    /// Checkpoints that were kept elsewhere, one file of DUO_AUDIT_CHECKPOINT_FILE; may be given several times.
    #[arg(long, value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// An export, lines of JSON, instead of the database.
    file: Option<PathBuf>,
    /// How to print what was found.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) async fn run(arguments: VerifyArguments) -> anyhow::Result<ExitCode> {
    let mut options = Options {
        from: arguments.from,
        to: arguments.to,
        keys: keys(arguments.key)?,
        ..Options::default()
    };
    for file in &arguments.checkpoints {
        let (checkpoints, unreadable) = Checkpoint::read_file(&text(file)?);
        if unreadable > 0 {
            say(&format!(
                "{}: {unreadable} entries are no checkpoints, as a crash leaves one",
                file.display()
            ));
        }
        options.file.extend(checkpoints);
    }
    let signed = options.keys.is_some();
    let begun = Instant::now();
    let mut said = begun;
    let mut tell = |what: String| {
        if begun.elapsed() >= SILENT && said.elapsed() >= SILENT {
            said = Instant::now();
            say(&what);
        }
    };
    let report = match &arguments.file {
        Some(file) => {
            let lines =
                std::fs::File::open(file).with_context(|| format!("{} cannot be read", file.display()))?;
            verify_export(BufReader::with_capacity(1 << 20, lines), &options, |lines| {
                tell(format!("{lines} lines read"));
            })?
        }
        None => {
            let store = store()?;
            verify(&store, options, |done, of| {
                tell(format!("{done} of {of} records"))
            })
            .await?
        }
    };
    match arguments.format {
        Format::Json => output::json(&report)?,
        Format::Table => print(&report, signed)?,
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn text(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
}

/// The keys of the file named, else those that sign here.
fn keys(named: Option<PathBuf>) -> anyhow::Result<Option<VerifyingKeys>> {
    let mut env = Env::from_process();
    let file = named.or_else(|| env.optional("DUO_AUDIT_KEY_FILE").map(PathBuf::from));
    env.finish_part()?;
    let Some(file) = file else { return Ok(None) };
    let keys = VerifyingKeys::parse(&text(&file)?).with_context(|| file.display().to_string())?;
    Ok(Some(keys))
}

fn print(report: &Report, signed: bool) -> anyhow::Result<()> {
    for problem in &report.problems {
        output::line(&format!("WRONG  {problem}"))?;
    }
    if report.further_problems > 0 {
        output::line(&format!("WRONG  and {} more", report.further_problems))?;
    }
    let range = if report.to > report.from {
        format!("records {} to {}", report.from, report.to - 1)
    } else {
        "no records".to_owned()
    };
    output::line(&format!(
        "{range}: {} there; {} checkpoints, {} of them compared with the records",
        report.records, report.checkpoints, report.roots
    ))?;
    if let Some(by) = report.dropped_by {
        output::line(&format!(
            "{} more were dropped when their time was over, as record {by} says; the tree still has their hashes",
            report.dropped
        ))?;
    }
    if let Some(at) = report.signed_at {
        let at = output::moment(at);
        output::line(&format!(
            "the newest checkpoint has {} records, signed {at}",
            report.signed
        ))?;
    }
    if report.unsigned > 0 {
        output::line(&format!(
            "{} records are under no checkpoint yet",
            report.unsigned
        ))?;
    }
    if report.roots == 0 {
        output::line(
            "no checkpoint could be compared: that nothing is missing in between is all that was found",
        )?;
    } else if !signed {
        output::line("signatures were not looked at: give the log's public key with --key")?;
    }
    output::line(if report.is_good() {
        "all is as it was written"
    } else {
        "it is NOT as it was written"
    })?;
    Ok(())
}
