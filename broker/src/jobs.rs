//! Jobs: work that is submitted and left.
//!
//! The story of one: [`accept`] writes its row before anybody hears 202, [`take`] makes a broker its owner when the
//! queue has room, [`run`] sends it the way that live requests go and reads its answer, [`settle`] ends its row.
//! [`follow`] shows the answer as it comes, from any broker. [`keep`] watches over all of them: who lives, what is
//! due. [`state`] knows which state may follow which; why a broker and no worker owns a job is decision 13.

pub mod accept;
pub mod follow;
pub mod keep;
mod replies;
mod run;
mod settle;
pub mod state;
mod take;
pub mod work;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use duo_contract::audit::Outcome as Recorded;
use duo_contract::name::{Lane, ModelName};
use duo_contract::seal::SealKeys;
use duo_process::metrics::register;
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use crate::audit::AuditLog;
use crate::dispatch::Dispatch;
use crate::exchange::Exchange;
use crate::store::jobs::{Cursor, Filter, JobRow, NewJob, Page, Waiting};
use crate::store::{Store, StoreError, in_time};
use crate::webhooks::Webhooks;
use accept::{AcceptError, Submission};
use settle::Word;
use state::JobState;
use work::Outcome;

/// Longest that a job may wait and run, and how long unless it says otherwise.
pub const LONGEST_DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);
/// See [`LONGEST_DEADLINE`].
pub const DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// How long an idempotency key is remembered.
pub const KEY_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long a client that looks at a job, or cancels one, waits for Postgres.
pub const LOOKED_WITHIN: Duration = Duration::from_secs(5);
/// How long one that lists jobs does; a list may have to read much.
const LISTED_WITHIN: Duration = Duration::from_secs(20);
/// Runs that the system may fail before a job is dead.
const MOST_FAILURES: i32 = 5;

/// How jobs are kept.
#[derive(Debug, Clone, Copy)]
pub struct JobsConfig {
    /// How long results can be read after the end.
    pub results_kept: Duration,
    /// How long rows are kept after submission.
    pub kept: Duration,
    /// Jobs of one client that may wait.
    pub client_backlog: u64,
    /// Jobs that may wait in all.
    pub backlog: u64,
    /// How long a broker that says nothing counts as alive.
    pub lease: Duration,
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self {
            results_kept: Duration::from_secs(7 * 24 * 3600),
            kept: Duration::from_secs(30 * 24 * 3600),
            client_backlog: 200_000,
            backlog: 1_000_000,
            lease: Duration::from_secs(10),
        }
    }
}

/// What jobs work with.
#[derive(Debug)]
pub struct Parts {
    /// This broker's name.
    pub broker: String,
    /// How they are kept.
    pub config: JobsConfig,
    /// Their rows.
    pub store: Store,
    /// Owns requests, and the keys that seal inputs and results.
    pub dispatch: Dispatch,
    /// Runs them.
    pub exchange: Exchange,
    /// A record per run.
    pub audit: AuditLog,
    /// Carries answers and orders between brokers.
    pub nats: Nats,
    /// Tells receivers of their ends.
    pub webhooks: Webhooks,
    /// What they tell of themselves.
    pub metrics: JobMetrics,
}

/// The jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    submissions: mpsc::Sender<Submission>,
    words: mpsc::Sender<Word>,
    /// Jobs that this broker runs, and what stops them.
    running: Mutex<HashMap<Uuid, Running>>,
    /// Idempotency keys of submissions that are on their way to Postgres.
    creating: Mutex<std::collections::HashSet<(String, String)>>,
    /// Told when something may be taken.
    room: Notify,
    /// Lane and model of what was accepted here since it was last looked what may be taken.
    fresh_lines: Mutex<Vec<(Lane, ModelName)>>,
    /// Runs that are not over, and who waits for the last one.
    runs: AtomicUsize,
    idle: Notify,
    backlog: Mutex<Arc<Backlog>>,
}

#[derive(Debug)]
struct Running {
    run: i32,
    lane: Lane,
    model: ModelName,
    stop: oneshot::Sender<Stopped>,
}

/// Why a run stops before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// Somebody cancelled the job.
    Cancelled,
    /// Its deadline passed.
    Expired,
    /// Its row is not this run's any more: an order was lost, or this broker was taken for dead.
    TakenOver,
}

impl Stopped {
    /// How the run's audit record ends.
    fn recorded(self) -> (Recorded, &'static str) {
        match self {
            Self::Cancelled => (Recorded::Cancelled, "job_cancelled"),
            Self::Expired => (Recorded::Expired, "job_deadline"),
            Self::TakenOver => (Recorded::Cancelled, "job_taken_over"),
        }
    }
}

/// What waits in Postgres, as it was seconds ago.
#[derive(Debug, Default)]
struct Backlog {
    lines: Vec<Waiting>,
}

impl Backlog {
    /// Jobs of all clients, by lane and model.
    fn sums(&self) -> HashMap<(Lane, &ModelName), u64> {
        let mut sums = HashMap::new();
        for line in &self.lines {
            *sums.entry((line.lane, &line.model)).or_default() += line.count;
        }
        sums
    }
}

