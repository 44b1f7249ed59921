//! `duo-broker doctor`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use duo_broker::doctor::{self, Settings, Verdict};
use duo_process::config::Env;
use duo_process::nats::NatsConfig;

use super::output::{self, Format, line};

#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// How to print the findings.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) async fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    duo_broker::auth::install_crypto();
    let findings = doctor::examine(&settings()?).await;
    match arguments.format {
        Format::Json => output::json(&findings)?,
        Format::Table => {
            for finding in &findings {
                line(&finding.to_string())?;
            }
        }
    }
    let sound = findings.iter().all(|finding| finding.verdict != Verdict::Fail);
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn settings() -> anyhow::Result<Settings> {
    let mut env = Env::from_process();
    let path = |text: Option<String>| text.map(PathBuf::from);
    let settings = Settings {
        database_url: env.secret("DUO_DATABASE_URL"),
        nats: NatsConfig {
            url: env.text("DUO_NATS_URL", "nats://127.0.0.1:4222"),
            name: "duo-broker doctor".to_owned(),
            inbox_prefix: "_INBOX.doctor".to_owned(),
            credentials_file: path(env.optional("DUO_NATS_CREDENTIALS_FILE")),
            ca_file: path(env.optional("DUO_NATS_CA_FILE")),
        },
        seal_key_file: path(env.optional("DUO_SEAL_KEYS_FILE")),
        master_key_file: path(env.optional("DUO_AUDIT_MASTER_KEY_FILE")),
        signing_keys_file: path(env.optional("DUO_SIGNING_KEYS_FILE")),
        gitlab_ca_file: path(env.optional("DUO_GITLAB_CA_FILE")),
    };
    env.finish_part()?;
    Ok(settings)
}
