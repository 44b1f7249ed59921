//! The open requests that a sweeper knows of, and where it looks for more.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use duo_contract::audit::AuditRecord;
use duo_process::clock;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::store::audit_open::Place;
use crate::store::{Store, StoreError};

/// How far back the first sweeps look: an installation that was down over a long weekend.
const LOOK_BACK: Duration = Duration::from_secs(7 * 24 * 3600);
/// An *admitted* record may reach the stream this much later than it was made, brokers' clocks included.
const SLACK: Duration = Duration::from_secs(120);
/// The longest span of one search, and the shortest after searches that took too long.
const MOST_SPAN: Duration = Duration::from_secs(3600);
const LEAST_SPAN: Duration = Duration::from_secs(60);
/// One round of search in so many covers all that may have come late, the others what is new: at thousands of requests a
/// second the former reads hundreds of thousands of records.
const ALL_EVERY: u32 = 8;
/// Searches of one sweep.
const SEARCHES: usize = 64;
/// Records of one search.
const PAGE: u32 = 1000;
/// Open requests that are remembered; the search goes on when some have ended.
const CAPACITY: usize = 50_000;

/// Open requests, and the place up to which there are no others.
#[derive(Debug)]
pub(super) struct Open {
    requests: BTreeMap<Uuid, Request>,
    /// Younger requests are left alone.
    least_age: Duration,
    /// Where the next search begins.
    searched_to: Place,
    /// Where a round over all begins: nothing open is before, but what is known.
    settled_to: OffsetDateTime,
    /// Rounds since the one over all; 0 while that is under way.
    rounds: u32,
    /// Records stored before this moment were in Postgres when the round over all began.
    passed: Option<OffsetDateTime>,
    span: Duration,
}

#[derive(Debug)]
struct Request {
    admitted: AuditRecord,
    /// Its owner is not asked before.
    ask_at: Instant,
}

impl Open {
    pub(super) fn new(least_age: Duration) -> Self {
        let settled_to = clock::now() - LOOK_BACK;
        Self {
            requests: BTreeMap::new(),
            least_age,
            searched_to: Place::at(settled_to),
            settled_to,
            rounds: 0,
            passed: None,
            span: MOST_SPAN,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Looks for open requests of the least age. All records stored before `passed` are in Postgres, so that what
    /// was admitted well before then need not be looked at again after a round over all.
    pub(super) async fn gather(
        &mut self,
        store: &Store,
        passed: Option<OffsetDateTime>,
    ) -> Result<(), StoreError> {
        let horizon = clock::now() - self.least_age;
        if self.searched_to == Place::at(self.settled_to) {
            self.passed = passed;
        }
        for _ in 0..SEARCHES {
            if self.searched_to.at >= horizon {
                if let (0, Some(passed)) = (self.rounds, self.passed) {
                    self.settled_to = (passed - SLACK).min(horizon).max(self.settled_to);
                }
                self.rounds = (self.rounds + 1) % ALL_EVERY;
                self.searched_to = Place::at(match self.rounds {
                    0 => self.settled_to,
                    _ => horizon,
                });
                return Ok(());
            }
            if self.requests.len() >= CAPACITY {
                return Ok(());
            }
            let until = (self.searched_to.at + self.span).min(horizon);
            let page = match store.unended(self.searched_to, until, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    self.span = (self.span / 2).max(LEAST_SPAN);
                    return Err(error);
                }
            };
            self.span = (self.span * 2).min(MOST_SPAN);
            let last = page.last().map(place_of);
            let full = page.len() >= PAGE as usize;
            for admitted in page {
                let ask_at = Instant::now();
                self.requests
                    .entry(admitted.request_id)
                    .or_insert(Request { admitted, ask_at });
            }
            self.searched_to = match last {
                Some(last) if full => last,
                _ => Place::at(until),
            };
        }
        Ok(())
    }

    /// Forgets those that have ended since.
    pub(super) async fn drop_ended(&mut self, store: &Store) -> Result<(), StoreError> {
        let ids: Vec<_> = self.requests.keys().copied().collect();
        if ids.is_empty() {
            return Ok(());
        }
        for id in store.ended_among(&ids).await? {
            self.requests.remove(&id);
        }
        Ok(())
    }

    /// The requests whose owner may be asked now, by owner.
    pub(super) fn due(&self, now: Instant) -> HashMap<String, Vec<Uuid>> {
        let mut due: HashMap<String, Vec<Uuid>> = HashMap::new();
        for (id, request) in &self.requests {
            if request.ask_at <= now {
                due.entry(request.admitted.broker.clone()).or_default().push(*id);
            }
        }
        due
    }

    /// Has this request's owner asked no earlier than `at`; its *admitted* record, unless it is not open.
    pub(super) fn put_off(&mut self, id: Uuid, at: Instant) -> Option<&AuditRecord> {
        let request = self.requests.get_mut(&id)?;
        request.ask_at = at;
        Some(&request.admitted)
    }
}

fn place_of(record: &AuditRecord) -> Place {
    let at = i128::from(record.occurred_at_us) * 1000;
    Place {
        at: OffsetDateTime::from_unix_timestamp_nanos(at).unwrap_or(OffsetDateTime::UNIX_EPOCH),
        request_id: record.request_id,
    }
}
