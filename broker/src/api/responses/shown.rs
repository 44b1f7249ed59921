//! A response as clients see it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::kept::Prefix;
use crate::jobs::state::JobState;
use crate::jobs::work::{Outcome, TextOutcome};
use crate::store::jobs::JobRow;

/// What is shown of the request, beside what the job's row has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Shown {
    pub(super) background: bool,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
}

impl Shown {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// How a response stands, with what came of it.
pub(super) fn response(request: &Shown, row: &JobRow, outcome: Option<&Outcome>) -> Value {
    let outcome = match outcome {
        Some(Outcome::Text(outcome)) => Some(outcome),
        Some(Outcome::Body { .. }) | None => None,
    };
    let status = status(row, outcome);
    let mut shown = begun(request, row, status);
    if let Some(outcome) = outcome {
        shown["output"] = json!([item(row, item_status(outcome), Some(&outcome.text))]);
        shown["usage"] = usage(outcome);
        if let Some(reason) = cut_by(outcome) {
            shown["incomplete_details"] = json!({ "reason": reason });
        }
    }
    if status == "failed" {
        let code = match row.upstream_status {
            Some(400..=499) => "invalid_prompt",
            _ => "server_error",
        };
        shown["error"] = json!({"code": code, "message": row.message});
    }
    shown
}

/// A response of which nothing has come yet.
pub(super) fn begun(request: &Shown, row: &JobRow, status: &str) -> Value {
    json!({
        "id": Prefix::Response.show(row.id),
        "object": "response",
        "created_at": row.created_at.unix_timestamp(),
        "status": status,
        "background": request.background,
        "error": null,
        "incomplete_details": null,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": row.metadata.clone().unwrap_or_else(|| json!({})),
        "model": row.model,
        "output": [],
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null},
        "store": true,
        "temperature": request.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": null,
        "user": null,
    })
}

fn status(row: &JobRow, outcome: Option<&TextOutcome>) -> &'static str {
    match row.state {
        JobState::Queued => "queued",
        JobState::Running => "in_progress",
        JobState::Succeeded if outcome.is_some_and(|outcome| cut_by(outcome).is_some()) => "incomplete",
        JobState::Succeeded => "completed",
        JobState::Cancelled => "cancelled",
        JobState::Failed | JobState::Expired | JobState::Dead => "failed",
    }
}

/// Why an answer is not as long as it would have been.
pub(super) fn cut_by(outcome: &TextOutcome) -> Option<&'static str> {
    match outcome.finish_reason.as_deref() {
        Some("length") => Some("max_output_tokens"),
        Some("content_filter") => Some("content_filter"),
        _ => None,
    }
}

pub(super) fn item_status(outcome: &TextOutcome) -> &'static str {
    match cut_by(outcome) {
        Some(_) => "incomplete",
        None => "completed",
    }
}

/// The one message of an answer, with its text once it is there.
pub(super) fn item(row: &JobRow, status: &str, text: Option<&str>) -> Value {
    let content: Vec<Value> = text.map(part).into_iter().collect();
    json!({"id": item_id(row), "type": "message", "role": "assistant", "status": status, "content": content})
}

pub(super) fn item_id(row: &JobRow) -> String {
    format!("msg_{}", row.id.simple())
}

pub(super) fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage(outcome: &TextOutcome) -> Value {
    let input = outcome.usage.input_tokens.unwrap_or(0);
    let output = outcome.usage.output_tokens.unwrap_or(0);
    json!({
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input + output,
    })
}
