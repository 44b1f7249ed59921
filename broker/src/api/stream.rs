//! A reply to the wire format that a route promises.
//!
//! Each format is an [`Encoder`]: chunks of the model server in, bytes for the
//! client out, no waiting. Here is what they share: the status is held back
//! until the model's first byte, silence may be filled with pings, and a
//! failure in mid-stream never looks like a good end. The response body owns
//! the reply, so a client that leaves drops the reply, which cancels the
//! request.
//!
//! | format | good end | failure in mid-stream |
//! |---|---|---|
//! | raw text | end of the body | the body is cut |
//! | lines of v2 prompts | a line with the usage | the body is cut |
//! | v4 server-sent events | `stream_end` | the body is cut |
//! | chat events | `finish_reason` "stop", usage | an `error` event |
//! | OpenAI | `[DONE]` | an `error` object, no `[DONE]` |

use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use duo_contract::frame::Summary;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, header};

use super::error::ApiError;
use crate::audit::OpenRecord;
use crate::exchange::Reply;
use crate::prompt::answer::{End, Unusable};
use crate::request::{ExchangeError, ReplyEvent};

pub(super) use crate::chunk;

pub(super) mod lines;
pub(super) mod raw;
pub(super) mod spaced;
pub(super) mod sse;

/// Silence after which a format that has pings sends one.
const PING_EVERY: Duration = Duration::from_secs(15);

/// An answer that nobody can read, or of which nothing can be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// A chunk that is not what a model server sends.
    #[error("the model server sent a chunk that could not be read")]
    Chunk,
    /// Text that is not what its prompt asks for.
    #[error(transparent)]
    Answer(#[from] Unusable),
}

impl From<chunk::Unreadable> for Unreadable {
    fn from(_: chunk::Unreadable) -> Self {
        Self::Chunk
    }
}

impl From<chunk::Unreadable> for ApiError {
    fn from(_: chunk::Unreadable) -> Self {
        Self::unreadable()
    }
}

/// How a failed stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The format has told the client.
    Told,
    /// The body is cut, because the format cannot tell.
    Cut,
}

/// One wire format, fed with one answer.
pub(super) trait Encoder: Send + 'static {
    /// One chunk object of the model server.
    fn chunk(&mut self, line: &[u8], out: &mut BytesMut) -> Result<(), Unreadable>;

    /// The good end, unless nothing can be made of the answer.
    fn end(&mut self, summary: &Summary, out: &mut BytesMut) -> Result<(), Unreadable>;

    /// The bad end.
    fn fail(&mut self, error: &ExchangeError, out: &mut BytesMut) -> Ending;

    /// What fills a silence, if the format has it.
    fn ping(&self) -> Option<Bytes> {
        None
    }

    /// Headers of the response; the content type is one of them.
    fn headers(&self) -> HeaderMap;
}

/// How an answer ended.
pub(super) fn end_of(summary: &Summary) -> End {
    End {
        cut: summary.finish_reason.as_deref() == Some("length"),
    }
}

/// Content type alone.
pub(super) fn content_type(value: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
    headers
}

/// Waits for the first piece of the answer that the format shows, then responds with a stream: whatever fails before
/// has a status of its own.
///
/// # Errors
/// The request failed before its first byte.
pub(super) async fn respond(reply: Reply, encoder: impl Encoder) -> Result<Response, ApiError> {
    let encoder = Recorded {
        encoder,
        record: reply.record().clone(),
    };
    let events = stream::unfold(reply, |mut reply| async {
        let event = reply.next().await?;
        Some((event, reply))
    });
    respond_to(events, encoder).await
}

async fn respond_to<E: Encoder>(
    events: impl Stream<Item = Result<ReplyEvent, ExchangeError>> + Send + 'static,
    encoder: E,
) -> Result<Response, ApiError> {
    let mut events = Box::pin(events);
    let first = match events.next().await {
        Some(Ok(first)) => first,
        Some(Err(error)) => return Err(error.into()),
        None => return Err(ApiError::unreadable()),
    };
    let headers = encoder.headers();
    let events = stream::once(async { Ok(first) }).chain(events);
    let mut pieces = Box::pin(encode(events, encoder));
    let first = match pieces.next().await {
        Some(Err(CutOff(error))) => return Err(error.into()),
        first => first,
    };
    let mut response = Response::new(Body::from_stream(stream::iter(first).chain(pieces)));
    *response.headers_mut() = headers;
    Ok(response)
}

