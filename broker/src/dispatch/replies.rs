//! Reply frames to the requests they belong to: order, gaps, last frames.

use std::time::Instant;

use bytes::Bytes;
use duo_contract::failure::FailureKind;
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame};
use uuid::Uuid;

use super::Dispatch;

impl Dispatch {
    /// Hands a frame to its request, an early one with its `job`; the answer, should the worker want one.
    pub(super) fn framed(&self, request: Uuid, job: Option<Uuid>, payload: &Bytes) -> Option<FrameAnswer> {
        let metrics = &self.0.metrics;
        let frame = match ReplyFrame::decode(payload) {
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
        let (answer, todo) = inflight.frame(frame, job, Instant::now());
        // A worker's question whether its owner is there is of no attempt, and no frame of an older one.
        if answer == FrameAnswer::Stale && kind != "heartbeat" {
            metrics.frames_dropped.with_label_values(&["stale"]).inc();
        }
        self.follow_up(&inflight, todo);
        Some(answer)
    }
}
