//! `duo-broker dead`: list, show, replay and drop requests that were given up.
//!
//! Reading and dropping go to NATS directly; a replay is asked of a running broker, which alone owns requests.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use duo_broker::letters::{Filter, Letters, MAX_PAGE, Page};
use duo_contract::dead::{AttemptStory, DeadHead};
use duo_contract::name::{FeatureName, ModelName};
use duo_process::config::Env;
use duo_process::nats::{Nats, NatsConfig};
use time::OffsetDateTime;
use uuid::Uuid;

use super::output::{self, line, say};
use super::remote::Broker;
use super::{actor, audit, store};

/// A replay may take as long as the longest feature allows its requests.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Subcommand)]
pub(super) enum DeadCommand {
    /// List them, newest first.
    #[command(after_long_help = "Examples:
  duo-broker dead list --since 1h
  duo-broker dead list --feature code_generation --reason workers_lost --json")]
    List(ListArguments),
    /// Show one with what each of its attempts met.
    Show {
        /// The request.
        id: Uuid,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Run one again and tell how it went. It goes away when that went well.
    #[command(
        after_long_help = "A running broker does it, as the administrator whose token is given in \
DUO_ADMIN_TOKEN or in the file that DUO_ADMIN_TOKEN_FILE names. Only requests of features with the body policy `full` \
can be run again: no other request's body is kept.

Examples:
  duo-broker token create --name ops --role admin > ops.token
  DUO_ADMIN_TOKEN_FILE=ops.token duo-broker dead replay 01939b2c-…
  DUO_ADMIN_TOKEN_FILE=ops.token duo-broker dead replay 01939b2c-… --url http://broker-2:5052 --keep --json"
    )]
    Replay(ReplayArguments),
    /// Remove some for good; the removal is recorded in the database.
    #[command(after_long_help = "Examples:
  duo-broker dead drop 01939b2c-… 01939b2d-…
  duo-broker dead drop --all --model mistral --yes")]
    Drop(DropArguments),
}

/// Which letters are meant; everything named must hold.
#[derive(Debug, Args)]
struct Wanted {
    /// Of this feature, such as code_completion.
    #[arg(long, value_parser = |text: &str| FeatureName::parse(text))]
    feature: Option<FeatureName>,
    /// Of this model.
    #[arg(long, value_parser = |text: &str| ModelName::parse(text))]
    model: Option<ModelName>,
    /// Given up for this reason (workers_lost) or with this failure kind (model_server_fault).
    #[arg(long)]
    reason: Option<String>,
    /// Not before: a span before now (10m, 2h, 30d) or a moment (2026-11-22T10:00:00Z).
    #[arg(long, value_parser = audit::moment)]
    since: Option<OffsetDateTime>,
}

