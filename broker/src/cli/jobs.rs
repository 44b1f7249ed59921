//! `duo-broker jobs`: list, show, cancel and repeat jobs, directly in the database.
//!
//! A job that is cancelled here stops at whichever broker runs it within two seconds, when that looks at its rows.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use duo_broker::jobs::state::JobState;
use duo_broker::store::jobs::{Filter, JobRow, MAX_PAGE};
use duo_contract::name::{FeatureName, ModelName};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::output::{self, line, say};
use super::{actor, store};

#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// List them, newest first.
    #[command(after_long_help = "Examples:
  duo-broker jobs list --state dead
  duo-broker jobs list --feature code_generation --limit 500 --json")]
    List(ListArguments),
    /// Show one.
    Show {
        /// The job.
        id: Uuid,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Cancel some that are not over; what runs of them stops within two seconds.
    Cancel(Chosen),
    /// Run some again that failed, died, expired or were cancelled, as new jobs of the same client with a deadline a day from
    /// now. A new job names the old one in `retry_of`; the old one stays as it is.
    #[command(after_long_help = "Examples:
  duo-broker jobs retry 01939b2c-… 01939b2d-…")]
    Retry(Chosen),
}

#[derive(Debug, Args)]
pub(super) struct Chosen {
    /// The jobs.
    #[arg(required = true)]
    ids: Vec<Uuid>,
    /// Who does it; default: the person logged in here.
    #[arg(long)]
    actor: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ListArguments {
    /// In this state: queued, running, succeeded, failed, cancelled, expired or dead.
    #[arg(long, value_parser = |text: &str| text.parse::<JobState>())]
    state: Option<JobState>,
    /// For this feature, such as code_generation.
    #[arg(long, value_parser = |text: &str| FeatureName::parse(text))]
    feature: Option<FeatureName>,
    /// For this model.
    #[arg(long, value_parser = |text: &str| ModelName::parse(text))]
    model: Option<ModelName>,
    /// Jobs at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// For programs.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: JobsCommand) -> anyhow::Result<ExitCode> {
    match command {
        JobsCommand::List(arguments) => list(arguments).await?,
        JobsCommand::Show { id, json } => show(id, json).await?,
        JobsCommand::Cancel(some) => return cancel(&some.ids, &actor(some.actor)).await,
        JobsCommand::Retry(some) => return retry(&some.ids, &actor(some.actor)).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(arguments: ListArguments) -> anyhow::Result<()> {
    let store = store()?;
    let filter = Filter {
        client: None,
        state: arguments.state,
        feature: arguments.feature.map(|name| name.to_string()),
        model: arguments.model.map(|name| name.to_string()),
    };
    let mut jobs: Vec<JobRow> = Vec::new();
    let mut next = None;
    loop {
        let left = arguments.limit.saturating_sub(u32::try_from(jobs.len())?);
        let page = store.jobs_page(&filter, left.min(MAX_PAGE), next).await?;
        jobs.extend(page.jobs);
        next = page.next;
        if next.is_none() || jobs.len() >= arguments.limit as usize {
            break;
        }
    }
    if arguments.json {
        let jobs: Vec<_> = jobs.iter().map(shown).collect();
        return output::json(&jobs);
    }
    let header = [
        "CREATED", "STATE", "FEATURE", "MODEL", "LANE", "RUNS", "WHY", "JOB",
    ];
    let rows: Vec<_> = jobs.iter().map(row).collect();
    output::table(&header, &rows)?;
    if next.is_some() {
        say(&format!(
            "the newest {} are shown; there are more, see --limit",
            rows.len()
        ));
    }
    Ok(())
}

fn row(job: &JobRow) -> Vec<String> {
    vec![
        output::moment(job.created_at),
        job.state.to_string(),
        job.feature.clone(),
        job.model.clone(),
        job.lane.to_string(),
        job.run.to_string(),
        job.reason.clone().unwrap_or_else(|| "-".to_owned()),
        job.id.to_string(),
    ]
}

async fn show(id: Uuid, json: bool) -> anyhow::Result<()> {
    let job = find(id).await?;
    if json {
        return output::json(&shown(&job));
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let at = |at: Option<OffsetDateTime>| at.map_or_else(|| "-".to_owned(), output::moment);
    let tokens = |count: Option<i64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    for (name, value) in [
        ("job", job.id.to_string()),
        ("state", job.state.to_string()),
        ("why", format!("{}: {}", text(&job.reason), text(&job.message))),
        ("feature", format!("{} in lane {}", job.feature, job.lane)),
        ("model", job.model.clone()),
        ("client", job.client.clone()),
        ("created", output::moment(job.created_at)),
        ("started", at(job.started_at)),
        ("ended", at(job.ended_at)),
        ("deadline", output::moment(job.deadline)),
        (
            "runs",
            format!("{}, of which the system failed {}", job.run, job.failures),
        ),
        ("broker", text(&job.owner)),
        ("worker", text(&job.worker)),
        (
            "tokens",
            format!(
                "{} in, {} out",
                tokens(job.input_tokens),
                tokens(job.output_tokens)
            ),
        ),
        (
            "audit",
            job.request_id.map_or_else(
                || "-".to_owned(),
                |id| format!("duo-broker audit search --request {id}"),
            ),
        ),
        (
            "repeats",
            job.retry_of.map_or_else(|| "-".to_owned(), |id| id.to_string()),
        ),
    ] {
        line(&format!("{name:<9} {value}"))?;
    }
    Ok(())
}

async fn find(id: Uuid) -> anyhow::Result<JobRow> {
    store()?
        .job(id)
        .await?
        .with_context(|| format!("there is no job {id}; jobs are kept for DUO_JOBS_FOR, 30 days by default"))
}

async fn cancel(ids: &[Uuid], actor: &str) -> anyhow::Result<ExitCode> {
    let store = store()?;
    for id in ids {
        match store.cancel_job_as(actor, *id).await? {
            true => line(&format!("cancelled {id}"))?,
            false => {
                let job = find(*id).await?;
                say(&format!("{id} was over already: {}", job.state));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn retry(ids: &[Uuid], actor: &str) -> anyhow::Result<ExitCode> {
    let store = store()?;
    for id in ids {
        let job = find(*id).await?;
        if !job.state.is_terminal() || job.state == JobState::Succeeded {
            bail!("{id} is {}; only what ended otherwise is run again", job.state);
        }
        let again = store
            .repeat_job(actor, *id, duo_broker::jobs::DEADLINE)
            .await?
            .with_context(|| format!("what {id} asked for is not kept any more; submit it again"))?;
        line(&format!("{again} repeats {id}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A job for programs: its row, without what only brokers need.
fn shown(job: &JobRow) -> Value {
    let at = |at: Option<OffsetDateTime>| at.map(output::moment);
    json!({
        "id": job.id,
        "client": job.client,
        "state": job.state,
        "feature": job.feature,
        "model": job.model,
        "lane": job.lane.as_str(),
        "created_at": output::moment(job.created_at),
        "started_at": at(job.started_at),
        "ended_at": at(job.ended_at),
        "deadline": output::moment(job.deadline),
        "runs": job.run,
        "failures": job.failures,
        "broker": job.owner,
        "worker": job.worker,
        "request_id": job.request_id,
        "reason": job.reason,
        "message": job.message,
        "upstream_status": job.upstream_status,
        "input_tokens": job.input_tokens,
        "output_tokens": job.output_tokens,
        "metadata": job.metadata,
        "retry_of": job.retry_of,
    })
}
