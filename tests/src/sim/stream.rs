//! Replies as server-sent events.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use http::{HeaderValue, header};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::fault::{Drawn, Fault};
use super::generation::Generation;
use super::refusal::Refusal;
use super::request::{Ask, Shape};
use super::settings::Settings;
use super::shared::Shared;
use super::write::{DONE, Writer};

/// A stream under way.
struct Stream {
    ask: Ask,
    settings: Arc<Settings>,
    writer: Writer,
    generation: Generation,
    /// What goes wrong, and after how many tokens.
    fault: Option<(Fault, usize)>,
    /// When the first token is due.
    first: Option<Instant>,
    /// Tokens of each choice so far.
    sent: usize,
    stage: Stage,
}

/// What comes next.
#[derive(Clone, Copy)]
enum Stage {
    Line,
    Roles,
    Tokens,
    Usage,
    Done,
    Over,
}

/// What one step did.
enum Step {
    Wrote(usize),
    Nothing,
    Cut,
    Over,
}

/// Answers with headers at once and the events as they come.
pub(crate) fn reply(
    shared: &Arc<Shared>,
    settings: Arc<Settings>,
    ask: Ask,
    drawn: Option<Drawn>,
    generation: Generation,
) -> Response {
    let stream = Stream {
        writer: Writer::new(&ask, shared.next_reply()),
        generation,
        fault: drawn.map(|drawn| (drawn.fault, place(drawn, &settings, ask.tokens()))),
        first: None,
        sent: 0,
        stage: Stage::Line,
        settings,
        ask,
    };
    let content_type = HeaderValue::from_static("text/event-stream; charset=utf-8");
    (
        [(header::CONTENT_TYPE, content_type)],
        Body::from_stream(unfold(stream, Stream::chunk)),
    )
        .into_response()
}

/// After how many tokens a fault strikes; broken JSON needs a token to stand before.
fn place(drawn: Drawn, settings: &Settings, tokens: usize) -> usize {
    let after = drawn.after(settings, tokens);
    if drawn.fault == Fault::Malformed {
        after.min(tokens.saturating_sub(1))
    } else {
        after
    }
}

impl Stream {
    /// The next HTTP chunk.
    async fn chunk(mut self) -> Option<(io::Result<Bytes>, Self)> {
        let mut out = Vec::with_capacity(256);
        let mut events = 0;
        while events < self.settings.coalesce.max(1) {
            match self.step(&mut out).await {
                Step::Wrote(count) => events += count,
                Step::Nothing => {}
                Step::Over => break,
                Step::Cut if out.is_empty() => {
                    // A pending body makes the server flush what it has before the connection goes.
                    yield_now().await;
                    self.generation.fail();
                    self.stage = Stage::Over;
                    return Some((Err(io::Error::other("simulated cut")), self));
                }
                Step::Cut => break,
            }
        }
        (!out.is_empty()).then(|| (Ok(Bytes::from(out)), self))
    }

    async fn step(&mut self, out: &mut Vec<u8>) -> Step {
        match self.stage {
            Stage::Line => {
                self.generation.start(self.ask.prompt_tokens).await;
                self.first = Some(Instant::now() + Duration::from_millis(self.settings.ttft_ms));
                self.stage = if self.ask.shape == Shape::Chat {
                    Stage::Roles
                } else {
                    Stage::Tokens
                };
                Step::Nothing
            }
            Stage::Roles => {
                if matches!(self.fault, Some((Fault::Stall, 0))) {
                    return std::future::pending().await;
                }
                self.wait(0).await;
                (0..self.ask.answers.len()).for_each(|choice| self.writer.role(&self.ask, choice, out));
                self.stage = Stage::Tokens;
                Step::Wrote(self.ask.answers.len())
            }
            Stage::Tokens => self.tokens(out).await,
            Stage::Usage => {
                let generated = self.ask.answers.iter().map(super::answer::Answer::tokens).sum();
                self.writer.usage(&self.ask, generated, out);
                self.stage = Stage::Done;
                Step::Wrote(1)
            }
            Stage::Done => {
                out.extend_from_slice(DONE);
                self.stage = Stage::Over;
                if self.fault.is_some() {
                    self.generation.fail()
                } else {
                    self.generation.finish()
                }
                Step::Wrote(1)
            }
            Stage::Over => Step::Over,
        }
    }

    /// One event per choice, or what goes wrong instead.
    async fn tokens(&mut self, out: &mut Vec<u8>) -> Step {
        let longest = self.ask.tokens();
        let mut to = (self.sent + self.settings.chunk_tokens.max(1)).min(longest);
        if let Some((fault, after)) = self.fault {
            if self.sent >= after {
                if let Some(step) = self.strike(fault, out).await {
                    return step;
                }
            } else {
                to = to.min(after);
            }
        }
        self.wait(to.saturating_sub(1)).await;
        let (from, mut events) = (self.sent, 0);
        for choice in 0..self.ask.answers.len() {
            let own = self.ask.answers[choice].tokens();
            if from >= own && from > 0 {
                continue;
            }
            let finish = (to >= own).then(|| self.finish(choice, to));
            self.writer
                .tokens(&self.ask, choice, (from, to.min(own)), finish.flatten(), out);
            self.generation.tokens(to.min(own) - from);
            events += 1;
        }
        self.sent = to;
        if to >= longest && !self.strikes_at(to) {
            self.stage = if self.ask.include_usage {
                Stage::Usage
            } else {
                Stage::Done
            };
        }
        Step::Wrote(events)
    }

    /// The finish reason to send with a choice's last token; none if a fault is about to strike instead.
    fn finish(&self, choice: usize, sent: usize) -> Option<&'static str> {
        (!self.strikes_at(sent)).then(|| self.ask.answers[choice].finish())
    }

    /// Whether an ending fault strikes exactly after this many tokens.
    fn strikes_at(&self, sent: usize) -> bool {
        matches!(self.fault, Some((fault, after)) if after == sent && fault != Fault::Malformed)
    }

    /// Does what the fault does; nothing is returned if the stream goes on as if nothing had been.
    async fn strike(&mut self, fault: Fault, out: &mut Vec<u8>) -> Option<Step> {
        match fault {
            Fault::Cut => Some(Step::Cut),
            Fault::Stall if out.is_empty() => std::future::pending().await,
            // Hand out what is ready, then fall silent.
            Fault::Stall => Some(Step::Wrote(usize::MAX / 2)),
            Fault::Abort => {
                for choice in 0..self.ask.answers.len() {
                    let to = self.sent.min(self.ask.answers[choice].tokens());
                    self.writer
                        .tokens(&self.ask, choice, (to, to), Some("abort"), out);
                }
                self.stage = Stage::Done;
                Some(Step::Wrote(self.ask.answers.len()))
            }
            Fault::ErrorMid => {
                out.extend_from_slice(Refusal::engine_dead().event().as_bytes());
                self.stage = Stage::Done;
                Some(Step::Wrote(1))
            }
            Fault::Malformed => {
                self.writer.broken(out);
                // Once is enough; the rest of the stream is sound.
                self.fault = Some((Fault::Malformed, usize::MAX));
                Some(Step::Wrote(1))
            }
            Fault::Fail | Fault::Reset => None,
        }
    }

    async fn wait(&self, token: usize) {
        let Some(first) = self.first else { return };
        let settings = &self.settings;
        if settings.ttft_ms > 0 || settings.pace_ms > 0 {
            sleep_until(first + Duration::from_millis(settings.pace_ms * token as u64)).await;
        }
    }
}
