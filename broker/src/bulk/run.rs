//! Works on batches, one turn at a time, at every broker.

use std::sync::Arc;
use std::time::Duration;

use duo_contract::snapshot::Role;
use duo_process::clock;
use duo_process::shutdown::Shutdown;
use serde_json::json;
use tokio::time::Instant;

use super::state::BatchState;
use super::{Bulk, BulkError, collect, line_id, split};
use crate::caller::{Caller, Grant};
use crate::store::StoreError;
use crate::store::batches::{BatchFence, BatchRow, Counts};

/// How often Postgres is asked for batches that are due.
const POLL: Duration = Duration::from_millis(500);
/// Pause while Postgres is away, or does not take what a batch needs.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// How long one batch is worked on before the next has its turn.
const TURN: Duration = Duration::from_secs(2);
/// How often jobs of a batch are counted, and how much less often for each of them: counting looks at every one.
const COUNT_EVERY: Duration = Duration::from_millis(500);
const COUNT_PER_LINE: Duration = Duration::from_micros(100);
/// How often batches are counted for the metrics.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Jobs of one statement that cancels.
const CANCEL_AT_ONCE: i64 = 1000;

/// Works until the shutdown begins.
pub(super) async fn run(bulk: Bulk, shutdown: Shutdown) {
    let mut tell_at = Instant::now();
    loop {
        if Instant::now() >= tell_at {
            tell_at = Instant::now() + TELL_EVERY;
            // While Postgres is away the last count stands; the turn says that it is.
            if let Ok(open) = bulk.store().open_batches().await {
                bulk.parts().metrics.note_open(&open);
            }
        }
        let pause = match turn(&bulk, &shutdown).await {
            Ok(true) => Duration::ZERO,
            Ok(false) => POLL,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "batches cannot be worked on; trying again");
                AWAY_PAUSE
            }
        };
        tokio::select! {
            biased;
            () = shutdown.begun() => return,
            () = tokio::time::sleep(pause) => {}
            () = bulk.0.due.notified() => {}
        }
    }
}

/// One turn of the batch that is due, if one is.
async fn turn(bulk: &Bulk, shutdown: &Shutdown) -> Result<bool, StoreError> {
    let parts = bulk.parts();
    // A broker that knows no feature yet would find all lines wrong.
    if parts.exchange.routing().load().revision() == 0 {
        return Ok(false);
    }
    let taken = parts.store.take_batch(&parts.broker, parts.lease).await?;
    let Some((batch, fence)) = taken.and_then(|batch| {
        let fence = batch.fence.clone()?;
        Some((batch, fence))
    }) else {
        return Ok(false);
    };
    let mut turn = Turn {
        bulk,
        fence,
        batch,
        until: Instant::now() + TURN,
        held: Instant::now(),
        shutdown,
    };
    match turn.work().await {
        Ok(Next::Over) => {}
        Ok(Next::After(pause)) => turn.release(pause).await?,
        Err(BulkError::Overtaken) => turn.release(Duration::ZERO).await?,
        Err(BulkError::Store(error @ StoreError::Unavailable(_))) => return Err(error),
        Err(BulkError::Store(error)) => {
            tracing::error!(batch = %turn.batch.id, error = &error as &dyn std::error::Error, "a batch does not go on");
            turn.release(REFUSED_PAUSE).await?;
        }
        Err(error) => {
            tracing::error!(batch = %turn.batch.id, error = &error as &dyn std::error::Error, "a batch cannot be read");
            let message = "the file cannot be read any more; its administrator's log says why";
            let errors = json!([{"code": "file_unreadable", "message": message, "line": null, "param": "input_file_id"}]);
            let total = turn.batch.total;
            if bulk.store().fail_batch(&turn.fence, total, &errors).await? {
                parts.metrics.note_ended(BatchState::Failed);
            }
        }
    }
    Ok(true)
}

/// What comes after a turn.
pub(super) enum Next {
    /// Nothing: the batch is over.
    Over,
    /// Another turn, not before.
    After(Duration),
}

/// A turn of a batch.
pub(super) struct Turn<'a> {
    pub(super) bulk: &'a Bulk,
    pub(super) fence: BatchFence,
    pub(super) batch: BatchRow,
    until: Instant,
    held: Instant,
    shutdown: &'a Shutdown,
}

