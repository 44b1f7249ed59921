//! One generation from its place in the line to its end, counted once whichever way it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::follow::UnderWay;
use super::shared::Shared;
use super::slots::Slot;

/// A request that waits or runs. Dropped before its end it counts as aborted by the client: nothing else drops it.
#[derive(Debug)]
pub(crate) struct Generation {
    shared: Arc<Shared>,
    slot: Option<Slot>,
    /// Tokens it has in the cache.
    cached: AtomicUsize,
    /// Tokens it has handed out.
    tokens: AtomicUsize,
    ended: bool,
    /// Its number in the list of those that are followed.
    followed: Option<u64>,
}

impl Generation {
    /// A request about to join the line, listed under its id if it has one.
    pub(crate) fn new(shared: Arc<Shared>, followed: Option<UnderWay>) -> Self {
        let followed = followed.map(|who| shared.under_way.begin(who));
        Self {
            shared,
            slot: None,
            cached: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
            ended: false,
            followed,
        }
    }

    /// Waits in the line for a slot, then reads a prompt of so many tokens.
    pub(crate) async fn start(&mut self, prompt_tokens: usize) {
        let slot = match self.shared.slots.try_take() {
            Some(slot) => slot,
            None => {
                let slots = Arc::clone(&self.shared.slots);
                let shared = Arc::clone(&self.shared);
                let mut place = std::pin::pin!(slots.take());
                // The first poll joins the line; those who wait for a longer line must hear of it.
                tokio::select! {
                    biased;
                    slot = &mut place => slot,
                    () = std::future::ready(()) => {
                        shared.counters.touch();
                        place.await
                    }
                }
            }
        };
        self.slot = Some(slot);
        self.cache(prompt_tokens);
        self.shared.counters.started();
    }

    /// Counts tokens as they are generated.
    pub(crate) fn tokens(&self, count: usize) {
        self.cache(count);
        self.tokens.fetch_add(count, Ordering::Relaxed);
        self.shared.counters.add(&self.shared.counters.tokens, count);
    }

    /// The whole answer is handed out.
    pub(crate) fn finish(&mut self) {
        self.end();
        self.shared.counters.finished();
    }

    /// A simulated fault ended it.
    pub(crate) fn fail(&mut self) {
        self.end();
        self.shared.counters.failed();
    }

    fn cache(&self, tokens: usize) {
        self.cached.fetch_add(tokens, Ordering::Relaxed);
        let counters = &self.shared.counters;
        counters.add(&counters.cached_tokens, tokens);
    }

    fn uncache(&mut self) {
        self.shared
            .counters
            .uncache(std::mem::take(self.cached.get_mut()));
    }

    fn unfollow(&mut self) {
        if let Some(number) = self.followed.take() {
            self.shared.under_way.end(number, *self.tokens.get_mut());
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.uncache();
        self.slot = None;
        self.unfollow();
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.unfollow();
        if self.ended {
            return;
        }
        if self.shared.killed.load(Ordering::SeqCst) {
            return self.fail();
        }
        self.uncache();
        let waiting = self.slot.take().is_none();
        if waiting {
            self.shared.counters.aborted_waiting();
        }
        self.shared.counters.aborted();
    }
}
