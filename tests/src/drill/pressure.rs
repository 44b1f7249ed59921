//! An open loop: requests that come when they are due, whatever became of those before them.
//!
//! A request is due by its source's own clock, and its times count from there, so nothing is left out while the system
//! stands still. Each source is a person. What came back is only judged by its head and its end: what answers have to
//! say is other drills' matter.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::random::Random;
use crate::bench::http::Connection;

/// Connections that are kept for later requests, of each server.
const KEPT: usize = 2048;

/// Stands for a request's id in its body.
pub const ID: &str = "@request-id@";

/// Somebody who asks the same again and again.
#[derive(Debug, Clone)]
pub struct Source {
    /// What the ids of its requests begin with.
    pub name: String,
    /// The path.
    pub path: &'static str,
    /// Header lines, each with its line end.
    pub headers: String,
    /// The body; each request's id stands in the place of [`ID`].
    pub body: Arc<str>,
    /// Requests a second, at random times.
    pub rate: f64,
}

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Shot {
    /// Which source.
    pub source: usize,
    /// When it was due, from the start.
    pub due: Duration,
    /// From then to the first byte of a body, or to the end.
    pub first: Duration,
    /// From then to the end.
    pub whole: Duration,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// A whole answer.
    Answered,
    /// No, in a form that the client reads: `X-Duo-Reason` or the status, and `Retry-After`.
    Refused(String, Option<u64>),
    /// The client gave up.
    Late,
    /// Anything else.
    Broken(String),
}

/// Where requests go, and how long their clients wait.
#[derive(Debug)]
pub struct Range {
    targets: Vec<SocketAddr>,
    kept: Vec<Mutex<Vec<Connection>>>,
    patience: Duration,
}

impl Range {
    /// Requests to any of these, given up after `patience`.
    pub fn new(targets: Vec<SocketAddr>, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            kept: targets.iter().map(|_| Mutex::default()).collect(),
            targets,
            patience,
        })
    }

    /// Lets every source ask for `span`, and waits until the last request is over.
    ///
    /// # Panics
    /// A client has.
    pub async fn fire(self: &Arc<Self>, sources: &[Source], span: Duration, seed: u64) -> Vec<Shot> {
        let start = Instant::now();
        let mut asking = JoinSet::new();
        for (number, source) in sources.iter().cloned().enumerate() {
            let random = Random::new(seed, number as u64);
            asking.spawn(Arc::clone(self).ask_for(source, number, (start, span), random));
        }
        let mut shots = Vec::new();
        while let Some(some) = asking.join_next().await {
            shots.extend(some.expect("a client does not fail"));
        }
        shots.sort_by_key(|shot| shot.due);
        shots
    }

    async fn ask_for(
        self: Arc<Self>,
        source: Source,
        number: usize,
        (start, span): (Instant, Duration),
        mut random: Random,
    ) -> Vec<Shot> {
        let source = Arc::new(source);
        let mut under_way = JoinSet::new();
        let mut shots = Vec::new();
        let mut due = random.until_next(source.rate);
        let mut count = 0_u64;
        while due < span {
            sleep_until(start + due).await;
            let (range, asked) = (Arc::clone(&self), Arc::clone(&source));
            let target = random.below(self.targets.len());
            let id = format!("{}-{count}", source.name);
            under_way.spawn(async move {
                let mut shot = range.shoot(&asked, &id, target, start + due).await;
                (shot.source, shot.due) = (number, due);
                shot
            });
            while let Some(shot) = under_way.try_join_next() {
                shots.push(shot.expect("a client does not fail"));
            }
            due += random.until_next(source.rate);
            count += 1;
        }
        while let Some(shot) = under_way.join_next().await {
            shots.push(shot.expect("a client does not fail"));
        }
        shots
    }

    /// One request, due at `due`, under this id.
    pub async fn shoot(&self, source: &Source, id: &str, target: usize, due: Instant) -> Shot {
        let mut first = None;
        let asked = self.exchange(source, id, target, &mut first);
        let fate = match timeout_at(due + self.patience, asked).await {
            Ok(Ok(fate)) => fate,
            Ok(Err(error)) => Fate::Broken(error.to_string()),
            Err(_) => Fate::Late,
        };
        let whole = due.elapsed();
        Shot {
            source: 0,
            due: Duration::ZERO,
            first: first.map_or(whole, |at: Instant| at.saturating_duration_since(due)),
            whole,
            fate,
        }
    }

    async fn exchange(
        &self,
        source: &Source,
        id: &str,
        target: usize,
        first: &mut Option<Instant>,
    ) -> std::io::Result<Fate> {
        let address = self.targets[target];
        let kept = self.lock(target).pop();
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(address).await?,
        };
        let body = source.body.replace(ID, id);
        let request = format!(
            "POST {} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nx-request-id: {id}\r\n{}\
             content-length: {}\r\n\r\n{}",
            source.path,
            source.headers,
            body.len(),
            body
        );
        let status = connection.send(request.as_bytes()).await?;
        while connection.part().await?.is_some() {
            first.get_or_insert_with(Instant::now);
        }
        let refusal = std::mem::take(&mut connection.refusal);
        let closing = connection.closing;
        let mut kept = self.lock(target);
        if !closing && kept.len() < KEPT {
            kept.push(connection);
        }
        drop(kept);
        Ok(match (status, refusal.reason) {
            (200, None) => Fate::Answered,
            (_, Some(reason)) => Fate::Refused(reason, refusal.retry_after),
            (status, None) => Fate::Refused(format!("status_{status}"), refusal.retry_after),
        })
    }

    fn lock(&self, target: usize) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.kept[target].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value below which this part of `values` lies; zero for none.
pub fn quantile(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    let index = (last as f64 * part).round() as usize;
    values.get(index).copied().unwrap_or_default()
}

/// The mean; zero for none.
pub fn mean(values: &[Duration]) -> Duration {
    let sum: Duration = values.iter().sum();
    sum / u32::try_from(values.len().max(1)).unwrap_or(u32::MAX)
}
