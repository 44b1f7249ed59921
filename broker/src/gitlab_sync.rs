//! Optional: what administrators choose in GitLab, proposed to or made the gateway's configuration.
//!
//! On a timer one of the brokers asks GitLab which of its self-hosted models each feature has ([`fetch`]), and works out
//! which assignments that would change ([`translate`]). It only ever picks among models that the configuration already
//! has, for pairs that its rules allow; everything else is told and left alone. An endpoint or a key is not even asked
//! for. Changes go the way of `config apply`, under the name [`ACTOR`].

pub mod fetch;
mod translate;

use std::time::Duration;

use duo_contract::name::{FeatureName, ModelName};
use duo_process::metrics::register;
use duo_process::shutdown::Shutdown;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use crate::config::{GitlabSyncConfig, SyncMode};
use crate::config_file::{self, ApplyError};
use crate::prompt;
use crate::store::{Store, StoreError};
use fetch::FetchError;

/// Who changes made so are recorded under.
pub const ACTOR: &str = "gitlab_sync";
/// How often a broker looks whether it is time to ask, at the least and at the most.
const LEAST_TICK: Duration = Duration::from_millis(250);
const MOST_TICK: Duration = Duration::from_secs(30);

/// What came of one answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Were the changes made?
    pub applied: bool,
    /// The configuration's revision: the one they were made in, or that they are proposed to.
    pub revision: u64,
    /// What differs.
    pub changes: Vec<FeatureChange>,
    /// What GitLab wants and the gateway does not do.
    pub skipped: Vec<Skipped>,
}

/// Another model for a feature, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureChange {
    /// The feature.
    pub feature: FeatureName,
    /// What it has; nothing where it is inactive.
    pub from: Option<ModelName>,
    /// What GitLab wants.
    pub to: Option<ModelName>,
}

/// A setting that is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// GitLab's name of the feature.
    pub setting: String,
    /// The model that it has there, by its identifier.
    pub model: Option<String>,
    /// Why, and what to do.
    pub reason: String,
}

/// What the task tells of itself; brokers whose turn it was not show zero.
#[derive(Debug, Clone)]
pub struct SyncMetrics {
    /// `duo_gitlab_sync_runs_total`: times that GitLab was asked, by `result`: `unchanged`, `proposed`, `applied`, `refused`
    /// or what went wrong.
    runs: IntCounterVec,
    /// `duo_gitlab_sync_pending`: changes that this broker last found and that nobody has made.
    pending: IntGauge,
    /// `duo_gitlab_sync_skipped`: settings that this broker last found and that cannot be followed.
    skipped: IntGauge,
}

impl SyncMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let named = "a valid metric name";
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help).expect(named));
        let runs = Opts::new(
            "duo_gitlab_sync_runs_total",
            "Times that GitLab was asked for its settings.",
        );
        let runs = register(registry, IntCounterVec::new(runs, &["result"]).expect(named));
        let results = ["unchanged", "proposed", "applied", "refused", "stale", "store"];
        for result in results.iter().chain(&FetchError::REASONS) {
            runs.with_label_values(&[result]);
        }
        Self {
            runs,
            pending: gauge(
                "duo_gitlab_sync_pending",
                "Changes that GitLab's settings ask for and nobody has made.",
            ),
            skipped: gauge(
                "duo_gitlab_sync_skipped",
                "Settings of GitLab that cannot be followed.",
            ),
        }
    }
}

/// What the task works with.
#[derive(Debug)]
pub struct Parts {
    /// Whom to ask, how often, and what to do with the answer.
    pub config: GitlabSyncConfig,
    /// This broker's name.
    pub broker: String,
    /// The configuration.
    pub store: Store,
    /// A client that follows no redirect, which would take the token elsewhere.
    pub client: reqwest::Client,
}

/// Why an answer came to nothing.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("the configuration cannot be read")]
    Store(#[from] StoreError),
}