#[derive(Debug, Args)]
pub(super) struct ListArguments {
    #[command(flatten)]
    wanted: Wanted,
    /// Letters at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArguments {
    /// The request.
    id: Uuid,
    /// A broker's address; else DUO_URL, else http://127.0.0.1:5052.
    #[arg(long)]
    url: Option<String>,
    /// Keep it although its replay goes well.
    #[arg(long)]
    keep: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DropArguments {
    /// The requests.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<Uuid>,
    /// All, or all that the other options name.
    #[arg(long, requires = "yes")]
    all: bool,
    /// Yes, really; --all does nothing without it.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    wanted: Wanted,
    /// Who does it; default: the person logged in here.
    #[arg(long)]
    actor: Option<String>,
}

pub(super) async fn run(command: DeadCommand) -> anyhow::Result<ExitCode> {
    match command {
        DeadCommand::List(arguments) => list(arguments).await?,
        DeadCommand::Show { id, json } => show(id, json).await?,
        DeadCommand::Replay(arguments) => return replay(arguments).await,
        DeadCommand::Drop(arguments) => drop_some(arguments).await?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Wanted {
    fn filter(self) -> Filter {
        let since = self.since.map(|since| since.unix_timestamp_nanos() / 1_000_000);
        Filter {
            feature: self.feature,
            model: self.model,
            reason: self.reason,
            since_ms: since.map(|since| u64::try_from(since).unwrap_or(0)),
        }
    }
}

async fn list(arguments: ListArguments) -> anyhow::Result<()> {
    let page = collect(
        &letters().await?,
        &arguments.wanted.filter(),
        arguments.limit as usize,
    )
    .await?;
    if arguments.json {
        return output::json(&page);
    }
    let header = [
        "TIME",
        "REASON",
        "FEATURE",
        "MODEL",
        "ATTEMPTS",
        "LAST WORKER",
        "REPLAY",
        "REQUEST",
    ];
    let rows: Vec<_> = page.letters.iter().map(row).collect();
    output::table(&header, &rows)?;
    if page.next_cursor.is_some() {
        say(&format!(
            "the newest {} are shown; there are more, see --limit",
            rows.len()
        ));
    }
    Ok(())
}

/// Collects pages until there are `limit` letters or no more.
async fn collect(letters: &Letters, filter: &Filter, limit: usize) -> anyhow::Result<Page> {
    let mut all = Page::default();
    loop {
        let left = (limit - all.letters.len()).min(MAX_PAGE);
        let page = letters.page(filter, left, all.next_cursor).await?;
        all.letters.extend(page.letters);
        all.next_cursor = page.next_cursor;
        if all.next_cursor.is_none() || all.letters.len() >= limit {
            return Ok(all);
        }
    }
}

fn row(letter: &DeadHead) -> Vec<String> {
    let worker = letter.stories.last().map_or("-", |story| story.worker.as_str());
    vec![
        moment(letter.died_at_ms),
        letter.reason.clone(),
        letter.feature.to_string(),
        letter.model.to_string(),
        letter.attempts.to_string(),
        worker.to_owned(),
        if letter.replayable { "yes" } else { "no" }.to_owned(),
        letter.request_id.to_string(),
    ]
}

async fn show(id: Uuid, json: bool) -> anyhow::Result<()> {
    let letter = letters().await?.head(id).await?;
    if json {
        return output::json(&letter);
    }
    let who = letter.who.user_id.as_ref().or(letter.who.token_id.as_ref());
    let replay = if letter.replayable {
        format!("duo-broker dead replay {id}")
    } else {
        "not possible: the body was not kept".to_owned()
    };
    for (name, value) in [
        ("request", letter.request_id.to_string()),
        (
            "given up",
            format!("{} by {}", moment(letter.died_at_ms), letter.broker),
        ),
        (
            "reason",
            format!("{} ({}): {}", letter.reason, letter.kind, letter.message),
        ),
        ("feature", format!("{} in lane {}", letter.feature, letter.lane)),
        ("model", letter.model.to_string()),
        ("route", letter.route.clone()),
        (
            "who",
            format!("{} {}", letter.who.auth, who.map_or("-", String::as_str)),
        ),
        ("accepted", moment(letter.accepted_at_ms)),
        ("body", format!("{} bytes", letter.body_bytes)),
        ("replay", replay),
        ("attempts", letter.attempts.to_string()),
    ] {
        line(&format!("{name:<9} {value}"))?;
    }
    for story in &letter.stories {
        line(&format!("  {}", told(story)))?;
    }
    Ok(())
}

/// `1 at w1 (gpu0) from 10:00:00Z for 1250 ms: lost after 5 frames`.
fn told(story: &AttemptStory) -> String {
    let server = story
        .server
        .as_ref()
        .map(|name| format!(" ({name})"))
        .unwrap_or_default();
    let lasted = story.ended_at_ms.saturating_sub(story.began_at_ms);
    let mut text = format!(
        "{} at {}{server} from {} for {lasted} ms: {} after {} frames",
        story.attempt,
        story.worker,
        moment(story.began_at_ms),
        story.end.as_str(),
        story.frames,
    );
    if let Some(kind) = story.failure {
        text += &format!(", {kind}");
    }
    if let Some(status) = story.upstream_status {
        text += &format!(", status {status}");
    }
    if let Some(calls) = story.model_calls {
        text += &format!(", {calls} calls");
    }
    if let Some(message) = &story.message {
        text += &format!(": {message}");
    }
    text
}

async fn replay(arguments: ReplayArguments) -> anyhow::Result<ExitCode> {
    let broker = Broker::from_env(arguments.url, REPLAY_TIMEOUT)?;
    let path = format!("/admin/v1/dead/{}/replay?keep={}", arguments.id, arguments.keep);
    let answer = broker.post(&path).await?;
    let completed = answer["outcome"] == "completed";
    if arguments.json {
        output::json(&answer)?;
    } else {
        let text = |name: &str| answer[name].as_str().unwrap_or("-").to_owned();
        line(&format!("{} as request {}", text("outcome"), text("request_id")))?;
        if completed {
            line(&format!(
                "by {} in {} ms, {} tokens",
                text("worker"),
                answer["duration_ms"],
                answer["output_tokens"]
            ))?;
        } else {
            line(&format!("{}: {}", text("reason"), text("message")))?;
        }
        if answer["letter_kept"] == true {
            say("the dead letter is kept");
        }
    }
    Ok(if completed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn drop_some(arguments: DropArguments) -> anyhow::Result<()> {
    let (letters, store) = (letters().await?, store()?);
    let actor = actor(arguments.actor);
    let filter = arguments.wanted.filter();
    let mut dropped = 0_usize;
    let heads = if arguments.all {
        collect(&letters, &filter, usize::MAX).await?.letters
    } else {
        let mut heads = Vec::new();
        for id in arguments.ids {
            heads.push(letters.head(id).await?);
        }
        heads
    };
    for head in heads {
        store.record_letter_drop(&actor, &head).await?;
        letters.remove(head.request_id).await?;
        dropped += 1;
    }
    line(&format!("dropped {dropped}"))?;
    Ok(())
}

/// The dead letters of the NATS that the environment names.
async fn letters() -> anyhow::Result<Letters> {
    let mut env = Env::from_process();
    let file = |text: Option<String>| text.map(std::path::PathBuf::from);
    let run = Uuid::new_v4().simple().to_string();
    let config = NatsConfig {
        url: env.text("DUO_NATS_URL", "nats://127.0.0.1:4222"),
        name: "duo-broker dead".to_owned(),
        inbox_prefix: format!("_INBOX.brokers.dead-{}", &run[..8]),
        credentials_file: file(env.optional("DUO_NATS_CREDENTIALS_FILE")),
        ca_file: file(env.optional("DUO_NATS_CA_FILE")),
    };
    env.finish_part()?;
    Ok(Letters::new(Nats::connect(&config).await?))
}

fn moment(ms: u64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    output::moment(moment.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}
