//! `duo-broker audit body|erase|rewrap|hold`: prompts and answers that were kept, and what keeps them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use duo_broker::audit::keys::MasterKeys;
use duo_broker::audit::reader::Reader;
use duo_broker::store::audit_holds::{Hold, NewHold};
use duo_broker::store::audit_keys::{Erasure, OldKey};
use duo_contract::audit::Who;
use duo_process::config::Env;
use time::format_description::well_known::Iso8601;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::super::output::{self, line, say};
use super::super::{ConfigProblem, actor, store};
use super::moment;

/// Keys that are wrapped anew in one transaction.
const KEYS_AT_ONCE: i64 = 500;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum KeptCommand {
    /// Show what is kept of a request's prompt and answer; the reading is recorded first.
    #[command(
        after_long_help = "Needs DUO_AUDIT_MASTER_KEY_FILE. Only features with the body policy `full` keep any.

Examples:
  duo-broker audit body 01939b2c-… --reason 'complaint 4711'"
    )]
    Body(BodyArguments),
    /// Destroy the keys of kept prompts and answers, for good and in every copy; records and their proofs stay.
    #[command(after_long_help = "Examples:
  duo-broker audit erase --user 5Kx… --reason 'request of 2026-11-03'
  duo-broker audit erase --period 2026-11-01")]
    Erase(EraseArguments),
    /// Wrap every data key with the first master key, so that the others can go.
    #[command(
        after_long_help = "To rotate: put a new line on top of the file that DUO_AUDIT_MASTER_KEY_FILE names, for every broker,
