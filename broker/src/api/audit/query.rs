//! Queries of the audit log, as auditors write them.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use duo_contract::audit::{AuditKind, Outcome};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::api::error::ApiError;
use crate::store::audit_search::Filter;

/// What the extractor gives.
pub(super) type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// A query's parameters, taken out one by one; what is left is unknown.
#[derive(Debug)]
pub(super) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    pub(super) fn of(pairs: Pairs) -> Result<Self, ApiError> {
        let Query(pairs) = pairs.map_err(|error| ApiError::invalid("", error.body_text()))?;
        let mut parameters = BTreeMap::new();
        for (name, value) in pairs {
            // PostgreSQL has no text with a NUL in it, so no record does.
            if value.contains('\0') {
                return Err(ApiError::invalid(name, "may hold no NUL character"));
            }
            if parameters.contains_key(&name) {
                return Err(ApiError::invalid(name, "may be given once only"));
            }
            parameters.insert(name, value);
        }
        Ok(Self(parameters))
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// A number from one up to `most`.
    pub(super) fn number(&mut self, name: &str, default: u32, most: u32) -> Result<u32, ApiError> {
        let Some(text) = self.take(name) else {
            return Ok(default);
        };
        match text.parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(ApiError::invalid(
                name,
                format!("has to be a number from 1 to {most}"),
            )),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, name: &str, known: &[(&str, T)]) -> Result<Option<T>, ApiError> {
        let Some(text) = self.take(name) else {
            return Ok(None);
        };
        if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
            return Ok(Some(*value));
        }
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        Err(ApiError::invalid(
            name,
            format!("has to be one of {}", words.join(", ")),
        ))
    }

    pub(super) fn filter(&mut self) -> Result<Filter, ApiError> {
        Ok(Filter {
            since: self.moment("since")?,
            until: self.moment("until")?,
            outcome: self.word(
                "outcome",
                &Outcome::ALL.map(|outcome| (outcome.as_str(), outcome)),
            )?,
            kind: self.word("kind", &AuditKind::ALL.map(|kind| (kind.as_str(), kind)))?,
            request_id: self.id("request_id")?,
            job_id: self.id("job_id")?,
            feature: self.take("feature"),
            model: self.take("model"),
            user: self.take("user"),
            instance: self.take("instance"),
            client: self.take("client"),
            reason: self.take("reason"),
            correlation_id: self.take("correlation_id"),
            trace_id: self.take("trace_id"),
            q: self.take("q").filter(|q| !q.is_empty()),
        })
    }

    fn moment(&mut self, name: &str) -> Result<Option<OffsetDateTime>, ApiError> {
        let Some(text) = self.take(name) else {
            return Ok(None);
        };
        OffsetDateTime::parse(&text, &Rfc3339)
            .map(Some)
            .map_err(|_| ApiError::invalid(name, "a time looks like 2026-01-31T12:00:00Z"))
    }

    fn id(&mut self, name: &str) -> Result<Option<Uuid>, ApiError> {
        let Some(text) = self.take(name) else {
            return Ok(None);
        };
        Uuid::try_parse(&text)
            .map(Some)
            .map_err(|_| ApiError::invalid(name, "has to be a UUID, as records have it"))
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), ApiError> {
        match self.0.into_keys().next() {
            Some(name) => Err(ApiError::invalid(name, "there is no such parameter")),
            None => Ok(()),
        }
    }
}