/// An encoder whose request's record hears of a failure: an answer that came whole and is of no use is none.
struct Recorded<E> {
    encoder: E,
    record: OpenRecord,
}

impl<E: Encoder> Encoder for Recorded<E> {
    fn chunk(&mut self, line: &[u8], out: &mut BytesMut) -> Result<(), Unreadable> {
        self.encoder.chunk(line, out)
    }

    fn end(&mut self, summary: &Summary, out: &mut BytesMut) -> Result<(), Unreadable> {
        self.encoder.end(summary, out)
    }

    fn fail(&mut self, error: &ExchangeError, out: &mut BytesMut) -> Ending {
        self.record.refuse(&error.reason);
        self.encoder.fail(error, out)
    }

    fn ping(&self) -> Option<Bytes> {
        self.encoder.ping()
    }

    fn headers(&self) -> HeaderMap {
        self.encoder.headers()
    }
}

/// Why a body was cut.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut off")]
struct CutOff(ExchangeError);

/// The body's pieces. An error cuts the connection.
fn encode<E: Encoder>(
    events: impl Stream<Item = Result<ReplyEvent, ExchangeError>> + Send + 'static,
    encoder: E,
) -> impl Stream<Item = Result<Bytes, CutOff>> + Send + 'static {
    let state = Some((Box::pin(events), encoder));
    stream::unfold(state, |state| async move {
        let (mut events, mut encoder) = state?;
        loop {
            let mut out = BytesMut::new();
            let event = match next(&mut events, encoder.ping().is_some()).await {
                Next::Silence => {
                    let ping = encoder.ping().unwrap_or_default();
                    return Some((Ok(ping), Some((events, encoder))));
                }
                Next::Event(event) => event,
            };
            let ended = match event {
                Some(event) => feed(&mut encoder, event, &mut out),
                None => Err(failed(&mut encoder, broken_off(), &mut out)),
            };
            match ended {
                Ok(false) if out.is_empty() => {}
                Ok(false) => return Some((Ok(out.freeze()), Some((events, encoder)))),
                Ok(true) | Err(None) => return Some((Ok(out.freeze()), None)),
                Err(Some(cut)) => return Some((Err(cut), None)),
            }
        }
    })
}

enum Next {
    Event(Option<Result<ReplyEvent, ExchangeError>>),
    Silence,
}

async fn next(
    events: &mut (impl Stream<Item = Result<ReplyEvent, ExchangeError>> + Unpin),
    pings: bool,
) -> Next {
    let event = pin!(events.next());
    if !pings {
        return Next::Event(event.await);
    }
    match tokio::time::timeout(PING_EVERY, event).await {
        Ok(event) => Next::Event(event),
        Err(_) => Next::Silence,
    }
}

/// Feeds one event; tells whether it was the good end, or of a bad one why the body is cut, unless the format has told.
fn feed<E: Encoder>(
    encoder: &mut E,
    event: Result<ReplyEvent, ExchangeError>,
    out: &mut BytesMut,
) -> Result<bool, Option<CutOff>> {
    let (fed, is_end) = match event {
        Ok(ReplyEvent::Chunks(lines)) => {
            let mut lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            (lines.try_for_each(|line| encoder.chunk(line, out)), false)
        }
        Ok(ReplyEvent::Done { summary, .. }) => (encoder.end(&summary, out), true),
        Err(error) => return Err(failed(encoder, error, out)),
    };
    fed.map(|()| is_end).map_err(|error| {
        tracing::warn!(%error, "answer cut off");
        let error = match error {
            Unreadable::Chunk => broken_off(),
            Unreadable::Answer(unusable) => unusable.into(),
        };
        failed(encoder, error, out)
    })
}

/// Lets the format tell of a failure, if it can.
fn failed(encoder: &mut impl Encoder, error: ExchangeError, out: &mut BytesMut) -> Option<CutOff> {
    match encoder.fail(&error, out) {
        Ending::Told => None,
        Ending::Cut => Some(CutOff(error)),
    }
}

fn broken_off() -> ExchangeError {
    ExchangeError::new(
        duo_contract::failure::FailureKind::ModelServerFault,
        "unreadable_answer",
        "the model server sent an answer that could not be read",
    )
}

#[cfg(test)]
pub(super) mod tests;
