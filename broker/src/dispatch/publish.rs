//! Publishing into a stream, and believing only its acknowledgement.

use std::time::Duration;

use duo_process::nats::{Pending, RequestError};
use serde::Deserialize;

/// `JSStreamStoreFailedF`: the stream or the subject holds as many messages as
/// it may. One code for both, told apart by a look at the subject.
const STORE_FAILED: u32 = 10_077;
/// `JSStreamTooManyRequests`: the server's own ingest buffer is full.
const TOO_MANY_REQUESTS: u32 = 10_167;

/// Why a message is not known to be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The stream or the subject is full.
    #[error("the stream or the subject is full")]
    Full,
    /// The server takes no more just now.
    #[error("the NATS server takes no more messages just now")]
    Busy,
    /// No stream takes the subject, or its leader is away.
    #[error("no stream answers")]
    NoStream,
    /// No acknowledgement; it may be stored all the same.
    #[error("NATS did not acknowledge in time")]
    Unknown,
    /// Over the server's limit.
    #[error("the message is over the NATS server's max_payload")]
    TooLarge,
    /// Another refusal.
    #[error("the stream refused the message (code {code}): {description}")]
    Refused {
        /// `err_code` of the answer.
        code: u32,
        /// Its text.
        description: String,
    },
}

impl PublishError {
    /// May the same message, under the same id, be sent again?
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            PublishError::Busy | PublishError::NoStream | PublishError::Unknown
        )
    }
}

impl From<RequestError> for PublishError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::NoResponders => PublishError::NoStream,
            RequestError::TooLarge => PublishError::TooLarge,
            RequestError::TimedOut | RequestError::Disconnected | RequestError::Closed => {
                PublishError::Unknown
            }
        }
    }
}

/// Waits for the acknowledgement; the sequence in the stream.
///
/// # Errors
/// Not stored, or not known to be.
pub async fn stored(pending: &mut Pending, timeout: Duration) -> Result<u64, PublishError> {
    let message = pending.wait(timeout).await?;
    parse(&message.payload)
}

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    error: Option<AckError>,
}

#[derive(Deserialize)]
struct AckError {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

fn parse(payload: &[u8]) -> Result<u64, PublishError> {
    let unreadable = |_| PublishError::Refused {
        code: 0,
        description: "the acknowledgement does not parse".into(),
    };
    let ack: Ack = serde_json::from_slice(payload).map_err(unreadable)?;
    match ack.error {
        None => Ok(ack.seq),
        Some(AckError {
            err_code: STORE_FAILED,
            ..
        }) => Err(PublishError::Full),
        Some(AckError {
            err_code: TOO_MANY_REQUESTS,
            ..
        }) => Err(PublishError::Busy),
        Some(AckError {
            err_code,
            description,
        }) => Err(PublishError::Refused {
            code: err_code,
            description,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_a_sequence_or_a_refusal() {
        assert_eq!(parse(br#"{"stream":"DUO_LIVE","seq":7}"#), Ok(7));
        assert_eq!(parse(br#"{"stream":"DUO_LIVE","seq":7,"duplicate":true}"#), Ok(7));
        let full = br#"{"error":{"code":503,"err_code":10077,"description":"maximum messages per subject exceeded"},"stream":"DUO_LIVE","seq":0}"#;
        assert_eq!(parse(full), Err(PublishError::Full));
        assert!(matches!(parse(b"no"), Err(PublishError::Refused { code: 0, .. })));
    }
}
