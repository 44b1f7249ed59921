//! `duo-broker audit prove`: that records are in the log.

use std::process::ExitCode;

use clap::Args;
use duo_broker::audit::prove;
use serde_json::json;
use uuid::Uuid;

use super::record_if_allowed;
use crate::cli::{output, store};

#[derive(Debug, Args)]
pub(crate) struct ProveArguments {
    /// The request, or what else the record is about.
    id: Uuid,
    /// Who this reading is recorded under; the person logged in here by default.
    #[arg(long)]
    actor: Option<String>,
}

pub(super) async fn run(arguments: ProveArguments) -> anyhow::Result<ExitCode> {
    let store = store()?;
    let proofs = prove::records(&store, arguments.id).await?;
    let rows = proofs.as_ref().map_or(0, |found| found.proofs.len());
    let details = json!({"read": "proof", "request_id": arguments.id, "rows": rows});
    record_if_allowed(&store, arguments.actor, "audit prove", &details).await?;
    let Some(proofs) = proofs else {
        anyhow::bail!("there is no audit record about {}", arguments.id);
    };
    output::json(&proofs)?;
    Ok(if proofs.proofs.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
