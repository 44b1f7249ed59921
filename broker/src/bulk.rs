//! Bulk work in the shapes of OpenAI's API: files, and batches whose lines are jobs.
//!
//! The story of a batch: `api/batches.rs` writes its row, [`run`] takes it for turns at whichever broker, [`split`] looks at
//! every line and then makes jobs of them, a few thousand ahead of what has ended, [`jobs`](crate::jobs) does the work, [`collect`]
//! writes what came of each line into two files. [`state`] knows which state may follow which, [`content`] how files are cut and
//! sealed, [`keep`] what is past keeping.
//!
//! A batch is held by nobody between turns, and every step of a turn is one transaction under the turn's fence that also moves
//! the place in the file: a broker that dies leaves whole steps only, and the next one goes on behind them.

mod collect;
pub mod content;
mod keep;
pub mod metrics;
mod run;
mod split;
pub mod state;

use std::sync::Arc;
use std::time::Duration;

use duo_contract::seal::{SealError, SealKeys};
use duo_process::shutdown::Shutdown;
use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

use self::metrics::BulkMetrics;
use crate::dispatch::Dispatch;
use crate::exchange::Exchange;
use crate::jobs::work::WorkError;
use crate::jobs::{Jobs, LONGEST_DEADLINE};
use crate::store::{Store, StoreError};

/// Largest file.
pub const MAX_FILE: u64 = 100 << 20;
/// Most requests in a batch.
pub const MAX_LINES: u32 = 50_000;
/// Batches of one client that are not over.
pub const MAX_OPEN: i64 = 100;
/// Files that may come in at one broker at a time: each has a piece in memory.
const UPLOADS: usize = 16;

/// How files and batches are kept.
#[derive(Debug, Clone, Copy)]
pub struct BulkConfig {
    /// How long files and batches can be read after they were made.
    pub files_kept: Duration,
    /// Bytes that the files of one client may have.
    pub client_bytes: u64,
}

impl Default for BulkConfig {
    fn default() -> Self {
        Self {
            files_kept: Duration::from_secs(30 * 24 * 3600),
            client_bytes: 10 << 30,
        }
    }
}

/// What files and batches work with.
#[derive(Debug)]
pub struct Parts {
    /// This broker's name.
    pub broker: String,
    /// How they are kept.
    pub config: BulkConfig,
    /// How long a turn lasts of which nothing is heard.
    pub lease: Duration,
    /// How long results of jobs are kept.
    pub results_kept: Duration,
    /// Their rows.
    pub store: Store,
    /// Has the keys that seal.
    pub dispatch: Dispatch,
    /// Knows features and models.
    pub exchange: Exchange,
    /// Runs the lines.
    pub jobs: Jobs,
    /// What batches tell of themselves.
    pub metrics: BulkMetrics,
}

/// Files and batches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bulk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    /// Told when a batch may be due.
    due: Notify,
    uploads: Arc<Semaphore>,
}

/// Why files or batches cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    /// Postgres is away or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another key, or other bytes.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// What a line asks for cannot be sealed.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// A piece of a file is not there.
    #[error("a piece of the file is not there any more")]
    Gone,
    /// The turn is another's by now, or the batch was taken back.
    #[error("the turn is over")]
    Overtaken,
    /// As many files come in as may.
    #[error("too many files come in at the moment; try again")]
    Busy,
    /// The file is larger than it may be.
    #[error("a file may have at most {MAX_FILE} bytes")]
    TooLarge,
    /// The client's files are.
    #[error("your files may have at most {0} bytes together; delete some")]
    OverQuota(u64),
}

impl Bulk {
    /// Files and batches, and the tasks that bring them about.
    #[must_use]
    pub fn start(parts: Parts, drain: &Shutdown, background: &Shutdown) -> Self {
        let bulk = Self(Arc::new(Inner {
            parts,
            due: Notify::new(),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
        }));
        background.spawn("batches", run::run(bulk.clone(), drain.clone()));
        background.spawn("file keeping", keep::run(bulk.clone(), background.clone()));
        bulk
    }

    fn parts(&self) -> &Parts {
        &self.0.parts
    }

    fn keys(&self) -> &SealKeys {
        self.parts().dispatch.keys()
    }

    /// The rows themselves.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.parts().store
    }

    /// How they are kept.
    #[must_use]
    pub fn config(&self) -> BulkConfig {
        self.parts().config
    }

    /// A batch was taken in, which this broker is to look at at once.
    pub fn note_accepted(&self) {
        self.parts().metrics.accepted.inc();
        self.wake();
    }

    /// Has this broker look for batches at once.
    pub fn wake(&self) {
        self.0.due.notify_one();
    }

    /// Longest that a batch may take: as long as the first result is kept for the last one.
    #[must_use]
    pub fn longest_window(&self) -> Duration {
        const DAY: u64 = 24 * 3600;
        let days = self.parts().results_kept.as_secs().div_ceil(DAY);
        Duration::from_secs(days * DAY).min(LONGEST_DEADLINE)
    }
}

/// The id of a new batch: its last 32 bits are zero, for its lines.
#[must_use]
pub fn batch_id() -> Uuid {
    line_id(Uuid::now_v7(), 0)
}

/// The id of the job that the line of this number is.
#[must_use]
pub fn line_id(batch: Uuid, number: u32) -> Uuid {
    Uuid::from_u128(batch.as_u128() >> 32 << 32 | u128::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::jobs::day;

    #[test]
    fn a_lines_job_is_found_by_its_number_and_lies_in_the_day_of_its_batch() {
        let batch = batch_id();
        let (first, last) = (line_id(batch, 1), line_id(batch, u32::MAX));
        assert!(batch < first && first < last, "{batch} {first} {last}");
        assert_eq!(line_id(last, 1), first);
        for id in [batch, first, last] {
            assert_eq!(id.get_version(), Some(uuid::Version::SortRand), "{id}");
            assert_eq!(day(id), day(batch));
        }
    }
}
