//! What files, batches and responses have in common: ids, pages, errors in OpenAI's shape, and whose they are.

use std::fmt;
use std::time::Duration;

use axum::response::Response;
use duo_contract::failure::FailureKind;
use duo_contract::snapshot::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use super::error::{ApiError, Shape};
use super::state::ApiState;
use crate::bulk::{Bulk, BulkError};
use crate::caller::Caller;
use crate::jobs::FindError;
use crate::jobs::accept::AcceptError;
use crate::request::ExchangeError;
use crate::store::StoreError;

/// When to ask again while the database is away.
const AWAY_RETRY: Duration = Duration::from_secs(1);
/// When to submit again where too much waits.
const BACKLOG_RETRY: Duration = Duration::from_secs(30);

/// What an id begins with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Prefix {
    File,
    Batch,
    Response,
}

impl Prefix {
    fn text(self) -> &'static str {
        match self {
            Prefix::File => "file-",
            Prefix::Batch => "batch_",
            Prefix::Response => "resp_",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Prefix::File => "file",
            Prefix::Batch => "batch",
            Prefix::Response => "response",
        }
    }

    /// An id as clients see it.
    pub(super) fn show(self, id: Uuid) -> String {
        format!("{}{}", self.text(), id.simple())
    }

    /// An id as clients write it.
    pub(super) fn parse(self, text: &str) -> Option<Uuid> {
        let hex = text.strip_prefix(self.text()).filter(|hex| hex.len() == 32)?;
        Uuid::try_parse(hex).ok()
    }

    /// The id in a path; whatever is none is an id that nothing has.
    pub(super) fn of_path(self, text: &str) -> Result<Uuid, ApiError> {
        self.parse(text).ok_or_else(|| self.missing())
    }

    /// There is none, or it is somebody else's.
    pub(super) fn missing(self) -> ApiError {
        ApiError::NotFound(format!("there is no such {}", self.noun()).into())
    }

    /// The id in a query.
    pub(super) fn of_query(self, name: &str, text: Option<&str>) -> Result<Option<Uuid>, ApiError> {
        let parse = |text: &str| {
            let problem = format!("that is no id of a {}", self.noun());
            self.parse(text).ok_or_else(|| ApiError::invalid(name, problem))
        };
        text.map(parse).transpose()
    }
}

/// One page of a list.
pub(super) fn page(mut items: Vec<Value>, limit: usize) -> Value {
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    let (first, last) = (id(items.first()), id(items.last()));
    json!({"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more})
}

/// How many a page is to have.
pub(super) fn limit(asked: Option<u32>, usual: u32, most: u32) -> Result<u32, ApiError> {
    match asked.unwrap_or(usual) {
        limit if (1..=most).contains(&limit) => Ok(limit),
        _ => Err(ApiError::invalid("limit", format!("has to be from 1 to {most}"))),
    }
}

/// Files and batches.
pub(super) fn bulk(api: &ApiState) -> Result<&Bulk, ApiError> {
    let none = || ApiError::NotFound("Not Found".into());
    api.bulk.as_ref().ok_or_else(none)
}

pub(super) fn is_admin(caller: &Caller) -> bool {
    caller.role() == Some(Role::Admin)
}

pub(super) fn is_theirs(caller: &Caller, client: &str) -> bool {
    client == caller.share_key || is_admin(caller)
}

/// Whose things a list has: one's own, an administrator's all.
pub(super) fn only(caller: &Caller) -> Option<String> {
    (!is_admin(caller)).then(|| caller.share_key.clone())
}

pub(super) fn respond(result: Result<Response, ApiError>) -> Response {
    result.unwrap_or_else(|error| error.respond(Shape::OpenAi))
}

fn refused(kind: FailureKind, reason: &'static str, message: impl fmt::Display, after: Duration) -> ApiError {
    ApiError::Exchange(ExchangeError {
        retry_after: Some(after),
        ..ExchangeError::new(kind, reason, message.to_string())
    })
}

fn away() -> ApiError {
    let message = "the database is not available just now; try again";
    refused(
        FailureKind::ModelUnavailable,
        "database_unavailable",
        message,
        AWAY_RETRY,
    )
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "bulk work cannot be read or written");
        away()
    }
}

impl From<BulkError> for ApiError {
    fn from(error: BulkError) -> Self {
        match error {
            BulkError::Store(error) => error.into(),
            BulkError::Busy => refused(
                FailureKind::Overloaded,
                "too_many_uploads",
                error,
                Duration::from_secs(1),
            ),
            BulkError::OverQuota(_) => Self::Conflict(error.to_string()),
            BulkError::TooLarge => {
                Self::TooLarge(usize::try_from(crate::bulk::MAX_FILE).unwrap_or(usize::MAX))
            }
            BulkError::Seal(_) | BulkError::Work(_) | BulkError::Gone | BulkError::Overtaken => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "what is kept cannot be read");
                Self::Exchange(ExchangeError::new(
                    FailureKind::Internal,
                    "content_unreadable",
                    "",
                ))
            }
        }
    }
}

impl From<AcceptError> for ApiError {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::Store(error) => error.into(),
            AcceptError::Busy => away(),
            AcceptError::BeingCreated | AcceptError::OtherContent => Self::Conflict(error.to_string()),
            AcceptError::ClientBacklog(_) | AcceptError::Backlog => {
                refused(FailureKind::Overloaded, "too_many_jobs", error, BACKLOG_RETRY)
            }
        }
    }
}

impl From<FindError> for ApiError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Store(error) => error.into(),
            FindError::Work(error) => BulkError::Work(error).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_shown_and_as_nothing_else() {
        let id = Uuid::now_v7();
        for prefix in [Prefix::File, Prefix::Batch, Prefix::Response] {
            assert_eq!(prefix.parse(&prefix.show(id)), Some(id));
            assert_eq!(prefix.parse(&id.to_string()), None);
        }
        assert_eq!(Prefix::File.parse(&Prefix::Batch.show(id)), None);
        assert_eq!(Prefix::File.parse(&format!("file-{id}")), None);
    }
}
