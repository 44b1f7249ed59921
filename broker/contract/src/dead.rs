//! A request that was given up, with the story of every attempt, in
//! [`crate::subject::DEAD_STREAM`].
//!
//! Wire: as an envelope of another head ([`crate::envelope`]): one version
//! byte, the length of the head (u32, little endian), the head as JSON, then
//! the sealed body, or nothing where the body was not kept. The head is the
//! seal's additional data; the key's id travels in
//! [`crate::subject::KEY_ID_HEADER`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::audit::Who;
use crate::envelope::{Endpoint, EnvelopeError, join, split};
use crate::failure::FailureKind;
use crate::name::{FeatureName, Lane, ModelName};
use crate::seal::SealKeys;

/// Stories that a letter tells at most; of more, those in the middle go.
pub const MOST_STORIES: usize = 16;

/// A request that was given up.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Everything but the body.
    pub head: DeadHead,
    /// The body for the model server as [`crate::envelope::RequestEnvelope`] has it, where it was kept.
    pub body: Option<Bytes>,
}

/// Everything about a dead letter but its body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema), schema(as = DeadLetter))]
pub struct DeadHead {
    /// The request, a UUIDv7; also the letter's id.
    #[cfg_attr(feature = "document", schema(value_type = String, format = "uuid"))]
    pub request_id: Uuid,
    /// Its feature.
    pub feature: FeatureName,
    /// Its model.
    pub model: ModelName,
    /// Its lane.
    pub lane: Lane,
    /// The call of the model server that its body is for.
    pub endpoint: Endpoint,
    /// Does the body ask for a stream?
    pub stream: bool,
    /// The route by which it came.
    pub route: String,
    /// Who asked.
    pub who: Who,
    /// The caller's `X-Request-ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// W3C trace id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Prompt template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_version: Option<String>,
    /// Configuration revision it ran under.
    pub config_revision: u64,
    /// The broker that gave it up.
    pub broker: String,
    /// Accepted at, milliseconds since the epoch.
    pub accepted_at_ms: u64,
    /// Given up at, milliseconds since the epoch.
    pub died_at_ms: u64,
    /// What went wrong in the end.
    pub kind: FailureKind,
    /// Why, the same word as in the audit record.
    pub reason: String,
    /// The sentence that the client was told.
    pub message: String,
    /// Attempts made, those that a leaving worker gave up among them.
    pub attempts: u32,
    /// What each met, the oldest first; of very many those in the middle are gone.
    pub stories: Vec<AttemptStory>,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// Is the body here, so that the request can be replayed?
    pub replayable: bool,
}

/// What one attempt met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema))]
pub struct AttemptStory {
    /// Its number, from 1.
    pub attempt: u32,
    /// The worker.
    pub worker: String,
    /// The model server, by its name in the worker's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Its claim, milliseconds since the epoch.
    pub began_at_ms: u64,
    /// Its end as the owner saw it, milliseconds since the epoch.
    pub ended_at_ms: u64,
    /// How it ended.
    pub end: AttemptEnd,
    /// Frames that had come from it, in order.
    pub frames: u32,
    /// What it reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureKind>,
    /// In words, as the worker reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Status of the model server's answer, when it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_status: Option<u16>,
    /// Calls of the model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_calls: Option<u32>,
    /// Tokens generated, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema))]
pub enum AttemptEnd {
    /// Its worker reported a failure.
    Failed,
    /// Its worker fell silent: it died, froze, or was cut off.
    Lost,
    /// Its worker was stopping and gave it up; it does not count.
    HandedBack,
    /// The owner ended it.
    Stopped,
}

impl AttemptEnd {
    /// The end's snake_case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AttemptEnd::Failed => "failed",
            AttemptEnd::Lost => "lost",
            AttemptEnd::HandedBack => "handed_back",
            AttemptEnd::Stopped => "stopped",
        }
    }
}

impl DeadLetter {
    /// The bytes to publish, and the id of the key that sealed the body, if there is one.
    ///
    /// # Errors
    /// Sealing failed, which only a broken random source causes.
    pub fn encode(&self, keys: &SealKeys) -> Result<(Bytes, Option<Box<str>>), EnvelopeError> {
        let head = serde_json::to_vec(&self.head)?;
        let room = self.body.as_ref().map_or(0, Bytes::len);
        let mut bytes = join(&head, room)?;
        let key_id = match &self.body {
            Some(body) => Some(keys.seal(&head, body, &mut bytes)?),
            None => None,
        };
        Ok((bytes.into(), key_id))
    }

