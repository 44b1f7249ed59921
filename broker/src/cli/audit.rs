//! `duo-broker audit`: each command is one file under `audit/`.

mod export;
mod facets;
mod filter;
mod generate;
mod kept;
mod key;
mod prove;
mod search;
mod show;
mod verify;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use duo_broker::store::Store;
use duo_process::clock;
use duo_process::config::parse_duration;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use self::kept::KeptCommand;
use crate::cli::actor;
use crate::cli::output::say;

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Search the audit records, newest first.
    #[command(after_long_help = search::EXAMPLES)]
    Search(Box<search::SearchArguments>),
    /// Make a key that signs checkpoints of the audit log, or show the public half of one.
    #[command(after_long_help = key::EXAMPLES)]
    Key(key::KeyArguments),
    /// Find what was altered, left out or put in, in the database or in an export.
    #[command(after_long_help = verify::EXAMPLES)]
    Verify(Box<verify::VerifyArguments>),
    /// Prove that the records of a request are in the log, for a program that trusts nobody.
    Prove(prove::ProveArguments),
    /// Show every record of one request, or one other record, by its id.
    Show(show::ShowArguments),
    /// Count the records of a search by feature, model, outcome and so on.
    #[command(after_long_help = facets::EXAMPLES)]
    Facets(Box<facets::FacetsArguments>),
    /// Write all records of a search, or a sample of them, to a file.
    #[command(after_long_help = export::EXAMPLES)]
    Export(Box<export::ExportArguments>),
    /// Write records of requests that never were, to try searches on a database that is not in use.
    #[command(after_long_help = generate::EXAMPLES)]
    Generate(generate::GenerateArguments),
    #[command(flatten)]
    Kept(KeptCommand),
}

pub(super) async fn run(command: AuditCommand) -> anyhow::Result<ExitCode> {
    match command {
        AuditCommand::Search(arguments) => search::run(*arguments).await,
        AuditCommand::Key(arguments) => key::run(&arguments),
        AuditCommand::Verify(arguments) => verify::run(*arguments).await,
        AuditCommand::Prove(arguments) => prove::run(arguments).await,
        AuditCommand::Show(arguments) => show::run(arguments).await,
        AuditCommand::Facets(arguments) => facets::run(*arguments).await,
        AuditCommand::Export(arguments) => export::run(*arguments).await,
        AuditCommand::Generate(arguments) => generate::run(arguments).await,
        AuditCommand::Kept(command) => kept::run(command).await,
    }
}

/// Records what somebody is about to be shown.
async fn record(store: &Store, given: Option<String>, command: &str, details: &Value) -> anyhow::Result<()> {
    let actor = actor(given);
    store
        .record_audit_read(Uuid::now_v7(), &actor, command, details)
        .await
        .context("reading the audit log cannot be recorded, so nothing is shown")
}

/// The same where this login may write, which one of `duo_auditor` may not.
async fn record_if_allowed(
    store: &Store,
    given: Option<String>,
    command: &str,
    details: &Value,
) -> anyhow::Result<()> {
    if store.may_record_audit_reads().await? {
        return record(store, given, command, details).await;
    }
    say("this database login reads only, so nothing records that you read");
    Ok(())
}

/// A span before now, or a moment.
pub(super) fn moment(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(span) = parse_duration(text) {
        let span = time::Duration::try_from(span).map_err(|error| error.to_string())?;
        return clock::now()
            .checked_sub(span)
            .ok_or_else(|| "is too long ago".to_owned());
    }
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        "write a span such as 10m, 2h or 30d, or a moment such as 2026-11-22T10:00:00Z".to_owned()
    })
}
