//! `duo-broker webhooks`: who may be told when a job ends, and what became of telling them.
//!
//! Everything goes to Postgres directly; brokers see it there.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use duo_broker::config_file::receiver::parse_overlap;
use duo_broker::store::webhooks::{
    Delivery, DeliveryPage, DeliveryState, MAX_PAGE, NewReceiver, Receiver, ReceiverChange,
};
use duo_broker::webhooks::address::Cidr;
use duo_broker::webhooks::receiver::{ReceiverName, ReceiverUrl};
use duo_contract::seal::SealKeys;
use duo_process::config::Env;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::output::{self, Format, line, say};
use super::{ConfigProblem, actor, store};

#[derive(Debug, Subcommand)]
pub(super) enum WebhooksCommand {
    /// List the receivers, never their secrets.
    List {
        /// How to print them.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Add a receiver; its secret is printed once, alone on standard output, and can never be shown again.
    #[command(
        after_long_help = "Public addresses are allowed by themselves. A receiver in a private network needs the \
networks that it may be at.
The secret is sealed with the first key of DUO_SEAL_KEYS_FILE, which has to be the brokers'.

Examples:
  duo-broker webhooks add ci https://ci.example.com/hooks/duo > ci.secret
  duo-broker webhooks add lab http://hooks.lab.internal:8080/duo --address 10.1.0.0/16 --address fd00:1::/32"
    )]
    Add(AddArguments),
    /// Give a receiver a new secret; requests are signed with the old one too for a while.
    #[command(after_long_help = "Examples:
  duo-broker webhooks rotate ci > ci.secret
  duo-broker webhooks rotate ci --overlap 0s                 the old one has leaked")]
    Rotate {
        /// Its name.
        name: ReceiverName,
        /// How long the old secret is good yet, 30d at most.
        #[arg(long, default_value = "24h", value_parser = parse_overlap)]
        overlap: Duration,
        /// Who the change is recorded under; the person logged in here by default.
        #[arg(long)]
        actor: Option<String>,
    },
    /// Remove a receiver with its secrets and deliveries.
    Remove {
        /// Its name.
        name: ReceiverName,
        /// Who the change is recorded under; the person logged in here by default.
        #[arg(long)]
        actor: Option<String>,
    },
    /// Enable a receiver again that answered 410 or that somebody disabled.
    #[command(
        after_long_help = "What was dropped meanwhile stays dropped; `deliveries --state dropped` lists it, `replay` \
sends it.

