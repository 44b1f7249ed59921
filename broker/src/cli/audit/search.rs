//! `duo-broker audit search`.

use std::process::ExitCode;

use clap::Args;
use duo_broker::store::audit_events::Event;
use duo_broker::store::audit_search::{Filter, MAX_PAGE, Page};
use serde_json::json;

use super::filter::FilterArguments;
use super::record;
use crate::cli::output::{self, Format, say};
use crate::cli::store;

pub(super) const EXAMPLES: &str = "Examples:
  duo-broker audit search --since 10m
  duo-broker audit search --feature code_completion --outcome failed --limit 20
  duo-broker audit search --user 5Kx… --since 2026-11-01T00:00:00Z --until 2026-12-01T00:00:00Z --format json
  duo-broker audit search --text 10.0.7. --since 1d --kind sign_in_failed
  duo-broker audit search --correlation 01JD… --since 7d     by what GitLab's logs call correlation_id";

#[derive(Debug, Args)]
pub(crate) struct SearchArguments {
    #[command(flatten)]
    filter: FilterArguments,
    /// Records at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// How to print them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) async fn run(arguments: SearchArguments) -> anyhow::Result<ExitCode> {
    let (filter, actor) = arguments.filter.read();
    let page = search(&filter, arguments.limit, actor).await?;
    match arguments.format {
        Format::Json => output::json(&page)?,
        Format::Table => {
            table(&page.events)?;
            if page.next_cursor.is_some() {
                say(&format!(
                    "the newest {} are shown; there are more, see --limit",
                    page.events.len()
                ));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Collects pages until there are `limit` events or no more, and records that they are read.
async fn search(filter: &Filter, limit: u32, actor: Option<String>) -> anyhow::Result<Page> {
    let store = store()?;
    let mut all = Page {
        events: Vec::new(),
        next_cursor: None,
        searched_to: None,
    };
    loop {
        let left = limit.saturating_sub(u32::try_from(all.events.len()).unwrap_or(u32::MAX));
        let page = store
            .audit_page(filter, left.min(MAX_PAGE), all.next_cursor.as_ref())
            .await?;
        all.events.extend(page.events);
        all.next_cursor = page.next_cursor;
        if let Some(moment) = page.searched_to {
            say(&format!("searched down to {}, going on", output::moment(moment)));
        }
        if all.next_cursor.is_none() || all.events.len() >= limit as usize {
            break;
        }
    }
    let details = json!({"read": "events", "filter": filter, "limit": limit, "rows": all.events.len()});
    record(&store, actor, "audit search", &details).await?;
    Ok(all)
}

/// Events for people, a line each.
pub(super) fn table(events: &[Event]) -> std::io::Result<()> {
    let header = [
        "TIME", "OUTCOME", "FEATURE", "MODEL", "USER", "WAIT MS", "FIRST MS", "TOTAL MS", "TOKENS", "REQUEST",
    ];
    let rows: Vec<_> = events.iter().map(row).collect();
    output::table(&header, &rows)
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
