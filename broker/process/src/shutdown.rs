//! The end of a process, in two steps: first take no more work, then abort what is left.
//!
//! The soft token says *begin to stop*, the hard token says *stop now*. Between them lies the grace that
//! [`Shutdown::drained`] gives to the tasks started with [`Shutdown::spawn`], the project's only way to start a
//! long-lived task. It does not decide what stops in which order: `main` does, by what it awaits.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How long [`Shutdown::drained`] waits for aborted tasks to be dropped; one that blocks its thread never is.
const ABORT_WAIT: Duration = Duration::from_secs(1);

/// A handle on the process's end; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The soft token: stop taking work.
    soft: watch::Sender<bool>,
    /// The hard token: abort; never set without the soft one.
    hard: watch::Sender<bool>,
    /// Tracked tasks not yet ended, counted from `spawn` so that none slips between check and wait.
    running: watch::Sender<usize>,
}

impl Shutdown {
    /// Returns a handle on a shutdown that has not begun.
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// Begins the shutdown at the first SIGTERM or SIGINT and aborts at the second.
    ///
    /// The signals are caught from the moment this returns. Where that fails, they keep ending the process at once.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen_to_signals(&self) {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => {
                tokio::spawn(follow_signals(self.clone(), terminate, interrupt));
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "cannot listen to signals: they will end the process without a drain");
            }
        }
    }

    /// Sets the soft token: no more work is taken.
    pub fn begin(&self) {
        self.shared.soft.send_replace(true);
    }

    /// Sets both tokens: tracked tasks end at their next await.
    pub fn abort(&self) {
        self.begin();
        self.shared.hard.send_replace(true);
    }

    /// Returns once the soft token is set.
    pub async fn begun(&self) {
        until_set(&self.shared.soft).await;
    }

    /// Returns once the hard token is set.
    pub async fn aborted(&self) {
        until_set(&self.shared.hard).await;
    }

    /// Tells whether the soft token is set.
    pub fn is_begun(&self) -> bool {
        *self.shared.soft.borrow()
    }

    /// Starts a tracked task, which [`drained`](Shutdown::drained) waits for and the hard token drops.
    ///
    /// A panic ends that task alone and is logged under `name`. A task that watches the hard token itself is
    /// polled once more after it is set.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = Running::new(&self.shared);
        let shutdown = self.clone();
        // Boxed here: moved into place by the task, it would have room in it twice.
        let mut task = Box::pin(AssertUnwindSafe(future).catch_unwind());
        tokio::spawn(async move {
            let _running = running;
            tokio::select! {
                biased;
                ended = &mut task => {
                    if let Err(panic) = ended {
                        tracing::error!(task = name, panic = panic_text(&*panic), "task panicked");
                    }
                }
                () = shutdown.aborted() => tracing::warn!(task = name, "task aborted"),
            }
        });
    }

    /// Waits up to `grace` for all tracked tasks to end, then aborts those left; true if none had to be.
    ///
    /// It waits without beginning the shutdown: call [`begin`](Shutdown::begin) first, or await
    /// [`begun`](Shutdown::begun).
    pub async fn drained(&self, grace: Duration) -> bool {
        let in_time = tokio::select! {
            biased;
            () = self.aborted() => false,
            () = self.idle() => true,
            () = tokio::time::sleep(grace) => false,
        };
        if !in_time {
            self.abort();
            if tokio::time::timeout(ABORT_WAIT, self.idle()).await.is_err() {
                tracing::error!(
                    tasks = *self.shared.running.borrow(),
                    "tasks did not end when aborted"
                );
            }
        }
        in_time
    }

    async fn idle(&self) {
        let mut running = self.shared.running.subscribe();
        running
            .wait_for(|count| *count == 0)
            .await
            .expect("the sender lives in this handle");
    }
}

/// One tracked task in the count, from its start until it ended, panicked or was dropped.
struct Running {
    shared: Arc<Shared>,
}

impl Running {
    fn new(shared: &Arc<Shared>) -> Running {
        shared.running.send_modify(|count| *count += 1);
        Running {
            shared: Arc::clone(shared),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.running.send_modify(|count| *count -= 1);
    }
}

/// Counts signals, not tokens: the first one drains even where a fault began the shutdown before it.
async fn follow_signals(shutdown: Shutdown, mut terminate: Signal, mut interrupt: Signal) {
    let signal = next_signal(&mut terminate, &mut interrupt).await;
    tracing::info!(signal, "signal received: draining");
    shutdown.begin();

    let signal = next_signal(&mut terminate, &mut interrupt).await;
    tracing::warn!(signal, "second signal received: aborting");
    shutdown.abort();
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

async fn until_set(token: &watch::Sender<bool>) {
    token
        .subscribe()
        .wait_for(|set| *set)
        .await
        .expect("the sender lives in this handle");
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&'static str>().copied();
    literal
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests;
