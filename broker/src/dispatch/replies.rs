//! Reply frames to the requests they belong to: order, gaps, last frames. And
//! the sweepers' questions whether a request is known here at all.

use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use duo_contract::failure::FailureKind;
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame};
use duo_contract::subject;
use futures_util::StreamExt as _;

use super::Dispatch;
use crate::audit::sink::AuditSink;

/// An owner that has forgotten a request may take this long to hand over the terminal record.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Subscribes to every reply of this broker.
///
/// # Errors
/// The connection is closed for good.
pub async fn subscribe(dispatch: &Dispatch) -> Result<Subscriber, async_nats::SubscribeError> {
    dispatch
        .0
        .nats
        .client()
        .subscribe(subject::replies_of(&dispatch.0.broker))
        .await
}

/// Hands frames on until the connection is closed for good.
pub async fn run(dispatch: Dispatch, records: AuditSink, mut replies: Subscriber) {
    while let Some(message) = replies.next().await {
        if is_question(&message) {
            dispatch.answer_question(message, &records);
            continue;
        }
        let answer = dispatch.take(&message);
        if let (Some(reply), Some(answer)) = (message.reply, answer)
            && dispatch
                .0
                .nats
                .client()
                .publish(reply, answer.encode())
                .await
                .is_err()
        {
            return;
        }
    }
}

/// A heartbeat is short; anything longer is not decoded twice.
fn is_question(message: &Message) -> bool {
    const HEARTBEAT_BYTES: usize = 10;
    message.payload.len() == HEARTBEAT_BYTES
        && ReplyFrame::decode(&message.payload).is_ok_and(|frame| frame.is_question())
}

impl Dispatch {
    /// Answers whether a request is open here. For one that is not, NATS has to have its terminal record first:
    /// whoever asks takes `Stale` to mean that there is none.
    fn answer_question(&self, message: Message, records: &AuditSink) {
        let (Some(request), Some(reply)) = (subject::request_of_reply(&message.subject), message.reply)
        else {
            return;
        };
        let known = self.find(request).is_some();
        let (nats, records) = (self.0.nats.clone(), records.clone());
        tokio::spawn(async move {
            let answer = if known || !records.flushed(FLUSH_TIMEOUT).await {
                FrameAnswer::Confirmed
            } else {
                FrameAnswer::Stale
            };
            // A failure means that the connection is gone; the question comes again.
            let _ = nats.client().publish(reply, answer.encode()).await;
        });
    }

    fn take(&self, message: &Message) -> Option<FrameAnswer> {
        let metrics = &self.0.metrics;
        let request = subject::request_of_reply(&message.subject)?;
        let frame = match ReplyFrame::decode(&message.payload) {
            Ok(frame) => frame,
            Err(error) => {
                metrics.frames_dropped.with_label_values(&["unreadable"]).inc();
                tracing::warn!(request_id = %request, error = %error, "a frame does not parse");
                return None;
            }
        };
        let kind = match &frame.kind {
            FrameKind::Chunk(_) | FrameKind::Tokens(..) => "chunk",
            FrameKind::Heartbeat => "heartbeat",
            FrameKind::Done { .. } => "done",
            FrameKind::Failed(_) => "failed",
        };
        metrics.frames.with_label_values(&[kind]).inc();
        let Some(inflight) = self.find(request) else {
            // Over and forgotten: the worker may stop, and remove the message after the last frame.
            metrics.frames_dropped.with_label_values(&["nobody"]).inc();
            return Some(match frame.is_last() {
                true => FrameAnswer::Confirmed,
                false => FrameAnswer::Stale,
            });
        };
        if let FrameKind::Failed(failed) = &frame.kind
            && failed.failure.kind != FailureKind::Cancelled
        {
            tracing::info!(
                request_id = %request,
                worker = failed.worker,
                attempt = frame.attempt,
                kind = failed.failure.kind.as_str(),
                upstream_status = failed.failure.upstream_status,
                "an attempt failed"
            );
        }
        let (answer, todo) = inflight.frame(frame, Instant::now());
        // A worker's question whether its owner is there is of no attempt, and no frame of an older one.
        if answer == FrameAnswer::Stale && kind != "heartbeat" {
            metrics.frames_dropped.with_label_values(&["stale"]).inc();
        }
        self.follow_up(&inflight, todo);
        Some(answer)
    }
}
