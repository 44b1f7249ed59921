//! Batches: `/v1/batches`, as OpenAI's clients know them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use duo_contract::envelope::Endpoint;
use duo_contract::failure::FailureKind;
use duo_process::clock;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::error::ApiError;
use super::fields::Fields;
use super::files;
use super::inbound::Inbound;
use super::jobs::{correlation, metadata};
use super::kept::{self, Prefix, bulk, is_theirs, respond};
use super::line;
use super::openai::{self, OPENAI_CHAT, OPENAI_COMPLETION, OPENAI_EMBEDDING};
use super::state::ApiState;
use crate::bulk::state::BatchState;
use crate::bulk::{self, MAX_OPEN};
use crate::caller::{Caller, Grant};
use crate::request::ExchangeError;
use crate::store::batches::{BatchRow, Created, NewBatch, Written};

/// Every field of a new batch.
const FIELDS: [&str; 4] = ["input_file_id", "endpoint", "completion_window", "metadata"];
/// Batches on a page.
const USUAL_PAGE: u32 = 20;
const MAX_PAGE: u32 = 100;
const MAX_WORD: usize = 255;
/// When to come again with too many open.
const OPEN_RETRY: Duration = Duration::from_secs(60);
const DAY: u64 = 24 * 3600;

/// `POST /v1/batches`.
pub(super) async fn create(mut inbound: Inbound) -> Response {
    respond(try_create(&mut inbound).await)
}

async fn try_create(inbound: &mut Inbound) -> Result<Response, ApiError> {
    let body = inbound.bytes().await?;
    let batch = read(inbound, &body).await?;
    inbound.api.exchange.can_record()?;
    let bulk = bulk(&inbound.api)?;
    match bulk.store().create_batch(&batch, MAX_OPEN).await? {
        Created::New => {}
        Created::NoFile => return Err(ApiError::invalid("input_file_id", "there is no such file")),
        Created::TooMany => {
            let message =
                format!("you have {MAX_OPEN} batches that are not over, which is as many as you may");
            return Err(ApiError::Exchange(ExchangeError {
                retry_after: Some(OPEN_RETRY),
                ..ExchangeError::new(FailureKind::Overloaded, "too_many_batches", message)
            }));
        }
    }
    bulk.note_accepted();
    inbound.record.answered();
    let row = bulk.store().batch(batch.id).await?;
    let row = row.ok_or_else(|| Prefix::Batch.missing())?;
    Ok(Json(shown(&row)).into_response())
}

/// The batch that `body` asks for.
async fn read(inbound: &Inbound, body: &[u8]) -> Result<NewBatch, ApiError> {
    let fields = Fields::parse(body)?;
    for (name, value) in fields.entries() {
        if !FIELDS.contains(&&**name) && value.get() != "null" {
            let known = FIELDS.join(", ");
            return Err(fields.invalid(name, format!("is not supported; there are {known}")));
        }
    }
    let path = fields.required_text("endpoint", MAX_WORD)?;
    let feature = match line::endpoint(&path) {
        Some(Endpoint::ChatCompletions) => &*OPENAI_CHAT,
        Some(Endpoint::Completions) => &*OPENAI_COMPLETION,
        Some(Endpoint::Embeddings) => &*OPENAI_EMBEDDING,
        Some(Endpoint::Infer) | None => {
            let known = line::ENDPOINTS.map(|(path, _)| path).join(", ");
            return Err(fields.invalid("endpoint", format!("has to be one of {known}")));
        }
    };
    let feature = openai::feature(inbound, feature)?;
    inbound.record.note(Some(&feature), None, false);
    let config_revision = {
        let table = inbound.api.exchange.routing().load();
        let found = table.active_feature(&inbound.caller, &feature)?;
        inbound.record.note_route(found, table.revision());
        table.revision()
    };
    let bulk = bulk(&inbound.api)?;
    let completion_window = fields.required_text("completion_window", MAX_WORD)?.into_owned();
    let longest = bulk.longest_window();
    let window = window(&completion_window).filter(|window| *window <= longest);
    let window = window.ok_or_else(|| {
        let days = longest.as_secs() / DAY;
        let problem = format!("has to be such as 24h, 90m or 2d, and {days} days at most");
        fields.invalid("completion_window", problem)
    })?;
    let expires_at = clock::now() + window;
    let metadata = metadata(&fields)?;
    let named = fields.required_text("input_file_id", MAX_WORD)?;
    let file = files::find(&inbound.api, &inbound.caller, &named).await;
    let file = file.map_err(|error| match error {
        ApiError::NotFound(_) => fields.invalid("input_file_id", "there is no such file"),
        other => other,
    })?;
    if file.purpose != "batch" {
        return Err(fields.invalid("input_file_id", "has to be a file whose purpose is batch"));
    }
    if file.created_at + bulk.config().files_kept < expires_at + Duration::from_secs(DAY) {
        let problem = "the file is removed before the batch may be over; send it again";
        return Err(fields.invalid("input_file_id", problem));
    }
    let models = match &*inbound.caller.grant {
        Grant::ApiToken { models, .. } => models.as_ref(),
        Grant::GitLab { .. } | Grant::Direct => None,
    };
    Ok(NewBatch {
        id: bulk::batch_id(),
        client: inbound.caller.share_key.clone(),
        client_limit: inbound.caller.limit,
        who: inbound.caller.who.clone(),
        feature,
        endpoint: path.into_owned(),
        models: models.map(|models| models.iter().map(|model| model.as_str().to_owned()).collect()),
        config_revision,
        traceparent: Some(inbound.record.traceparent().to_owned()),
        correlation_id: correlation(&inbound.headers),
        input_file: file.id,
        completion_window,
        metadata,
        expires_at,
    })
}

