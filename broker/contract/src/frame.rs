//! A piece of an answer on its way from a worker to a request's owner.
//!
//! Wire: version, kind (one byte each), attempt and number (u32 each, little
//! endian), then the kind's own bytes. Frames are numbered from 0 within
//! their attempt, heartbeats apart: those carry the number of the next frame.
//! Attempts count from 1; a heartbeat of attempt 0 is no worker's, but a
//! question to the owner, see [`ReplyFrame::question`].

mod tokens;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::claim::json_message;
use crate::failure::Failure;

pub use tokens::Tokens;

const VERSION: u8 = 1;
const HEADER: usize = 10;

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyFrame {
    /// The fencing token from the claim; a lower one is ignored.
    pub attempt: u32,
    /// Number within the attempt, from 0.
    pub number: u32,
    /// What it carries.
    pub kind: FrameKind,
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq)]
pub enum FrameKind {
    /// Chunks of a stream: OpenAI chunk objects as the model server wrote
    /// them, one a line, joined by `\n`.
    Chunk(Bytes),
    /// The same with the token ids of their text.
    Tokens(Tokens, Bytes),
    /// Nothing yet, but the model server is at work.
    Heartbeat,
    /// The last frame of a good answer.
    Done {
        /// How it went.
        summary: Summary,
        /// The whole body of an answer that is no stream; for a stream the last
        /// chunks, as in [`FrameKind::Chunk`].
        body: Bytes,
    },
    /// The last frame of a failed attempt. The owner's [`FrameAnswer`] says
    /// whether the delivery is handed back.
    Failed(FailedAttempt),
}

/// How an attempt went that ended well.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The worker's name.
    pub worker: String,
    /// The first choice's `finish_reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// Tokens of the prompt, where the model server counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// Tokens generated, where the model server counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// From the call of the model server to its first data, in microseconds.
    #[serde(default)]
    pub model_first_us: u64,
    /// From the call of the model server to the end, in microseconds.
    #[serde(default)]
    pub model_total_us: u64,
    /// Calls of the model server that this attempt took.
    #[serde(default)]
    pub model_calls: u32,
}

/// How an attempt failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedAttempt {
    /// The worker's name.
    pub worker: String,
    /// What went wrong.
    pub failure: Failure,
    /// Calls of the model server that this attempt took.
    #[serde(default)]
    pub model_calls: u32,
    /// Tokens generated before the failure, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// The worker leaves and hands the request back: nothing went wrong, and
    /// the attempt does not count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

/// The owner's answer to a last frame, which is sent as a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum FrameAnswer {
    /// All frames are here: after the last one, remove the message. After a heartbeat: all before the number it
    /// carries, which need not be kept.
    Confirmed,
    /// Another attempt may do better: hand the delivery back.
    HandBack {
        /// Delay in milliseconds.
        delay_ms: u64,
    },
    /// These frames are missing: send them again, then the last one again.
    Missing {
        /// First missing frame.
        from: u32,
        /// First frame that is not missing.
        until: u32,
    },
    /// A later attempt has taken over: forget it and leave the message alone.
    Stale,
}

json_message!(FrameAnswer);

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a frame needs.
    #[error("the frame is cut short")]
    Short,
    /// Written by a newer program.
    #[error("frame version {0} is unknown; this program knows 1")]
    Version(u8),
    /// A kind nobody knows.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// The summary does not parse.
    #[error("the frame's summary does not parse")]
    Summary(#[from] serde_json::Error),
}

const CHUNK: u8 = 1;
const HEARTBEAT: u8 = 2;
const DONE: u8 = 3;
const FAILED: u8 = 4;
const TOKENS: u8 = 5;

impl FrameKind {
    /// Bytes that it keeps in memory, summaries apart.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            FrameKind::Chunk(bytes) | FrameKind::Done { body: bytes, .. } => bytes.len(),
            FrameKind::Tokens(tokens, bytes) => tokens.size() + bytes.len(),
            FrameKind::Heartbeat | FrameKind::Failed(_) => 0,
        }
    }
}

impl ReplyFrame {
    /// Asks an owner, as a request, whether it knows the request. It answers [`FrameAnswer::Confirmed`] while the
    /// request is open or its terminal record is on the way, and [`FrameAnswer::Stale`] when it knows of neither.
    #[must_use]
    pub fn question() -> Self {
        Self {
            attempt: 0,
            number: 0,
            kind: FrameKind::Heartbeat,
        }
    }

    /// Is it a [`ReplyFrame::question`]?
    #[must_use]
    pub fn is_question(&self) -> bool {
        self.attempt == 0 && self.kind == FrameKind::Heartbeat
    }

