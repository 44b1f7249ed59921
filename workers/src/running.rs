//! The jobs that run now, and what their owners order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use duo_contract::cancel::{CancelReason, Order};
use duo_contract::subject;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::reply::Reply;
use crate::startup::Worker;

/// Why a job is to stop before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Its owner says so.
    Cancelled(CancelReason),
    /// This worker leaves: somebody else is to do it.
    HandBack,
}

/// The jobs that run now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Running {
    jobs: Arc<Mutex<HashMap<Uuid, Vec<Arc<Entry>>>>>,
    count: Arc<watch::Sender<usize>>,
}

/// What others may do to a running job.
#[derive(Debug)]
pub struct Entry {
    /// Its frames.
    pub reply: Reply,
    stop: OnceLock<Stop>,
    wake: Notify,
}

/// A job's place among the running ones, given up when dropped.
#[derive(Debug)]
pub struct Registered {
    running: Running,
    request_id: Uuid,
    entry: Arc<Entry>,
}

impl Default for Running {
    fn default() -> Self {
        Self {
            jobs: Arc::default(),
            count: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Running {
    /// Registers a job before its owner is asked, so that no order is missed.
    #[must_use]
    pub fn register(&self, request_id: Uuid, reply: Reply) -> Registered {
        let entry = Arc::new(Entry {
            reply,
            stop: OnceLock::new(),
            wake: Notify::new(),
        });
        self.lock()
            .entry(request_id)
            .or_default()
            .push(Arc::clone(&entry));
        self.count.send_modify(|count| *count += 1);
        Registered {
            running: self.clone(),
            request_id,
            entry,
        }
    }

    /// Jobs that run now.
    #[must_use]
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Returns when no job runs.
    pub async fn idle(&self) {
        // The sender lives in this handle, so the wait cannot fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Makes every job hand its delivery back; returns how many.
    pub fn hand_back_all(&self) -> usize {
        let jobs = self.lock();
        let entries = jobs.values().flatten();
        entries.map(|entry| entry.stop(Stop::HandBack)).count()
    }

    /// Stops other deliveries of a request that run here: their owner has
    /// just let `newest` take over.
    pub fn replace_others(&self, request_id: Uuid, newest: &Reply) {
        for entry in self.of(request_id) {
            if !std::ptr::eq(&raw const entry.reply, newest) {
                entry.stop(Stop::Cancelled(CancelReason::Replaced));
            }
        }
    }

    fn of(&self, request_id: Uuid) -> Vec<Arc<Entry>> {
        self.lock().get(&request_id).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Vec<Arc<Entry>>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn obey(&self, order: Order) {
        match order {
            Order::Cancel { request_id, reason } => {
                for entry in self.of(request_id) {
                    entry.stop(Stop::Cancelled(reason));
                }
            }
            Order::Resend {
                request_id,
                attempt,
                from,
                until,
            } => {
                for entry in self.of(request_id) {
                    entry.reply.resend(attempt, from, until).await;
                }
            }
        }
    }
}

impl Entry {
    fn stop(&self, stop: Stop) {
        // The first reason stays.
        let _ = self.stop.set(stop);
        self.wake.notify_one();
    }

    /// Returns when the job is to stop.
    pub async fn stopped(&self) -> Stop {
        loop {
            if let Some(stop) = self.stop.get() {
                return *stop;
            }
            self.wake.notified().await;
        }
    }
}

impl std::ops::Deref for Registered {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut jobs = self.running.lock();
        if let Some(entries) = jobs.get_mut(&self.request_id) {
            entries.retain(|entry| !Arc::ptr_eq(entry, &self.entry));
            if entries.is_empty() {
                jobs.remove(&self.request_id);
            }
        }
        drop(jobs);
        self.running.count.send_modify(|count| *count -= 1);
    }
}

/// Subscribes to this worker's orders; the future that comes back obeys them.
///
/// # Errors
/// The subscription failed.
pub async fn listen(worker: &Worker) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let mut orders = worker
        .nats
        .client()
        .subscribe(subject::cancels(&worker.name))
        .await?;
    let running = worker.running.clone();
    Ok(async move {
        while let Some(message) = orders.next().await {
            match Order::decode(&message.payload) {
                Ok(order) => running.obey(order).await,
                Err(error) => tracing::error!(%error, "an order does not parse"),
            }
        }
    })
}
