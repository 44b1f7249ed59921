//! Follows a job from any broker, from any place in its answer to its end, byte for byte.
//!
//! Whoever follows is woken by news ([`subject::job_news`]) and by pieces as they are stored, and looks by itself now
//! and then, since either may be lost. What the stream of pieces no longer has, the result has: a place in an
//! answer is a number of bytes, so both give the same text.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::Subscriber;
use duo_contract::subject;
use futures_util::StreamExt as _;
use uuid::Uuid;

use super::replies::{Piece, Place as PiecePlace};
use super::state::JobState;
use super::work::Outcome;
use super::{FindError, Found, Jobs};
use crate::store::StoreError;
use crate::store::jobs::JobRow;

pub use super::replies::Place;

/// How often the row is looked at although nothing was heard.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for one answer of NATS.
const NATS_TIMEOUT: Duration = Duration::from_secs(2);

/// What happens to a job.
#[derive(Debug)]
pub enum Event {
    /// Its state is this now.
    State(Box<JobRow>),
    /// More of its answer.
    Text {
        /// Where it ends.
        place: Place,
        /// The text.
        text: String,
    },
    /// The answer so far is void: another run begins it anew.
    Restart {
        /// The run.
        run: i32,
    },
    /// It is over; nothing follows.
    End(Box<Found>),
}

/// Why a job cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It cannot be shown.
    #[error(transparent)]
    Find(#[from] FindError),
    /// There is none.
    #[error("there is no such job")]
    Gone,
    /// NATS is away.
    #[error("the queue does not take part just now; try again")]
    Nats,
}

/// A job that is followed.
#[derive(Debug)]
pub struct Follower {
    jobs: Jobs,
    id: Uuid,
    news: Subscriber,
    pieces: Subscriber,
    /// Where the client's text ends.
    at: Option<PiecePlace>,
    /// The next place in the stream of pieces.
    sequence: u64,
    state: Option<JobState>,
    events: VecDeque<Event>,
    must_look: bool,
    is_over: bool,
}

impl Jobs {
    /// Follows a job; `after` is where a client's text ends that has some.
    ///
    /// # Errors
    /// NATS is away.
    pub async fn follow(&self, id: Uuid, after: Option<Place>) -> Result<Follower, FollowError> {
        let client = self.parts().nats.client();
        let news = client.subscribe(subject::job_news(id)).await;
        let pieces = client.subscribe(subject::job_replies(id)).await;
        let (Ok(news), Ok(pieces)) = (news, pieces) else {
            return Err(FollowError::Nats);
        };
        Ok(Follower {
            jobs: self.clone(),
            id,
            news,
            pieces,
            at: after,
            sequence: 1,
            state: None,
            events: VecDeque::new(),
            must_look: true,
            is_over: false,
        })
    }
}

impl Follower {
    /// What happens next; `None` after the end.
    ///
    /// # Errors
    /// The job cannot be read. Whoever asks again from the place of the last event misses nothing.
    pub async fn next(&mut self) -> Result<Option<Event>, FollowError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.is_over {
                return Ok(None);
            }
            if std::mem::take(&mut self.must_look) {
                match self.look().await {
                    Err(FollowError::Find(FindError::Store(StoreError::Unavailable(_))))
                        if self.state.is_some() =>
                    {
                        // The text goes on without Postgres; the row is looked at again.
                    }
                    looked => looked?,
                }
                continue;
            }
            tokio::select! {
                piece = self.pieces.next() => match piece {
                    Some(message) => {
                        let keys = self.jobs.keys();
                        let piece = Piece::read(keys, self.id, message.headers.as_ref(), &message.payload);
                        if let Some(piece) = piece {
                            self.offer(piece);
                        }
                    }
                    None => return Err(FollowError::Nats),
                },
                news = self.news.next() => match news {
                    Some(_) => self.must_look = true,
                    None => return Err(FollowError::Nats),
                },
                () = tokio::time::sleep(LOOK_EVERY) => self.must_look = true,
            }
        }
    }

    /// Row first, pieces then: the pieces of a row that has ended are all there.
    async fn look(&mut self) -> Result<(), FollowError> {
        let found = self.jobs.find(self.id).await?.ok_or(FollowError::Gone)?;
        let row = found.row();
        if self.state != Some(row.state) {
            self.state = Some(row.state);
            if !row.state.is_terminal() {
                self.events.push_back(Event::State(Box::new(row.clone())));
            }
        }
        // Without them the answer comes at the end, whole.
        let _ = tokio::time::timeout(NATS_TIMEOUT, self.read_pieces()).await;
        if row.state.is_terminal() {
            self.end(found);
        }
        Ok(())
    }

    async fn read_pieces(&mut self) {
        let context = self.jobs.parts().nats.jetstream();
        let Ok(stream) = context.get_stream_no_info(subject::JOB_REPLIES_STREAM).await else {
            return;
        };
        let of_job = subject::job_replies(self.id);
        while let Ok(message) = stream
            .get_first_raw_message_by_subject(of_job.as_str(), self.sequence)
            .await
        {
            self.sequence = message.sequence + 1;
            let piece = Piece::read(
                self.jobs.keys(),
                self.id,
                Some(&message.headers),
                &message.payload,
            );
            if let Some(piece) = piece {
                self.offer(piece);
            }
        }
    }

    /// Passes on what of a piece the client does not have, if it goes on where the client's text ends.
    fn offer(&mut self, piece: Piece) {
        let at = self.at.unwrap_or(PiecePlace {
            run: piece.place.run,
            number: 0,
            end: 0,
        });
        let from = match piece.place.run.cmp(&at.run) {
            std::cmp::Ordering::Less => return,
            std::cmp::Ordering::Equal => at.end,
            std::cmp::Ordering::Greater if piece.start() == 0 => {
                self.restart(at, piece.place.run);
                0
            }
            std::cmp::Ordering::Greater => return,
        };
        if piece.place.end <= from {
            return;
        }
        let Some(known) = from.checked_sub(piece.start()) else {
            // One before it is missing: it is stored already, or the result has it.
            return;
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        if let Some(text) = piece.text.get(known..) {
            self.at = Some(piece.place);
            self.events.push_back(Event::Text {
                place: piece.place,
                text: text.to_owned(),
            });
        }
    }

    fn restart(&mut self, at: PiecePlace, run: i32) {
        if at.end > 0 {
            self.events.push_back(Event::Restart { run });
        }
    }

    /// The rest of the answer from the result, and the end.
    fn end(&mut self, found: Found) {
        self.is_over = true;
        if let Found::Job(row, Some(Outcome::Text(outcome))) = &found {
            let whole = outcome.text.as_str();
            let at = self.at.filter(|at| at.run == row.run);
            let known = at.map_or(0, |at| usize::try_from(at.end).unwrap_or(usize::MAX));
            if let (None, Some(old)) = (at, self.at) {
                self.restart(old, row.run);
            }
            if let Some(rest) = whole.get(known..).filter(|rest| !rest.is_empty()) {
                let place = PiecePlace {
                    run: row.run,
                    number: at.map_or(0, |at| at.number) + 1,
                    end: whole.len() as u64,
                };
                self.at = Some(place);
                self.events.push_back(Event::Text {
                    place,
                    text: rest.to_owned(),
                });
            }
        }
        self.events.push_back(Event::End(Box::new(found)));
    }
}

impl Found {
    /// The row.
    #[must_use]
    pub fn row(&self) -> &JobRow {
        match self {
            Found::Job(row, _) | Found::ResultGone(row) => row,
        }
    }
}