    /// Reads the head alone, which takes no key.
    ///
    /// # Errors
    /// Not a dead letter of a known version.
    pub fn decode_head(bytes: &[u8]) -> Result<DeadHead, EnvelopeError> {
        Ok(serde_json::from_slice(split(bytes)?.0)?)
    }

    /// Opens what [`DeadLetter::encode`] wrote; `key_id` is from the message's header.
    ///
    /// # Errors
    /// Not a dead letter of a known version, or a body that the key does not open.
    pub fn decode(bytes: &[u8], key_id: Option<&str>, keys: &SealKeys) -> Result<Self, EnvelopeError> {
        let (head, sealed) = split(bytes)?;
        let body = match key_id {
            Some(key_id) => Some(keys.open(key_id, head, sealed)?.into()),
            None => None,
        };
        Ok(Self {
            head: serde_json::from_slice(head)?,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            head: DeadHead {
                request_id: Uuid::from_u128(7),
                feature: FeatureName::parse("code_generation").expect("a name"),
                model: ModelName::parse("v0.3").expect("a name"),
                lane: Lane::Interactive,
                endpoint: Endpoint::Completions,
                stream: false,
                route: "/v3/code/completions".into(),
                who: Who {
                    auth: "gitlab".into(),
                    user_id: Some("person".into()),
                    ..Who::default()
                },
                correlation_id: Some("c".into()),
                trace_id: None,
                prompt_id: Some("code_suggestions/generations".into()),
                prompt_version: Some("1.0.0".into()),
                config_revision: 4,
                broker: "broker-1".into(),
                accepted_at_ms: 1000,
                died_at_ms: 9000,
                kind: FailureKind::ModelServerFault,
                reason: "workers_lost".into(),
                message: "every worker that took the request was lost".into(),
                attempts: 2,
                stories: vec![
                    AttemptStory {
                        attempt: 1,
                        worker: "w1".into(),
                        server: Some("gpu0".into()),
                        began_at_ms: 1001,
                        ended_at_ms: 2000,
                        end: AttemptEnd::Failed,
                        frames: 0,
                        failure: Some(FailureKind::Overloaded),
                        message: Some("the model server is busy".into()),
                        upstream_status: Some(429),
                        model_calls: Some(3),
                        output_tokens: None,
                    },
                    AttemptStory {
                        attempt: 2,
                        worker: "w2".into(),
                        server: None,
                        began_at_ms: 2001,
                        ended_at_ms: 9000,
                        end: AttemptEnd::Lost,
                        frames: 5,
                        failure: None,
                        message: None,
                        upstream_status: None,
                        model_calls: None,
                        output_tokens: Some(4),
                    },
                ],
                body_bytes: 12,
                replayable: true,
            },
            body: Some(Bytes::from_static(b"{\"prompt\":1}")),
        }
    }

    #[test]
    fn a_letter_of_the_first_version_still_decodes() {
        let text = include_str!("../fixtures/dead_head_v1.json");
        let head: DeadHead = serde_json::from_str(text).expect("decodes");
        assert_eq!(head, letter().head);
    }

    #[test]
    fn a_letter_is_read_without_a_key_and_its_body_only_with_it() {
        let keys = SealKeys::generate("k1");
        let (bytes, key_id) = letter().encode(&keys).expect("encodes");
        assert_eq!(DeadLetter::decode_head(&bytes).expect("decodes"), letter().head);
        assert!(
            !bytes.windows(8).any(|w| w == b"\"prompt\""),
            "the body is readable"
        );
        assert_eq!(
            DeadLetter::decode(&bytes, key_id.as_deref(), &keys).expect("opens"),
            letter()
        );
        assert!(DeadLetter::decode(&bytes, key_id.as_deref(), &SealKeys::generate("k1")).is_err());
    }

    #[test]
    fn a_letter_without_a_body_has_no_key() {
        let keys = SealKeys::generate("k1");
        let letter = DeadLetter {
            body: None,
            ..letter()
        };
        let (bytes, key_id) = letter.encode(&keys).expect("encodes");
        assert_eq!(key_id, None);
        assert_eq!(DeadLetter::decode(&bytes, None, &keys).expect("opens"), letter);
    }
}
