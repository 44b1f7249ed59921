//! `duo-broker token`: create, list, revoke.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use duo_broker::store::api_tokens::{NewToken, TokenRow};
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::snapshot::Role;
use duo_process::clock;
use duo_process::config::parse_duration;
use secrecy::ExposeSecret as _;

use super::output::{self, Format, line, say};
use super::{actor, store};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token; its secret is printed once, alone on standard output, and can never be shown again.
    #[command(after_long_help = "Examples:
  duo-broker token create --name ci --role client --expires 90d
  duo-broker token create --name batch --role client --features openai_chat,code_generation --models mistral
  TOKEN=$(duo-broker token create --name audit-2027 --role auditor)")]
    Create(CreateArguments),
    /// List tokens, never their secrets.
    List {
        /// How to print them.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Make a token worthless within a second.
    Revoke {
        /// Its id or its name.
        token: String,
        /// Who the change is recorded under; the person logged in here by default.
        #[arg(long)]
        actor: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateArguments {
    /// What to call it; audit records name its id.
    #[arg(long, value_parser = name)]
    name: String,
    /// What it opens: client (inference), auditor (the audit log, reading) or admin (configuration).
    #[arg(long)]
    role: Role,
    /// When it ends, counted from now: 12h, 30d. Without it, never.
    #[arg(long, value_parser = parse_duration)]
    expires: Option<std::time::Duration>,
    /// Features it may use, with commas; without it, the OpenAI features.
    #[arg(long, value_delimiter = ',')]
    features: Option<Vec<FeatureName>>,
    /// Models it may use, with commas; without it, all.
    #[arg(long, value_delimiter = ',')]
    models: Option<Vec<ModelName>>,
    /// Requests it may have queued or running for one feature and model.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Who the change is recorded under; the person logged in here by default.
    #[arg(long)]
    actor: Option<String>,
}

pub(super) async fn run(command: TokenCommand) -> anyhow::Result<ExitCode> {
    match command {
        TokenCommand::Create(arguments) => create(arguments).await?,
        TokenCommand::List { format } => list(format).await?,
        TokenCommand::Revoke { token, actor: given } => {
            let id = store()?.revoke_token(&actor(given), &token).await?;
            say(&format!("revoked {id}; brokers follow within a second"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(arguments: CreateArguments) -> anyhow::Result<()> {
    let expires_at = arguments
        .expires
        .map(|span| {
            clock::now()
                .checked_add(span.try_into().ok()?)
                .context("--expires is too far away")
                .ok()
        })
        .map(|moment| moment.context("--expires is too far away"))
        .transpose()?;
    let new = NewToken {
        name: arguments.name,
        role: arguments.role,
        expires_at,
        features: arguments.features,
        models: arguments.models,
        limit: arguments.limit,
    };
    let (id, secret) = store()?.create_token(&actor(arguments.actor), &new).await?;
    let until = expires_at.map_or_else(
        || "until it is revoked".to_owned(),
        |at| format!("until {}", output::moment(at)),
    );
    say(&format!(
        "token {id} ({}, {}) is good {until}",
        new.name,
        new.role.as_str()
    ));
    say("keep the secret, it is not shown again:");
    line(secret.expose_secret())?;
    Ok(())
}

async fn list(format: Format) -> anyhow::Result<()> {
    let tokens = store()?.tokens().await?;
    if format == Format::Json {
        return output::json(&tokens);
    }
    let rows: Vec<_> = tokens.iter().map(row).collect();
    let header = [
        "NAME", "ROLE", "STATE", "EXPIRES", "FEATURES", "MODELS", "LIMIT", "CREATED", "BY", "ID",
    ];
    output::table(&header, &rows)?;
    Ok(())
}

fn row(token: &TokenRow) -> Vec<String> {
    let names = |names: &Option<Vec<String>>, none: &str| {
        names
            .as_ref()
            .map_or_else(|| none.to_owned(), |names| names.join(","))
    };
    vec![
        token.name.clone(),
        token.role.clone(),
        token.state.clone(),
        token
            .expires_at
            .map_or_else(|| "never".to_owned(), output::moment),
        names(
            &token.features,
            if token.role == "client" { "openai_*" } else { "-" },
        ),
        names(&token.models, if token.role == "client" { "all" } else { "-" }),
        token.limit.to_string(),
        output::moment(token.created_at),
        token.created_by.clone(),
        token.id.to_string(),
    ]
}

fn name(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
        return Err("a name has 1 to 128 characters and no control characters".to_owned());
    }
    Ok(text.to_owned())
}
