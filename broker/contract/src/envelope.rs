//! A request on its way from a broker to a worker.
//!
//! Wire: one version byte, the length of the head (u32, little endian), the
//! head as JSON, then the sealed body. The head is the seal's additional data,
//! so neither half can be exchanged. The sealing key's id travels in the NATS
//! header [`crate::subject::KEY_ID_HEADER`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::name::{FeatureName, Lane, ModelName};
use crate::seal::{SealError, SealKeys};

const VERSION: u8 = 1;
const PREFIX: usize = 5;

/// Which call of the model server a body is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema))]
pub enum Endpoint {
    /// `POST /v1/chat/completions`.
    ChatCompletions,
    /// `POST /v1/completions`.
    Completions,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// `POST /v2/models/{model}/infer`, for models that are no language models; the body goes as it is.
    Infer,
}

impl Endpoint {
    /// The path below a model server's base URL, which ends in `/v1`; that of [`Endpoint::Infer`] is beside it, and its
    /// model's name and `/infer` follow.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "/chat/completions",
            Endpoint::Completions => "/completions",
            Endpoint::Embeddings => "/embeddings",
            Endpoint::Infer => "/v2/models",
        }
    }
}

/// Everything about a request but its body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// UUIDv7 made by the broker.
    pub request_id: Uuid,
    /// Which copy of the request this is, from 1.
    pub publication: u32,
    /// The broker (a subject token) that owns the request.
    pub owner: String,
    /// Feature the request is for.
    pub feature: FeatureName,
    /// Model that is to answer.
    pub model: ModelName,
    /// Lane it waits in.
    pub lane: Lane,
    /// Call of the model server the body is for.
    pub endpoint: Endpoint,
    /// Whether the body asks the model server for a stream.
    pub stream: bool,
    /// Accepted by the owner at, milliseconds since the epoch.
    pub accepted_at_ms: u64,
    /// Worth nothing unless its first byte comes by then, milliseconds since the epoch.
    pub first_byte_by_ms: u64,
    /// Has to be over by then, milliseconds since the epoch.
    pub end_by_ms: u64,
    /// The lease in milliseconds: the consumer's `ack_wait`.
    pub lease_ms: u32,
    /// W3C trace context of the caller or of the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Configuration revision the request runs under.
    pub config_revision: u64,
}

/// A request and the bytes for the model server.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestEnvelope {
    /// Everything but the body.
    pub head: Head,
    /// JSON object for the model server without its `model` member, which the
    /// worker puts first: only the worker knows the name its server uses.
    pub body: Bytes,
}

/// Why bytes are not an envelope.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Too short, or lengths that do not fit.
    #[error("the envelope is cut short")]
    Short,
    /// Written by a newer program.
    #[error("envelope version {0} is unknown; this program knows 1")]
    Version(u8),
    /// The head is not what it should be.
    #[error("the envelope's head does not parse")]
    Head(#[from] serde_json::Error),
    /// The body does not open.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl RequestEnvelope {
    /// The bytes to publish and the id of the key that sealed them.
    ///
    /// # Errors
    /// Sealing failed, which only a broken random source causes.
    pub fn encode(&self, keys: &SealKeys) -> Result<(Bytes, Box<str>), EnvelopeError> {
        let head = serde_json::to_vec(&self.head)?;
        let mut bytes = join(&head, self.body.len())?;
        let key_id = keys.seal(&head, &self.body, &mut bytes)?;
        Ok((bytes.into(), key_id))
    }

    /// Reads the head alone, for a look without the keys.
    ///
    /// # Errors
    /// Not an envelope of a known version.
    pub fn decode_head(bytes: &[u8]) -> Result<Head, EnvelopeError> {
        Ok(serde_json::from_slice(split(bytes)?.0)?)
    }

    /// Opens what [`RequestEnvelope::encode`] wrote under key `key_id`.
    ///
    /// # Errors
    /// Not an envelope of a known version, or a body that the key does not open.
    pub fn decode(bytes: &[u8], key_id: &str, keys: &SealKeys) -> Result<Self, EnvelopeError> {
        let (head, sealed) = split(bytes)?;
        let body = keys.open(key_id, head, sealed)?;
        Ok(Self {
            head: serde_json::from_slice(head)?,
            body: body.into(),
        })
    }
}

/// Everything before the sealed body, with room for a body of so many bytes.
pub(crate) fn join(head: &[u8], body: usize) -> Result<Vec<u8>, EnvelopeError> {
    let mut bytes = Vec::with_capacity(PREFIX + head.len() + body + SealKeys::OVERHEAD);
    bytes.push(VERSION);
    let length = u32::try_from(head.len()).map_err(|_| EnvelopeError::Short)?;
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(head);
    Ok(bytes)
}

/// The head and the sealed body.
pub(crate) fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), EnvelopeError> {
    let (&version, rest) = bytes.split_first().ok_or(EnvelopeError::Short)?;
    if version != VERSION {
        return Err(EnvelopeError::Version(version));
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(EnvelopeError::Short)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| EnvelopeError::Short)?;
    rest.split_at_checked(length).ok_or(EnvelopeError::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> RequestEnvelope {
        RequestEnvelope {
            head: Head {
                request_id: Uuid::from_u128(7),
                publication: 1,
                owner: "broker-1".into(),
                feature: FeatureName::parse("duo_chat").expect("a name"),
                model: ModelName::parse("mistral").expect("a name"),
                lane: Lane::Interactive,
                endpoint: Endpoint::ChatCompletions,
                stream: true,
                accepted_at_ms: 1,
                first_byte_by_ms: 2,
                end_by_ms: 3,
                lease_ms: 5000,
                traceparent: None,
                config_revision: 4,
            },
            body: Bytes::from_static(b"{\"messages\":[]}"),
        }
    }

    #[test]
    fn an_envelope_opens_only_with_its_key_and_its_own_head() {
        let keys = SealKeys::generate("k1");
        let (bytes, key_id) = envelope().encode(&keys).expect("encodes");
        assert_eq!(
            RequestEnvelope::decode(&bytes, &key_id, &keys).expect("opens"),
            envelope()
        );
        assert!(
            !bytes.windows(8).any(|w| w == b"messages"),
            "the body must not be readable"
        );

        let mut forged = bytes.to_vec();
        let at = bytes
            .windows(8)
            .position(|w| w == b"duo_chat")
            .expect("the head is readable");
        forged[at] = b'x';
        assert!(RequestEnvelope::decode(&forged, &key_id, &keys).is_err());
        assert!(RequestEnvelope::decode(&bytes, &key_id, &SealKeys::generate("k1")).is_err());
        assert!(matches!(
            RequestEnvelope::decode(&bytes[..3], &key_id, &keys),
            Err(EnvelopeError::Short)
        ));
    }

    #[test]
    fn a_head_of_the_first_version_still_decodes() {
        let head: Head =
            serde_json::from_str(include_str!("../fixtures/request_head_v1.json")).expect("decodes");
        assert_eq!(head, envelope().head);
    }
}
