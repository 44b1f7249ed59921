//! Takes submissions into Postgres, those together that come together.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::Duration;

use duo_contract::name::ModelName;
use duo_process::shutdown::Shutdown;
use time::Date;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::Jobs;
use crate::store::StoreError;
use crate::store::jobs::{Accepted, NewJob, day};

/// Submissions that wait for Postgres; more of them are refused.
pub const CAPACITY: usize = 4096;
/// How long a client waits for Postgres to take its submission; whether it did, the same key tells later.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(10);
/// Most submissions of one transaction.
const BATCH: usize = 256;

/// Why a job was not accepted. Nothing of it was stored.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Its idempotency key is on its way into Postgres with another submission.
    #[error("a submission with this idempotency key is being accepted just now; ask again in a second")]
    BeingCreated,
    /// Its idempotency key was used for something else.
    #[error("this idempotency key was used for another job; use a new key for a new job")]
    OtherContent,
    /// The client has too many jobs waiting.
    #[error("you have {0} jobs waiting, which is as many as you may; wait for some to end")]
    ClientBacklog(u64),
    /// Too many jobs wait in all.
    #[error("too many jobs are waiting; try again later")]
    Backlog,
    /// Postgres is away, or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This broker is stopping, or Postgres takes nothing for long.
    #[error("this broker accepts no job just now; try again")]
    Busy,
}

/// A submission on its way.
#[derive(Debug)]
pub(super) struct Submission {
    job: NewJob,
    told: oneshot::Sender<Result<Accepted, AcceptError>>,
}

/// A key that is on its way, until this is dropped.
struct Creating<'a> {
    jobs: &'a Jobs,
    key: Option<(String, String)>,
}

impl<'a> Creating<'a> {
    fn begin(jobs: &'a Jobs, job: &NewJob) -> Result<Self, AcceptError> {
        let key = job.key.as_ref().map(|key| (job.client.clone(), key.key.clone()));
        if let Some(key) = &key {
            let mut creating = jobs.0.creating.lock().unwrap_or_else(PoisonError::into_inner);
            if !creating.insert(key.clone()) {
                return Err(AcceptError::BeingCreated);
            }
        }
        Ok(Self { jobs, key })
    }
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            let mut creating = self
                .jobs
                .0
                .creating
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            creating.remove(key);
        }
    }
}

/// Accepts a job; its id, or that of the job that its idempotency key stands for.
pub(super) async fn submit(jobs: &Jobs, job: NewJob) -> Result<Uuid, AcceptError> {
    check_backlog(jobs, &job)?;
    let _creating = Creating::begin(jobs, &job)?;
    let id = job.id;
    let (told, heard) = oneshot::channel();
    jobs.0
        .submissions
        .try_send(Submission { job, told })
        .map_err(|_| AcceptError::Busy)?;
    let heard = tokio::time::timeout(ACCEPTED_WITHIN, heard).await;
    match heard
        .map_err(|_| AcceptError::Busy)?
        .map_err(|_| AcceptError::Busy)??
    {
        Accepted::New => Ok(id),
        Accepted::Same(earlier) => Ok(earlier),
        Accepted::Other => Err(AcceptError::OtherContent),
        Accepted::Forgotten => Err(AcceptError::BeingCreated),
    }
}

/// What waits was counted seconds ago; the bounds are no less bounds for that.
fn check_backlog(jobs: &Jobs, job: &NewJob) -> Result<(), AcceptError> {
    let (config, backlog) = (jobs.parts().config, jobs.backlog());
    let (mut all, mut own) = (0, 0);
    for line in &backlog.lines {
        all += line.count;
        if line.client == job.client {
            own += line.count;
        }
    }
    if own >= config.client_backlog {
        return Err(AcceptError::ClientBacklog(own));
    }
    if all >= config.backlog {
        return Err(AcceptError::Backlog);
    }
    Ok(())
}

/// Writes submissions until the shutdown begins.
pub(super) async fn run(jobs: Jobs, mut submissions: mpsc::Receiver<Submission>, shutdown: Shutdown) {
    let mut batch = Vec::with_capacity(BATCH);
    // Days whose partitions are known to be there: the first submission may come before anybody has made them.
    let mut days = HashSet::new();
    loop {
        tokio::select! {
            biased;
            _ = submissions.recv_many(&mut batch, BATCH) => write(&jobs, &mut days, std::mem::take(&mut batch)).await,
            () = shutdown.begun() => return,
        }
    }
}

async fn write(jobs: &Jobs, days: &mut HashSet<Date>, batch: Vec<Submission>) {
    let rows: Vec<&NewJob> = batch.iter().map(|submission| &submission.job).collect();
    let written = async {
        for day in rows.iter().map(|job| day(job.id)) {
            if !days.contains(&day) {
                jobs.store().create_job_partitions(day).await?;
                days.insert(day);
            }
        }
        jobs.store().accept_jobs(&rows).await
    };
    match written.await {
        Ok(accepted) => {
            let all = rows.iter().zip(&accepted);
            let new = all.filter(|(_, accepted)| **accepted == Accepted::New);
            jobs.note_accepted(new.map(|(job, _)| *job));
            for (submission, accepted) in batch.into_iter().zip(accepted) {
                // A client that has left finds its job by its key.
                let _ = submission.told.send(Ok(accepted));
            }
        }
        // One that Postgres refuses is not to take the others with it.
        Err(StoreError::Refused(_)) if batch.len() > 1 => {
            for submission in batch {
                Box::pin(write(jobs, days, vec![submission])).await;
            }
        }
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                jobs = batch.len(),
                "jobs were not accepted"
            );
            let mut error = Some(error);
            for submission in batch {
                let told = error.take().map_or(AcceptError::Busy, AcceptError::Store);
                let _ = submission.told.send(Err(told));
            }
        }
    }
}

impl Jobs {
    /// Jobs that wait for `model` in Postgres, as counted seconds ago.
    #[must_use]
    pub fn waiting_for(&self, model: &ModelName) -> u64 {
        let backlog = self.backlog();
        let lines = backlog.lines.iter().filter(|line| line.model == *model);
        lines.map(|line| line.count).sum()
    }
}
