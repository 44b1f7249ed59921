//! Watches over all jobs: who lives, what is due, what is kept.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use duo_process::clock;
use duo_process::shutdown::Shutdown;
use prometheus::IntGaugeVec;
use time::Date;
use tokio::time::Instant;

use super::{Backlog, Jobs, JobsConfig, LONGEST_DEADLINE, Stopped};
use crate::store::StoreError;

/// How often a broker says that it lives: several times in a lease.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// How often what waits is counted.
const COUNT_EVERY: Duration = Duration::from_secs(4);
/// How often partitions and keys are looked at.
const PARTITIONS_EVERY: Duration = Duration::from_secs(600);
/// Rows of one statement.
const AT_ONCE: i64 = 1000;
/// Partitions are there so many days before they are needed.
const DAYS_AHEAD: u8 = 2;
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Keeps until the shutdown begins.
pub(super) async fn run(jobs: Jobs, shutdown: Shutdown) {
    let mut keeper = Keeper {
        jobs,
        heard_since: None,
        said: None,
        counted: None,
        partitioned: None,
    };
    let mut is_away = false;
    loop {
        match keeper.look().await {
            Ok(()) => is_away = false,
            Err(error) => {
                keeper.heard_since = None;
                if !std::mem::replace(&mut is_away, true) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "jobs cannot be watched over; trying again");
                }
            }
        }
        tokio::select! {
            () = shutdown.begun() => break,
            () = tokio::time::sleep(ALIVE_EVERY) => {}
        }
    }
    let parts = keeper.jobs.parts();
    let _ = tokio::time::timeout(GOODBYE, parts.store.say_gone(&parts.broker)).await;
}

struct Keeper {
    jobs: Jobs,
    /// Postgres has answered without a break since.
    heard_since: Option<Instant>,
    /// When it last took this broker's word.
    said: Option<Instant>,
    counted: Option<Instant>,
    partitioned: Option<Instant>,
}

impl Keeper {
    async fn look(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        let due = |last: Option<Instant>, every: Duration| last.is_none_or(|last| now - last >= every);
        if due(self.partitioned, PARTITIONS_EVERY) {
            self.partitions().await?;
            self.partitioned = Some(now);
        }
        let parts = self.jobs.parts();
        let lease = parts.config.lease;
        parts.store.say_alive(&parts.broker, lease).await?;
        let now = Instant::now();
        // A Postgres that hung answers late instead of with an error; every broker's word has run out by then.
        if self
            .said
            .replace(now)
            .is_none_or(|said| now - said >= lease * 3 / 4)
        {
            self.heard_since = None;
        }
        let heard_since = *self.heard_since.get_or_insert(now);
        self.own().await?;
        // After an outage of Postgres every broker has to have the time to speak before anybody is taken for dead.
        if now - heard_since >= lease {
            let recovered = parts.store.recover_jobs(&parts.broker, AT_ONCE).await?;
            if recovered > 0 {
                tracing::warn!(jobs = recovered, "jobs of brokers that died wait again");
                parts.metrics.recovered.inc_by(recovered);
                self.jobs.0.room.notify_one();
            }
        }
        let expired = parts.store.expire_jobs(AT_ONCE).await?;
        if !expired.is_empty() {
            parts.webhooks.wake();
        }
        for job in expired {
            parts.metrics.ended.with_label_values(&[job.state.as_str()]).inc();
            self.jobs.stop(job.id, Stopped::Expired);
            super::settle::order(&self.jobs, job.id, Stopped::Expired).await;
        }
        if due(self.counted, COUNT_EVERY) {
            self.count().await?;
            self.counted = Some(now);
        }
        Ok(())
    }

    /// Stops runs whose rows are not theirs any more: their order was lost, or this broker was taken for dead.
    async fn own(&self) -> Result<(), StoreError> {
        let before: Vec<_> = self
            .jobs
            .running()
            .iter()
            .map(|(id, running)| (*id, running.run))
            .collect();
        if before.is_empty() {
            return Ok(());
        }
        let owned: std::collections::HashSet<_> = self
            .jobs
            .store()
            .owned_jobs(&self.jobs.parts().broker)
            .await?
            .into_iter()
            .collect();
        for run in before.into_iter().filter(|run| !owned.contains(run)) {
            let is_still_there = self
                .jobs
                .running()
                .get(&run.0)
                .is_some_and(|running| running.run == run.1);
            if is_still_there {
                self.jobs.stop(run.0, Stopped::TakenOver);
            }
        }
        Ok(())
    }

