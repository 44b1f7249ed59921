//! Reads and drops dead letters, for administrators; who writes them is [`crate::dispatch::dead`].
//!
//! A letter's id is that of its request. Pages go from the newest to the oldest and do not shift when letters come or
//! go: a page begins before the last letter of the one before.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind, Stream};
use duo_contract::dead::{DeadHead, DeadLetter};
use duo_contract::envelope::EnvelopeError;
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::seal::SealKeys;
use duo_contract::subject;
use duo_process::nats::Nats;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// Most letters on one page.
pub const MAX_PAGE: usize = 1000;
/// The first stretch of the stream that a search reads, from its end; each next one is twice as long.
const FIRST_STRETCH: u64 = 64;
/// The longest stretch.
const MOST_STRETCH: u64 = 4096;
/// Longest wait for one answer of NATS.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no letter.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// NATS cannot be asked just now.
    #[error("the dead letters cannot be read: {0}")]
    Unavailable(String),
    /// There is none of that id.
    #[error(
        "there is no dead letter {0}: it was replayed or dropped, it is older than 30 days, or newer ones took its place"
    )]
    NotFound(Uuid),
    /// Its body was not kept.
    #[error(
        "the body of {0} was not kept, so it cannot be replayed: only features with the body policy `full` keep it"
    )]
    NoBody(Uuid),
    /// A newer program wrote it, or the key is another.
    #[error("the dead letter cannot be opened")]
    Unreadable(#[from] EnvelopeError),
}

/// What to look for; everything named must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this feature.
    pub feature: Option<FeatureName>,
    /// Of this model.
    pub model: Option<ModelName>,
    /// Given up for this reason, as in the audit record, or with this failure kind.
    pub reason: Option<String>,
    /// Not before, milliseconds since the epoch.
    pub since_ms: Option<u64>,
}

/// Letters, newest first, and where the next page begins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = DeadLetters)]
pub struct Page {
    /// The letters.
    pub letters: Vec<DeadHead>,
    /// Give it back for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<u64>,
}

/// The stream of dead letters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Letters {
    nats: Nats,
}

impl Filter {
    fn takes(&self, head: &DeadHead) -> bool {
        let reason = |reason: &String| head.reason == *reason || head.kind.as_str() == reason;
        self.reason.as_ref().is_none_or(reason) && self.since_ms.is_none_or(|since| head.died_at_ms >= since)
    }
}

impl Letters {
    /// The letters of this NATS.
    #[must_use]
    pub fn new(nats: Nats) -> Self {
        Self { nats }
    }

    /// One page of letters, the newest first; `before` is the cursor of the page before.
    ///
    /// # Errors
    /// NATS is away.
    pub async fn page(
        &self,
        filter: &Filter,
        limit: usize,
        before: Option<u64>,
    ) -> Result<Page, LetterError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let stream = self.stream().await?;
        let state = &stream.cached_info().state;
        let subjects = subject::dead_filter(filter.feature.as_ref(), filter.model.as_ref());
        let mut page = Page::default();
        let mut end = before.map_or(state.last_sequence, |before| {
            before.saturating_sub(1).min(state.last_sequence)
        });
        let mut stretch = FIRST_STRETCH;
        while end >= state.first_sequence.max(1) {
            let begin = end.saturating_sub(stretch - 1).max(state.first_sequence).max(1);
            let found = stretch_of(&stream, &subjects, begin, end).await?;
            for (sequence, head) in found.into_iter().rev() {
                // What was given up earlier was stored earlier, but for moments.
                if !filter.takes(&head) {
                    continue;
                }
                if page.letters.len() == limit {
                    return Ok(page);
                }
                page.letters.push(head);
                page.next_cursor = Some(sequence);
            }
            end = begin - 1;
            stretch = (stretch * 2).min(MOST_STRETCH);
        }
        page.next_cursor = None;
        Ok(page)
    }

    /// One letter without its body.
    ///
    /// # Errors
    /// There is none, or NATS is away.
    pub async fn head(&self, id: Uuid) -> Result<DeadHead, LetterError> {
        let message = self.message(&self.stream().await?, id).await?;
        Ok(DeadLetter::decode_head(&message.payload)?)
    }

    /// One letter with its body.
    ///
    /// # Errors
    /// There is none, its body was not kept or does not open, or NATS is away.
    pub async fn whole(&self, id: Uuid, keys: &SealKeys) -> Result<(DeadHead, bytes::Bytes), LetterError> {
        let message = self.message(&self.stream().await?, id).await?;
        let key_id = message.headers.get(subject::KEY_ID_HEADER);
        let letter = DeadLetter::decode(&message.payload, key_id.map(|id| id.as_str()), keys)?;
        match letter.body {
            Some(body) => Ok((letter.head, body)),
            None => Err(LetterError::NoBody(id)),
        }
    }

    /// Removes a letter; its bytes are overwritten.
    ///
    /// # Errors
    /// There is none any more, or NATS is away.
    pub async fn remove(&self, id: Uuid) -> Result<(), LetterError> {
        let stream = self.stream().await?;
        let message = self.message(&stream, id).await?;
        let removed = within(stream.delete_message(message.sequence)).await?;
        match removed {
            Ok(_) => Ok(()),
            // Somebody else was faster, or NATS does not answer: a second look tells.
            Err(error) => match self.message(&stream, id).await {
                Err(gone @ LetterError::NotFound(_)) => Err(gone),
                _ => Err(unavailable(&error)),
            },
        }
    }

    async fn stream(&self) -> Result<Stream, LetterError> {
        let context = self.nats.jetstream();
        let stream = within(context.get_stream(subject::DEAD_STREAM)).await?;
        stream.map_err(|error| unavailable(&error))
    }

    async fn message(&self, stream: &Stream, id: Uuid) -> Result<StreamMessage, LetterError> {
        let subject = subject::dead_by_id(id);
        match within(stream.get_last_raw_message_by_subject(&subject)).await? {
            Ok(message) => Ok(message),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                Err(LetterError::NotFound(id))
            }
            Err(error) => Err(unavailable(&error)),
        }
    }
}

/// The letters between two sequences, in order; what a newer program wrote is left out.
async fn stretch_of(
    stream: &Stream,
    subjects: &str,
    begin: u64,
    end: u64,
) -> Result<Vec<(u64, DeadHead)>, LetterError> {
    let mut found = Vec::new();
    let mut next = begin;
    while next <= end {
        let message = match within(stream.get_first_raw_message_by_subject(subjects, next)).await? {
            Ok(message) => message,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
            Err(error) => return Err(unavailable(&error)),
        };
        if message.sequence > end {
            break;
        }
        if let Ok(head) = DeadLetter::decode_head(&message.payload) {
            found.push((message.sequence, head));
        }
        next = message.sequence + 1;
    }
    Ok(found)
}

async fn within<T>(call: impl Future<Output = T>) -> Result<T, LetterError> {
    tokio::time::timeout(TIMEOUT, call)
        .await
        .map_err(|_| LetterError::Unavailable("NATS does not answer in time".into()))
}

fn unavailable(error: &dyn std::error::Error) -> LetterError {
    LetterError::Unavailable(error.to_string())
}
