//! Numbered frames to the owner, kept until the owner says that it has them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use duo_contract::bundle::Kind;
use duo_contract::claim::FIRST_ATTEMPT;
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame};
use duo_process::nats::RequestError;
use duo_process::retry::RetryPolicy;
use prometheus::IntCounter;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use crate::model_server::openai::Lines;
use crate::outbox::Outbox;

/// How long the owner may take to answer a last frame.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses between two tries to hand over the last frame.
const PAUSE_BASE: Duration = Duration::from_millis(50);
const PAUSE_CAP: Duration = Duration::from_millis(500);
/// Most rounds of sending missing frames again.
const MOST_ROUNDS: u32 = 16;

/// Why an answer cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// One frame is over the server's limit.
    #[error("the frame is over the NATS server's max_payload")]
    TooLarge,
    /// The connection is closed for good.
    #[error("the connection to NATS is closed")]
    Closed,
}

/// What became of the last frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The owner has everything.
    Confirmed,
    /// The owner wants another attempt.
    HandBack(Duration),
    /// A later attempt has taken over.
    Stale,
    /// The owner was not heard for a lease.
    Unheard,
}

/// The frames of one delivery's answer.
#[derive(Debug)]
pub struct Reply {
    outbox: Arc<Outbox>,
    owner: Arc<str>,
    request: Uuid,
    kept: Mutex<Kept>,
    /// The owner's leave is there.
    opened: Notify,
    sent: IntCounter,
    resent: IntCounter,
}

#[derive(Debug)]
struct Kept {
    /// Without one no frame may leave.
    fence: Option<Fence>,
    /// Frames that the owner has for sure and that are not kept.
    arrived: u32,
    /// The frames from there on.
    frames: VecDeque<Bytes>,
    ended: bool,
}

/// By what the owner tells this attempt's frames from those of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    /// Its leave is still to come, for the first attempt as far as is known: it takes frames of the job that has it.
    Job {
        job: Uuid,
        /// It was asked for and may come at any time.
        awaited: bool,
    },
    /// It has given leave for this attempt.
    Attempt(u32),
}

impl Fence {
    fn attempt(self) -> u32 {
        match self {
            Self::Job { .. } => FIRST_ATTEMPT,
            Self::Attempt(attempt) => attempt,
        }
    }

    fn is_early(self) -> bool {
        matches!(self, Self::Job { .. })
    }

    fn kind(self) -> Kind {
        match self {
            Self::Job { job, .. } => Kind::EarlyFrame(job),
            Self::Attempt(_) => Kind::Frame,
        }
    }
}

impl Kept {
    /// The attempt that the owner has given leave for.
    fn attempt(&self) -> Option<u32> {
        match self.fence? {
            Fence::Attempt(attempt) => Some(attempt),
            Fence::Job { .. } => None,
        }
    }

    /// The number of the next frame.
    fn next(&self) -> u32 {
        let kept = u32::try_from(self.frames.len()).unwrap_or(u32::MAX);
        self.arrived.saturating_add(kept)
    }

    /// The owner has all frames below this number.
    fn forget_below(&mut self, number: u32) {
        while self.arrived < number && self.frames.pop_front().is_some() {
            self.arrived += 1;
        }
        self.frames.shrink_to(self.frames.len() * 2);
    }

    /// Frames that are kept, from one number up to another.
    fn between(&self, from: u32, until: u32) -> Vec<Bytes> {
        let index = |number: u32| usize::try_from(number.saturating_sub(self.arrived)).unwrap_or(usize::MAX);
        let count = index(until).saturating_sub(index(from));
        self.frames
            .iter()
            .skip(index(from))
            .take(count)
            .cloned()
            .collect()
    }
}

impl Reply {
    /// A reply that waits for its attempt.
    #[must_use]
    pub fn new(
        outbox: Arc<Outbox>,
        owner: Arc<str>,
        request: Uuid,
        sent: IntCounter,
        resent: IntCounter,
    ) -> Self {
        Self {
            outbox,
            owner,
            request,
            kept: Mutex::new(Kept {
                fence: None,
                arrived: 0,
                frames: VecDeque::new(),
                ended: false,
            }),
            opened: Notify::new(),
            sent,
            resent,
        }
    }