    /// Is it the last of its attempt?
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self.kind, FrameKind::Done { .. } | FrameKind::Failed(_))
    }

    /// The bytes to publish.
    ///
    /// # Panics
    /// Never: summaries are plain data and far below 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let header = |kind: u8, room: usize| {
            let mut bytes = BytesMut::with_capacity(HEADER + room);
            bytes.put_u8(VERSION);
            bytes.put_u8(kind);
            bytes.put_u32_le(self.attempt);
            bytes.put_u32_le(self.number);
            bytes
        };
        match &self.kind {
            FrameKind::Chunk(chunks) => {
                let mut bytes = header(CHUNK, chunks.len());
                bytes.put_slice(chunks);
                bytes.freeze()
            }
            FrameKind::Tokens(tokens, chunks) => {
                let mut bytes = header(TOKENS, tokens.size() + chunks.len());
                tokens.put(&mut bytes);
                bytes.put_slice(chunks);
                bytes.freeze()
            }
            FrameKind::Heartbeat => header(HEARTBEAT, 0).freeze(),
            FrameKind::Done { summary, body } => {
                let summary = serde_json::to_vec(summary).expect("a summary is plain data");
                let mut bytes = header(DONE, 4 + summary.len() + body.len());
                bytes.put_u32_le(u32::try_from(summary.len()).expect("a summary is small"));
                bytes.put_slice(&summary);
                bytes.put_slice(body);
                bytes.freeze()
            }
            FrameKind::Failed(failed) => {
                let failed = serde_json::to_vec(failed).expect("a failure is plain data");
                let mut bytes = header(FAILED, failed.len());
                bytes.put_slice(&failed);
                bytes.freeze()
            }
        }
    }

    /// Reads a frame; chunks and bodies share `bytes`, they are not copied.
    ///
    /// # Errors
    /// Not a frame of a known version.
    pub fn decode(bytes: &Bytes) -> Result<Self, FrameError> {
        let header = bytes.first_chunk::<HEADER>().ok_or(FrameError::Short)?;
        let [version, kind, a0, a1, a2, a3, n0, n1, n2, n3] = *header;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let mut rest = bytes.slice(HEADER..);
        let kind = match kind {
            CHUNK => FrameKind::Chunk(rest),
            TOKENS => FrameKind::Tokens(Tokens::take(&mut rest)?, rest),
            HEARTBEAT => FrameKind::Heartbeat,
            DONE => {
                let length = u32::from_le_bytes(*rest.first_chunk::<4>().ok_or(FrameError::Short)?);
                let end = usize::try_from(length)
                    .ok()
                    .and_then(|l| l.checked_add(4))
                    .ok_or(FrameError::Short)?;
                let summary = serde_json::from_slice(rest.get(4..end).ok_or(FrameError::Short)?)?;
                FrameKind::Done {
                    summary,
                    body: rest.slice(end..),
                }
            }
            FAILED => FrameKind::Failed(serde_json::from_slice(&rest)?),
            other => return Err(FrameError::Kind(other)),
        };
        Ok(Self {
            attempt: u32::from_le_bytes([a0, a1, a2, a3]),
            number: u32::from_le_bytes([n0, n1, n2, n3]),
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::failure::FailureKind;

    fn round(kind: FrameKind) {
        let frame = ReplyFrame {
            attempt: 3,
            number: 9,
            kind,
        };
        assert_eq!(ReplyFrame::decode(&frame.encode()).expect("decodes"), frame);
    }

    #[test]
    fn every_kind_survives_the_wire() {
        round(FrameKind::Chunk(Bytes::from_static(b"{}\n{}")));
        round(FrameKind::Tokens(
            Tokens {
                prompt: vec![1, 70_000],
                after: 5,
                lines: vec![1, 0],
                ids: vec![9],
            },
            Bytes::from_static(b"{}\n{}"),
        ));
        round(FrameKind::Heartbeat);
        round(FrameKind::Done {
            summary: Summary {
                worker: "w".into(),
                output_tokens: Some(3),
                ..Summary::default()
            },
            body: Bytes::from_static(b"{\"choices\":[]}"),
        });
        round(FrameKind::Failed(FailedAttempt {
            worker: "w".into(),
            failure: Failure::new(FailureKind::ModelServerFault, "broke off"),
            model_calls: 2,
            output_tokens: None,
            leaving: true,
        }));
    }

    #[test]
    fn a_frame_of_the_first_version_still_decodes() {
        let bytes = Bytes::from_static(b"\x01\x01\x02\x00\x00\x00\x05\x00\x00\x00{\"choices\":[]}");
        let frame = ReplyFrame::decode(&bytes).expect("decodes");
        assert_eq!((frame.attempt, frame.number), (2, 5));
        assert_eq!(
            frame.kind,
            FrameKind::Chunk(Bytes::from_static(b"{\"choices\":[]}"))
        );
    }

    #[test]
    fn a_frame_with_token_ids_keeps_its_form() {
        let bytes = Bytes::from_static(
            b"\x01\x05\x01\x00\x00\x00\x00\x00\x00\x00\
            \x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\
            \x07\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x2a\x00\x00\x00{}",
        );
        let frame = ReplyFrame::decode(&bytes).expect("decodes");
        let tokens = Tokens {
            prompt: vec![7, 8],
            after: 0,
            lines: vec![1],
            ids: vec![42],
        };
        assert_eq!(frame.kind, FrameKind::Tokens(tokens, Bytes::from_static(b"{}")));
        assert_eq!(frame.encode(), bytes);
    }

    #[test]
    fn counts_beyond_the_frame_are_refused() {
        let mut bytes = b"\x01\x05\x01\x00\x00\x00\x00\x00\x00\x00".to_vec();
        bytes.extend([0xff; 16]);
        assert!(matches!(
            ReplyFrame::decode(&bytes.into()),
            Err(FrameError::Short)
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = ReplyFrame::decode(&Bytes::from(bytes));
        }
    }
}
