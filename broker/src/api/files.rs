//! Files: `/v1/files`, as OpenAI's clients know them. What clients send is for batches; what comes of batches is read here.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::error::ApiError;
use super::inbound::{BODY_WITHIN, Inbound};
use super::kept::{self, Prefix, bulk, is_theirs, respond};
use super::openai::{OPENAI_CHAT, OPENAI_COMPLETION, OPENAI_EMBEDDING};
use super::state::ApiState;
use crate::bulk::content::Upload;
use crate::bulk::{Bulk, BulkError, MAX_FILE};
use crate::caller::Caller;
use crate::store::files::{Deleted, FileFilter, FileRow};

mod multipart;

use multipart::{Multipart, Part};

/// Files on a page.
const USUAL_PAGE: u32 = 1000;
const MAX_PAGE: u32 = 10_000;
/// How long a file may take to come in; each piece of it has the time of a body.
const FILE_WITHIN: Duration = Duration::from_secs(15 * 60);
/// Bytes of a field that is no file.
const MAX_FIELD: usize = 1024;
const MAX_FILENAME: usize = 255;
/// What stands around a file in a form.
const FORM: u64 = 64 << 10;

/// `POST /v1/files`.
pub(super) async fn create(mut inbound: Inbound) -> Response {
    respond(try_create(&mut inbound).await)
}

async fn try_create(inbound: &mut Inbound) -> Result<Response, ApiError> {
    let caller = inbound.caller.clone();
    let features = [&*OPENAI_CHAT, &*OPENAI_COMPLETION, &*OPENAI_EMBEDDING];
    if !features.into_iter().any(|feature| caller.may_use(feature)) {
        let text = "this token may use none of the features that batches are for; an administrator can make a client \
                    token that may, with duo-broker token create";
        return Err(ApiError::Forbidden(text.into()));
    }
    inbound.api.exchange.can_record()?;
    let boundary = multipart::boundary(&inbound.headers)?;
    let body = inbound.body()?;
    if http_body::Body::size_hint(&body).lower() > MAX_FILE + FORM {
        return Err(BulkError::TooLarge.into());
    }
    let mut form = Multipart::new(body, &boundary, BODY_WITHIN);
    let mut upload = None;
    let by = Instant::now() + FILE_WITHIN;
    let read = read(bulk(&inbound.api)?, &caller, &mut form, &mut upload);
    let read = tokio::time::timeout_at(by, read).await;
    let read = read.unwrap_or(Err(ApiError::BodyLate));
    match (read, upload) {
        (Ok(()), Some(upload)) => {
            let row = upload.finish().await?;
            inbound.record.answered();
            Ok(Json(shown(&row, bulk(&inbound.api)?)).into_response())
        }
        (Ok(()), None) => Err(ApiError::invalid("file", "is required")),
        (Err(error), Some(upload)) => {
            upload.abandon().await;
            Err(error)
        }
        (Err(error), None) => Err(error),
    }
}

/// Reads the form; the file is stored as it comes, wherever in the form it is.
async fn read(
    bulk: &Bulk,
    caller: &Caller,
    form: &mut Multipart,
    upload: &mut Option<Upload>,
) -> Result<(), ApiError> {
    let mut purpose = None;
    while let Some(Part { name, filename }) = form.part().await? {
        match name.as_str() {
            "file" if upload.is_none() => {
                let filename = filename.unwrap_or_default();
                let filename = match filename.is_empty() {
                    true => "file.jsonl",
                    false => filename.as_str(),
                };
                if filename.chars().count() > MAX_FILENAME || filename.contains('\0') {
                    let problem = format!("its name may have at most {MAX_FILENAME} characters");
                    return Err(ApiError::invalid("file", problem));
                }
                let file = upload.insert(bulk.receive(&caller.share_key, filename).await?);
                while let Some(piece) = form.piece().await? {
                    file.push(piece).await?;
                }
            }
            "purpose" if purpose.is_none() => purpose = Some(form.text(MAX_FIELD).await?),
            "file" | "purpose" => return Err(ApiError::invalid(name, "may be given once")),
            _ => {
                let problem = "unknown field; there are file and purpose";
                return Err(ApiError::invalid(name, problem));
            }
        }
    }
    match purpose.as_deref() {
        Some("batch") => Ok(()),
        Some(_) => Err(ApiError::invalid("purpose", "has to be batch")),
        None => Err(ApiError::invalid("purpose", "is required")),
    }
}

