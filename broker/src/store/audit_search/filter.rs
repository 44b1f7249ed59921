//! What to search for, and places between events.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use duo_contract::audit::{AuditKind, Outcome};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::store::audit_events::Event;

/// What to search for; everything named must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Filter {
    /// This feature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<String>,
    /// This model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// This GitLab user id, or the id of an API token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// This GitLab instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// This client program, as its headers say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Not before.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub since: Option<OffsetDateTime>,
    /// Before.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub until: Option<OffsetDateTime>,
    /// Terminal records with this outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Terminal records with this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// This request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Uuid>,
    /// Requests about this job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<Uuid>,
    /// This correlation id, `X-Request-ID` of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// This trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Records of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<AuditKind>,
    /// With this text somewhere in what is told of the request, in capitals or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q: Option<String>,
}

impl Filter {
    /// Does no more than the sorts that are counted decide, beside the time?
    pub(in crate::store) fn is_of_sorts(&self) -> bool {
        let others = [
            &self.user,
            &self.client,
            &self.correlation_id,
            &self.trace_id,
            &self.q,
        ];
        others.iter().all(|other| other.is_none()) && self.request_id.is_none() && self.job_id.is_none()
    }

    /// Is there a sort to look for?
    pub(super) fn names_a_sort(&self) -> bool {
        let sorts = [&self.feature, &self.model, &self.instance, &self.reason];
        sorts.iter().any(|sort| sort.is_some()) || self.outcome.is_some() || self.kind.is_some()
    }

    /// Is every record that an index finds one that is looked for?
    pub(super) fn is_indexed(&self) -> bool {
        let others = [&self.client, &self.correlation_id, &self.trace_id, &self.q];
        let few = self.request_id.is_some() || self.job_id.is_some();
        few || (!self.names_a_sort() && others.iter().all(|other| other.is_none()))
    }
}

/// A place between two events; opaque to clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Cursor {
    pub(super) occurred_at: OffsetDateTime,
    pub(super) request_id: Uuid,
    pub(super) kind: String,
}

impl Cursor {
    /// Reads a cursor that an earlier page gave.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = plain.splitn(3, '.');
        let micros: i128 = parts.next()?.parse().ok()?;
        let request_id = Uuid::try_parse(parts.next()?).ok()?;
        let kind = parts.next()?;
        Some(Self {
            occurred_at: OffsetDateTime::from_unix_timestamp_nanos(micros.checked_mul(1000)?).ok()?,
            request_id,
            kind: kind.to_owned(),
        })
    }

    /// Before everything that occurred from this moment on.
    pub(super) fn at(moment: OffsetDateTime) -> Self {
        Self {
            occurred_at: moment,
            request_id: Uuid::nil(),
            kind: String::new(),
        }
    }

    pub(super) fn after(event: &Event) -> Self {
        Self {
            occurred_at: event.occurred_at,
            request_id: event.request_id,
            kind: event.kind.clone(),
        }
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.occurred_at.unix_timestamp_nanos() / 1000;
        let plain = format!("{micros}.{}.{}", self.request_id.simple(), self.kind);
        f.write_str(&URL_SAFE_NO_PAD.encode(plain))
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        let cursor = Cursor {
            occurred_at: datetime!(2026-09-22 10:13:20.123456 UTC),
            request_id: Uuid::now_v7(),
            kind: "ended".into(),
        };
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        assert_eq!(Cursor::parse("nonsense"), None);
    }
}