/// A number and a unit.
fn window(text: &str) -> Option<Duration> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => DAY,
        _ => return None,
    };
    let number = text.get(..text.len() - 1)?;
    if !number.bytes().all(|sign| sign.is_ascii_digit()) {
        return None;
    }
    let seconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// A batch as clients see it.
fn shown(row: &BatchRow) -> Value {
    let moment = |at: Option<OffsetDateTime>| at.map(OffsetDateTime::unix_timestamp);
    let ended = |state| moment(row.ended_at.filter(|_| row.state == state));
    let file = |file: Option<Written>| {
        let file = file.filter(|file| row.ended_at.is_some() && file.chunks > 0);
        file.map(|file| Prefix::File.show(file.id))
    };
    let counts = &row.counts;
    let usage = row.ended_at.map(|_| {
        json!({
            "input_tokens": counts.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": counts.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts.input_tokens + counts.output_tokens,
        })
    });
    json!({
        "id": Prefix::Batch.show(row.id),
        "object": "batch",
        "endpoint": row.endpoint,
        "errors": row.errors.as_ref().map(|errors| json!({"object": "list", "data": errors})),
        "input_file_id": Prefix::File.show(row.input_file),
        "completion_window": row.completion_window,
        "status": row.state.as_str(),
        "output_file_id": file(row.output),
        "error_file_id": file(row.failures),
        "created_at": row.created_at.unix_timestamp(),
        "in_progress_at": moment(row.in_progress_at),
        "expires_at": row.expires_at.unix_timestamp(),
        "finalizing_at": moment(row.finalizing_at),
        "completed_at": ended(BatchState::Completed),
        "failed_at": ended(BatchState::Failed),
        "expired_at": ended(BatchState::Expired),
        "cancelling_at": moment(row.cancelling_at),
        "cancelled_at": ended(BatchState::Cancelled),
        "request_counts": {"total": row.total, "completed": counts.completed, "failed": counts.failed},
        "usage": usage,
        "metadata": row.metadata,
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    limit: Option<u32>,
    after: Option<String>,
}

/// `GET /v1/batches`.
pub(super) async fn list(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    respond(try_list(&api, &caller, asked).await)
}

async fn try_list(
    api: &ApiState,
    caller: &Caller,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(asked) = asked.map_err(|error| ApiError::invalid("", error.body_text()))?;
    let limit = kept::limit(asked.limit, USUAL_PAGE, MAX_PAGE)?;
    let after = Prefix::Batch.of_query("after", asked.after.as_deref())?;
    let only = kept::only(caller);
    let store = bulk(api)?.store();
    let rows = store
        .batches_page(only.as_deref(), after, i64::from(limit) + 1)
        .await?;
    let items = rows.iter().map(shown).collect();
    Ok(Json(kept::page(items, limit as usize)).into_response())
}

/// `GET /v1/batches/{id}`.
pub(super) async fn one(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response {
    let found = find(&api, &caller, &id).await;
    respond(found.map(|row| Json(shown(&row)).into_response()))
}

/// The caller's batch of that id.
async fn find(api: &ApiState, caller: &Caller, id: &str) -> Result<BatchRow, ApiError> {
    let id = Prefix::Batch.of_path(id)?;
    let row = bulk(api)?.store().batch(id).await?;
    let theirs = row.filter(|row| is_theirs(caller, &row.client));
    theirs.ok_or_else(|| Prefix::Batch.missing())
}

/// `POST /v1/batches/{id}/cancel`.
pub(super) async fn cancel(Path(id): Path<String>, inbound: Inbound) -> Response {
    respond(try_cancel(&inbound, &id).await)
}

async fn try_cancel(inbound: &Inbound, id: &str) -> Result<Response, ApiError> {
    let (api, caller) = (&inbound.api, &inbound.caller);
    let row = find(api, caller, id).await?;
    let bulk = bulk(api)?;
    bulk.store().cancel_batch(row.id).await?;
    bulk.wake();
    let row = find(api, caller, id).await?;
    match row.state {
        BatchState::Cancelling | BatchState::Cancelled => {
            inbound.record.answered();
            Ok(Json(shown(&row)).into_response())
        }
        state => {
            let message = format!("the batch is {} and cannot be cancelled any more", state.as_str());
            Err(ApiError::Conflict(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_a_number_with_a_unit() {
        for (text, seconds) in [("24h", 86_400), ("90m", 5400), ("7d", 604_800), ("5s", 5)] {
            assert_eq!(window(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "h",
            "24",
            "-1h",
            "+1h",
            "0h",
            "1.5h",
            "24ü",
            "99999999999999999999d",
        ] {
            assert_eq!(window(text), None, "{text}");
        }
    }
}
