//! `duo-gitlab`: the stand-in for a GitLab instance as a program of its own.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Parser;
use duo_system_tests::gitlab::{ALL_SCOPES, Gitlab, TokenSpec, load_or_create};
use time::Duration;

/// A stand-in for a GitLab instance: publishes signing keys and mints the tokens Rails would present.
///
/// Start it, point the broker at its URL, and ask with a token of its own:
///
///   duo-gitlab serve --listen 127.0.0.1:18081 --state ./gitlab-state
///   duo-gitlab token --state ./gitlab-state --issuer http://127.0.0.1:18081
///
/// A request needs, besides `Authorization: Bearer TOKEN`, the headers `X-Gitlab-Authentication-Type: oidc`,
/// `X-Gitlab-Realm: self-managed` and `X-Gitlab-Instance-Id` with the id that `duo-gitlab instance-id` prints.
#[derive(Parser)]
#[command(name = "duo-gitlab", version, verbatim_doc_comment)]
enum Command {
    /// Serve the discovery document and the keys
    Serve(Serve),
    /// Print a token
    Token(Token),
    /// Print the instance's UUID
    InstanceId(State),
    /// Print every scope known, one a line
    Scopes,
}

#[derive(clap::Args)]
struct State {
    /// Folder with key and instance id; made if it does not exist
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

#[derive(clap::Args)]
struct Serve {
    /// Address to listen on; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:18081")]
    listen: SocketAddr,
    #[command(flatten)]
    state: State,
}

#[derive(clap::Args)]
struct Token {
    #[command(flatten)]
    state: State,
    /// URL of the instance, as the broker knows it
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// `all`, or the scopes wanted
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_value = "all")]
    scopes: Vec<String>,
    /// How long it is valid: a number and s, m, h or d; negative for an expired one
    #[arg(long, value_name = "SPAN", default_value = "24h", allow_hyphen_values = true, value_parser = span)]
    ttl: Duration,
    /// The realm it claims
    #[arg(long, value_name = "REALM", default_value = "self-managed")]
    realm: String,
    /// The service it is for
    #[arg(long, value_name = "NAME", default_value = "gitlab-ai-gateway")]
    audience: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Serve(options) => serve(options).await,
        Command::Token(options) => print(&token(options)?),
        Command::InstanceId(state) => print(&load(&state)?.1),
        Command::Scopes => print(&ALL_SCOPES.join("\n")),
    }
}

async fn serve(options: Serve) -> anyhow::Result<()> {
    let (key, instance_id) = load(&options.state)?;
    let gitlab = Gitlab::start_with(options.listen, key, instance_id)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    print(&gitlab.url())?;
    gitlab.stopped().await;
    Ok(())
}

fn token(options: Token) -> anyhow::Result<String> {
    let (key, instance_id) = load(&options.state)?;
    let mut spec = TokenSpec::default()
        .ttl(options.ttl)
        .realm(Some(&options.realm))
        .audience([options.audience]);
    if options.scopes != ["all"] {
        spec = spec.scopes(options.scopes);
    }
    spec.mint(&key, &options.issuer, &instance_id)
        .context("cannot sign the token")
}

fn load(state: &State) -> anyhow::Result<(duo_system_tests::gitlab::SigningKey, String)> {
    load_or_create(&state.state).with_context(|| format!("cannot use the folder {}", state.state.display()))
}

fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

fn span(text: &str) -> anyhow::Result<Duration> {
    let unit = text.chars().next_back().context("a span cannot be empty")?;
    let number: i64 = text[..text.len() - unit.len_utf8()]
        .parse()
        .context("a span starts with a number")?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        other => bail!("unknown unit {other:?}: use s, m, h or d"),
    };
    Ok(Duration::seconds(number * seconds))
}
