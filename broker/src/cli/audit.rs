//! `duo-broker audit`: each command is one file under `audit/`.

mod key;
mod prove;
mod search;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;
use duo_process::clock;
use duo_process::config::parse_duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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
    Verify(verify::VerifyArguments),
    /// Prove that the records of a request are in the log, for a program that trusts nobody.
    Prove(prove::ProveArguments),
}

pub(super) async fn run(command: AuditCommand) -> anyhow::Result<ExitCode> {
    match command {
        AuditCommand::Search(arguments) => search::run(*arguments).await,
        AuditCommand::Key(arguments) => key::run(&arguments),
        AuditCommand::Verify(arguments) => verify::run(arguments).await,
        AuditCommand::Prove(arguments) => prove::run(&arguments).await,
    }
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
