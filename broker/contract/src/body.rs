//! Prompts and answers on their way to Postgres, sealed, for features with the body policy `full`.
//!
//! Wire: as an envelope of another head ([`crate::envelope`]): one version byte, the length of the head (u32, little
//! endian), the head as JSON, then this message's part of the sealed text. A text is sealed whole, with [`BodyHead::aad`]
//! as additional data, and cut afterwards.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::envelope::{EnvelopeError, join, split};

/// Bytes of sealed text in a message at most; far below the `max_payload` that the broker asks for.
pub const CHUNK_BYTES: usize = 512 << 10;

/// Which of a request's two texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyPart {
    /// What went to the model server.
    Prompt,
    /// What came back.
    Answer,
}

impl BodyPart {
    /// The part's snake_case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            BodyPart::Prompt => "prompt",
            BodyPart::Answer => "answer",
        }
    }
}

/// What a text is, beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyFacts {
    /// The request, a UUIDv7.
    pub request_id: Uuid,
    /// Which text of it.
    pub part: BodyPart,
    /// Its length before it was cut, in bytes.
    pub bytes: u64,
    /// Is its end missing, since it was longer than what is kept?
    pub truncated: bool,
    /// Revision of the rules that took secrets out.
    pub rules: u32,
    /// How many they took.
    pub redacted: u32,
}

/// One message of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyHead {
    /// What the text is.
    #[serde(flatten)]
    pub facts: BodyFacts,
    /// Which piece of the sealed text this is, from 0.
    pub chunk: u32,
    /// How many pieces there are.
    pub chunks: u32,
    /// SHA-256 of the whole sealed text, hexadecimal; the terminal record says the same.
    pub sha256: String,
    /// The day on which it is dropped, such as `2026-12-31`.
    pub drop_on: String,
    /// The data key that sealed it.
    pub key: WrappedKey,
}

/// A data key under a master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Its id.
    pub id: Uuid,
    /// Whose texts it seals, such as `user:…`.
    pub subject: String,
    /// The day whose texts it seals, such as `2026-12-01`.
    pub period: String,
    /// The master key that wraps it.
    pub master: String,
    /// The wrapped key, base64.
    pub wrapped: String,
}

/// A message with a piece of a sealed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyMessage {
    /// Everything but the piece.
    pub head: BodyHead,
    /// The piece.
    pub sealed: Bytes,
}

impl BodyFacts {
    /// What the seal binds the text to.
    #[must_use]
    pub fn aad(&self) -> Vec<u8> {
        let BodyFacts {
            request_id,
            part,
            bytes,
            truncated,
            rules,
            redacted,
        } = self;
        let part = part.as_str();
        format!("duo audit body 1\n{request_id}\n{part}\n{bytes}\n{truncated}\n{rules}\n{redacted}")
            .into_bytes()
    }
}

impl BodyMessage {
    /// The bytes to send.
    ///
    /// # Errors
    /// The head is too long for its length.
    ///
    /// # Panics
    /// Never: the head has no map with keys that are not text.
    pub fn encode(&self) -> Result<Bytes, EnvelopeError> {
        let head = serde_json::to_vec(&self.head).expect("the head is plain data");
        let mut bytes = join(&head, self.sealed.len())?;
        bytes.extend_from_slice(&self.sealed);
        Ok(bytes.into())
    }

    /// Reads what [`BodyMessage::encode`] wrote.
    ///
    /// # Errors
    /// Not this message.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let (head, sealed) = split(bytes)?;
        Ok(Self {
            head: serde_json::from_slice(head)?,
            sealed: Bytes::copy_from_slice(sealed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_out_as_it_went_in() {
        let message = BodyMessage {
            head: BodyHead {
                facts: BodyFacts {
                    request_id: Uuid::from_u128(7),
                    part: BodyPart::Answer,
                    bytes: 9,
                    truncated: true,
                    rules: 1,
                    redacted: 2,
                },
                chunk: 1,
                chunks: 3,
                sha256: "00".repeat(32),
                drop_on: "2026-12-31".into(),
                key: WrappedKey {
                    id: Uuid::from_u128(8),
                    subject: "user:x".into(),
                    period: "2026-12-01".into(),
                    master: "m".into(),
                    wrapped: "AAAA".into(),
                },
            },
            sealed: Bytes::from_static(b"\x00\xffsealed"),
        };
        let bytes = message.encode().expect("encodes");
        assert_eq!(BodyMessage::decode(&bytes).expect("decodes"), message);
    }
}
