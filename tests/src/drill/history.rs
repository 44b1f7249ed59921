//! What happened: every request as its client saw it, and every fault that was injected.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::kind::Kind;

/// One request from its client's side; times count from the history's beginning.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its own id: in the prompt, and sent as `x-request-id`, which the audit log keeps as the correlation id.
    pub id: String,
    /// What was asked.
    pub kind: Kind,
    /// When.
    pub sent: Duration,
    /// When the first byte of the body came.
    pub first_byte: Option<Duration>,
    /// Longest time between two pieces of the body.
    pub longest_gap: Duration,
    /// When it was over for the client.
    pub ended: Duration,
    /// Which broker had the connection, as the balancer knows.
    pub broker: Option<usize>,
    /// How it ended.
    pub end: End,
}

/// How a request ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The right answer, whole and byte for byte.
    Whole,
    /// It was told so: by a status, an error event, or the empty answer that stands for a refusal.
    Failed {
        /// The status.
        status: u16,
        /// What the body said.
        reason: String,
    },
    /// The connection was cut; what had come until then was right.
    Cut,
    /// We left.
    HungUp(Left),
    /// Something came that is not the answer, or that looks whole and is not.
    Corrupt(String),
    /// Nothing more came for longer than any answer may take.
    Silent,
}

/// In which state a client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Before any byte of the answer.
    Unanswered,
    /// In the middle of the answer.
    Answering,
}

/// A fault that was injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strike {
    /// `kill -9` of the broker with this number.
    KillBroker(usize),
    /// `kill -9` of the worker with this number.
    KillWorker(usize),
    /// The broker with this number stood still.
    FreezeBroker(usize),
    /// The worker with this number stood still.
    FreezeWorker(usize),
    /// Anything else, in words.
    Other(&'static str),
}

/// Everything that happened in one drill.
#[derive(Debug)]
pub struct History {
    began: Instant,
    began_at: OffsetDateTime,
    asked: Mutex<Vec<Asked>>,
    strikes: Mutex<Vec<(Duration, Duration, Strike)>>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            began_at: OffsetDateTime::now_utc(),
            asked: Mutex::default(),
            strikes: Mutex::default(),
        }
    }
}

impl History {
    /// Now, as the history counts.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A moment of the clock on the wall, as the history counts; zero for one before it began.
    pub fn at(&self, moment: OffsetDateTime) -> Duration {
        Duration::try_from(moment - self.began_at).unwrap_or_default()
    }

    /// Keeps a request that is over.
    pub fn add(&self, asked: Asked) {
        lock(&self.asked).push(asked);
    }

    /// Keeps a fault that began at `from` and is over now.
    pub fn struck(&self, strike: Strike, from: Duration) {
        lock(&self.strikes).push((from, self.now(), strike));
    }

    /// Every request that is over.
    pub fn all(&self) -> Vec<Asked> {
        lock(&self.asked).clone()
    }

    /// How many requests are over.
    pub fn count(&self) -> usize {
        lock(&self.asked).len()
    }

    /// How many requests that are over fulfil this.
    pub fn count_of(&self, which: impl Fn(&Asked) -> bool) -> usize {
        lock(&self.asked).iter().filter(|asked| which(asked)).count()
    }

    /// Was this broker being killed at some time between the two?
    pub fn broker_died(&self, number: usize, from: Duration, until: Duration) -> bool {
        lock(&self.strikes).iter().any(|(began, over, strike)| {
            *strike == Strike::KillBroker(number) && *began <= until && *over >= from
        })
    }

    /// Was any broker being killed at some time between the two?
    pub fn some_broker_died(&self, from: Duration, until: Duration) -> bool {
        lock(&self.strikes).iter().any(|(began, over, strike)| {
            matches!(strike, Strike::KillBroker(_)) && *began <= until && *over >= from
        })
    }

    /// How many faults of each kind there were.
    pub fn strikes(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for (_, _, strike) in lock(&self.strikes).iter() {
            *counts.entry(strike.word()).or_default() += 1;
        }
        let left = lock(&self.asked)
            .iter()
            .filter(|asked| matches!(asked.end, End::HungUp(_)))
            .count() as u64;
        if left > 0 {
            counts.insert("hang-up", left);
        }
        counts
    }
}

impl Strike {
    /// Its kind in a table.
    pub fn word(&self) -> &'static str {
        match self {
            Self::KillBroker(_) => "broker killed",
            Self::KillWorker(_) => "worker killed",
            Self::FreezeBroker(_) => "broker frozen",
            Self::FreezeWorker(_) => "worker frozen",
            Self::Other(word) => word,
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({:?}, broker {:?}, {:.3} s to {:.3} s): {:?}",
            self.id,
            self.kind,
            self.broker,
            self.sent.as_secs_f64(),
            self.ended.as_secs_f64(),
            self.end
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
