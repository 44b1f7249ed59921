//! `GET /audit/v1/export`: all records that a filter lets through, as one file; and what an earlier one held.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use duo_contract::failure::FailureKind;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use uuid::Uuid;

use super::query::{Pairs, Parameters};
use super::{AuditState, Reader, away};
use crate::api::error::{ApiError, Shape};
use crate::audit::export::{Export, Format};
use crate::audit::manifest::{self, Manifest};
use crate::caller::Caller;
use crate::request::ExchangeError;
use crate::store::audit_export::Sample;

const EXPORT: &str = "/audit/v1/export";
const EXPORTS: &str = "/audit/v1/exports/{id}";
/// By this name the export's manifest is asked for.
const EXPORT_ID: HeaderName = HeaderName::from_static("x-duo-export-id");
/// Records of a sample at most.
const MAX_SAMPLE: u32 = 10_000;
/// Pieces that wait for a client that reads slowly.
const AHEAD: usize = 4;
/// A client that takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Broken off: the client sees a body without its end.
type Piece = Result<Bytes, std::io::Error>;

pub(super) fn router() -> Router<Arc<AuditState>> {
    Router::new()
        .route(EXPORT, get(export))
        .route(EXPORTS, get(manifest))
}

async fn export(
    State(state): State<Arc<AuditState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    pairs: Pairs,
) -> Response {
    match begin(state, Reader::of(&caller, &headers), pairs).await {
        Ok(response) => response,
        Err(error) => error.respond(Shape::Plain),
    }
}

async fn begin(state: Arc<AuditState>, reader: Reader, pairs: Pairs) -> Result<Response, ApiError> {
    let export = asked(Parameters::of(pairs)?)?;
    let Ok(permit) = Arc::clone(&state.exports).try_acquire_owned() else {
        return Err(ApiError::Exchange(ExchangeError::new(
            FailureKind::Overloaded,
            "exports_busy",
            "this broker writes as many exports as it may already; try again when one of them is done",
        )));
    };
    state
        .record(export.id, reader.clone(), EXPORT, export.details())
        .await?;
    let (pieces, body) = mpsc::channel(AHEAD);
    let (id, format) = (export.id, export.format);
    tokio::spawn(write(state, export, reader, pieces, permit));
    let body = stream::unfold(body, |mut body| async move {
        let piece: Piece = body.recv().await?;
        Some((piece, body))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(format.media_type()),
    );
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(EXPORT_ID, id);
    }
    Ok(response)
}

fn asked(mut parameters: Parameters) -> Result<Export, ApiError> {
    let formats = Format::ALL.map(|format| (format.as_str(), format));
    let format = parameters.word("format", &formats)?.unwrap_or(Format::Ndjson);
    let records = parameters.number("sample", 0, MAX_SAMPLE)?;
    let seed = parameters.take("seed").unwrap_or_default();
    let filter = parameters.filter()?;
    parameters.end()?;
    Ok(Export {
        id: Uuid::now_v7(),
        filter,
        sample: (records > 0).then_some(Sample { records, seed }),
        format,
    })
}

/// Writes the export to its client and its manifest to the log.
async fn write(
    state: Arc<AuditState>,
    export: Export,
    reader: Reader,
    pieces: mpsc::Sender<Piece>,
    permit: OwnedSemaphorePermit,
) {
    let send = |piece: Vec<u8>| {
        let pieces = pieces.clone();
        async move {
            let sent = tokio::time::timeout(PATIENCE, pieces.send(Ok(Bytes::from(piece))));
            matches!(sent.await, Ok(Ok(())))
        }
    };
    let (manifest, read) = export.run(&state.store, send).await;
    drop(permit);
    let signed = state.keys.as_ref().map(|keys| manifest.sign(keys));
    let details = manifest.details(signed.as_deref());
    let recorded = state
        .record(Manifest::record_of(export.id), reader, EXPORT, details)
        .await;
    let problem = match (read, recorded) {
        (Err(error), _) => std::io::Error::other(error),
        (Ok(()), Err(error)) => std::io::Error::other(error.to_string()),
        (Ok(()), Ok(())) => return,
    };
    tracing::warn!(error = %problem, export = %export.id, "an export of audit records broke off");
    // Where the client has gone there is nobody to tell.
    let _ = pieces.send(Err(problem)).await;
}

/// The manifest as a file, so that `audit verify` takes it as it came.
async fn manifest(
    State(state): State<Arc<AuditState>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let found = find(&state, Reader::of(&caller, &headers), &id).await;
    found.unwrap_or_else(|error| error.respond(Shape::Plain))
}

async fn find(state: &AuditState, reader: Reader, id: &str) -> Result<Response, ApiError> {
    let id = Uuid::try_parse(id).map_err(|_| ApiError::NotFound("an export's id is a UUID".into()))?;
    let events = state
        .store
        .audit_request(Manifest::record_of(id))
        .await
        .map_err(away)?;
    let details = json!({"read": "manifest", "export": id});
    state.record(Uuid::now_v7(), reader, EXPORTS, details).await?;
    let details = events.iter().find_map(|event| event.details.as_deref());
    let details: Option<serde_json::Value> = details.and_then(|text| serde_json::from_str(text).ok());
    let Some(details) = details.filter(|details| details["manifest"]["export"] == json!(id)) else {
        return Err(ApiError::NotFound(
            "there is no manifest of such an export, or not yet: it comes within seconds of the export's end"
                .into(),
        ));
    };
    Ok(match details["signed"].as_str() {
        Some(signed) => {
            let text = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            (text, signed.to_owned()).into_response()
        }
        None => {
            let json = [(header::CONTENT_TYPE, "application/json")];
            (json, manifest::unsigned(&details["manifest"])).into_response()
        }
    })
}
