//! How far the audit writer is: what it has moved into Postgres is gone from its stream.

use std::time::Duration;

use duo_contract::subject;
use duo_process::clock;
use duo_process::nats::Nats;
use time::OffsetDateTime;

/// How often the stream is looked at while something is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// The audit stream cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("the audit stream does not answer")]
pub(super) struct WatermarkError(#[source] async_nats::jetstream::context::GetStreamError);

/// What the writer has passed.
#[derive(Debug)]
pub(super) struct Watermark {
    nats: Nats,
    /// The last sequence of the stream at some moment, not passed when last looked at.
    mark: Option<(u64, OffsetDateTime)>,
    /// All that was stored before this moment is in Postgres.
    passed: Option<OffsetDateTime>,
}

/// Sequences of the stream: what is before the first is in Postgres.
#[derive(Debug, Clone, Copy)]
struct Sequences {
    first: u64,
    last: u64,
    /// Nothing is stored. A stream that has never had a message says that both its first and its last are 0.
    is_empty: bool,
}

impl Sequences {
    fn are_past(self, mark: u64) -> bool {
        self.is_empty || self.first > mark
    }
}

impl Watermark {
    pub(super) fn new(nats: Nats) -> Self {
        Self {
            nats,
            mark: None,
            passed: None,
        }
    }

    /// Looks where the writer is: all that was stored before the moment that comes back is in Postgres.
    pub(super) async fn step(&mut self) -> Result<Option<OffsetDateTime>, WatermarkError> {
        let now = clock::now();
        let sequences = self.sequences().await?;
        match self.mark {
            Some((mark, at)) if sequences.are_past(mark) => {
                self.passed = Some(at);
                self.mark = Some((sequences.last, now));
            }
            // A stream that was made anew counts from the beginning.
            Some((mark, _)) if sequences.last >= mark => {}
            _ => self.mark = Some((sequences.last, now)),
        }
        Ok(self.passed)
    }

    /// Waits until the writer has passed all that is stored now; false when it has not within `max`.
    pub(super) async fn passes_all(&self, max: Duration) -> Result<bool, WatermarkError> {
        let mark = self.sequences().await?.last;
        let passed = async {
            while !self.sequences().await?.are_past(mark) {
                tokio::time::sleep(LOOK).await;
            }
            Ok(true)
        };
        tokio::time::timeout(max, passed).await.unwrap_or(Ok(false))
    }

    async fn sequences(&self) -> Result<Sequences, WatermarkError> {
        let context = self.nats.jetstream();
        let stream = context
            .get_stream(subject::AUDIT_STREAM)
            .await
            .map_err(WatermarkError)?;
        let state = &stream.cached_info().state;
        Ok(Sequences {
            first: state.first_sequence,
            last: state.last_sequence,
            is_empty: state.messages == 0,
        })
    }
}
