//! Makes this broker the owner of waiting jobs when the queue has room for them.
//!
//! The backlog stays in Postgres, in the order of its clients' turns; in the queue is little more than workers have
//! slots for, so that a flood of jobs is never in front of anybody who waits.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use duo_contract::name::{Lane, ModelName};
use duo_process::shutdown::Shutdown;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Jobs, Running, run};
use crate::store::StoreError;
use crate::store::jobs::Taken;

/// How often Postgres is asked for jobs that another broker accepted, or whose pause is over.
const POLL: Duration = Duration::from_millis(500);
/// Pause between two askings while jobs come and go: what comes meanwhile is taken together. An asking costs Postgres
/// 2 ms of CPU time, whatever it finds, and each job that it takes a twentieth of one.
const PAUSE: Duration = Duration::from_millis(50);
/// The same after one that got as much as one may.
const LEAST_PAUSE: Duration = Duration::from_millis(2);
/// Pause while Postgres is away.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// Most jobs that are taken at once.
const MOST_AT_ONCE: i64 = 128;
/// Jobs in the queue for each slot: one at work, and one that is there when a slot comes free.
const PER_SLOT: u32 = 2;
/// In a lane that people wait in too, no more of it than slots, so that they find a line no longer than usual.
const PER_SLOT_BESIDE_PEOPLE: u32 = 1;
/// Bounds of a window whatever the slots.
const LEAST_WINDOW: i64 = 2;
const MOST_WINDOW: i64 = 1024;

/// Takes and runs until the shutdown begins.
pub(super) async fn run(jobs: Jobs, shutdown: Shutdown) {
    let mut taker = Taker {
        jobs,
        lines: HashSet::new(),
        asked_at: None,
        last_clients: HashMap::new(),
    };
    loop {
        let pause = match taker.take().await {
            // There is more.
            Ok(taken) if taken >= usize::try_from(MOST_AT_ONCE).unwrap_or(usize::MAX) => LEAST_PAUSE,
            Ok(taken) if taken > 0 => PAUSE,
            Ok(_) => POLL,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "jobs cannot be taken; trying again");
                AWAY_PAUSE
            }
        };
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(pause) => {}
            () = async {
                taker.jobs.0.room.notified().await;
                tokio::time::sleep(PAUSE).await;
            }, if pause == POLL => {}
        }
        if shutdown.is_begun() {
            return;
        }
    }
}

struct Taker {
    jobs: Jobs,
    /// Lanes and models for which something may wait, and when Postgres was asked for them: what was accepted here is
    /// known without.
    lines: HashSet<(Lane, ModelName)>,
    asked_at: Option<Instant>,
    /// The client after whom the next turns begin, by line.
    last_clients: HashMap<(Lane, ModelName), String>,
}

impl Taker {
    /// Takes what there is room for; how many.
    async fn take(&mut self) -> Result<usize, StoreError> {
        // A broker that knows no feature yet would find all of them gone.
        if self.jobs.parts().exchange.routing().load().revision() == 0 {
            return Ok(0);
        }
        let now = Instant::now();
        let fresh = std::mem::take(
            &mut *self
                .jobs
                .0
                .fresh_lines
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.lines.extend(fresh);
        if self.asked_at.is_none_or(|asked_at| now - asked_at >= POLL) {
            self.lines.extend(self.jobs.store().lines_with_jobs().await?);
            self.asked_at = Some(now);
        }
        let mut taken = 0;
        for (lane, model) in self.lines.clone() {
            taken += self.take_line(lane, model).await?;
        }
        Ok(taken)
    }

    /// Takes of one line, and forgets it when nothing waits.
    async fn take_line(&mut self, lane: Lane, model: ModelName) -> Result<usize, StoreError> {
        let window = window(&self.jobs, lane, &model);
        let room = window - self.jobs.running_of(lane, &model);
        if room <= 0 {
            return Ok(0);
        }
        let line = (lane, model);
        let after = self.last_clients.get(&line).cloned().unwrap_or_default();
        let (store, broker) = (self.jobs.store(), &self.jobs.parts().broker);
        let most = room.min(MOST_AT_ONCE);
        let (mut taken, mut next) = store
            .take_jobs(broker, (lane, &line.1), window, most, &after)
            .await?;
        if taken.is_empty() && next.is_empty() && !after.is_empty() {
            // The round is over; the next one begins with the first client.
            (taken, next) = store.take_jobs(broker, (lane, &line.1), window, most, "").await?;
        }
        if taken.is_empty() && next.is_empty() {
            self.lines.remove(&line);
        }
        self.last_clients.insert(line, next);
        let count = taken.len();
        for job in taken {
            self.jobs.begin(job);
        }
        Ok(count)
    }
}

/// Jobs of a lane that may be in the queue for a model, all brokers together; none while nobody serves it.
fn window(jobs: &Jobs, lane: Lane, model: &ModelName) -> i64 {
    let slots = jobs.parts().exchange.slots_of(model);
    if slots == 0 {
        return 0;
    }
    let per_slot = match lane {
        Lane::Background => PER_SLOT,
        Lane::Keystroke | Lane::Interactive => PER_SLOT_BESIDE_PEOPLE,
    };
    i64::from(slots.saturating_mul(per_slot)).clamp(LEAST_WINDOW, MOST_WINDOW)
}

impl Jobs {
    /// Jobs of this broker in the queue or at a worker.
    fn running_of(&self, lane: Lane, model: &ModelName) -> i64 {
        let running = self.running();
        let of_line = running
            .values()
            .filter(|running| running.lane == lane && running.model == *model);
        i64::try_from(of_line.count()).unwrap_or(i64::MAX)
    }

    /// Runs a job that is this broker's.
    fn begin(&self, job: Taken) {
        let (stop, stopped) = oneshot::channel();
        let running = Running {
            run: job.run,
            lane: job.lane,
            model: job.model.clone(),
            stop,
        };
        self.running().insert(job.id, running);
        self.parts().metrics.running.inc();
        self.0.runs.fetch_add(1, Ordering::AcqRel);
        let jobs = self.clone();
        tokio::spawn(async move {
            let (id, number) = (job.id, job.run);
            run::run(&jobs, job, stopped).await;
            jobs.over(id, number);
        });
    }

    /// A run is over, whichever way.
    fn over(&self, id: Uuid, run: i32) {
        let mut running = self.running();
        if running.get(&id).is_some_and(|running| running.run == run) {
            running.remove(&id);
        }
        drop(running);
        self.parts().metrics.running.dec();
        if self.0.runs.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
        self.0.room.notify_one();
    }
}
