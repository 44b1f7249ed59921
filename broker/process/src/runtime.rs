//! The threads that a program's tasks run on.

use std::thread::available_parallelism;

/// One thread for so many cores: the others belong to PostgreSQL, nats-server and the rest of the machine.
const CORES_PER_THREAD: usize = 2;
/// More threads than this wake each other more often than they help: one forwards thousands of answers a second.
const MOST_THREADS: usize = 4;

/// A runtime with a thread for every second core, at least one and at most four, or as many as tokio's own
/// `TOKIO_WORKER_THREADS` says.
///
/// # Errors
/// The system gives no thread.
pub fn build() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = available_parallelism().map_or(1, usize::from);
        builder.worker_threads(threads(cores));
    }
    builder.enable_all().build()
}

fn threads(cores: usize) -> usize {
    (cores / CORES_PER_THREAD).clamp(1, MOST_THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_has_one_thread_and_a_large_one_few() {
        assert_eq!([1, 2, 4, 8, 64].map(threads), [1, 1, 2, 4, 4]);
    }
}