impl SyncError {
    fn result(&self) -> &'static str {
        match self {
            SyncError::Fetch(error) => error.reason(),
            SyncError::Apply(ApplyError::Refused(_) | ApplyError::Absent(_)) => "refused",
            SyncError::Apply(ApplyError::Stale { .. }) => "stale",
            SyncError::Apply(ApplyError::Store(_)) | SyncError::Store(_) => "store",
        }
    }
}

/// Asks whenever it is time and this broker's turn, until the shutdown begins.
pub async fn run(parts: Parts, metrics: SyncMetrics, shutdown: Shutdown) {
    let mut tick = tokio::time::interval((parts.config.every / 4).clamp(LEAST_TICK, MOST_TICK));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut task = Task {
        parts,
        metrics,
        said: None,
    };
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            _ = tick.tick() => {}
        }
        tokio::select! {
            () = shutdown.begun() => return,
            () = task.step() => {}
        }
    }
}

struct Task {
    parts: Parts,
    metrics: SyncMetrics,
    /// What the log has last, so that it has it once.
    said: Option<String>,
}

impl Task {
    async fn step(&mut self) {
        let Parts {
            config,
            broker,
            store,
            ..
        } = &self.parts;
        let turn = match store.sync_turn(broker, config.mode.as_str(), config.every).await {
            Ok(Some(turn)) => turn,
            // Another broker's turn, or too early.
            Ok(None) => return,
            Err(error) => return self.failed(&error.into()),
        };
        let told = match self.ask().await {
            Ok(report) => {
                self.succeeded(&report);
                let report = serde_json::to_value(&report).unwrap_or_default();
                turn.answered(&report).await
            }
            Err(error) => {
                self.failed(&error);
                turn.failed(&error.to_string()).await
            }
        };
        if let Err(error) = told {
            self.failed(&error.into());
        }
    }

    async fn ask(&self) -> Result<Report, SyncError> {
        let Parts {
            config,
            store,
            client,
            ..
        } = &self.parts;
        let settings = fetch::settings(client, &config.url, &config.token).await?;
        let state = store.config_state().await?;
        let translated = translate::translate(&settings, &state, &prompt::check);
        let mut report = Report {
            applied: false,
            revision: state.revision,
            changes: translated.changes,
            skipped: translated.skipped,
        };
        if config.mode == SyncMode::Apply && !report.changes.is_empty() {
            // What was decided on an older state is decided again the next time.
            let seen = Some(state.revision);
            let applied = config_file::apply(store, &translated.wanted, ACTOR, seen, &prompt::check).await?;
            report.applied = true;
            report.revision = applied.revision;
        }
        Ok(report)
    }

    fn succeeded(&mut self, report: &Report) {
        let result = match (report.changes.is_empty(), report.applied) {
            (true, _) => "unchanged",
            (false, false) => "proposed",
            (false, true) => "applied",
        };
        self.metrics.runs.with_label_values(&[result]).inc();
        let count = |items: usize| i64::try_from(items).unwrap_or(i64::MAX);
        let pending = if report.applied { 0 } else { report.changes.len() };
        self.metrics.pending.set(count(pending));
        self.metrics.skipped.set(count(report.skipped.len()));
        let text = format!("{result} {:?} {:?}", report.changes, report.skipped);
        if self.is_news(text) {
            let changes: Vec<String> = report.changes.iter().map(ToString::to_string).collect();
            tracing::info!(
                result,
                changes = changes.join(", "),
                skipped = report.skipped.len(),
                revision = report.revision,
                "GitLab's feature settings were read; duo-broker gitlab-sync show tells more"
            );
        }
    }

    fn failed(&mut self, error: &SyncError) {
        self.metrics.runs.with_label_values(&[error.result()]).inc();
        if self.is_news(error.to_string()) {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, "GitLab's feature settings cannot be read; trying again");
        }
    }

    fn is_news(&mut self, text: String) -> bool {
        let news = self.said.as_ref() != Some(&text);
        self.said = Some(text);
        news
    }
}

impl std::fmt::Display for FeatureChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |model: &Option<ModelName>| {
            model
                .as_ref()
                .map_or_else(|| "inactive".to_owned(), ToString::to_string)
        };
        write!(f, "{}: {} -> {}", self.feature, name(&self.from), name(&self.to))
    }
}
