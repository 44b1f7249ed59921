//! What this worker says to the owners of its requests: claims and frames, as many in one message as are ready.
//!
//! One task sends them in the order they were given. It lets everything that is ready to run have its word first, so a
//! busy worker fills its messages and an idle one does not wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use duo_contract::bundle::{self, Entry, Kind};
use duo_contract::subject;
use duo_process::nats::{Nats, Pending, RequestError};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// What may wait to be sent before whoever speaks waits too.
const CAPACITY: usize = 4096;
/// Most entries of a bundle.
const MOST_ENTRIES: usize = 256;
/// Most bytes of a bundle of several entries.
const MOST_BYTES: usize = 256 * 1024;
/// A payload beyond this size is compared with what the server takes, which is never less.
const LARGE: usize = 64 * 1024;

/// The way to the owners.
#[derive(Debug)]
pub struct Outbox {
    nats: Nats,
    sender: mpsc::Sender<Outgoing>,
}

type Answered = Result<Bytes, RequestError>;

struct Outgoing {
    owner: Arc<str>,
    kind: Kind,
    request_id: Uuid,
    payload: Bytes,
    question: Option<Question>,
}

struct Question {
    answer: oneshot::Sender<Answered>,
    timeout: Duration,
}

impl Outbox {
    /// Starts the task that sends; it ends with the outbox.
    #[must_use]
    pub fn open(nats: Nats) -> Self {
        let (sender, outgoing) = mpsc::channel(CAPACITY);
        tokio::spawn(run(nats.clone(), outgoing));
        Self { nats, sender }
    }

    /// Is there a connection at this moment?
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.nats.is_up()
    }

    /// Sends something; without a connection it is kept for the next one.
    ///
    /// # Errors
    /// It is over the server's limit, or the connection is closed for good.
    pub async fn tell(
        &self,
        owner: &Arc<str>,
        kind: Kind,
        request_id: Uuid,
        payload: Bytes,
    ) -> Result<(), RequestError> {
        self.send(owner, kind, request_id, payload, None).await
    }

    /// Sends something and waits for the owner's answer.
    ///
    /// # Errors
    /// Nobody there, no answer in time, no connection, or over the server's limit.
    pub async fn ask(
        &self,
        owner: &Arc<str>,
        kind: Kind,
        request_id: Uuid,
        payload: Bytes,
        timeout: Duration,
    ) -> Answered {
        let (answer, answered) = oneshot::channel();
        let question = Some(Question { answer, timeout });
        let asked = async {
            self.send(owner, kind, request_id, payload, question).await?;
            // Nothing but the end of the runtime drops a question.
            answered.await.unwrap_or(Err(RequestError::Closed))
        };
        let asked = tokio::time::timeout(timeout, asked).await;
        asked.unwrap_or(Err(RequestError::TimedOut))
    }

    async fn send(
        &self,
        owner: &Arc<str>,
        kind: Kind,
        request_id: Uuid,
        payload: Bytes,
        question: Option<Question>,
    ) -> Result<(), RequestError> {
        if payload.len() > LARGE {
            let most = self.nats.client().server_info().max_payload;
            if payload.len() + bundle::OVERHEAD > most {
                return Err(RequestError::TooLarge);
            }
        }
        let outgoing = Outgoing {
            owner: Arc::clone(owner),
            kind,
            request_id,
            payload,
            question,
        };
        let sent = self.sender.send(outgoing).await;
        sent.map_err(|_| RequestError::Closed)
    }
}

async fn run(nats: Nats, mut outgoing: mpsc::Receiver<Outgoing>) {
    let mut ready = Vec::new();
    while let Some(first) = outgoing.recv().await {
        ready.push(first);
        tokio::task::yield_now().await;
        while ready.len() < MOST_ENTRIES
            && let Ok(next) = outgoing.try_recv()
        {
            ready.push(next);
        }
        while !ready.is_empty() {
            send(&nats, next_bundle(&mut ready)).await;
        }
    }
}

