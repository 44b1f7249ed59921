//! What the handlers work with.

use std::sync::Arc;

use crate::exchange::Exchange;
use crate::prompt::Prompts;

/// Checks bearer tokens. Stands in until the real one is merged.
pub type Authenticator = placeholder::Authenticator;
/// Opens audit records. Stands in until the real one is merged.
pub type AuditLog = placeholder::AuditLog;

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
    /// Answers `GET /monitoring/ready`.
    pub readiness: Readiness,
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiState").finish_non_exhaustive()
    }
}

/// Signatures of parts that are written elsewhere.
pub(super) mod placeholder {
    use std::net::IpAddr;

    use http::HeaderMap;

    use crate::audit::OpenRecord;
    use crate::caller::Caller;

    /// Checks bearer tokens.
    #[derive(Debug)]
    pub struct Authenticator {}

    /// Why a caller is a stranger.
    #[derive(Debug, thiserror::Error)]
    #[error("No authorization header presented")]
    pub struct AuthError;

    impl AuthError {
        /// One snake_case word.
        #[must_use]
        pub fn reason(&self) -> &'static str {
            "no_token"
        }
    }

    impl Authenticator {
        /// Tells who is calling.
        ///
        /// # Errors
        /// A stranger.
        pub fn authenticate(&self, _: &HeaderMap, _: Option<IpAddr>) -> Result<Caller, AuthError> {
            Err(AuthError)
        }
    }

    /// Opens audit records.
    #[derive(Debug)]
    pub struct AuditLog {}

    impl AuditLog {
        /// Opens the record of a request of a known caller.
        #[must_use]
        pub fn open(&self, _: &Caller, _: &str, _: Option<String>, _: Option<String>) -> OpenRecord {
            OpenRecord {}
        }
    }
}
