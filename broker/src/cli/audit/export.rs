//! `duo-broker audit export`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};
use clap::Args;
use duo_broker::audit::export::{Export, Format};
use duo_broker::audit::manifest::Manifest;
use duo_broker::audit::note::SigningKeys;
use duo_broker::store::audit_export::Sample;
use duo_process::config::Env;
use uuid::Uuid;

use super::filter::FilterArguments;
use crate::cli::output::say;
use crate::cli::{actor, store};

pub(super) const EXAMPLES: &str = "Examples:
  duo-broker audit export --since 2026-10-01T00:00:00Z --until 2026-11-01T00:00:00Z --output october.ndjson
  duo-broker audit export --kind ended --since 90d --sample 25 --seed 2026-Q4 --format csv --output sample.csv
  duo-broker audit verify --key audit-key.pub --manifest sample.csv.manifest sample.csv

The manifest (what was asked for, how many records, SHA-256 of the file, the log's newest checkpoint) goes to FILE.manifest,
without --output to standard error, and into the audit log. It is signed by the key of DUO_AUDIT_KEY_FILE.";

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    filter: FilterArguments,
    /// ndjson (every column, for audit verify), csv (for spreadsheets), ocsf or parquet (for analysis).
    #[arg(long, default_value = "ndjson")]
    format: Format,
    /// So many records, chosen at random, instead of all.
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sample: Option<u32>,
    /// Whoever gives the same seed for the same records gets the same sample.
    #[arg(long, default_value = "", requires = "sample")]
    seed: String,
    /// Where to, with the manifest in FILE.manifest beside it; standard output by default. Neither may be there yet.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) async fn run(arguments: ExportArguments) -> anyhow::Result<ExitCode> {
    let store = store()?;
    let keys = keys()?;
    let (filter, given) = arguments.filter.read();
    let actor = actor(given);
    let seed = arguments.seed;
    let export = Export {
        id: Uuid::now_v7(),
        filter,
        sample: arguments.sample.map(|records| Sample { records, seed }),
        format: arguments.format,
    };
    let files = arguments.output.as_deref().map(Files::create).transpose()?;
    let out: Box<dyn Write + Send> = match &files {
        Some(files) => Box::new(BufWriter::new(files.export.try_clone()?)),
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
    let signed = keys.as_ref().map(|keys| manifest.sign(keys));
    let id = Manifest::record_of(export.id);
    store
        .record_audit_read(id, &actor, "audit export", &manifest.details(signed.as_deref()))
        .await
        .context("the manifest cannot be recorded")?;
    let text = signed.unwrap_or_else(|| manifest.json());
    let written = files
        .as_ref()
        .map_or(Ok(()), |files| (&files.manifest).write_all(text.as_bytes()));
    read?;
    flushed.context("the export cannot be written")?;
    written.context("the manifest cannot be written")?;
    if !manifest.is_whole {
        bail!("the export is not whole: it could not be written further");
    }
    match files {
        Some(_) => {
            let Manifest {
                records,
                bytes,
                sha256,
                ..
            } = &manifest;
            say(&format!("{records} records, {bytes} bytes, SHA-256 {sha256}"));
        }
        None => say(text.trim_end()),
    }
    if keys.is_none() {
        say("the manifest is not signed: there is no DUO_AUDIT_KEY_FILE");
    }
    Ok(ExitCode::SUCCESS)
}

/// An export's file and its manifest's, both new.
struct Files {
    export: File,
    manifest: File,
}

impl Files {
    fn create(export: &Path) -> anyhow::Result<Self> {
        let mut manifest = export.as_os_str().to_owned();
        manifest.push(".manifest");
        let new = |path: &Path| {
            File::create_new(path)
                .with_context(|| format!("{} cannot be written; an export replaces no file", path.display()))
        };
        let file = new(export)?;
        let manifest = new(Path::new(&manifest)).inspect_err(|_| {
            // It is empty and ours; the next try is to find neither.
            let _ = std::fs::remove_file(export);
        })?;
        Ok(Self {
            export: file,
            manifest,
        })
    }
}

/// What signs the log here.
fn keys() -> anyhow::Result<Option<SigningKeys>> {
    let mut env = Env::from_process();
    let file = env.optional("DUO_AUDIT_KEY_FILE").map(PathBuf::from);
    env.finish_part()?;
    let Some(file) = file else { return Ok(None) };
    let named = || {
        format!(
            "the audit keys {}; DUO_AUDIT_KEY_FILE names the file",
            file.display()
        )
    };
    let text = std::fs::read_to_string(&file).with_context(named)?;
    Ok(Some(SigningKeys::parse(&text).with_context(named)?))
}
