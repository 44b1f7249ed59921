//! What a worker says of itself, under its name in [`crate::subject::WORKERS_BUCKET`].

use serde::{Deserialize, Serialize};

use crate::claim::json_message;
use crate::name::ModelName;

/// A worker's presence; the key expires unless it is renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema), schema(as = Worker, description = "A worker, as it tells of itself."))]
pub struct Presence {
    /// The worker's name, a subject token.
    pub worker: String,
    /// Program version.
    pub version: String,
    /// Started at, milliseconds since the epoch.
    pub started_at_ms: u64,
    /// Is it draining?
    #[serde(default)]
    pub draining: bool,
    /// The models it serves.
    pub models: Vec<ServedModel>,
}

/// One model that a worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema))]
pub struct ServedModel {
    /// The model.
    pub model: ModelName,
    /// The model server's name in the worker's file; servers share slots among models.
    pub server: String,
    /// Requests the server takes at once.
    pub slots: u32,
    /// Slots in use now.
    pub in_flight: u32,
    /// `passing`, `tripped` or `probing`.
    pub breaker: BreakerState,
    /// Does the server turn the model's tool calls into data?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tools: bool,
}

/// State of the breaker before a model server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema))]
pub enum BreakerState {
    /// Requests pass.
    Passing,
    /// The server keeps failing: the worker pulls nothing for it.
    Tripped,
    /// One request tries whether the server is well again.
    Probing,
}

json_message!(Presence);

/// Of a server's slots, those that lower lanes leave to keystroke: one in
/// eight, at least one, unless there is only one slot at all.
#[must_use]
pub fn kept_for_keystroke(slots: u32) -> u32 {
    if slots > 1 { (slots / 8).max(1) } else { 0 }
}