Example:
  duo-broker webhooks enable ci"
    )]
    Enable {
        /// Its name.
        name: ReceiverName,
        /// Who the change is recorded under; the person logged in here by default.
        #[arg(long)]
        actor: Option<String>,
    },
    /// List what a receiver was told or is to be told, newest first.
    #[command(after_long_help = "Examples:
  duo-broker webhooks deliveries ci --state failed
  duo-broker webhooks deliveries ci --limit 5 --format json     with every attempt")]
    Deliveries(DeliveriesArguments),
    /// Send deliveries again, each under its own id.
    #[command(after_long_help = "Example:
  duo-broker webhooks replay msg_0193a6f0c1d27b7f9d0e6a1b2c3d4e5f")]
    Replay {
        /// The deliveries.
        #[arg(required = true)]
        ids: Vec<String>,
        /// Who the change is recorded under; the person logged in here by default.
        #[arg(long)]
        actor: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct AddArguments {
    /// What jobs call it.
    name: ReceiverName,
    /// Where it is, http or https.
    url: ReceiverUrl,
    /// A network that it may be at although it is not public, such as 10.1.0.0/16; may be repeated.
    #[arg(long = "address", value_name = "CIDR")]
    addresses: Vec<Cidr>,
    /// Who the change is recorded under; the person logged in here by default.
    #[arg(long)]
    actor: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct DeliveriesArguments {
    /// The receiver.
    name: ReceiverName,
    /// In this state: pending, delivered, failed or dropped.
    #[arg(long)]
    state: Option<DeliveryState>,
    /// Deliveries at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// How to print them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) async fn run(command: WebhooksCommand) -> anyhow::Result<ExitCode> {
    match command {
        WebhooksCommand::List { format } => list(format).await?,
        WebhooksCommand::Add(arguments) => add(arguments).await?,
        WebhooksCommand::Rotate {
            name,
            overlap,
            actor: given,
        } => {
            let keys = seal_keys()?;
            let rotated = store()?
                .rotate_secret(&actor(given), name.as_str(), overlap, &keys)
                .await?;
            match rotated.old_valid_until {
                Some(until) => say(&format!(
                    "the old secret signs too until {}",
                    output::moment(until)
                )),
                None => say("the old secret signs nothing any more"),
            }
            say("keep the new one, it is not shown again:");
            line(rotated.secret.expose_secret())?;
        }
        WebhooksCommand::Remove { name, actor: given } => {
            store()?.remove_receiver(&actor(given), name.as_str()).await?;
            say(&format!("removed {name}"));
        }
        WebhooksCommand::Enable { name, actor: given } => {
            let wanted = ReceiverChange {
                enabled: Some(true),
                ..ReceiverChange::default()
            };
            store()?
                .change_receiver(&actor(given), name.as_str(), &wanted)
                .await?;
            say(&format!("{name} is enabled"));
        }
        WebhooksCommand::Deliveries(arguments) => deliveries(arguments).await?,
        WebhooksCommand::Replay { ids, actor: given } => {
            let (store, actor) = (store()?, actor(given));
            for id in ids {
                store.replay_delivery(&actor, None, &id).await?;
                say(&format!("{id} is pending"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(format: Format) -> anyhow::Result<()> {
    let receivers = store()?.receivers().await?;
    if format == Format::Json {
        let shown: Vec<_> = receivers.iter().map(shown).collect();
        return output::json(&shown);
    }
    let header = [
        "NAME",
        "STATE",
        "PENDING",
        "SECRETS",
        "ADDRESSES",
        "CREATED",
        "BY",
        "URL",
    ];
    let rows: Vec<_> = receivers.iter().map(row).collect();
    output::table(&header, &rows)?;
    Ok(())
}

fn shown(receiver: &Receiver) -> serde_json::Value {
    let disabled = receiver.disabled.as_ref().map(|disabled| &disabled.reason);
    json!({
        "name": receiver.name, "url": receiver.url.as_str(), "addresses": receiver.addresses,
        "enabled": disabled.is_none(), "disabled_reason": disabled, "pending": receiver.pending,
        "secrets": receiver.secrets.len(), "created_at": output::moment(receiver.created_at),
        "created_by": receiver.created_by,
    })
}

fn row(receiver: &Receiver) -> Vec<String> {
    let disabled = receiver.disabled.as_ref();
    let addresses: Vec<String> = receiver.addresses.iter().map(Cidr::to_string).collect();
    vec![
        receiver.name.clone(),
        disabled.map_or_else(
            || "enabled".to_owned(),
            |disabled| format!("disabled ({})", disabled.reason),
        ),
        receiver.pending.to_string(),
        receiver.secrets.len().to_string(),
        if addresses.is_empty() {
            "public".to_owned()
        } else {
            addresses.join(",")
        },
        output::moment(receiver.created_at),
        receiver.created_by.clone(),
        receiver.url.to_string(),
    ]
}

async fn add(arguments: AddArguments) -> anyhow::Result<()> {
    arguments.url.check(&arguments.addresses)?;
    let keys = seal_keys()?;
    let new = NewReceiver {
        name: arguments.name,
        url: arguments.url,
        addresses: arguments.addresses,
    };
    let added = store()?
        .add_receiver(&actor(arguments.actor), &new, &keys)
        .await?;
    let (receiver, secret) = added;
    say(&format!("added {} at {}", receiver.name, receiver.url));
    say("keep the secret, it is not shown again:");
    line(secret.expose_secret())?;
    Ok(())
}

async fn deliveries(arguments: DeliveriesArguments) -> anyhow::Result<()> {
    let page = collect(&arguments).await?;
    if arguments.format == Format::Json {
        return output::json(&page);
    }
    let header = [
        "OCCURRED", "STATE", "EVENT", "ATTEMPTS", "LAST", "NEXT", "JOB", "DELIVERY",
    ];
    let rows: Vec<_> = page.deliveries.iter().map(delivery_row).collect();
    output::table(&header, &rows)?;
    if page.next_cursor.is_some() {
        say(&format!(
            "the newest {} are shown; there are more, see --limit",
            rows.len()
        ));
    }
    Ok(())
}

/// Collects pages until there are as many as wanted or no more.
async fn collect(arguments: &DeliveriesArguments) -> anyhow::Result<DeliveryPage> {
    let store = store()?;
    let (name, limit) = (arguments.name.as_str(), arguments.limit as usize);
    let mut all = DeliveryPage {
        deliveries: Vec::new(),
        next_cursor: None,
    };
    loop {
        let left = u32::try_from(limit - all.deliveries.len())
            .unwrap_or(MAX_PAGE)
            .min(MAX_PAGE);
        let page = store
            .delivery_page(name, arguments.state, left, all.next_cursor.as_deref())
            .await?;
        all.deliveries.extend(page.deliveries);
        all.next_cursor = page.next_cursor;
        if all.next_cursor.is_none() || all.deliveries.len() >= limit {
            return Ok(all);
        }
    }
}

fn delivery_row(delivery: &Delivery) -> Vec<String> {
    let last = delivery.attempts.last().map(|attempt| match attempt.status {
        Some(status) => format!("{} {status}", attempt.result),
        None => attempt.result.clone(),
    });
    let state = match &delivery.reason {
        Some(reason) => format!("{} ({reason})", delivery.state),
        None => delivery.state.to_string(),
    };
    vec![
        output::moment(delivery.occurred_at),
        state,
        delivery.event.clone(),
        delivery.attempts.len().to_string(),
        last.unwrap_or_else(|| "-".to_owned()),
        delivery.next_at.map_or_else(|| "-".to_owned(), output::moment),
        delivery
            .job_id
            .map_or_else(|| "-".to_owned(), |id| id.to_string()),
        delivery.id.clone(),
    ]
}

/// The keys that brokers open secrets with.
fn seal_keys() -> anyhow::Result<SealKeys> {
    let mut env = Env::from_process();
    let path = env.optional("DUO_SEAL_KEYS_FILE");
    env.finish_part()?;
    let Some(path) = path else {
        let message =
            "DUO_SEAL_KEYS_FILE is not set: name the brokers' file, whose first key seals the secret";
        return Err(ConfigProblem(message.to_owned()).into());
    };
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("the seal keys {path} cannot be read"))?;
    Ok(SealKeys::parse(&text)?)
}
