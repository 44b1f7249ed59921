//! `duo-broker audit key`: what signs checkpoints.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use duo_broker::audit::note::{SigningKeys, generate_key};

use crate::cli::output;

pub(super) const EXAMPLES: &str = "Examples:
  (umask 077; duo-broker audit key --name gateway.example.com > /etc/duo-broker/audit-keys)
  duo-broker audit key --public /etc/duo-broker/audit-keys > audit-key.pub      for auditors

The name is the log's own and never changes. To change keys put a new one, of the same name, above the old one, restart the
brokers, give auditors both public halves, and take the old one away later: in between both sign.";

#[derive(Debug, Args)]
pub(crate) struct KeyArguments {
    /// The log's name, such as the gateway's host name.
    #[arg(long, required_unless_present = "public")]
    name: Option<String>,
    /// Print the public halves of the keys in this file.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    public: Option<PathBuf>,
}

pub(super) fn run(arguments: &KeyArguments) -> anyhow::Result<ExitCode> {
    let text = if let Some(file) = &arguments.public {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        SigningKeys::parse(&text)?.verifying().to_string()
    } else {
        generate_key(arguments.name.as_deref().unwrap_or_default())?
    };
    output::line(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
