//! Watches one model server: passing, tripped and probing, awaited in turn.
//!
//! A server that could not be reached passes again as soon as its health page
//! answers, which is asked every half second. One whose answers failed though
//! it looks well is probed with requests, at most five seconds apart.

use std::sync::Arc;
use std::time::Duration;

use duo_contract::presence::BreakerState;
use duo_process::retry::RetryPolicy;

use super::ModelServer;
use super::openai::Health;

/// How often a server that passes is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often one that was not reached is tried.
const REACH_EVERY: Duration = Duration::from_millis(500);
/// Pauses before a server that kept failing is probed, growing while probes fail.
const PROBE_BASE: Duration = Duration::from_millis(500);
const PROBE_CAP: Duration = Duration::from_secs(5);

/// Why a server's breaker tripped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trip {
    /// It could not be reached, or said that it is not ready.
    Health,
    /// Its answers failed, whatever its health page says.
    Answers,
}

/// Watches `server` for ever.
pub async fn watch(server: Arc<ModelServer>) {
    let policy = RetryPolicy::try_new(PROBE_BASE, PROBE_CAP, u32::MAX).expect("valid constants");
    first_look(&server).await;
    let mut trip = passing(&server).await;
    let mut probes = 0;
    loop {
        probes += 1;
        let pause = match trip {
            Trip::Health => REACH_EVERY,
            Trip::Answers => policy.ceiling(probes),
        };
        until_well(&server, pause).await;
        match trip {
            Trip::Health => server.breaker.set(BreakerState::Passing),
            Trip::Answers => {
                server.breaker.set(BreakerState::Probing);
                if !probe_passed(&server).await {
                    continue;
                }
            }
        }
        tracing::info!(server = &*server.name, "the model server is well again");
        probes = 0;
        trip = passing(&server).await;
    }
}

/// Nothing is pulled for a server that is not there yet: it may take minutes to load its model.
async fn first_look(server: &ModelServer) {
    if let Some(reason) = trouble(server).await {
        tracing::info!(
            server = &*server.name,
            reason,
            "the model server is not ready yet; nothing is pulled for it until it is"
        );
        until_well(server, REACH_EVERY).await;
    }
    server.breaker.set(BreakerState::Passing);
    tracing::info!(server = &*server.name, "the model server is there");
}

async fn passing(server: &ModelServer) -> Trip {
    let mut state = server.breaker.state();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // The breaker lives as long as its server, which is held here.
            _ = state.wait_for(|state| *state == BreakerState::Tripped) => {
                tracing::warn!(server = &*server.name, "the model server keeps failing; nothing is pulled for it");
                return Trip::Answers;
            }
            () = server.breaker.suspected() => {}
            _ = looks.tick() => {}
        }
        if let Some(reason) = trouble(server).await {
            tracing::warn!(
                server = &*server.name,
                reason,
                "the model server is not well; nothing is pulled for it"
            );
            server.breaker.set(BreakerState::Tripped);
            return Trip::Health;
        }
    }
}

/// What a look at a server's health finds wrong.
async fn trouble(server: &ModelServer) -> Option<String> {
    match server.http.health().await {
        Health::Well => None,
        // A busy server may be slow to answer; its requests decide.
        Health::Unwell(reason) if !reason.starts_with('5') => None,
        Health::Unwell(reason) => Some(reason),
        Health::Refused => Some("it cannot be reached".to_owned()),
    }
}

async fn until_well(server: &ModelServer, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        if server.http.health().await == Health::Well {
            return;
        }
    }
}

/// A few requests are let through; the first that ends decides.
async fn probe_passed(server: &ModelServer) -> bool {
    let mut state = server.breaker.state();
    let decided = state.wait_for(|state| *state != BreakerState::Probing).await;
    decided.is_ok_and(|state| *state == BreakerState::Passing)
}
