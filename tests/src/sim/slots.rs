//! The server's own line: so many requests are generated at once, the rest wait in order, without limit.
//!
//! Real model servers have no bound here either; that is what the product has to cope with.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The line and the places behind it.
#[derive(Debug)]
pub(crate) struct Slots {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    running: usize,
    next: u64,
    queue: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// One place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
}

/// A place in the line; leaves it when dropped.
struct Ticket<'a> {
    slots: &'a Arc<Slots>,
    number: u64,
    called: oneshot::Receiver<()>,
    served: bool,
}

impl Slots {
    /// A line with `limit` places behind it.
    pub(crate) fn new(limit: usize) -> Self {
        let state = State {
            limit,
            running: 0,
            next: 0,
            queue: VecDeque::new(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Changes the number of places; running requests keep theirs.
    pub(crate) fn resize(&self, limit: usize) {
        let mut state = self.lock();
        state.limit = limit;
        state.call();
    }

    /// How many requests run and how many wait.
    pub(crate) fn count(&self) -> (usize, usize) {
        let state = self.lock();
        (state.running, state.queue.len())
    }

    /// A place if one is free and nobody waits.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.lock();
        if state.running >= state.limit {
            return None;
        }
        state.running += 1;
        Some(Slot {
            slots: Arc::clone(self),
        })
    }

    /// Joins the line; the place comes in turn.
    pub(crate) async fn take(self: &Arc<Self>) -> Slot {
        let mut ticket = {
            let mut state = self.lock();
            if state.running < state.limit {
                state.running += 1;
                return Slot {
                    slots: Arc::clone(self),
                };
            }
            let (call, called) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            state.queue.push_back((number, call));
            Ticket {
                slots: self,
                number,
                called,
                served: false,
            }
        };
        // The sender lives in the queue until it calls, so the only way out is being called.
        let _called = (&mut ticket.called).await;
        ticket.served = true;
        Slot {
            slots: Arc::clone(self),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn call(&mut self) {
        while self.running < self.limit {
            let Some((_, call)) = self.queue.pop_front() else {
                return;
            };
            if call.send(()).is_ok() {
                self.running += 1;
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        state.running -= 1;
        state.call();
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.served {
            return;
        }
        let mut state = self.slots.lock();
        if self.called.try_recv().is_ok() {
            // Called, but gone before it could answer.
            state.running -= 1;
            state.call();
        } else {
            let number = self.number;
            state.queue.retain(|(waiting, _)| *waiting != number);
        }
    }
}
