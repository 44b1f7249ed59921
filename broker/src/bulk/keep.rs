//! Removes what is past keeping, day by day, and what clients left unfinished.

use std::time::Duration;

use duo_process::clock;
use duo_process::shutdown::Shutdown;

use super::Bulk;
use crate::jobs::{LONGEST_DEADLINE, keep};
use crate::store::StoreError;

const KEEP_EVERY: Duration = Duration::from_secs(600);
/// A file that is not whole by then has been given up; none takes so long to come in.
const UNFINISHED_FOR: Duration = Duration::from_secs(3600);
/// Files of one look.
const AT_ONCE: i64 = 1000;

/// Keeps until the shutdown begins.
pub(super) async fn run(bulk: Bulk, shutdown: Shutdown) {
    loop {
        if let Err(error) = look(&bulk).await {
            let error = &error as &dyn std::error::Error;
            tracing::info!(error, "files past keeping stay for now");
        }
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(KEEP_EVERY) => {}
        }
    }
}

async fn look(bulk: &Bulk) -> Result<(), StoreError> {
    let (store, kept) = (bulk.store(), bulk.config().files_kept);
    for id in store.unfinished_files(UNFINISHED_FOR, AT_ONCE).await? {
        store.delete_file(id).await?;
    }
    let today = clock::now().date();
    let responses_kept = LONGEST_DEADLINE.max(bulk.parts().results_kept);
    for (table, kept) in [
        ("file_chunks", kept),
        ("files", kept),
        ("batches", kept),
        ("responses", responses_kept),
    ] {
        let dropped = store
            .drop_job_partitions(table, keep::before(today, kept))
            .await?;
        if dropped > 0 {
            tracing::info!(table, dropped, "dropped the partitions of past days");
        }
    }
    Ok(())
}
