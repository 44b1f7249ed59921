//! `duo-broker audit verify`: is the log as it was written, and a file as it was exported?

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use duo_broker::audit::export::Format as FileFormat;
use duo_broker::audit::manifest::SignedManifest;
use duo_broker::audit::note::{Checkpoint, VerifyingKeys};
use duo_broker::audit::verify::export::{Comparison, Flaw, compare, flaws};
use duo_broker::audit::verify::{Options, Report, verify, verify_export};
use duo_process::config::Env;
use serde_json::json;

use super::record_if_allowed;
use crate::cli::output::{self, Format, chain, say};
use crate::cli::store;

pub(super) const EXAMPLES: &str = "Examples:
  duo-broker audit verify --key audit-key.pub --checkpoints /var/backups/duo/checkpoints
  duo-broker audit verify --from 1000000 --to 2000000
  duo-broker audit verify --key audit-key.pub --checkpoints checkpoints export.ndjson      without a database
  duo-broker audit verify --key audit-key.pub --manifest sample.csv.manifest sample.csv     an export of any format, too
  duo-broker audit verify --key audit-key.pub --manifest sample.csv.manifest                the log against that day's

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
    /// The manifest of an export. With the export its file is compared with it; without, the database is verified with the
    /// checkpoint that the manifest has.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// An export instead of the database: lines of JSON, or with --manifest any format.
    file: Option<PathBuf>,
    /// Who a verification of the database is recorded under; the person logged in here by default.
    #[arg(long)]
    actor: Option<String>,
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
    let manifest = arguments.manifest.as_deref().map(manifest).transpose()?;
    if let Some(manifest) = &manifest {
        options.is_selection = manifest.stated.is_selection();
        let log = manifest.stated.log.as_ref();
        let checkpoint = log.and_then(|log| Checkpoint::parse(&log.checkpoint).ok());
        options.file.extend(checkpoint);
    }
    let signed = options.keys.is_some();
    let mut tell = teller();
    let mut found = Found::default();
    match &arguments.file {
        Some(file) => {
            if let Some(manifest) = &manifest {
                let keys = options.keys.as_ref();
                let compared = compare(file, manifest, keys, |bytes| tell(format!("{bytes} bytes read")));
                found.export = Some(compared.with_context(|| format!("{} cannot be read", file.display()))?);
            }
            if manifest
                .as_ref()
                .is_none_or(|manifest| manifest.stated.format == FileFormat::Ndjson.as_str())
            {
                let lines = std::fs::File::open(file)
                    .with_context(|| format!("{} cannot be read", file.display()))?;
                let lines = BufReader::with_capacity(1 << 20, lines);
                let report = verify_export(lines, &options, |lines| tell(format!("{lines} lines read")));
                found.report = Some(report?);
            }
        }
        None => {
            if let Some(manifest) = &manifest {
                found.flaws = flaws(manifest, options.keys.as_ref());
            }
            let store = store()?;
            let progress = |done, of| tell(format!("{done} of {of} records"));
            let report = verify(&store, options, progress).await?;
            let details = json!({
                "read": "verify",
                "from": report.from,
                "to": report.to,
                "is_good": report.is_good(),
            });
            // A log that is damaged may take no record; that is not to hide the damage.
            let recorded = record_if_allowed(&store, arguments.actor, "audit verify", &details).await;
            if let Err(error) = recorded {
                say(&format!("not recorded: {}", chain(error.as_ref())));
            }
            found.report = Some(report);
        }
    }
    match arguments.format {
        Format::Json => found.json()?,
        Format::Table => found.print(signed)?,
    }
    Ok(if found.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Says how far it is, when that takes long.
fn teller() -> impl FnMut(String) {
    let begun = Instant::now();
    let mut said = begun;
    move |what: String| {
        if begun.elapsed() >= SILENT && said.elapsed() >= SILENT {
            said = Instant::now();
            say(&what);
        }
    }
}

/// What was found about a file, its manifest, the records in it or those of the database.
#[derive(Default)]
struct Found {
    export: Option<Comparison>,
    /// Of a manifest without its file.
    flaws: Vec<Flaw>,
    report: Option<Report>,
}

impl Found {
    fn is_good(&self) -> bool {
        self.flaws.is_empty()
            && self.export.as_ref().is_none_or(Comparison::is_good)
            && self.report.as_ref().is_none_or(Report::is_good)
    }

    fn json(&self) -> anyhow::Result<()> {
        match (&self.export, &self.report) {
            (None, Some(report)) if self.flaws.is_empty() => output::json(report),
            (export, report) => {
                output::json(&json!({"export": export, "manifest": self.flaws, "records": report}))
            }
        }
    }

    fn print(&self, signed: bool) -> anyhow::Result<()> {
        for flaw in &self.flaws {
            output::line(&format!("WRONG  {flaw}"))?;
        }
        if let Some(export) = &self.export {
            print_export(export)?;
        }
        let is_selection = self.export.as_ref().is_some_and(|export| export.is_selection);
        match &self.report {
            Some(report) if is_selection => print_selection(report)?,
            Some(report) => print(report, signed)?,
            None => {}
        }
        let is_compared = self.report.as_ref().is_some_and(|report| report.roots > 0);
        if self.export.is_some() && !is_compared {
            output::line(
                "not proved: that these records are as they were written, and all that was asked for; verify the log with \
                 this manifest and no file, or single records with audit prove",
            )?;
        }
        let what = if self.export.is_some() {
            "exported"
        } else {
            "written"
        };
        output::line(&if self.is_good() {
            format!("all is as it was {what}")
        } else {
            format!("it is NOT as it was {what}")
        })?;
        Ok(())
    }
}

fn print_export(export: &Comparison) -> anyhow::Result<()> {
    for flaw in &export.problems {
        output::line(&format!("WRONG  {flaw}"))?;
    }
    let records = export
        .records
        .map_or_else(String::new, |records| format!("{records} records, "));
    let at = output::moment(export.ended_at);
    output::line(&format!(
        "export {} of {at}, {}: {records}SHA-256 {}",
        export.export, export.format, export.sha256
    ))?;
    if let Some(size) = export.tree_size {
        output::line(&format!(
            "the log had {size} records under its newest checkpoint when it began"
        ))?;
    }
    if !export.is_good() {
        return Ok(());
    }
    match &export.signed_by {
        Some(log) => output::line(&format!("proved: {log} exported this file, byte for byte"))?,
        None => {
            output::line("proved: the file is the one that the manifest describes")?;
            output::line("not proved: who wrote the manifest; give the log's public key with --key")?;
        }
    }
    Ok(())
}

/// What can be said of records between which others lie.
fn print_selection(report: &Report) -> anyhow::Result<()> {
    for problem in &report.problems {
        output::line(&format!("WRONG  {problem}"))?;
    }
    output::line(&format!("{} of its lines are numbered records", report.records))?;
    Ok(())
}

fn manifest(file: &Path) -> anyhow::Result<SignedManifest> {
    SignedManifest::parse(&text(file)?).with_context(|| file.display().to_string())
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
    Ok(())
}
