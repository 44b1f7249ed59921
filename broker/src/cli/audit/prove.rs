//! `duo-broker audit prove`: that records are in the log.

use std::process::ExitCode;

use clap::Args;
use duo_broker::audit::prove;
use uuid::Uuid;

use crate::cli::{output, store};

#[derive(Debug, Args)]
pub(crate) struct ProveArguments {
    /// The request, or what else the record is about.
    id: Uuid,
}

pub(super) async fn run(arguments: &ProveArguments) -> anyhow::Result<ExitCode> {
    let proofs = prove::records(&store()?, arguments.id).await?;
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
