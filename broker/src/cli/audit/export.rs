//! `duo-broker audit export`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};
use clap::Args;
use duo_broker::audit::export::{Export, Format, Manifest};
use duo_broker::store::audit_export::Sample;
use uuid::Uuid;

use super::filter::FilterArguments;
use crate::cli::output::say;
use crate::cli::{actor, store};

pub(super) const EXAMPLES: &str = "Examples:
  duo-broker audit export --since 2026-10-01T00:00:00Z --until 2026-11-01T00:00:00Z --output october.ndjson
  duo-broker audit export --kind ended --since 90d --sample 25 --seed 2026-Q4 --format csv --output sample.csv

The manifest (what was asked for, how many records, SHA-256 of the file) goes to standard error, and into the audit log.";

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    filter: FilterArguments,
    /// ndjson (every column, for audit verify), csv (for spreadsheets) or ocsf.
    #[arg(long, default_value = "ndjson")]
    format: Format,
    /// So many records, chosen at random, instead of all.
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sample: Option<u32>,
    /// Whoever gives the same seed for the same records gets the same sample.
    #[arg(long, default_value = "", requires = "sample")]
    seed: String,
    /// Where to; standard output by default. It may not be there yet.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) async fn run(arguments: ExportArguments) -> anyhow::Result<ExitCode> {
    let store = store()?;
    let (filter, given) = arguments.filter.read();
    let actor = actor(given);
    let seed = arguments.seed;
    let export = Export {
        id: Uuid::now_v7(),
        filter,
        sample: arguments.sample.map(|records| Sample { records, seed }),
        format: arguments.format,
    };
    let out: Box<dyn Write + Send> = match &arguments.output {
        Some(path) => Box::new(BufWriter::new(File::create_new(path).with_context(|| {
            format!("{} cannot be written; an export replaces no file", path.display())
        })?)),
        None => Box::new(io::stdout()),
    };
    let details = export.details();
    store
        .record_audit_read(export.id, &actor, "audit export", &details)
        .await
        .context("reading the audit log cannot be recorded, so nothing is shown")?;
    let out = Mutex::new(out);
    let lock = || out.lock().unwrap_or_else(PoisonError::into_inner);
    let send = |piece: Vec<u8>| std::future::ready(lock().write_all(&piece).is_ok());
    let (manifest, read) = export.run(&store, send).await;
    let flushed = lock().flush();
    let id = Manifest::record_of(export.id);
    store
        .record_audit_read(id, &actor, "audit export", &manifest.details())
        .await
        .context("the manifest cannot be recorded")?;
    read?;
    flushed.context("the export cannot be written")?;
    if !manifest.is_whole {
        bail!("the export is not whole: it could not be written further");
    }
    say(&serde_json::to_string_pretty(&manifest)?);
    Ok(ExitCode::SUCCESS)
}
