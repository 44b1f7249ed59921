//! The simulated model server: OpenAI-compatible, deterministic, and able to fail in every way real ones do.
//!
//! It speaks vLLM's dialect byte for byte, answers with text that is a pure function of the prompt, and goes on
//! exactly where an answer was cut, by text or by token ids. It runs inside a test or as the program `duo-sim`.
//! It does not sample, does not look at images, and does not enforce tool schemas.

mod answer;
mod api;
mod control;
mod embeddings;
pub mod expected;
mod fault;
mod follow;
mod generation;
mod infer;
mod plan;
mod prompt;
mod refusal;
mod request;
mod sequence;
mod settings;
mod shared;
mod slots;
mod stats;
mod stream;
#[cfg(test)]
mod tests;
mod tokenize;
mod unary;
mod vocabulary;
mod write;

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use self::shared::Shared;
use crate::server::Server;

pub use self::fault::Fault;
pub use self::follow::{Over, UnderWay};
pub use self::settings::Settings;
pub use self::shared::LastRequest;
pub use self::stats::{Requests, Stats};

/// Worker threads of a server inside a test.
const THREADS: usize = 2;

/// A running simulated model server; it dies when dropped.
#[derive(Debug)]
pub struct Sim {
    shared: Arc<Shared>,
    server: Server,
}

/// Looks at a simulated server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watcher(Arc<Shared>);

impl Watcher {
    /// Is a followed request with this id under way?
    pub fn is_under_way(&self, id: &str) -> bool {
        self.0.under_way.holds(id)
    }
}

/// What was waited for did not happen in time; the counters are those of the last look.
#[derive(Debug)]
pub struct TooLate {
    /// The counters when the wait ended.
    pub stats: Stats,
}

impl fmt::Display for TooLate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "it did not happen in time; the counters say {:?}",
            self.stats
        )
    }
}

impl Error for TooLate {}

impl Sim {
    /// Starts a server on a free port.
    ///
    /// # Errors
    /// No port or thread can be had.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        Self::start_on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), THREADS, settings).await
    }

    /// Starts a server on `address` with `threads` worker threads.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start_on(address: SocketAddr, threads: usize, settings: Settings) -> io::Result<Self> {
        let shared = Shared::new(settings);
        let server = Server::start(address, threads, api::router(Arc::clone(&shared))).await?;
        // Nobody can have asked for the kill switch yet: the address is not known to anyone.
        let _first = shared.stopper.set(server.stopper());
        Ok(Self { shared, server })
    }

    /// The base URL, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// The address it listens on, for starting a successor there.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// One look at the counters; they stay readable after the server died.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// The requests under way whose prompts hold an id that [`Settings::follow`] looks for, oldest first.
    pub fn under_way(&self) -> Vec<UnderWay> {
        self.shared.under_way.now()
    }

    /// A handle that only looks, for other tasks.
    pub fn watcher(&self) -> Watcher {
        Watcher(Arc::clone(&self.shared))
    }

    /// The followed requests that are over, in the order of their ends: the last some thousands.
    pub fn over(&self) -> Vec<Over> {
        self.shared.under_way.over()
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        (*self.shared.settings()).clone()
    }

    /// Changes settings; requests under way keep the ones they started with.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = (*self.shared.settings()).clone();
        change(&mut settings);
        self.shared.replace(settings);
    }

    /// From now on refuses new requests as a draining server does, or stops doing so.
    pub fn drain(&self, on: bool) {
        self.shared.draining.store(on, Ordering::SeqCst);
    }

    /// Lets `/health` say 503, or 200 again.
    pub fn unhealthy(&self, on: bool) {
        self.shared.unhealthy.store(on, Ordering::SeqCst);
    }

    /// The last request that came with a body: path, headers and the exact bytes.
    pub fn last_request(&self) -> Option<LastRequest> {
        self.shared.last()
    }

    /// Waits until the counters satisfy `enough`, for at most `max_wait`.
    ///
    /// # Errors
    /// They did not in time.
    pub async fn wait_for(
        &self,
        enough: impl Fn(&Stats) -> bool,
        max_wait: Duration,
    ) -> Result<Stats, TooLate> {
        let deadline = Instant::now() + max_wait;
        loop {
            // Listening starts before looking, so that nothing slips between the two.
            let changed = self.shared.counters.changed();
            let stats = self.stats();
            if enough(&stats) {
                return Ok(stats);
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(TooLate { stats: self.stats() });
            }
        }
    }

    /// Dies at once: every stream is cut, every socket closed, and the port free when this returns.
    pub async fn kill(&self) {
        self.shared.kill();
        self.server.stopped().await;
    }

    /// Waits until the server is dead, by whatever hand.
    pub async fn stopped(&self) {
        self.server.stopped().await;
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.shared.kill();
    }
}
