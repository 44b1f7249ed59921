//! Reply frames to the requests they belong to: order, gaps, last frames.

use std::time::Instant;

use async_nats::{Message, Subscriber};
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame};
use duo_contract::subject;
use futures_util::StreamExt as _;

use super::Dispatch;

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
pub async fn run(dispatch: Dispatch, mut replies: Subscriber) {
    while let Some(message) = replies.next().await {
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

impl Dispatch {
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
            FrameKind::Chunk(_) => "chunk",
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
        if let FrameKind::Failed(failed) = &frame.kind {
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
