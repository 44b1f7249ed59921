//! Audit records on their way through [`crate::subject::AUDIT_STREAM`] to Postgres.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::claim::json_message;
use crate::name::{FeatureName, Lane, ModelName};

/// One record, mostly about a request. At most one of each kind stands per request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Which of a request's records it is.
    pub kind: AuditKind,
    /// The request, a UUIDv7; its time decides the partition. What is no request has an id of its own.
    pub request_id: Uuid,
    /// When it happened at the broker, microseconds since the epoch.
    pub occurred_at_us: i64,
    /// The broker that wrote it.
    pub broker: String,
    /// Who asked.
    pub who: Who,
    /// For what.
    pub what: What,
    /// How it ended; on [`AuditKind::Ended`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// What a record says that is about something else than a request: a JSON object, kept byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
}

/// Which of a request's records a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditKind {
    /// Durably queued.
    Admitted,
    /// The one terminal record.
    Ended,
    /// Configuration, a token, a job or a dead letter was changed by an administrator.
    Changed,
    /// Somebody was not let in.
    SignInFailed,
    /// Audit records or what they keep were read.
    Read,
}

impl AuditKind {
    /// Every kind.
    pub const ALL: [AuditKind; 5] = [
        AuditKind::Admitted,
        AuditKind::Ended,
        AuditKind::Changed,
        AuditKind::SignInFailed,
        AuditKind::Read,
    ];

    /// Is a record of this kind about a request?
    #[must_use]
    pub fn is_of_a_request(self) -> bool {
        matches!(self, AuditKind::Admitted | AuditKind::Ended)
    }

    /// The kind's snake_case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AuditKind::Admitted => "admitted",
            AuditKind::Ended => "ended",
            AuditKind::Changed => "changed",
            AuditKind::SignInFailed => "sign_in_failed",
            AuditKind::Read => "read",
        }
    }
}

/// Who asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema))]
pub struct Who {
    /// `gitlab`, `gitlab_direct` (an IDE with a token that GitLab fetched for it), `api_token`, `command_line` (who works
    /// on the database with `duo-broker`) or `none` (nobody known).
    pub auth: String,
    /// The GitLab instance's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// GitLab's global user id (a hash), or on a change its author; absent for system calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The API token's id or the JWT's `jti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    /// The client program, as its headers say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The peer's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct What {
    /// The route, such as `/v2/code/completions`; on a change what was done, such as `model.put`.
    pub route: String,
    /// The feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature: Option<FeatureName>,
    /// The lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<Lane>,
    /// The model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// Prompt template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_version: Option<String>,
    /// Configuration revision.
    pub config_revision: u64,
    /// Did the client ask for a stream?
    pub stream: bool,
    /// Bytes of the body for the model server.
    pub body_bytes: u64,
    /// `X-Request-ID` of the caller, its correlation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// W3C trace id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The job that it submits, cancels or runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<Uuid>,
}

impl What {
    /// Something of which only the route and the configuration's revision are known.
    #[must_use]
    pub fn of(route: &str, config_revision: u64) -> Self {
        Self {
            route: route.to_owned(),
            feature: None,
            lane: None,
            model: None,
            prompt_id: None,
            prompt_version: None,
            config_revision,
            stream: false,
            body_bytes: 0,
            correlation_id: None,
            trace_id: None,
            job_id: None,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// The outcome.
    pub outcome: Outcome,
    /// Why, a snake_case word: a failure kind, a refusal's or a cancellation's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The worker of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Attempts made; 0 on an abandoned request, where nobody knows.
    pub attempts: u32,
    /// From acceptance to the first claim, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_wait_us: Option<i64>,
    /// From acceptance to the first chunk, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<i64>,
    /// From acceptance to the end, microseconds.
    pub duration_us: i64,
    /// Tokens of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<i64>,
    /// Tokens generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<i64>,
    /// SHA-256, hexadecimal, of what went to the model server: of the text where the feature's policy is `digest`, of the
    /// sealed text that is kept where it is `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<String>,
    /// The same of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_sha256: Option<String>,
}

/// The six ways to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The client has the whole answer.
    Completed,
    /// It failed; the reason is a failure kind.
    Failed,
    /// The client left, or something stopped it on purpose.
    Cancelled,
    /// It was not taken on.
    Refused,
    /// Its time ran out.
    Expired,
    /// Its broker died; the sweeper wrote this.
    Abandoned,
}

impl Outcome {
    /// Every outcome, for metrics that start at zero.
    pub const ALL: [Outcome; 6] = [
        Outcome::Completed,
        Outcome::Failed,
        Outcome::Cancelled,
        Outcome::Refused,
        Outcome::Expired,
        Outcome::Abandoned,
    ];

    /// The outcome's snake_case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
            Outcome::Refused => "refused",
            Outcome::Expired => "expired",
            Outcome::Abandoned => "abandoned",
        }
    }
}

impl std::str::FromStr for Outcome {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Outcome::ALL
            .into_iter()
            .find(|o| o.as_str() == text)
            .ok_or_else(|| {
                let known: Vec<_> = Outcome::ALL.iter().map(|o| o.as_str()).collect();
                format!("unknown outcome {text:?}: {}", known.join(", "))
            })
    }
}

json_message!(AuditRecord);

/// Puts encoded records into one message: a line each, since JSON has no line feed of its own.
#[must_use]
pub fn join(records: &[Bytes]) -> Bytes {
    match records {
        [record] => record.clone(),
        _ => records.join(&b'\n').into(),
    }
}

/// The encoded records of a message.
pub fn split(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    message.split(|byte| *byte == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_a_message_come_out_as_they_went_in() {
        let records = [r#"{"a":"b\nc"}"#, "{}", r#"{"x":1}"#].map(Bytes::from);
        for count in 1..=records.len() {
            let message = join(&records[..count]);
            assert!(split(&message).eq(records[..count].iter()));
        }
    }
}
