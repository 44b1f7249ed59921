//! What the handlers work with.

use std::sync::Arc;

use crate::audit::AuditLog;
use crate::auth::Authenticator;
use crate::bulk::Bulk;
use crate::documentation::Documentation;
use crate::exchange::Exchange;
use crate::jobs::Jobs;
use crate::prompt::Prompts;

/// Does the broker welcome work at the moment?
pub type Readiness = Arc<dyn Fn() -> bool + Send + Sync>;

/// The parts that requests pass through, built once at start-up.
pub struct ApiState {
    /// Routes, admits and sends requests.
    pub exchange: Exchange,
    /// Tells who is calling.
    pub authenticator: Authenticator,
    /// Templates of the moment.
    pub prompts: Prompts,
    /// Opens a record per request.
    pub audit: AuditLog,
    /// The index of the documentation; without one nothing is found.
    pub documentation: Option<Documentation>,
    /// What is submitted and left; without it there is nothing of it.
    pub jobs: Option<Jobs>,
    /// Files and batches; without it there is nothing of them.
    pub bulk: Option<Bulk>,
    /// Answers `GET /monitoring/ready`.
    pub readiness: Readiness,
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiState").finish_non_exhaustive()
    }
}