    /// The owner is being asked whether `job` may begin the first attempt: frames may leave behind the question.
    pub fn begin(&self, job: Uuid) {
        self.kept().fence = Some(Fence::Job { job, awaited: true });
    }

    /// The owner let attempt `attempt` proceed: frames may leave. Those of a job that was given another attempt than the
    /// first are forgotten; the owner has taken none.
    pub fn open(&self, attempt: u32) {
        let mut kept = self.kept();
        let before = kept.fence.replace(Fence::Attempt(attempt));
        if before.is_some_and(|before| before.attempt() != attempt) {
            (kept.arrived, kept.ended) = (0, false);
            kept.frames.clear();
        }
        drop(kept);
        self.opened.notify_one();
    }

    /// Nobody waits for the owner's leave any more.
    pub fn unasked(&self) {
        if let Some(Fence::Job { awaited, .. }) = &mut self.kept().fence {
            *awaited = false;
        }
    }

    /// Sends chunks.
    ///
    /// # Errors
    /// They are over the server's limit, or the connection is closed for good.
    pub async fn chunks(&self, Lines { text, tokens }: Lines) -> Result<(), ReplyError> {
        let kind = match tokens {
            Some(tokens) => FrameKind::Tokens(tokens, text),
            None => FrameKind::Chunk(text),
        };
        let Some(frame) = self.keep(kind, false) else {
            return Ok(());
        };
        let published = self.publish(frame).await;
        if published == Err(ReplyError::TooLarge) {
            // Not sent: the number is free for the failure that follows.
            self.take_back();
        }
        published
    }

    /// Sends the last frame of an attempt that was told to stop, unless one was sent already. Nobody answers it.
    ///
    /// # Errors
    /// The connection is closed for good.
    pub async fn last_word(&self, kind: FrameKind) -> Result<(), ReplyError> {
        if self.kept().ended {
            return Ok(());
        }
        match self.keep(kind, true) {
            Some(frame) => self.publish(frame).await,
            None => Ok(()),
        }
    }

    /// Says that the attempt is at work, and asks the owner whether it is there and wants it to go on; `None` while there
    /// is nothing to ask. Frames that the owner has are no longer kept.
    ///
    /// # Errors
    /// Nobody listens for the answer, or nothing came back in time.
    pub async fn probe(&self, timeout: Duration) -> Option<Result<FrameAnswer, RequestError>> {
        let probe = {
            let kept = self.kept();
            let attempt = kept.attempt().filter(|_| !kept.ended)?;
            ReplyFrame {
                attempt,
                number: kept.next(),
                kind: FrameKind::Heartbeat,
            }
        };
        let answer = self.ask(Kind::Frame, probe.encode(), timeout).await;
        Some(answer.map(|payload| match FrameAnswer::decode(&payload) {
            Ok(FrameAnswer::Confirmed) => {
                self.kept().forget_below(probe.number);
                FrameAnswer::Confirmed
            }
            Ok(answer) => answer,
            // It says at least that somebody is there.
            Err(_) => FrameAnswer::Confirmed,
        }))
    }

    /// Sends frames again that did not arrive.
    pub async fn resend(&self, attempt: u32, from: u32, until: u32) {
        let frames = {
            let kept = self.kept();
            if kept.attempt() != Some(attempt) {
                return;
            }
            kept.between(from, until)
        };
        for frame in frames {
            self.resent.inc();
            if self.publish(frame).await.is_err() {
                return;
            }
        }
    }

