//! `duo-broker audit generate`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use duo_broker::store::audit_generate::Plan;
use duo_process::clock;
use time::OffsetDateTime;

use crate::cli::output::{line, say};
use crate::cli::store;

pub(super) const EXAMPLES: &str = "Examples:
  duo-broker audit generate --records 10000000 --days 100 --users 2000

Records cannot be removed again. They have broker and instance generated-0 and so on.";

/// Requests written in one transaction.
const BATCH: i64 = 25_000;
/// How often it says how far it is.
const TELL: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct GenerateArguments {
    /// How many records: two a request.
    #[arg(long, value_parser = clap::value_parser!(i64).range(2..=1_000_000_000))]
    records: i64,
    /// Over how many days, the last of them yesterday.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=400))]
    days: u16,
    /// The last of them so many days ago, instead of yesterday.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    ago: u16,
    /// Of how many people, some of whom ask more than others.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(i64).range(1..=10_000_000))]
    users: i64,
    /// The same seed on the same day makes the same records.
    #[arg(long, default_value_t = 1)]
    seed: i64,
    /// Write them also where there are records of real requests.
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(arguments: GenerateArguments) -> anyhow::Result<ExitCode> {
    let store = store()?;
    if !arguments.force && store.has_real_requests().await? {
        bail!(
            "this database holds records of real requests; generated ones among them could never be removed. \
             Name another database, or give --force"
        );
    }
    let end = clock::now()
        .date()
        .saturating_sub(time::Duration::days(i64::from(arguments.ago) - 1));
    let first = end.checked_sub(time::Duration::days(i64::from(arguments.days)));
    let first = first.context("that many days ago there was no calendar")?;
    let requests = arguments.records / 2;
    let plan = Plan {
        start: OffsetDateTime::new_utc(first, time::Time::MIDNIGHT),
        step_us: (i64::from(arguments.days) * 86_400_000_000 / requests).max(1),
        users: arguments.users,
        seed: arguments.seed,
    };
    store.create_audit_partitions(first, end).await?;
    let began = Instant::now();
    let (mut written, mut told, mut from) = (0, began, 0);
    while from < requests {
        let to = (from + BATCH).min(requests);
        written += store
            .generate_audit_records(plan, from, to)
            .await
            .context("the records were there already, or cannot be written; --seed makes others")?;
        from = to;
        if told.elapsed() >= TELL {
            told = Instant::now();
            let per_second = written as f64 / began.elapsed().as_secs_f64();
            say(&format!("{written} records, {per_second:.0} a second"));
        }
    }
    line(&format!(
        "wrote {written} records of {} people over {} days in {:.1} s",
        arguments.users,
        arguments.days,
        began.elapsed().as_secs_f64()
    ))?;
    Ok(ExitCode::SUCCESS)
}
