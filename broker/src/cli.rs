//! The command line. Each subcommand is one file under `cli/`; what it prints for programs goes to standard output,
//! what it says to people beside that goes to standard error.

mod audit;
mod config;
mod dead;
mod docs;
mod doctor;
mod gitlab_sync;
mod jobs;
mod output;
mod remote;
mod test;
mod token;
mod webhooks;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use duo_broker::store::{PoolConfig, Store};
use duo_process::config::{CONFIG_EXIT_CODE, ConfigError, Env};
use duo_process::runtime;

use self::output::say;

/// The API front end of a self-hosted AI gateway for GitLab Duo.
///
/// It checks callers, picks the model for a feature, queues the request durably in NATS JetStream and streams the
/// worker's answer back. Settings come from DUO_ variables; `serve --check-config` lists them with their values.
#[derive(Debug, Parser)]
#[command(
    name = "duo-broker",
    version,
    after_long_help = "Examples:
  duo-broker migrate                                      create or update the tables
  duo-broker config apply duo.yaml                        models, features, GitLab instances
  duo-broker token create --name ci --role client --expires 90d
  duo-broker serve
  duo-broker doctor                                       what is wrong, in words
  duo-broker audit search --since 10m --outcome failed
  duo-broker audit verify --key audit-key.pub --checkpoints checkpoints
  duo-broker dead list --since 1h                         requests that were given up
  duo-broker jobs list --state dead                       work that nobody waits for
  duo-broker docs index /opt/gitlab/embedded/service/gitlab-rails/doc --version 18.9
  duo-broker test model mistral                           does it answer?
  duo-broker openapi > admin.json                         the administration API, for programs
  duo-broker webhooks add ci https://ci.example.com/hooks/duo

All but `serve`, `dead`, `test` and `openapi` need DUO_DATABASE_URL (or DUO_DATABASE_URL_FILE) only; `dead` needs
DUO_NATS_URL, `test` a running broker and DUO_ADMIN_TOKEN, `webhooks add` and `webhooks rotate` DUO_SEAL_KEYS_FILE too.
Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 78 wrong settings."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API until SIGTERM or SIGINT.
    Serve {
        /// Check the settings, print their effective values and leave.
        #[arg(long)]
        check_config: bool,
    },
    /// Create or update the tables; safe to run twice and from several machines at once.
    Migrate,
    /// Models, features, GitLab instances, support levels and prompts as a file.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// API tokens for OpenAI clients, auditors and administrators.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Who asked what of which model.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Requests that were given up: what their attempts met, and run them again.
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Work that was submitted and left: look at it, cancel it, run it again.
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// GitLab's documentation, from which chat answers questions about GitLab.
    #[command(subcommand)]
    Docs(docs::DocsCommand),
    /// What GitLab's own feature settings ask for (DUO_GITLAB_SYNC).
    #[command(subcommand)]
    GitlabSync(gitlab_sync::GitlabSyncCommand),
    /// Ask a model or a feature by a small real request through the queue, and tell what happened.
    #[command(subcommand)]
    Test(test::TestCommand),
    /// Who may be told when a job ends, and what became of telling them.
    #[command(subcommand)]
    Webhooks(webhooks::WebhooksCommand),
    /// Look for what is wrong with this installation and say what to do.
    Doctor(doctor::DoctorArguments),
    /// Print the OpenAPI document of the administration API.
    Openapi,
}

/// A mistake in the settings or in a configuration file, which has an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ConfigProblem(String);

pub(crate) fn run() -> ExitCode {
    let command = Cli::parse().command;
    let ended = runtime::build()
        .context("cannot start")
        .and_then(|runtime| runtime.block_on(dispatch(command)));
    match ended {
        Ok(code) => code,
        Err(error) => {
            say(&format!("duo-broker: {error:#}"));
            if error.is::<ConfigError>() || error.is::<ConfigProblem>() {
                ExitCode::from(CONFIG_EXIT_CODE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve { check_config } => {
            duo_broker::startup::serve(Env::from_process(), check_config).await
        }
        Command::Migrate => migrate().await,
        Command::Config(command) => config::run(command).await,
        Command::Token(command) => token::run(command).await,
        Command::Audit(command) => audit::run(command).await,
        Command::Dead(command) => dead::run(command).await,
        Command::Jobs(command) => jobs::run(command).await,
        Command::Docs(command) => docs::run(command).await,
        Command::GitlabSync(command) => gitlab_sync::run(command).await,
        Command::Test(command) => test::run(command).await,
        Command::Webhooks(command) => webhooks::run(command).await,
        Command::Doctor(arguments) => doctor::run(&arguments).await,
        Command::Openapi => {
            output::json(&duo_broker::api::admin::openapi::document())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn migrate() -> anyhow::Result<ExitCode> {
    let applied = store()?.migrate().await?;
    if applied.is_empty() {
        output::line("nothing to do: all migrations are applied")?;
    }
    for migration in applied {
        output::line(&format!(
            "applied {:04} {}",
            migration.version, migration.description
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The database that DUO_DATABASE_URL names.
fn store() -> anyhow::Result<Store> {
    optional_store()?.ok_or_else(|| {
        let message = "DUO_DATABASE_URL is not set: write postgres://USER:PASSWORD@HOST:5432/DATABASE, or name a file \
                       that holds it in DUO_DATABASE_URL_FILE";
        ConfigProblem(message.to_owned()).into()
    })
}

/// As [`store`], for commands that can do something without one.
fn optional_store() -> anyhow::Result<Option<Store>> {
    let mut env = Env::from_process();
    let url = env.secret("DUO_DATABASE_URL");
    env.finish_part()?;
    let Some(url) = url else { return Ok(None) };
    let store =
        Store::connect(&url, PoolConfig::default()).map_err(|error| ConfigProblem(output::chain(&error)))?;
    Ok(Some(store))
}

/// Who a change is recorded under: the name given, else the person logged in here.
fn actor(given: Option<String>) -> String {
    let variable = |name: &str| {
        let (_, value) = std::env::vars_os().find(|(key, _)| key == name)?;
        value.into_string().ok().filter(|value| !value.is_empty())
    };
    given
        .or_else(|| {
            Some(format!(
                "cli:{}",
                variable("SUDO_USER").or_else(|| variable("USER"))?
            ))
        })
        .unwrap_or_else(|| "cli".to_owned())
}