impl Turn<'_> {
    async fn work(&mut self) -> Result<Next, BulkError> {
        if self.batch.state == BatchState::Validating {
            match split::validate(self).await? {
                split::Validated::Good => self.batch.state = BatchState::InProgress,
                split::Validated::Behind => return Ok(Next::After(COUNT_EVERY)),
                split::Validated::Wrong => return Ok(Next::Over),
            }
        }
        if self.batch.state == BatchState::InProgress {
            let counts = self.count().await?;
            if !self.is_late() {
                split::make(self).await?;
            }
            let is_made = self.batch.made == self.batch.total || self.is_late();
            if !is_made || counts.open > 0 || self.batch.made > counts.completed + counts.failed {
                return Ok(Next::After(self.pause()));
            }
            self.finalize().await?;
        }
        if self.batch.state == BatchState::Cancelling && self.batch.output.is_none() {
            self.cancel().await?;
            if self.count().await?.open > 0 {
                return Ok(Next::After(COUNT_EVERY));
            }
            self.finalize().await?;
        }
        collect::collect(self).await
    }

    /// Is there no time for more jobs?
    fn is_late(&self) -> bool {
        self.batch.expires_at <= clock::now()
    }

    /// Is somebody else to have a turn?
    pub(super) fn is_spent(&self) -> bool {
        Instant::now() >= self.until || self.shutdown.is_begun()
    }

    fn pause(&self) -> Duration {
        match self.is_spent() && self.batch.made < self.batch.total && split::has_room(self) {
            true => Duration::ZERO,
            false => COUNT_EVERY + COUNT_PER_LINE * self.batch.made,
        }
    }

    /// Keeps the turn, where nothing else that is written does.
    pub(super) async fn hold(&mut self) -> Result<(), BulkError> {
        let lease = self.bulk.parts().lease;
        if self.held.elapsed() < lease / 4 {
            return Ok(());
        }
        self.held = Instant::now();
        match self.bulk.store().hold_batch(&self.fence, lease).await? {
            true if !self.shutdown.is_begun() => Ok(()),
            _ => Err(BulkError::Overtaken),
        }
    }

    async fn release(&self, pause: Duration) -> Result<(), StoreError> {
        let store = self.bulk.store();
        store.release_batch(&self.fence, self.batch.state, pause).await
    }

    async fn count(&mut self) -> Result<Counts, BulkError> {
        let (store, batch) = (self.bulk.store(), &self.batch);
        let last = line_id(batch.id, batch.made_to.line);
        let counts = store.count_lines(batch.id, last).await?;
        if counts != batch.counts && !store.note_counts(&self.fence, &counts).await? {
            return Err(BulkError::Overtaken);
        }
        self.batch.counts = counts;
        Ok(counts)
    }

    async fn cancel(&mut self) -> Result<(), BulkError> {
        let last = line_id(self.batch.id, self.batch.made_to.line);
        loop {
            let store = self.bulk.store();
            let cancelled = store.cancel_lines(self.batch.id, last, CANCEL_AT_ONCE).await?;
            if cancelled.is_empty() {
                return Ok(());
            }
            self.bulk.parts().jobs.note_cancelled(&cancelled).await;
            self.hold().await?;
        }
    }

    /// Every job has ended.
    async fn finalize(&mut self) -> Result<(), BulkError> {
        let [output, failures] = [uuid::Uuid::now_v7(), uuid::Uuid::now_v7()];
        let store = self.bulk.store();
        if !store.finalize_batch(&self.fence, output, failures).await? {
            return Err(BulkError::Overtaken);
        }
        let row = store.batch(self.batch.id).await?;
        self.batch = row
            .filter(|row| row.fence.as_ref() == Some(&self.fence))
            .ok_or(BulkError::Overtaken)?;
        Ok(())
    }
}

/// Who asked for the batch, as far as it has to be known whether a line is allowed.
pub(super) fn caller(batch: &BatchRow) -> Caller {
    let models = batch.models.as_ref().map(|names| {
        let names = names.iter().filter_map(|name| name.parse().ok());
        names.collect()
    });
    Caller {
        grant: Arc::new(Grant::ApiToken {
            role: Role::Client,
            features: Some(vec![batch.feature.clone()]),
            models,
        }),
        who: batch.who.clone(),
        share_key: batch.client.clone(),
        limit: batch.client_limit,
        gitlab_version: None,
    }
}