    /// Sends the last frame as a request until the owner has everything, for
    /// a `lease` on a connection that is up, and until `end_by` at most: while
    /// the queue is away the owner waits for it too. An owner that does not know of the job yet gets it again with its
    /// leave.
    ///
    /// # Errors
    /// The frame is over the server's limit, or the connection is closed for good.
    pub async fn finish(
        &self,
        last: FrameKind,
        lease: Duration,
        end_by: Instant,
    ) -> Result<Ended, ReplyError> {
        let policy = RetryPolicy::try_new(PAUSE_BASE, PAUSE_CAP, u32::MAX).expect("valid constants");
        let mut give_up = Instant::now() + lease;
        let Some(frame) = self.keep(last, true) else {
            return Ok(Ended::Unheard);
        };
        self.sent.inc();
        let (mut rounds, mut silences) = (0, 0);
        loop {
            let Some(fence) = self.kept().fence else {
                return Ok(Ended::Unheard);
            };
            let answer = self.ask(fence.kind(), frame.clone(), ANSWER_TIMEOUT).await;
            match answer.map(|payload| FrameAnswer::decode(&payload)) {
                Ok(Ok(FrameAnswer::Stale | FrameAnswer::Missing { .. })) if fence.is_early() => {
                    if !self.leave_came().await {
                        return Ok(Ended::Unheard);
                    }
                    continue;
                }
                Ok(Ok(FrameAnswer::Confirmed)) => return Ok(Ended::Confirmed),
                Ok(Ok(FrameAnswer::HandBack { delay_ms })) => {
                    return Ok(Ended::HandBack(Duration::from_millis(delay_ms)));
                }
                Ok(Ok(FrameAnswer::Stale)) => return Ok(Ended::Stale),
                Ok(Ok(FrameAnswer::Missing { from, until })) if rounds < MOST_ROUNDS => {
                    rounds += 1;
                    self.resend(fence.attempt(), from, until).await;
                    continue;
                }
                Ok(Ok(FrameAnswer::Missing { .. })) => return Ok(Ended::Unheard),
                Ok(Err(error)) => {
                    tracing::error!(%error, "the owner's answer to a last frame does not parse")
                }
                Err(RequestError::TooLarge) => {
                    // Not sent: the number is free for the failure that follows.
                    self.take_back();
                    return Err(ReplyError::TooLarge);
                }
                Err(RequestError::Closed) => return Err(ReplyError::Closed),
                Err(error) => tracing::debug!(%error, "a last frame has no answer yet"),
            }
            silences += 1;
            if !self.outbox.is_up() {
                give_up = end_by.min(Instant::now() + lease);
            }
            let left = give_up.saturating_duration_since(Instant::now());
            match policy.delay_within(silences, left, None) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Ok(Ended::Unheard),
            }
        }
    }

    /// Waits for the owner's leave, whose claim is bounded; `false` when it is not awaited any more.
    async fn leave_came(&self) -> bool {
        loop {
            match self.kept().fence {
                Some(Fence::Attempt(_)) => return true,
                Some(Fence::Job { awaited: true, .. }) => {}
                Some(Fence::Job { awaited: false, .. }) | None => return false,
            }
            self.opened.notified().await;
        }
    }

    fn keep(&self, kind: FrameKind, last: bool) -> Option<Bytes> {
        let mut kept = self.kept();
        let attempt = kept.fence?.attempt();
        let number = kept.next();
        let frame = ReplyFrame {
            attempt,
            number,
            kind,
        }
        .encode();
        kept.frames.push_back(frame.clone());
        kept.ended = last;
        Some(frame)
    }

    fn take_back(&self) {
        let mut kept = self.kept();
        kept.frames.pop_back();
        kept.ended = false;
    }

    async fn publish(&self, frame: Bytes) -> Result<(), ReplyError> {
        let Some(fence) = self.kept().fence else {
            return Ok(());
        };
        self.sent.inc();
        let told = self
            .outbox
            .tell(&self.owner, fence.kind(), self.request, frame)
            .await;
        told.map_err(|error| match error {
            RequestError::TooLarge => ReplyError::TooLarge,
            _ => ReplyError::Closed,
        })
    }

    async fn ask(&self, kind: Kind, frame: Bytes, timeout: Duration) -> Result<Bytes, RequestError> {
        self.outbox
            .ask(&self.owner, kind, self.request, frame, timeout)
            .await
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_owner_has_is_not_kept_and_the_rest_keeps_its_numbers() {
        let frame = |number: u8| Bytes::from(vec![number]);
        let mut kept = Kept {
            fence: Some(Fence::Attempt(1)),
            arrived: 0,
            frames: (0..6).map(frame).collect(),
            ended: false,
        };
        kept.forget_below(4);
        assert_eq!((kept.frames.len(), kept.next()), (2, 6));
        assert_eq!(kept.between(3, 5), [frame(4)]);
        assert_eq!(kept.between(4, 100), [frame(4), frame(5)]);
        assert_eq!(kept.between(5, 4), [] as [Bytes; 0]);
        // An answer that comes late says nothing new.
        kept.forget_below(2);
        kept.forget_below(9);
        assert_eq!((kept.frames.len(), kept.next()), (0, 6));
    }
}
