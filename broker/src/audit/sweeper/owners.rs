//! Asks brokers whether they know their open requests.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use duo_contract::frame::{FrameAnswer, ReplyFrame};
use duo_contract::subject;
use duo_process::nats::{Nats, RequestError};
use futures_util::StreamExt as _;
use uuid::Uuid;

use super::open::Open;

/// One answer; an owner that has forgotten the request waits a second at most for its record to be stored.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Requests that one owner is asked about in one sweep.
const QUESTIONS: usize = 256;
/// Owners asked at once.
const OWNERS_AT_ONCE: usize = 16;

/// Who has been away, and since when.
#[derive(Debug)]
pub(super) struct Owners {
    nats: Nats,
    /// How long an owner must be away before it counts as gone.
    after: Duration,
    away_since: HashMap<String, Instant>,
}

/// What asking one owner came to.
#[derive(Debug)]
struct Answers {
    owner: String,
    /// What it was to be asked about.
    asked: Vec<Uuid>,
    /// It has these.
    known: Vec<Uuid>,
    /// It is there and does not know these.
    unknown: Vec<Uuid>,
    /// Nobody is subscribed to its replies.
    away: bool,
    /// It is subscribed, whether it answers or not: a frozen process is not gone.
    there: bool,
}

impl Owners {
    pub(super) fn new(nats: Nats, after: Duration) -> Self {
        Self {
            nats,
            after,
            away_since: HashMap::new(),
        }
    }

    /// Forgets how long owners have been away.
    pub(super) fn forget(&mut self) {
        self.away_since.clear();
    }

    /// The requests that nobody has any more: their owners do not know them or have been away for long.
    pub(super) async fn orphans(&mut self, open: &mut Open) -> Vec<Uuid> {
        let due = open.due(Instant::now());
        self.away_since.retain(|owner, _| due.contains_key(owner));
        let questions = due
            .into_iter()
            .map(|(owner, requests)| ask(self.nats.clone(), owner, requests));
        let answers: Vec<_> = futures_util::stream::iter(questions)
            .buffer_unordered(OWNERS_AT_ONCE)
            .collect()
            .await;
        let now = Instant::now();
        let mut orphans = Vec::new();
        for answers in answers {
            if answers.there {
                self.away_since.remove(&answers.owner);
            }
            for id in answers.known {
                open.put_off(id, now + self.after);
            }
            orphans.extend(answers.unknown);
            if answers.away && self.is_gone(&answers.owner, now) {
                orphans.extend(answers.asked);
            }
        }
        orphans
    }

    /// Notes that an owner is away; has it been for long enough?
    fn is_gone(&mut self, owner: &str, now: Instant) -> bool {
        let since = *self.away_since.entry(owner.to_owned()).or_insert(now);
        now.saturating_duration_since(since) >= self.after
    }
}

/// Asks one owner about its requests, until it turns out not to be there.
async fn ask(nats: Nats, owner: String, asked: Vec<Uuid>) -> Answers {
    let mut answers = Answers {
        owner,
        asked,
        known: Vec::new(),
        unknown: Vec::new(),
        away: false,
        there: false,
    };
    for &id in answers.asked.iter().take(QUESTIONS) {
        let question = ReplyFrame::question().encode();
        let subject = subject::question(&answers.owner, id);
        match nats.request(subject, question, ANSWER_TIMEOUT).await {
            Ok(message) => {
                answers.there = true;
                match FrameAnswer::decode(&message.payload) {
                    Ok(FrameAnswer::Stale) => answers.unknown.push(id),
                    // What does not parse says at least that somebody is there.
                    _ => answers.known.push(id),
                }
            }
            Err(RequestError::NoResponders) => {
                answers.away = true;
                return answers;
            }
            Err(RequestError::TimedOut) => {
                answers.there = true;
                return answers;
            }
            // Our own connection is away, which says nothing about the owner.
            Err(_) => return answers,
        }
    }
    answers
}
