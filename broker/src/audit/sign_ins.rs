//! Records of callers that were not let in.
//!
//! The first failure of an address for a reason is recorded at once; those that follow within [`WINDOW`] are counted and
//! recorded together, so that who tries a million tokens makes a record a minute.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use duo_contract::audit::{AuditKind, AuditRecord, What, Who};
use duo_process::clock;
use duo_process::shutdown::Shutdown;
use serde_json::json;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::AuditLog;

/// Failures of one address for one reason within so long share a record.
const WINDOW: Duration = Duration::from_secs(60);
/// How often it is looked whose window is over.
const TICK: Duration = Duration::from_secs(5);
/// Addresses and reasons that are told apart; all others are counted together.
const MOST: usize = 4096;

/// Who failed why; no address stands for all that are not told apart.
type Origin = (Option<IpAddr>, &'static str);

/// Failures that are being counted.
#[derive(Debug, Default)]
pub(super) struct SignIns(Mutex<HashMap<Origin, Counted>>);

#[derive(Debug, Clone)]
struct Counted {
    since: Instant,
    /// Failures that no record tells of yet.
    untold: u64,
    /// Where the latest knocked.
    route: String,
}

impl SignIns {
    /// Notes a failure; the record to write at once, if any.
    fn note(
        &self,
        address: Option<IpAddr>,
        reason: &'static str,
        route: &str,
        now: Instant,
    ) -> Option<(Origin, Counted)> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut origin = (address, reason);
        if open.len() >= MOST && !open.contains_key(&origin) {
            origin.0 = None;
        }
        if let Some(counted) = open.get_mut(&origin) {
            counted.untold += 1;
            route.clone_into(&mut counted.route);
            return None;
        }
        let counted = Counted {
            since: now,
            untold: 1,
            route: route.to_owned(),
        };
        let first = counted.clone();
        open.insert(origin, Counted { untold: 0, ..counted });
        Some((origin, first))
    }

    /// Those whose window is over, or all of them at the end.
    fn due(&self, now: Instant, all: bool) -> Vec<(Origin, Counted)> {
        let mut due = Vec::new();
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|origin, counted| {
            if !all && now.saturating_duration_since(counted.since) < WINDOW {
                return true;
            }
            if counted.untold == 0 {
                return false;
            }
            due.push((*origin, counted.clone()));
            // Who goes on is counted for another window.
            *counted = Counted {
                since: now,
                untold: 0,
                route: String::new(),
            };
            true
        });
        due
    }
}

impl AuditLog {
    /// Records that somebody at `address` was not let in at `route`, or counts it.
    pub(crate) fn sign_in_failed(&self, address: Option<IpAddr>, reason: &'static str, route: &str) {
        if let Some((origin, counted)) = self.shared.sign_ins.note(address, reason, route, Instant::now()) {
            self.write_failures(origin, &counted);
        }
    }

    fn write_failures(&self, (address, reason): Origin, counted: &Counted) {
        let now = clock::now().unix_timestamp_nanos() / 1000;
        let details = json!({"reason": reason, "failures": counted.untold});
        self.sink.write_refusal(&AuditRecord {
            kind: AuditKind::SignInFailed,
            request_id: Uuid::now_v7(),
            occurred_at_us: i64::try_from(now).unwrap_or(i64::MAX),
            broker: self.broker.to_string(),
            who: Who {
                auth: "none".to_owned(),
                address: address.map(|address| address.to_string()),
                ..Who::default()
            },
            what: What::of(&counted.route, 0),
            end: None,
            details: Some(details.to_string()),
        });
    }
}

/// Writes what was counted, until the shutdown begins.
pub async fn run(log: AuditLog, shutdown: Shutdown) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let ends = tokio::select! {
            () = shutdown.begun() => true,
            _ = tick.tick() => false,
        };
        for (origin, counted) in log.shared.sign_ins.due(Instant::now(), ends) {
            log.write_failures(origin, &counted);
        }
        if ends {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_of_a_minute_together() {
        let sign_ins = SignIns::default();
        let began = Instant::now();
        let told = |last, at| sign_ins.note(address(last), "unknown_api_token", "/v1/models", began + at);
        let seconds = Duration::from_secs;
        assert_eq!(told(1, seconds(0)).map(|(_, counted)| counted.untold), Some(1));
        assert!(told(1, seconds(1)).is_none());
        assert!(told(1, seconds(2)).is_none());
        assert!(told(2, seconds(2)).is_some(), "somebody else");
        assert!(sign_ins.due(began + seconds(59), false).is_empty());
        let due = sign_ins.due(began + seconds(62), false);
        assert_eq!(due.len(), 1, "who failed once has been told of: {due:?}");
        assert_eq!((due[0].0.0, due[0].1.untold), (address(1), 2));
        assert!(told(1, seconds(63)).is_none(), "counted for another minute");
        assert_eq!(
            sign_ins.due(began + seconds(64), true).len(),
            1,
            "at the end nothing is kept back"
        );
    }

    #[test]
    fn a_flood_of_addresses_takes_bounded_room() {
        let sign_ins = SignIns::default();
        let now = Instant::now();
        for number in 0..u32::try_from(MOST * 2).expect("small") {
            sign_ins.note(
                Some(IpAddr::from(number.to_be_bytes())),
                "unknown_api_token",
                "/",
                now,
            );
        }
        assert!(sign_ins.0.lock().expect("no panic before").len() <= MOST + 1);
        let due = sign_ins.due(now, true);
        assert_eq!(
            due.iter().map(|(_, counted)| counted.untold).sum::<u64>(),
            MOST as u64 - 1
        );
    }
}
