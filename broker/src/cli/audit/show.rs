//! `duo-broker audit show`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::{record, search};
use crate::cli::output::{self, Format};
use crate::cli::store;

#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// The request's id.
    id: Uuid,
    /// Who this reading is recorded under; the person logged in here by default.
    #[arg(long)]
    actor: Option<String>,
    /// How to print them: all there is as JSON, the most of it as a table.
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
}

pub(super) async fn run(arguments: ShowArguments) -> anyhow::Result<ExitCode> {
    let store = store()?;
    let events = store.audit_request(arguments.id).await?;
    let details = json!({"read": "event", "request_id": arguments.id, "rows": events.len()});
    record(&store, arguments.actor, "audit show", &details).await?;
    if events.is_empty() {
        bail!("the audit log has no record of {}", arguments.id);
    }
    match arguments.format {
        Format::Json => output::json(&json!({"events": events}))?,
        Format::Table => search::table(&events)?,
    }
    Ok(ExitCode::SUCCESS)
}