/// A file as clients see it.
fn shown(row: &FileRow, bulk: &Bulk) -> Value {
    json!({
        "id": Prefix::File.show(row.id),
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at.unix_timestamp(),
        "expires_at": (row.created_at + bulk.config().files_kept).unix_timestamp(),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": null,
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    purpose: Option<String>,
    limit: Option<u32>,
    order: Option<String>,
    after: Option<String>,
}

/// `GET /v1/files`.
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
    let is_ascending = match asked.order.as_deref() {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(_) => return Err(ApiError::invalid("order", "has to be asc or desc")),
    };
    let filter = FileFilter {
        client: kept::only(caller),
        purpose: asked.purpose.filter(|purpose| !purpose.contains('\0')),
        after: Prefix::File.of_query("after", asked.after.as_deref())?,
        is_ascending,
    };
    let bulk = bulk(api)?;
    let rows = bulk.store().files_page(&filter, i64::from(limit) + 1).await?;
    let items = rows.iter().map(|row| shown(row, bulk)).collect();
    Ok(Json(kept::page(items, limit as usize)).into_response())
}

/// `GET /v1/files/{id}`.
pub(super) async fn one(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response {
    let found = find(&api, &caller, &id).await;
    respond(found.and_then(|row| Ok(Json(shown(&row, bulk(&api)?)).into_response())))
}

/// The caller's file of that id.
pub(super) async fn find(api: &ApiState, caller: &Caller, id: &str) -> Result<FileRow, ApiError> {
    let id = Prefix::File.of_path(id)?;
    let row = bulk(api)?.store().file(id).await?;
    let theirs = row.filter(|row| is_theirs(caller, &row.client));
    theirs.ok_or_else(|| Prefix::File.missing())
}

/// `GET /v1/files/{id}/content`.
pub(super) async fn content(
    State(api): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response {
    respond(try_content(&api, &caller, &id).await)
}

async fn try_content(api: &ApiState, caller: &Caller, id: &str) -> Result<Response, ApiError> {
    let row = find(api, caller, id).await?;
    // The first piece tells whether it can be opened at all.
    let first = bulk(api)?.piece(row.id, 0).await?;
    let reading = Reading {
        bulk: bulk(api)?.clone(),
        id: row.id,
        next: 1,
        first,
        left: row.bytes,
    };
    let mut response = Response::new(Body::from_stream(stream::unfold(Some(reading), step)));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(row.bytes));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A file on its way out, one piece at a time.
struct Reading {
    bulk: Bulk,
    id: Uuid,
    next: i32,
    first: Option<Bytes>,
    left: i64,
}

async fn step(reading: Option<Reading>) -> Option<(Result<Bytes, BulkError>, Option<Reading>)> {
    let mut reading = reading?;
    if reading.left <= 0 {
        return None;
    }
    let piece = match reading.first.take() {
        Some(piece) => Ok(Some(piece)),
        None => {
            let piece = reading.bulk.piece(reading.id, reading.next).await;
            reading.next += 1;
            piece
        }
    };
    match piece.and_then(|piece| piece.ok_or(BulkError::Gone)) {
        Ok(piece) => {
            reading.left -= i64::try_from(piece.len()).unwrap_or(i64::MAX);
            Some((Ok(piece), Some(reading)))
        }
        Err(error) => {
            let told = &error as &dyn std::error::Error;
            tracing::warn!(error = told, "a file is broken off");
            Some((Err(error), None))
        }
    }
}

/// `DELETE /v1/files/{id}`.
pub(super) async fn remove(Path(id): Path<String>, inbound: Inbound) -> Response {
    respond(try_remove(&inbound, &id).await)
}

async fn try_remove(inbound: &Inbound, id: &str) -> Result<Response, ApiError> {
    let row = find(&inbound.api, &inbound.caller, id).await?;
    match bulk(&inbound.api)?.store().delete_file(row.id).await? {
        Deleted::Gone => {
            inbound.record.answered();
            let body = json!({"id": Prefix::File.show(row.id), "object": "file", "deleted": true});
            Ok(Json(body).into_response())
        }
        Deleted::Missing => Err(Prefix::File.missing()),
        Deleted::InUse => {
            let message = "a batch that is not over reads this file; cancel the batch first";
            Err(ApiError::Conflict(message.to_owned()))
        }
    }
}
