//! Which of the requests that are followed are under way: in the server's line or being generated.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// A followed request under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnderWay {
    /// The id found in its prompt.
    pub id: String,
    /// The key that its client sent; empty if none.
    pub key: String,
}

/// All of them, by a number of their own: one id may be under way twice.
#[derive(Debug, Default)]
pub(crate) struct List(Mutex<(u64, BTreeMap<u64, UnderWay>)>);

impl List {
    /// Adds one; gives its number.
    pub(crate) fn begin(&self, who: UnderWay) -> u64 {
        let mut list = self.lock();
        list.0 += 1;
        let number = list.0;
        list.1.insert(number, who);
        number
    }

    /// Removes one.
    pub(crate) fn end(&self, number: u64) {
        self.lock().1.remove(&number);
    }

    /// Those under way now, oldest first.
    pub(crate) fn now(&self) -> Vec<UnderWay> {
        self.lock().1.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, UnderWay>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