    async fn count(&self) -> Result<(), StoreError> {
        let backlog = Backlog {
            lines: self.jobs.store().waiting_jobs().await?,
        };
        let before = self.jobs.backlog();
        show(&self.jobs.parts().metrics.waiting, &before, &backlog);
        *self.jobs.0.backlog.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(backlog);
        Ok(())
    }

    /// Makes the partitions of the next days and drops those that are past keeping.
    async fn partitions(&self) -> Result<(), StoreError> {
        let parts = self.jobs.parts();
        let today = clock::now().date();
        let mut day = today;
        for _ in 0..=DAYS_AHEAD {
            parts.store.create_job_partitions(day).await?;
            day = day.next_day().unwrap_or(day);
        }
        while parts.store.forget_job_keys(AT_ONCE).await? == AT_ONCE.unsigned_abs() {}
        let config = parts.config;
        for (table, first) in [
            ("job_results", before(today, config.results_kept)),
            (
                "job_inputs",
                before(today, LONGEST_DEADLINE.max(config.results_kept)),
            ),
            ("jobs", first_day(today, config)),
        ] {
            let dropped = parts.store.drop_job_partitions(table, first).await;
            match dropped {
                Ok(0) => {}
                Ok(dropped) => tracing::info!(table, dropped, "dropped the partitions of past days"),
                // Somebody reads them; they go next time.
                Err(StoreError::Unavailable(error)) => {
                    tracing::info!(
                        table,
                        error = &error as &dyn std::error::Error,
                        "partitions of past days are still read"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Sets what waits, and takes away what waited before and does not any more: whoever looks meanwhile sees one or the other.
fn show(gauge: &IntGaugeVec, before: &Backlog, now: &Backlog) {
    let (before, now) = (before.sums(), now.sums());
    for ((lane, model), count) in &now {
        gauge
            .with_label_values(&[lane.as_str(), model.as_str()])
            .set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    for (lane, model) in before.keys().filter(|line| !now.contains_key(*line)) {
        // It is there, since it was set.
        let _ = gauge.remove_label_values(&[lane.as_str(), model.as_str()]);
    }
}

/// The first day whose jobs are there: no open job is dropped, nor one whose result is kept.
pub(super) fn first_day(today: Date, config: JobsConfig) -> Date {
    before(today, config.kept.max(LONGEST_DEADLINE + config.results_kept))
}

/// The first day of which anything is kept: all of a day's is, while some of it has to be.
pub(crate) fn before(today: Date, kept: Duration) -> Date {
    let days = kept.as_secs().div_ceil(24 * 3600);
    let span = time::Duration::days(i64::try_from(days).unwrap_or(i64::MAX / 100_000_000));
    today.checked_sub(span).unwrap_or(Date::MIN)
}

#[cfg(test)]
mod tests {
    use duo_contract::name::{Lane, ModelName};
    use prometheus::Opts;
    use prometheus::core::Collector as _;
    use time::macros::date;

    use super::*;
    use crate::store::jobs::Waiting;

    fn backlog(lines: &[(&str, &str, u64)]) -> Backlog {
        let lines = lines.iter().map(|(model, client, count)| Waiting {
            lane: Lane::Background,
            model: ModelName::parse(model).expect("a name"),
            client: (*client).to_owned(),
            count: *count,
        });
        Backlog {
            lines: lines.collect(),
        }
    }

    #[test]
    fn what_waits_is_shown_by_model_and_what_is_gone_is_not() {
        let gauge = IntGaugeVec::new(Opts::new("waiting", "w"), &["lane", "model"]).expect("a gauge");
        let one = backlog(&[("a", "x", 2), ("a", "y", 3), ("b", "x", 1)]);
        show(&gauge, &Backlog::default(), &one);
        assert_eq!(gauge.with_label_values(&["background", "a"]).get(), 5);
        assert_eq!(gauge.with_label_values(&["background", "b"]).get(), 1);
        show(&gauge, &one, &backlog(&[("a", "y", 4)]));
        assert_eq!(gauge.with_label_values(&["background", "a"]).get(), 4);
        let families = gauge.collect();
        assert_eq!(families[0].get_metric().len(), 1, "nothing waits for b");
    }

    #[test]
    fn a_day_is_kept_whole_for_as_long_as_any_of_it() {
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(before(date!(2026 - 11 - 29), day), date!(2026 - 11 - 28));
        assert_eq!(before(date!(2026 - 11 - 29), day * 7), date!(2026 - 11 - 22));
        assert_eq!(before(date!(2026 - 11 - 29), day / 2), date!(2026 - 11 - 28));
    }
}
