//! Puts dead letters into their stream: kept here until NATS has acknowledged them.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use duo_contract::dead::{DeadHead, DeadLetter};
use duo_contract::subject;
use duo_process::nats::Nats;
use duo_process::retry::RetryPolicy;
use duo_process::shutdown::Shutdown;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::Dispatch;
use super::publish::{self, PublishError};

/// Letters that may wait for NATS.
pub const CAPACITY: usize = 1024;
/// Publishes under way at once.
const WINDOW: usize = 32;
/// One publish may take this long before it is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// What a message has beside its payload.
const HEADERS: usize = 1024;

/// A letter on its way.
#[derive(Debug)]
pub struct Outgoing {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

impl Dispatch {
    /// Counts and logs a request that was given up, and puts its letter on the way.
    pub(super) fn keep_letter(&self, mut letter: DeadLetter) {
        letter.head.broker.clone_from(&self.0.broker);
        let head = &letter.head;
        let labels = [head.feature.as_str(), head.model.as_str(), head.kind.as_str()];
        self.0.metrics.dead_letters.with_label_values(&labels).inc();
        tracing::warn!(
            request_id = %head.request_id,
            feature = head.feature.as_str(),
            model = head.model.as_str(),
            attempts = head.attempts,
            reason = head.reason,
            "a request was given up; duo-broker dead show tells what its attempts met"
        );
        let request_id = head.request_id;
        let most = self.0.nats.client().server_info().max_payload;
        let sent = match self.outgoing(letter, most.saturating_sub(HEADERS)) {
            Ok(outgoing) => self.0.letters.try_send(outgoing).is_ok(),
            Err(error) => {
                tracing::error!(request_id = %request_id, error = %error, "a dead letter could not be sealed");
                false
            }
        };
        if !sent {
            self.0.metrics.dead_letters_dropped.inc();
            tracing::error!(request_id = %request_id, "a dead letter found no place and is not kept");
        }
    }

    fn outgoing(
        &self,
        letter: DeadLetter,
        most: usize,
    ) -> Result<Outgoing, duo_contract::envelope::EnvelopeError> {
        let (payload, key_id) = letter.encode(&self.0.keys)?;
        if payload.len() > most && letter.body.is_some() {
            // A body as large as a request may be, and a long story beside it.
            let head = DeadHead {
                replayable: false,
                ..letter.head
            };
            return self.outgoing(DeadLetter { head, body: None }, most);
        }
        let mut headers = HeaderMap::new();
        let message_id = format!("{}-dead", letter.head.request_id.simple());
        headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id.as_str());
        if let Some(key_id) = key_id {
            headers.insert(subject::KEY_ID_HEADER, &*key_id);
        }
        Ok(Outgoing {
            subject: subject::dead(&letter.head.feature, &letter.head.model, letter.head.request_id),
            headers,
            payload,
        })
    }
}

/// Publishes letters until the dispatch is gone or `closing` begins, then what is left.
pub async fn run(mut letters: mpsc::Receiver<Outgoing>, nats: Nats, shutdown: Shutdown, closing: Shutdown) {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = under_way.next(), if !under_way.is_empty() => {}
            letter = letters.recv(), if under_way.len() < WINDOW => match letter {
                Some(letter) => under_way.push(store(&nats, letter, &shutdown)),
                None => break,
            },
            () = closing.begun(), if !letters.is_closed() => letters.close(),
        }
    }
    while under_way.next().await.is_some() {}
}

/// Publishes until NATS has acknowledged; only the end of the process stops it.
async fn store(nats: &Nats, letter: Outgoing, shutdown: &Shutdown) {
    let pause = RetryPolicy::try_new(Duration::from_millis(100), Duration::from_secs(5), u32::MAX)
        .expect("the constants are in order");
    let mut attempt = 1;
    loop {
        match once(nats, &letter).await {
            Ok(_) => return,
            Err(error) if error.is_passing() => {
                tracing::debug!(error = %error, attempt, "a dead letter was not acknowledged; sending it again");
            }
            Err(error) => {
                tracing::error!(error = %error, subject = letter.subject, "a dead letter was refused and is not kept");
                return;
            }
        }
        tokio::select! {
            () = shutdown.aborted() => return,
            () = tokio::time::sleep(pause.delay(attempt)) => {}
        }
        attempt = attempt.saturating_add(1);
    }
}

async fn once(nats: &Nats, letter: &Outgoing) -> Result<u64, PublishError> {
    let mut pending = nats
        .send(
            letter.subject.clone(),
            Some(letter.headers.clone()),
            letter.payload.clone(),
        )
        .await?;
    publish::stored(&mut pending, ACK_TIMEOUT).await
}
