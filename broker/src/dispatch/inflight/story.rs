//! What each attempt of a request met, and the dead letter that tells it.

use std::time::{Duration, Instant};

use duo_contract::audit::Outcome;
use duo_contract::claim::ClaimRequest;
use duo_contract::dead::{AttemptEnd, AttemptStory, DeadHead, DeadLetter, MOST_STORIES};
use duo_contract::failure::FailureKind;
use duo_contract::frame::FailedAttempt;
use duo_contract::snapshot::BodyPolicy;
use duo_process::clock;

use super::{InFlight, State};
use crate::request::ExchangeError;

/// The attempts of one request so far.
#[derive(Debug, Default)]
pub(super) struct Story {
    attempts: Vec<Told>,
}

/// One attempt.
#[derive(Debug)]
struct Told {
    number: u32,
    worker: String,
    server: Option<String>,
    began: Instant,
    ended: Option<Ended>,
}

#[derive(Debug)]
struct Ended {
    at: Instant,
    how: AttemptEnd,
    frames: u32,
    failed: Option<FailedAttempt>,
}

impl Story {
    /// An attempt begins; of more than [`MOST_STORIES`] those in the middle are forgotten.
    pub(super) fn begins(&mut self, number: u32, claim: &ClaimRequest, now: Instant) {
        if self.attempts.len() >= MOST_STORIES {
            self.attempts.remove(MOST_STORIES / 2);
        }
        self.attempts.push(Told {
            number,
            worker: claim.worker.clone(),
            server: claim.server.clone(),
            began: now,
            ended: None,
        });
    }

    /// The attempt of the moment, if there is one, ends after `frames` frames.
    pub(super) fn ends(&mut self, how: AttemptEnd, frames: u32, now: Instant) {
        self.end(Ended {
            at: now,
            how,
            frames,
            failed: None,
        });
    }

    /// The attempt of the moment ends as its worker reported.
    pub(super) fn fails(&mut self, failed: &FailedAttempt, frames: u32, now: Instant) {
        let how = if failed.leaving {
            AttemptEnd::HandedBack
        } else {
            AttemptEnd::Failed
        };
        self.end(Ended {
            at: now,
            how,
            frames,
            failed: Some(failed.clone()),
        });
    }

    fn end(&mut self, end: Ended) {
        if let Some(told) = self.attempts.last_mut() {
            told.ended.get_or_insert(end);
        }
    }

    fn stories(&self, wall: &Wall) -> Vec<AttemptStory> {
        self.attempts.iter().map(|told| told.story(wall)).collect()
    }
}

impl Told {
    fn story(&self, wall: &Wall) -> AttemptStory {
        let failed = self.ended.as_ref().and_then(|ended| ended.failed.as_ref());
        AttemptStory {
            attempt: self.number,
            worker: self.worker.clone(),
            server: self.server.clone(),
            began_at_ms: wall.at(self.began),
            ended_at_ms: self.ended.as_ref().map_or(wall.now_ms, |ended| wall.at(ended.at)),
            end: self.ended.as_ref().map_or(AttemptEnd::Stopped, |ended| ended.how),
            frames: self.ended.as_ref().map_or(0, |ended| ended.frames),
            failure: failed.map(|failed| failed.failure.kind),
            message: failed.map(|failed| failed.failure.message.clone()),
            upstream_status: failed.and_then(|failed| failed.failure.upstream_status),
            model_calls: failed.map(|failed| failed.model_calls),
            output_tokens: failed.and_then(|failed| failed.output_tokens),
        }
    }
}

/// What the wall clock showed at moments of the other clock.
struct Wall {
    now: Instant,
    now_ms: u64,
}

impl Wall {
    fn at(&self, moment: Instant) -> u64 {
        let ago: Duration = self.now.saturating_duration_since(moment);
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        self.now_ms.saturating_sub(ago)
    }
}

impl InFlight {
    /// The letter of a request that ends so, if its end is one: the system failed it after at least one attempt that
    /// counts. What the client did wrong or gave up, what ran out of time, and what a stopping broker cut off is no
    /// dead letter; nor is a replay, whose letter is there already.
    pub(super) fn dead_letter(
        &self,
        state: &State,
        outcome: Outcome,
        error: &ExchangeError,
        now: Instant,
    ) -> Option<Box<DeadLetter>> {
        let counted = state.attempt.number - state.attempt.given_up;
        if outcome != Outcome::Failed || counted == 0 || !is_systems(error) {
            return None;
        }
        let task = &self.task;
        let (who, what) = task.record.told()?;
        let keep = task.routed.feature.bodies == BodyPolicy::Full;
        let wall = Wall {
            now,
            now_ms: clock::unix_ms(),
        };
        let head = DeadHead {
            request_id: self.request_id,
            feature: task.routed.feature.name.clone(),
            model: task.routed.model.name.clone(),
            lane: self.lane,
            endpoint: task.work.endpoint,
            stream: task.work.stream,
            route: what.route,
            who,
            correlation_id: what.correlation_id,
            trace_id: what.trace_id,
            prompt_id: what.prompt_id,
            prompt_version: what.prompt_version,
            config_revision: task.routed.revision,
            // The dispatch knows.
            broker: String::new(),
            accepted_at_ms: wall.at(self.accepted),
            died_at_ms: wall.now_ms,
            kind: error.kind,
            reason: error.reason.to_string(),
            message: error.message.clone(),
            attempts: state.attempt.number,
            stories: state.story.stories(&wall),
            body_bytes: u64::try_from(task.work.body.len()).unwrap_or(u64::MAX),
            replayable: keep,
        };
        let body = keep.then(|| task.work.body.clone());
        Some(Box::new(DeadLetter { head, body }))
    }
}

/// Is it a failure of the system, not of the client, and no end by a deadline?
fn is_systems(error: &ExchangeError) -> bool {
    match error.kind {
        FailureKind::Overloaded
        | FailureKind::ModelUnavailable
        | FailureKind::ModelServerFault
        | FailureKind::Internal => true,
        FailureKind::InvalidRequest
        | FailureKind::FeatureInactive
        | FailureKind::Unsupported
        | FailureKind::Unauthorized
        | FailureKind::DeadlineExceeded
        | FailureKind::Cancelled => false,
    }
}
