//! Replies in one piece.

use std::panic;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde_json::Value;
use tokio::time::sleep;

use super::fault::{Drawn, Fault};
use super::generation::Generation;
use super::refusal::Refusal;
use super::request::Ask;
use super::settings::Settings;
use super::shared::Shared;
use super::write::Writer;

/// Generates the whole answer, then sends it.
pub(crate) async fn reply(
    shared: &Arc<Shared>,
    settings: &Settings,
    ask: Ask,
    drawn: Option<Drawn>,
    mut generation: Generation,
) -> Response {
    generation.start(ask.prompt_tokens).await;
    let tokens = ask.tokens();
    let steps = tokens.saturating_sub(1) as u64;
    let wait = Duration::from_millis(settings.ttft_ms + settings.pace_ms * steps);
    if !wait.is_zero() {
        sleep(wait).await;
    }
    let (limit, finish) = match drawn.map(|drawn| (drawn.fault, drawn.after(settings, tokens))) {
        Some((Fault::Stall, _)) => std::future::pending().await,
        Some((Fault::Cut, _)) => {
            generation.fail();
            hang_up()
        }
        Some((Fault::ErrorMid, _)) => {
            generation.fail();
            return Refusal::engine_dead().into_response();
        }
        Some((Fault::Abort, after)) => (after, Some("abort")),
        _ => (usize::MAX, None),
    };
    generation.tokens(ask.answers.iter().map(|answer| answer.tokens().min(limit)).sum());
    let writer = Writer::new(&ask, shared.next_reply());
    let mut body = writer.whole(&ask, limit, finish);
    match drawn.map(|drawn| drawn.fault) {
        Some(Fault::Malformed) => {
            body.truncate(body.len() / 2);
            generation.fail();
        }
        Some(_) => generation.fail(),
        None => generation.finish(),
    }
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body,
    )
        .into_response()
}

/// An answer that is no text: after its place in the line and its time it is `whole`, or meets the fault drawn for it.
/// `broken` is what a server says that has lost its way.
pub(crate) async fn without_tokens(
    shared: &Arc<Shared>,
    settings: &Settings,
    prompt_tokens: usize,
    broken: Value,
    whole: impl FnOnce() -> Value,
) -> Response {
    let drawn = shared.faults.draw(settings).map(|drawn| drawn.fault);
    match drawn {
        Some(Fault::Fail) => {
            shared.counters.refused();
            return Refusal::fault(settings.fail_status, settings.retry_after).into_response();
        }
        Some(Fault::Reset) => {
            shared.counters.refused();
            hang_up()
        }
        _ => {}
    }
    let mut generation = Generation::new(Arc::clone(shared), None);
    generation.start(prompt_tokens).await;
    if settings.ttft_ms > 0 {
        sleep(Duration::from_millis(settings.ttft_ms)).await;
    }
    match drawn {
        Some(Fault::Stall) => std::future::pending().await,
        Some(Fault::Cut) => {
            generation.fail();
            hang_up()
        }
        Some(_) => {
            generation.fail();
            axum::Json(broken).into_response()
        }
        None => {
            generation.finish();
            axum::Json(whole()).into_response()
        }
    }
}

/// Closes the connection without another byte.
///
/// Each connection is served by a task of its own, so unwinding the handler drops the socket and nothing else; the
/// panic hook is not called.
pub(crate) fn hang_up() -> ! {
    panic::resume_unwind(Box::new("connection closed by a simulated fault"))
}
