//! `duo-broker gitlab-sync`: what GitLab's feature settings ask for.

use std::process::ExitCode;

use clap::Subcommand;
use duo_broker::gitlab_sync::Report;

use super::output::{self, line, say};
use super::store;

#[derive(Debug, Subcommand)]
pub(super) enum GitlabSyncCommand {
    /// Show what was last read from GitLab, and what came of it.
    #[command(
        after_long_help = "Brokers read it where DUO_GITLAB_SYNC is propose or apply. To make a proposal so, put its \
assignments into the file that duo-broker config apply takes, or set DUO_GITLAB_SYNC=apply."
    )]
    Show {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: GitlabSyncCommand) -> anyhow::Result<ExitCode> {
    let GitlabSyncCommand::Show { json } = command;
    let row = store()?.sync_row().await?;
    if json {
        output::json(&row)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(row) = row else {
        say("GitLab was never asked: no broker has DUO_GITLAB_SYNC=propose or apply");
        return Ok(ExitCode::SUCCESS);
    };
    line(&format!(
        "asked {} by {} to {}",
        output::moment(row.asked_at),
        row.broker,
        row.mode
    ))?;
    if let Some(error) = &row.error {
        line(&format!("failed: {error}"))?;
    }
    let (Some(report), Some(answered)) = (row.report, row.answered_at) else {
        return Ok(ExitCode::SUCCESS);
    };
    let report: Report = serde_json::from_value(report)?;
    let done = match (report.changes.is_empty(), report.applied) {
        (true, _) => "nothing to change".to_owned(),
        (false, true) => format!("changed, in revision {}", report.revision),
        (false, false) => format!("proposed, to revision {}", report.revision),
    };
    line(&format!("answered {}: {done}", output::moment(answered)))?;
    for change in &report.changes {
        line(&format!("~ {change}"))?;
    }
    for skipped in &report.skipped {
        let model = skipped.model.as_deref().unwrap_or("no model");
        line(&format!("! {} ({model}): {}", skipped.setting, skipped.reason))?;
    }
    Ok(ExitCode::SUCCESS)
}
