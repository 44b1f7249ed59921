//! `duo-broker audit`: search, and what is kept of prompts and answers.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use duo_broker::store::audit_events::{Event, Filter, MAX_PAGE, Page};
use duo_contract::audit::Outcome;
use duo_process::clock;
use duo_process::config::parse_duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use self::kept::KeptCommand;
use super::output::{self, Format, say};
use super::store;

mod kept;

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Search the audit records, newest first.
    #[command(after_long_help = "Examples:
  duo-broker audit search --since 10m
  duo-broker audit search --feature code_completion --outcome failed --limit 20
  duo-broker audit search --user 5Kx… --since 2026-11-01T00:00:00Z --until 2026-12-01T00:00:00Z --format json
  duo-broker audit search --request 01939b2c-…               both records of one request")]
    Search(Box<SearchArguments>),
    #[command(flatten)]
    Kept(KeptCommand),
}

#[derive(Debug, Args)]
pub(super) struct SearchArguments {
    /// Of this feature, such as code_completion.
    #[arg(long)]
    feature: Option<String>,
    /// Of this model.
    #[arg(long)]
    model: Option<String>,
    /// Of this GitLab user id (a hash) or API token id.
    #[arg(long)]
    user: Option<String>,
    /// Not before: a span before now (10m, 2h, 30d) or a moment (2026-11-22T10:00:00Z).
    #[arg(long, value_parser = moment)]
    since: Option<OffsetDateTime>,
    /// Before: a span before now or a moment.
    #[arg(long, value_parser = moment)]
    until: Option<OffsetDateTime>,
    /// Ended so: completed, failed, cancelled, refused, expired or abandoned.
    #[arg(long)]
    outcome: Option<Outcome>,
    /// Of this request.
    #[arg(long, value_name = "ID")]
    request: Option<Uuid>,
    /// Records at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// How to print them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) async fn run(command: AuditCommand) -> anyhow::Result<ExitCode> {
    let arguments = match command {
        AuditCommand::Search(arguments) => arguments,
        AuditCommand::Kept(command) => return kept::run(command).await,
    };
    let SearchArguments { format, limit, .. } = *arguments;
    let page = search(arguments.filter(), limit).await?;
    match format {
        Format::Json => output::json(&page)?,
        Format::Table => {
            let header = [
                "TIME", "OUTCOME", "FEATURE", "MODEL", "USER", "WAIT MS", "FIRST MS", "TOTAL MS", "TOKENS",
                "REQUEST",
            ];
            let rows: Vec<_> = page.events.iter().map(row).collect();
            output::table(&header, &rows)?;
            if page.next_cursor.is_some() {
                say(&format!(
                    "the newest {} are shown; there are more, see --limit",
                    rows.len()
                ));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Collects pages until there are `limit` events or no more.
async fn search(filter: Filter, limit: u32) -> anyhow::Result<Page> {
    let store = store()?;
    let mut all = Page {
        events: Vec::new(),
        next_cursor: None,
    };
    loop {
        let left = limit.saturating_sub(u32::try_from(all.events.len()).unwrap_or(u32::MAX));
        let page = store
            .audit_page(&filter, left.min(MAX_PAGE), all.next_cursor.as_ref())
            .await?;
        all.events.extend(page.events);
        all.next_cursor = page.next_cursor;
        if all.next_cursor.is_none() || all.events.len() >= limit as usize {
            return Ok(all);
        }
    }
}

impl SearchArguments {
    fn filter(self) -> Filter {
        Filter {
            feature: self.feature,
            model: self.model,
            user: self.user,
            since: self.since,
            until: self.until,
            outcome: self.outcome,
            request_id: self.request,
            kind: None,
        }
    }
}

fn row(event: &Event) -> Vec<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let milliseconds = |micros: Option<i64>| {
        micros.map_or_else(
            || "-".to_owned(),
            |micros| format!("{}.{}", micros / 1000, micros % 1000 / 100),
        )
    };
    let person = event.user_id.as_ref().or(event.token_id.as_ref());
    let tokens = match (event.input_tokens, event.output_tokens) {
        (None, None) => "-".to_owned(),
        (input, output) => format!("{}+{}", input.unwrap_or(0), output.unwrap_or(0)),
    };
    let outcome = match (&event.outcome, &event.reason) {
        (Some(outcome), Some(reason)) => format!("{outcome}:{reason}"),
        (Some(outcome), None) => outcome.clone(),
        (None, _) => event.kind.clone(),
    };
    vec![
        output::moment(event.occurred_at),
        outcome,
        text(&event.feature),
        text(&event.model),
        person.map_or_else(|| "-".to_owned(), |id| id.chars().take(12).collect()),
        milliseconds(event.queue_wait_us),
        milliseconds(event.first_byte_us),
        milliseconds(event.duration_us),
        tokens,
        event.request_id.to_string(),
    ]
}

pub(super) fn moment(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(span) = parse_duration(text) {
        let span = time::Duration::try_from(span).map_err(|error| error.to_string())?;
        return clock::now()
            .checked_sub(span)
            .ok_or_else(|| "is too long ago".to_owned());
    }
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        "write a span such as 10m, 2h or 30d, or a moment such as 2026-11-22T10:00:00Z".to_owned()
    })
}
