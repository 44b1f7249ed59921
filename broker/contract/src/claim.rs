//! The claim: a worker asks a request's owner whether to work on a delivery.
//!
//! A JetStream lease alone is no fence, so the owner gives out attempt
//! numbers and frames carry them.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The number of a request's first attempt.
pub const FIRST_ATTEMPT: u32 = 1;

/// A worker's question about one delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// The request that was delivered.
    pub request_id: Uuid,
    /// Which copy of it.
    pub publication: u32,
    /// Its sequence in the stream.
    pub stream_sequence: u64,
    /// How often this copy has been delivered, from 1.
    pub delivery: u64,
    /// The worker (a subject token), where cancels reach it.
    pub worker: String,
    /// The job that asks, as its worker numbers them: a consumer that was made anew counts deliveries from 1 again,
    /// so two jobs may hold the same delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Uuid>,
    /// The model server that it is for, by its name in the worker's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

/// The owner's answer, the same for the same job however often it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum ClaimReply {
    /// Go on, with frames of this attempt.
    Proceed {
        /// The fencing token, from 1.
        attempt: u32,
    },
    /// Go on after what the client already has.
    Continue {
        /// The fencing token.
        attempt: u32,
        /// What the client has.
        have: Have,
    },
    /// An attempt is alive: hand the delivery back with this delay, never ack.
    Busy {
        /// Delay in milliseconds.
        delay_ms: u64,
    },
    /// Nobody waits for it: remove the message.
    Gone,
}

/// What a client has received of an answer, for a successor to continue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// Text of choice 0.
    pub text: String,
    /// Prompt token ids, where the model server gave them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Generated token ids, where the model server gave them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// How many of these came with the text or before it. Those behind have
    /// shown nothing yet; of those before, a little may be held back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub covered: usize,
    /// Bytes of text in each chunk that had some. Their number is the tokens
    /// generated so far as far as chunks tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<u32>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

macro_rules! json_message {
    ($name:ty) => {
        impl $name {
            /// The bytes to send.
            ///
            /// # Panics
            /// Never: the type has no map with keys that are not text.
            #[must_use]
            pub fn encode(&self) -> bytes::Bytes {
                serde_json::to_vec(self)
                    .expect("the message is plain data")
                    .into()
            }

            /// Reads what [`Self::encode`] wrote.
            ///
            /// # Errors
            /// Not this message.
            pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
                serde_json::from_slice(bytes)
            }
        }
    };
}
pub(crate) use json_message;

json_message!(ClaimRequest);
json_message!(ClaimReply);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_of_the_first_version_still_decodes() {
        let text = include_str!("../fixtures/claim_request_v1.json").trim_end();
        let claim = ClaimRequest::decode(text.as_bytes()).expect("decodes");
        assert_eq!((claim.publication, claim.delivery, claim.job), (1, 2, None));
        assert_eq!(claim.encode(), text.as_bytes());
    }

    #[test]
    fn answers_of_the_first_version_still_decode() {
        let text = include_str!("../fixtures/claim_replies_v1.jsonl");
        let replies: Vec<_> = text
            .lines()
            .map(|line| ClaimReply::decode(line.as_bytes()).expect("decodes"))
            .collect();
        assert_eq!(
            replies,
            [
                ClaimReply::Proceed { attempt: 1 },
                ClaimReply::Continue {
                    attempt: 2,
                    have: Have {
                        text: "def ".into(),
                        prompt_token_ids: None,
                        token_ids: Some(vec![5, 9]),
                        ..Have::default()
                    }
                },
                ClaimReply::Busy { delay_ms: 250 },
                ClaimReply::Gone,
            ]
        );
        for (reply, line) in replies.iter().zip(text.lines()) {
            assert_eq!(reply.encode(), line.as_bytes());
        }
    }

    #[test]
    fn what_a_client_has_is_told_with_its_tokens() {
        let line = include_str!("../fixtures/claim_reply_with_tokens_v1.jsonl").trim_end();
        let reply = ClaimReply::decode(line.as_bytes()).expect("decodes");
        let have = Have {
            text: "def f".into(),
            prompt_token_ids: Some(vec![1, 2]),
            token_ids: Some(vec![5, 9, 7]),
            covered: 2,
            pieces: vec![4, 1],
        };
        assert_eq!(reply, ClaimReply::Continue { attempt: 2, have });
        assert_eq!(reply.encode(), line.as_bytes());
    }
}
