//! What happens to every request at the edge, whoever sent it: marks, path
//! normalisation, and the rest of refused bodies.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Uri, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use uuid::Uuid;

use super::inbound::{MAX_BODY, REFUSED_WITHIN};

/// The caller's correlation id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESS_TIME: HeaderName = HeaderName::from_static("x-process-time");

/// Seconds for which a browser may remember a preflight's answer.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("600");

/// When the request's head was here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived(pub(super) Instant);

/// How much is read and thrown away of a stranger's body, in bytes: what a
/// client's kernel sends unasked, so that its writing does not break off before
/// it reads that it is refused.
const STRANGERS_BODY: usize = 64 * 1024;

/// Marks the refusal of somebody who is not known.
#[derive(Debug, Clone, Copy)]
pub(super) struct OfStranger;

/// Marks the answer to a browser's preflight.
#[derive(Debug, Clone, Copy)]
struct Preflight;

/// Echoes the request's id, made up when missing, and tells the seconds until
/// the headers; a plain 500 and a preflight do not have those.
pub(super) async fn mark(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request.headers().get(&REQUEST_ID).cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a UUID is a header value")
    });
    request.headers_mut().insert(REQUEST_ID, id.clone());
    request.extensions_mut().insert(Arrived(started));
    let mut response = next.run(request).await;
    if response.status() != StatusCode::INTERNAL_SERVER_ERROR
        && response.extensions().get::<Preflight>().is_none()
    {
        let seconds = format!("{:.6}", started.elapsed().as_secs_f64());
        let seconds = HeaderValue::from_str(&seconds).expect("a number is a header value");
        response.headers_mut().insert(PROCESS_TIME, seconds);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Lets web pages of any origin send `POST` with any header: GitLab's Web IDE
/// asks for completions from the browser. Tokens travel in a header that a page
/// has to know, never in a cookie, so no origin gains anything by it.
pub(super) async fn share(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let from_page = headers.contains_key(header::ORIGIN);
    if from_page
        && request.method() == Method::OPTIONS
        && let Some(method) = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        return preflight(method, headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS));
    }
    let mut response = next.run(request).await;
    if from_page {
        response
            .headers_mut()
            .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    response
}

/// May a page send this? Asked without a token, so it is answered before
/// anybody looks for one.
fn preflight(method: &HeaderValue, asked: Option<&HeaderValue>) -> Response {
    let (status, text) = match method == "POST" {
        true => (StatusCode::OK, "OK"),
        false => (StatusCode::BAD_REQUEST, "Disallowed CORS method"),
    };
    let mut response = (status, text).into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("POST"),
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
    if let Some(asked) = asked {
        // Said name by name: browsers do not count `Authorization` under `*`.
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    response.extensions_mut().insert(Preflight);
    response
}

/// Writes `%2F` in the path as the slash that it stands for.
pub(super) async fn normalise(mut request: Request, next: Next) -> Response {
    if let Some(uri) = with_plain_slashes(request.uri()) {
        *request.uri_mut() = uri;
    }
    next.run(request).await
}

fn with_plain_slashes(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if !path.contains("%2F") && !path.contains("%2f") {
        return None;
    }
    let mut plain = path.replace("%2F", "/").replace("%2f", "/");
    if let Some(query) = uri.query() {
        plain.push('?');
        plain.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(plain).ok()?);
    Uri::from_parts(parts).ok()
}

/// Reads and throws away what a refusal left of the body, for
/// [`REFUSED_WITHIN`] at most and up to the limit of bodies, of a stranger's up
/// to [`STRANGERS_BODY`]. A client that waits for `100 Continue` is not asked to
/// send what nobody wants.
///
/// A connection on which some of a body is still to come takes no further
/// request and is closed after the answer; the answer says so, or a client that
/// keeps its connections would send its next request into a closed one.
pub(super) async fn absorb(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let waits = request.headers().contains_key(header::EXPECT);
    let left = Arc::new(Mutex::new(None));
    let request = request.map(|body| {
        Body::new(Watched {
            body: Some(body),
            read: 0,
            left: Arc::clone(&left),
        })
    });
    let version = request.version();
    let mut response = next.run(request).await;
    let left = left.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((body, read)) = left else {
        return response;
    };
    let is_stranger = response.extensions().get::<OfStranger>().is_some();
    let most = if is_stranger { STRANGERS_BODY } else { MAX_BODY };
    // Nobody waits for what a stranger announces.
    let too_much = is_stranger && body.size_hint().lower() > most as u64;
    let unwanted = waits && read == 0 || too_much;
    let whole = !unwanted
        && tokio::time::timeout(REFUSED_WITHIN, discard(body, most.saturating_sub(read)))
            .await
            .unwrap_or(false);
    // Later versions have no such header: their streams end one by one.
    if !whole && version <= Version::HTTP_11 {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the rest of `body` was no more than `room` bytes.
async fn discard(mut body: Body, mut room: usize) -> bool {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match room.checked_sub(bytes) {
            Some(rest) => room = rest,
            None => return false,
        }
    }
    true
}

/// A body that hands itself back when it is dropped before its end.
struct Watched {
    body: Option<Body>,
    read: usize,
    left: Arc<Mutex<Option<(Body, usize)>>>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = self.body.as_mut() else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => self.read += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => self.body = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some((body, self.read));
        }
    }
}
