//! A job as clients see it.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::jobs::state::JobState;
use crate::jobs::work::Outcome;
use crate::store::jobs::JobRow;

/// Where the job, its events and its end are found.
pub(super) fn links(id: Uuid) -> Value {
    json!({
        "self": format!("/v1/jobs/{id}"),
        "events": format!("/v1/jobs/{id}/events"),
    })
}

/// A job, with its result and its place in line where they are known.
pub(super) fn job(row: &JobRow, outcome: Option<&Outcome>, place: Option<(u64, Option<f64>)>) -> Value {
    let mut shown = json!({
        "id": row.id,
        "object": "job",
        "state": row.state.as_str(),
        "feature": row.feature,
        "model": row.model,
        "lane": row.lane.as_str(),
        "created_at": moment(row.created_at),
        "started_at": row.started_at.map(moment),
        "ended_at": row.ended_at.map(moment),
        "deadline": moment(row.deadline),
        "runs": row.run,
        "attempts": row.failures + i32::from(row.owner.is_some() || row.state.is_terminal() && row.run > 0),
        "result": outcome,
        "error": error(row),
        "metadata": row.metadata,
        "callback": row.callback,
        "links": links(row.id),
    });
    if let Some(id) = row.retry_of {
        shown["retry_of"] = json!(id);
    }
    if let Some((id, version)) = &row.prompt {
        shown["prompt"] = json!({"id": id, "version": version});
    }
    if let Some((ahead, wait)) = place {
        shown["position"] = json!(ahead);
        shown["estimated_wait_seconds"] = json!(wait.map(f64::ceil));
    }
    shown
}

/// Why it ended badly, or why it waits again.
fn error(row: &JobRow) -> Value {
    if row.state == JobState::Succeeded {
        return Value::Null;
    }
    match &row.reason {
        Some(reason) => json!({
            "code": reason,
            "message": row.message,
            "upstream_status": row.upstream_status,
        }),
        None => Value::Null,
    }
}

fn moment(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}