/// Takes what goes to the first one's owner out of `ready`, in order and as much as fits.
fn next_bundle(ready: &mut Vec<Outgoing>) -> Vec<Outgoing> {
    let owner = Arc::clone(&ready[0].owner);
    let (mut bytes, mut full) = (0, false);
    let fits = |outgoing: &mut Outgoing| {
        if full || outgoing.owner != owner {
            return false;
        }
        full = bytes > 0 && bytes + outgoing.payload.len() > MOST_BYTES;
        bytes += bundle::OVERHEAD + outgoing.payload.len();
        !full
    };
    ready.extract_if(.., fits).collect()
}

async fn send(nats: &Nats, outgoing: Vec<Outgoing>) {
    let subject = subject::bundles(&outgoing[0].owner);
    let mut questions = Vec::new();
    let mut entries: Vec<_> = outgoing
        .into_iter()
        .map(|outgoing| {
            let token = outgoing.question.map_or(0, |question| {
                questions.push(question);
                token_of(questions.len())
            });
            Entry {
                kind: outgoing.kind,
                token,
                request_id: outgoing.request_id,
                payload: outgoing.payload,
            }
        })
        .collect();
    if !questions.is_empty() {
        match nats.send(subject.clone(), None, bundle::encode(&entries)).await {
            Ok(pending) => {
                tokio::spawn(hand_out(pending, questions));
                return;
            }
            Err(error) => {
                fail(questions, error);
                // What asks for nothing is kept for the next connection.
                entries.retain(|entry| entry.token == 0);
            }
        }
    }
    if !entries.is_empty() {
        // A failure means that the connection is closed for good, and with it the worker.
        let _ = nats.client().publish(subject, bundle::encode(&entries)).await;
    }
}

/// Waits for a bundle's answers and gives each to who asked.
async fn hand_out(pending: Pending, mut questions: Vec<Question>) {
    let longest = questions.iter().map(|question| question.timeout).max();
    let answers = match pending.within(longest.unwrap_or_default()).await {
        Ok(message) => bundle::decode_answers(&message.payload),
        Err(error) => return fail(questions, error),
    };
    match answers {
        Ok(answers) => {
            let mut questions: Vec<_> = questions.drain(..).map(Some).collect();
            for answer in answers {
                let index = usize::try_from(answer.token).unwrap_or_default().wrapping_sub(1);
                if let Some(question) = questions.get_mut(index).and_then(Option::take) {
                    // Whoever asked may have left.
                    let _ = question.answer.send(Ok(answer.payload));
                }
            }
            fail(questions.into_iter().flatten(), RequestError::TimedOut);
        }
        Err(error) => {
            tracing::error!(%error, "an owner's answers do not parse; is it newer than this worker?");
            fail(questions, RequestError::TimedOut);
        }
    }
}

fn fail(questions: impl IntoIterator<Item = Question>, error: RequestError) {
    for question in questions {
        let _ = question.answer.send(Err(error));
    }
}

fn token_of(number: usize) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(owner: &Arc<str>, size: usize) -> Outgoing {
        Outgoing {
            owner: Arc::clone(owner),
            kind: Kind::Frame,
            request_id: Uuid::nil(),
            payload: vec![0; size].into(),
            question: None,
        }
    }

    #[test]
    fn a_bundle_is_of_one_owner_keeps_the_order_and_has_its_size() {
        let (one, two): (Arc<str>, Arc<str>) = ("b1".into(), "b2".into());
        let large = MOST_BYTES - 1000;
        let sizes = [(&one, 500), (&two, 1), (&one, large), (&one, 600), (&one, 2)];
        let mut ready: Vec<_> = sizes.iter().map(|(owner, size)| outgoing(owner, *size)).collect();
        let mut bundles = Vec::new();
        while !ready.is_empty() {
            let bundle = next_bundle(&mut ready);
            assert!(bundle.iter().all(|item| item.owner == bundle[0].owner));
            bundles.push(bundle.iter().map(|item| item.payload.len()).collect::<Vec<_>>());
        }
        assert_eq!(bundles, [vec![500, large], vec![1], vec![600, 2]]);
    }

    #[test]
    fn what_is_too_large_for_company_goes_alone() {
        let owner: Arc<str> = "b1".into();
        let mut ready: Vec<_> = [MOST_BYTES * 2, 1].map(|size| outgoing(&owner, size)).into();
        assert_eq!(next_bundle(&mut ready).len(), 1);
        assert_eq!(next_bundle(&mut ready).len(), 1);
        assert!(ready.is_empty());
    }
}