/// What jobs tell of themselves.
///
/// | Metric | Kind | Labels | Meaning |
/// |---|---|---|---|
/// | `duo_jobs_accepted_total` | counter | | jobs accepted |
/// | `duo_jobs_ended_total` | counter | `state` | jobs that this broker ended |
/// | `duo_jobs_overtaken_total` | counter | | ends of runs that came too late: cancelled, expired, or run again elsewhere |
/// | `duo_jobs_handed_back_total` | counter | `reason` | runs that came to nothing |
/// | `duo_jobs_recovered_total` | counter | | jobs taken back from brokers that died |
/// | `duo_jobs_running` | gauge | | jobs that this broker has in the queue or at a worker |
/// | `duo_jobs_waiting` | gauge | `lane`, `model` | jobs that wait in Postgres |
/// | `duo_jobs_unsettled` | gauge | | ends of runs that are not in Postgres yet |
#[derive(Debug, Clone)]
pub struct JobMetrics {
    accepted: IntCounter,
    ended: IntCounterVec,
    overtaken: IntCounter,
    handed_back: IntCounterVec,
    recovered: IntCounter,
    running: IntGauge,
    waiting: IntGaugeVec,
    unsettled: IntGauge,
}

impl JobMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let named = "a valid metric name";
        let counter = |name, help| register(registry, IntCounter::new(name, help).expect(named));
        let counters = |name, help, labels: &[&str]| {
            register(
                registry,
                IntCounterVec::new(Opts::new(name, help), labels).expect(named),
            )
        };
        let gauge = |name, help| register(registry, IntGauge::new(name, help).expect(named));
        let metrics = Self {
            accepted: counter("duo_jobs_accepted_total", "Jobs accepted."),
            ended: counters("duo_jobs_ended_total", "Jobs that this broker ended.", &["state"]),
            overtaken: counter(
                "duo_jobs_overtaken_total",
                "Ends of runs that came too late: cancelled, expired, or run again elsewhere.",
            ),
            handed_back: counters(
                "duo_jobs_handed_back_total",
                "Runs that came to nothing.",
                &["reason"],
            ),
            recovered: counter(
                "duo_jobs_recovered_total",
                "Jobs taken back from brokers that died.",
            ),
            running: gauge(
                "duo_jobs_running",
                "Jobs that this broker has in the queue or at a worker.",
            ),
            waiting: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("duo_jobs_waiting", "Jobs that wait in PostgreSQL."),
                    &["lane", "model"],
                )
                .expect(named),
            ),
            unsettled: gauge(
                "duo_jobs_unsettled",
                "Ends of runs that are not in PostgreSQL yet.",
            ),
        };
        for state in JobState::ALL.into_iter().filter(|state| state.is_terminal()) {
            metrics.ended.with_label_values(&[state.as_str()]);
        }
        metrics
    }
}

/// A job that is asked for by its id.
#[derive(Debug)]
pub enum Found {
    /// As it stands, with the result of a success.
    Job(Box<JobRow>, Option<Outcome>),
    /// It succeeded, but its result is not kept any more.
    ResultGone(Box<JobRow>),
}

impl Jobs {
    /// Jobs, and the tasks that bring them about: none is taken once the drain has begun, and what runs say is written
    /// until `closing` has begun and nothing is left to be written.
    #[must_use]
    pub fn start(
        parts: Parts,
        drain: &Shutdown,
        background: &Shutdown,
        closing: &Shutdown,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (submissions, accepting) = mpsc::channel(accept::CAPACITY);
        let (words, settling) = mpsc::channel(settle::CAPACITY);
        let jobs = Self(Arc::new(Inner {
            parts,
            submissions,
            words,
            running: Mutex::default(),
            creating: Mutex::default(),
            fresh_lines: Mutex::default(),
            room: Notify::new(),
            runs: AtomicUsize::new(0),
            idle: Notify::new(),
            backlog: Mutex::default(),
        }));
        background.spawn(
            "job submissions",
            accept::run(jobs.clone(), accepting, background.clone()),
        );
        background.spawn("job taking", take::run(jobs.clone(), drain.clone()));
        background.spawn("job orders", settle::orders(jobs.clone(), background.clone()));
        background.spawn("job keeping", keep::run(jobs.clone(), background.clone()));
        let settled = tokio::spawn(settle::run(jobs.clone(), settling, closing.clone()));
        (jobs, settled)
    }

    fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// Comes back when no run is left.
    pub async fn finished(&self) {
        loop {
            let idle = self.0.idle.notified();
            if self.0.runs.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    fn keys(&self) -> &SealKeys {
        self.parts().dispatch.keys()
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Uuid, Running>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backlog(&self) -> Arc<Backlog> {
        Arc::clone(&self.0.backlog.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Accepts a job: it is in Postgres when this comes back.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub async fn submit(&self, job: NewJob) -> Result<Uuid, AcceptError> {
        accept::submit(self, job).await
    }

    /// Seals what a job asks of its model.
    ///
    /// # Errors
    /// The cipher failed.
    pub fn seal(
        &self,
        id: Uuid,
        work: &work::JobWork,
    ) -> Result<crate::store::jobs::Sealed, work::WorkError> {
        work.seal(id, self.keys())
    }

    /// The rows themselves.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.parts().store
    }

    /// A job with its result.
    ///
    /// # Errors
    /// Postgres is away, or the result cannot be opened.
    pub async fn find(&self, id: Uuid) -> Result<Option<Found>, FindError> {
        let Some(row) = in_time(LOOKED_WITHIN, self.store().job(id)).await? else {
            return Ok(None);
        };
        let ended = row.ended_at.filter(|_| row.state == JobState::Succeeded);
        let Some(ended) = ended else {
            return Ok(Some(Found::Job(Box::new(row), None)));
        };
        let sealed = in_time(LOOKED_WITHIN, self.store().job_result(id, ended));
        let Some(sealed) = sealed.await? else {
            return Ok(Some(Found::ResultGone(Box::new(row))));
        };
        let outcome = Outcome::open(id, &sealed, self.keys())?;
        Ok(Some(Found::Job(Box::new(row), Some(outcome))))
    }

    /// One page of jobs, newest first.
    ///
    /// # Errors
    /// Postgres is away, or it takes long.
    pub async fn page(&self, filter: &Filter, limit: u32, after: Option<Cursor>) -> Result<Page, StoreError> {
        in_time(LISTED_WITHIN, self.store().jobs_page(filter, limit, after)).await
    }

    /// Cancels a job that is not over, wherever it is; does nothing to one that is.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn cancel(&self, id: Uuid, by: &str) -> Result<(), StoreError> {
        let message = format!("cancelled by {by}");
        let cancelled = in_time(LOOKED_WITHIN, self.store().cancel_job(id, "cancelled", &message));
        if cancelled.await? {
            self.parts()
                .metrics
                .ended
                .with_label_values(&[JobState::Cancelled.as_str()])
                .inc();
            self.parts().webhooks.wake();
            self.stop(id, Stopped::Cancelled);
            settle::order(self, id, Stopped::Cancelled).await;
        }
        Ok(())
    }

    /// How many more jobs of a client may wait, as counted seconds ago.
    pub(crate) fn room_for(&self, client: &str) -> u64 {
        let (config, backlog) = (self.parts().config, self.backlog());
        let (mut all, mut own) = (0, 0);
        for line in &backlog.lines {
            all += line.count;
            if line.client == client {
                own += line.count;
            }
        }
        config
            .client_backlog
            .saturating_sub(own)
            .min(config.backlog.saturating_sub(all))
    }

    /// These jobs are in Postgres now.
    pub(crate) fn note_accepted<'a>(&self, new: impl Iterator<Item = &'a NewJob>) {
        let mut fresh = self.0.fresh_lines.lock().unwrap_or_else(PoisonError::into_inner);
        for job in new {
            self.parts().metrics.accepted.inc();
            if !fresh
                .iter()
                .any(|(lane, model)| (*lane, model) == (job.lane, &job.model))
            {
                fresh.push((job.lane, job.model.clone()));
            }
        }
        drop(fresh);
        self.0.room.notify_one();
    }

    /// So many jobs were cancelled together, and those that a broker runs are to stop.
    pub(crate) async fn note_cancelled(&self, cancelled: &[(Uuid, bool)]) {
        let ended = &self.parts().metrics.ended;
        let counter = ended.with_label_values(&[JobState::Cancelled.as_str()]);
        counter.inc_by(cancelled.len() as u64);
        for (id, _) in cancelled.iter().filter(|(_, is_owned)| *is_owned) {
            self.stop(*id, Stopped::Cancelled);
            settle::order(self, *id, Stopped::Cancelled).await;
        }
    }

    /// Stops this broker's run of a job, if it has one: what it had sent is taken back.
    fn stop(&self, id: Uuid, why: Stopped) {
        if let Some(running) = self.running().remove(&id) {
            // It may have ended by itself.
            let _ = running.stop.send(why);
        }
    }

    /// Are the jobs of a day gone for good?
    #[must_use]
    pub fn is_past_keeping(&self, day: time::Date, today: time::Date) -> bool {
        day > time::Date::MIN && day < keep::first_day(today, self.parts().config)
    }

    /// Jobs that go before this one if clients have turns, and seconds until it has a slot if that can be told.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn position(&self, row: &JobRow) -> Result<(u64, Option<f64>), StoreError> {
        let Ok(model) = row.model.parse::<ModelName>() else {
            return Ok((0, None));
        };
        let ahead = if row.owner.is_some() {
            0
        } else {
            let own = in_time(LOOKED_WITHIN, self.store().own_jobs_ahead(row)).await?;
            let backlog = self.backlog();
            let others = backlog
                .lines
                .iter()
                .filter(|line| line.lane == row.lane && line.model == model && line.client != row.client);
            own + others.map(|line| line.count.min(own + 1)).sum::<u64>()
        };
        let wait = self.parts().exchange.wait_of(row.lane, &model, ahead);
        Ok((ahead, wait))
    }
}

/// Why a job cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Postgres is away or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another key, or other bytes.
    #[error(transparent)]
    Work(#[from] work::WorkError),
}
