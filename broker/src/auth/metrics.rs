//! Counters of this module.
//!
//! | Metric | Label | Values |
//! |---|---|---|
//! | `duo_auth_total` | `result` | `cached`, `verified`, `api_token`, or the reason of the refusal |
//! | `duo_auth_key_fetches_total` | `result` | `loaded`, or the reason of the failure |

use duo_process::metrics::register;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::error::AuthError;
use super::fetch::KeyFetchError;

/// Counters of authentications and key fetches; clones share them.
#[derive(Debug, Clone)]
pub(super) struct AuthMetrics {
    /// GitLab tokens known from before.
    pub(super) cached: IntCounter,
    /// GitLab tokens whose signature was verified.
    pub(super) verified: IntCounter,
    /// API tokens.
    pub(super) api_token: IntCounter,
    total: IntCounterVec,
    fetches: IntCounterVec,
}

impl AuthMetrics {
    /// Counters in `registry`, all at zero.
    ///
    /// # Panics
    /// When `registry` holds them already.
    pub(super) fn new(registry: &Registry) -> Self {
        let total = counters("duo_auth_total", "Authentications by result.");
        let total = register(registry, total);
        let fetches = counters("duo_auth_key_fetches_total", "Fetches of signing keys by result.");
        let fetches = register(registry, fetches);
        for reason in AuthError::REASONS {
            total.with_label_values(&[reason]);
        }
        for result in KeyFetchError::REASONS.into_iter().chain([LOADED]) {
            fetches.with_label_values(&[result]);
        }
        Self {
            cached: total.with_label_values(&["cached"]),
            verified: total.with_label_values(&["verified"]),
            api_token: total.with_label_values(&["api_token"]),
            total,
            fetches,
        }
    }

    pub(super) fn refused(&self, error: AuthError) {
        self.total.with_label_values(&[error.reason()]).inc();
    }

    pub(super) fn fetched(&self, failure: Option<&KeyFetchError>) {
        let result = failure.map_or(LOADED, KeyFetchError::reason);
        self.fetches.with_label_values(&[result]).inc();
    }
}

const LOADED: &str = "loaded";

fn counters(name: &str, help: &str) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), &["result"]).expect("the names are valid")
}
