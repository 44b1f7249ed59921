//! Which of the requests that are followed are under way: in the server's line or being generated.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// A followed request under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnderWay {
    /// The id found in its prompt.
    pub id: String,
    /// The key that its client sent; empty if none.
    pub key: String,
}

/// A followed request that is over.
#[derive(Clone, Debug)]
pub struct Over {
    /// The id found in its prompt.
    pub id: String,
    /// When it ended, or its client's connection was found closed.
    pub at: Instant,
    /// Tokens handed out.
    pub tokens: u64,
}

/// Requests that are over and kept for whoever asks; the oldest go first.
const KEPT: usize = 16_384;

/// All of them, by a number of their own: one id may be under way twice.
#[derive(Debug, Default)]
pub(crate) struct List(Mutex<Lists>);

#[derive(Debug, Default)]
struct Lists {
    last: u64,
    under_way: BTreeMap<u64, UnderWay>,
    over: VecDeque<Over>,
}

impl List {
    /// Adds one; gives its number.
    pub(crate) fn begin(&self, who: UnderWay) -> u64 {
        let mut lists = self.lock();
        lists.last += 1;
        let number = lists.last;
        lists.under_way.insert(number, who);
        number
    }

    /// One is over after so many tokens.
    pub(crate) fn end(&self, number: u64, tokens: usize) {
        let at = Instant::now();
        let mut lists = self.lock();
        let Some(UnderWay { id, .. }) = lists.under_way.remove(&number) else {
            return;
        };
        if lists.over.len() == KEPT {
            lists.over.pop_front();
        }
        let tokens = tokens as u64;
        lists.over.push_back(Over { id, at, tokens });
    }

    /// Those under way now, oldest first.
    pub(crate) fn now(&self) -> Vec<UnderWay> {
        self.lock().under_way.values().cloned().collect()
    }

    /// Is one of this id under way?
    pub(crate) fn holds(&self, id: &str) -> bool {
        self.lock().under_way.values().any(|who| who.id == id)
    }

    /// Those that are over, in the order of their ends.
    pub(crate) fn over(&self) -> Vec<Over> {
        self.lock().over.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