and restart them; run this; then remove the old line."
    )]
    Rewrap {
        /// Who does it; default: the person logged in here.
        #[arg(long)]
        actor: Option<String>,
    },
    /// Legal holds: what is neither dropped nor erased.
    #[command(subcommand)]
    Hold(HoldCommand),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BodyArguments {
    /// The request.
    id: Uuid,
    /// Why; it stands in the record of this reading.
    #[arg(long)]
    reason: String,
    /// Who reads; default: the person logged in here.
    #[arg(long)]
    actor: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct EraseArguments {
    /// Of this GitLab user id (a hash), API token id or instance id, of all days.
    #[arg(
        long,
        value_name = "ID",
        required_unless_present = "period",
        conflicts_with = "period"
    )]
    user: Option<String>,
    /// Of everybody, of the requests of this day (2026-11-01, UTC).
    #[arg(long, value_name = "DAY", value_parser = day)]
    period: Option<Date>,
    /// Why; it stands in the record.
    #[arg(long)]
    reason: Option<String>,
    /// Who does it; default: the person logged in here.
    #[arg(long)]
    actor: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum HoldCommand {
    /// Let nothing of a time go.
    #[command(after_long_help = "Examples:
  duo-broker audit hold place --since 2026-10-01T00:00:00Z --until 2026-11-01T00:00:00Z --reason 'case 12'
  duo-broker audit hold place --user 5Kx… --since 90d --reason 'case 13'")]
    Place(PlaceArguments),
    /// End a hold.
    Lift {
        /// Its id.
        id: Uuid,
        /// Who does it; default: the person logged in here.
        #[arg(long)]
        actor: Option<String>,
    },
    /// List the holds that stand.
    List {
        /// Those that were lifted too.
        #[arg(long)]
        all: bool,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PlaceArguments {
    /// Prompts and answers of this GitLab user id only; records of its time are held in any case.
    #[arg(long, value_name = "ID", conflicts_with = "token")]
    user: Option<String>,
    /// The same of an API token id.
    #[arg(long, value_name = "ID")]
    token: Option<String>,
    /// Of what happened not before: a span before now (90d) or a moment (2026-11-01T00:00:00Z).
    #[arg(long, value_parser = moment)]
    since: OffsetDateTime,
    /// And before; without it, what is to come is held too.
    #[arg(long, value_parser = moment)]
    until: Option<OffsetDateTime>,
    /// Why.
    #[arg(long)]
    reason: String,
    /// Who does it; default: the person logged in here.
    #[arg(long)]
    actor: Option<String>,
}

pub(super) async fn run(command: KeptCommand) -> anyhow::Result<ExitCode> {
    match command {
        KeptCommand::Body(arguments) => body(arguments).await?,
        KeptCommand::Erase(arguments) => erase(arguments).await?,
        KeptCommand::Rewrap { actor: who } => rewrap(&actor(who)).await?,
        KeptCommand::Hold(HoldCommand::Place(arguments)) => place(arguments).await?,
        KeptCommand::Hold(HoldCommand::Lift { id, actor: who }) => {
            store()?.lift_hold(&actor(who), id).await?;
            say("lifted");
        }
        KeptCommand::Hold(HoldCommand::List { all, json }) => list(all, json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn day(text: &str) -> Result<Date, String> {
    Date::parse(text, &Iso8601::DATE).map_err(|_| "a day looks like 2026-11-01".to_owned())
}

fn masters() -> anyhow::Result<Option<MasterKeys>> {
    let mut env = Env::from_process();
    let path = env.optional("DUO_AUDIT_MASTER_KEY_FILE").map(PathBuf::from);
    env.finish_part()?;
    let read = |path: PathBuf| {
        MasterKeys::read(&path)
            .with_context(|| format!("the file {}; DUO_AUDIT_MASTER_KEY_FILE names it", path.display()))
    };
    path.map(read).transpose()
}

async fn body(arguments: BodyArguments) -> anyhow::Result<()> {
    let reader = Reader::new(store()?, masters()?, "administration");
    let who = Who {
        auth: "command_line".to_owned(),
        user_id: Some(actor(arguments.actor)),
        ..Who::default()
    };
    let kept = reader.read(&who, arguments.id, &arguments.reason).await?;
    output::json(&kept)
}

async fn erase(arguments: EraseArguments) -> anyhow::Result<()> {
    let erasure = match (arguments.user, arguments.period) {
        (Some(user), _) => Erasure::User(user),
        (None, Some(period)) => Erasure::Period(period),
        (None, None) => return Err(ConfigProblem("name --user or --period".to_owned()).into()),
    };
    let who = actor(arguments.actor);
    let keys = store()?
        .destroy_keys(&who, &erasure, arguments.reason.as_deref())
        .await?;
    line(&format!("destroyed {keys} keys"))?;
    say(
        "what is on its way now may be sealed with keys of its own for 15 minutes: run this again then; dead letters and \
         jobs are not part of the audit log, see duo-broker dead and duo-broker jobs",
    );
    Ok(())
}

async fn rewrap(who: &str) -> anyhow::Result<()> {
    let missing = "DUO_AUDIT_MASTER_KEY_FILE is not set";
    let masters = masters()?.ok_or_else(|| ConfigProblem(missing.to_owned()))?;
    let store = store()?;
    let mut count = 0;
    loop {
        let old = store.old_keys(masters.first(), KEYS_AT_ONCE).await?;
        if old.is_empty() {
            break;
        }
        let rewrapped: Result<Vec<_>, _> = old
            .into_iter()
            .map(|old| {
                masters.rewrap(&old.key).map(|key| OldKey {
                    drop_on: old.drop_on,
                    key,
                })
            })
            .collect();
        let rewrapped = rewrapped.context("a data key does not open; is its master key in the file?")?;
        store.store_rewrapped(who, &rewrapped).await?;
        count += rewrapped.len();
    }
    line(&format!("wrapped {count} keys with the first master key"))?;
    Ok(())
}

async fn place(arguments: PlaceArguments) -> anyhow::Result<()> {
    let user = arguments.user.map(|id| format!("user:{id}"));
    let hold = NewHold {
        subject: user.or_else(|| arguments.token.map(|id| format!("token:{id}"))),
        since: arguments.since,
        until: arguments.until,
        reason: arguments.reason,
    };
    let id = store()?.place_hold(&actor(arguments.actor), &hold).await?;
    line(&id.to_string())?;
    Ok(())
}

async fn list(all: bool, json: bool) -> anyhow::Result<()> {
    let holds = store()?.holds(all).await?;
    if json {
        return output::json(&holds);
    }
    let header = ["ID", "OF", "SINCE", "UNTIL", "PLACED BY", "LIFTED BY", "REASON"];
    let rows: Vec<_> = holds.into_iter().map(row).collect();
    output::table(&header, &rows)?;
    Ok(())
}

fn row(hold: Hold) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        hold.id.to_string(),
        hold.subject.unwrap_or_else(|| "all".to_owned()),
        output::moment(hold.since),
        hold.until.map_or_else(dash, output::moment),
        hold.placed_by,
        hold.lifted_by.unwrap_or_else(dash),
        hold.reason,
    ]
}
