//! What an answer has so far, kept in [`subject::JOB_REPLIES_STREAM`] for whoever follows the job at whichever broker.
//!
//! A piece is a part of the text, numbered within its run and marked with the bytes of text before it. Pieces are a
//! convenience: a job without them, or whose pieces are gone, has its text in the result.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use duo_contract::seal::SealKeys;
use duo_contract::subject;
use duo_process::nats::Pending;
use tokio::time::Instant;
use uuid::Uuid;

use super::Jobs;

/// Text that comes together within this time makes one piece; an answer that is over by then has none.
const GATHER: Duration = Duration::from_millis(50);
/// A piece of so many bytes waits no longer.
const PIECE_BYTES: usize = 8 << 10;
/// How long the last pieces may take to be stored before the job ends without them.
const STORED_WITHIN: Duration = Duration::from_secs(2);
/// Where a piece says what it is: `<run>-<number>-<bytes before it>`.
const PLACE: &str = "Duo-Piece";

/// Where a piece of an answer is; as text the id of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The run.
    pub run: i32,
    /// Pieces of the run up to and with this one.
    pub number: u64,
    /// Bytes of text up to the end of this piece.
    pub end: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.run, self.number, self.end)
    }
}

impl std::str::FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(());
        let place = Self {
            run: next()?.parse().map_err(|_| ())?,
            number: next()?.parse().map_err(|_| ())?,
            end: next()?.parse().map_err(|_| ())?,
        };
        parts.next().is_none().then_some(place).ok_or(())
    }
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) place: Place,
    pub(super) text: String,
}

impl Piece {
    /// Bytes of text before it.
    pub(super) fn start(&self) -> u64 {
        self.place.end - self.text.len() as u64
    }

    /// Reads a stored piece; `None` where it is of another program or key.
    pub(super) fn read(
        keys: &SealKeys,
        id: Uuid,
        headers: Option<&HeaderMap>,
        payload: &[u8],
    ) -> Option<Self> {
        let headers = headers?;
        let place: Place = headers.get(PLACE)?.as_str().parse().ok()?;
        let key_id = headers.get(subject::KEY_ID_HEADER)?.as_str();
        let text = keys.open(key_id, &aad(id, place), payload).ok()?;
        let text = String::from_utf8(text).ok()?;
        (text.len() as u64 <= place.end).then_some(Self { place, text })
    }
}

/// A piece opens in its own place only.
fn aad(id: Uuid, place: Place) -> Vec<u8> {
    format!("job piece {id} {place}").into_bytes()
}

/// Keeps the answer of one run.
pub(super) struct Writer {
    jobs: Jobs,
    id: Uuid,
    place: Place,
    held: String,
    since: Option<Instant>,
    sent: Vec<Pending>,
}

impl Writer {
    pub(super) fn new(jobs: &Jobs, id: Uuid, run: i32) -> Self {
        Self {
            jobs: jobs.clone(),
            id,
            place: Place {
                run,
                number: 0,
                end: 0,
            },
            held: String::new(),
            since: None,
            sent: Vec::new(),
        }
    }

    /// More of the text.
    pub(super) fn push(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.held.push_str(text);
        self.since.get_or_insert_with(Instant::now);
    }

    /// Is there so much that it waits no longer?
    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= PIECE_BYTES
    }

    /// Comes back when what is held has waited long enough; never while nothing is.
    pub(super) async fn due(&self) {
        match self.since {
            Some(since) => tokio::time::sleep_until(since + GATHER).await,
            None => std::future::pending().await,
        }
    }

    /// Sends what is held.
    pub(super) async fn flush(&mut self) {
        self.since = None;
        if self.held.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.held);
        self.place.number += 1;
        self.place.end += text.len() as u64;
        let mut payload = Vec::with_capacity(text.len() + SealKeys::OVERHEAD);
        let Ok(key_id) = self
            .jobs
            .keys()
            .seal(&aad(self.id, self.place), text.as_bytes(), &mut payload)
        else {
            return;
        };
        let mut headers = HeaderMap::new();
        headers.insert(PLACE, self.place.to_string().as_str());
        headers.insert(subject::KEY_ID_HEADER, &*key_id);
        let nats = &self.jobs.parts().nats;
        let sent = nats
            .send(subject::job_replies(self.id), Some(headers), Bytes::from(payload))
            .await;
        // One that is lost leaves a gap, which followers fill from the result.
        self.sent.extend(sent.ok());
    }

    /// The answer is whole: its pieces are stored before anybody hears of the end. One without any needs none.
    pub(super) async fn finish(&mut self) {
        if self.place.number == 0 {
            return;
        }
        self.flush().await;
        let by = Instant::now() + STORED_WITHIN;
        for pending in &mut self.sent {
            let left = by.saturating_duration_since(Instant::now());
            if pending.wait(left).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_text() {
        let place = Place {
            run: 2,
            number: 17,
            end: 4096,
        };
        assert_eq!(place.to_string().parse(), Ok(place));
        for text in ["", "1-2", "1-2-3-4", "a-b-c", "1-2--3"] {
            assert_eq!(text.parse::<Place>(), Err(()), "{text}");
        }
    }
}
