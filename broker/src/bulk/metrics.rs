//! What batches tell of themselves.

use duo_process::metrics::register;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::state::BatchState;
use crate::store::batches::OpenBatches;

/// Metrics of batches and their lines.
#[derive(Debug, Clone)]
pub struct BulkMetrics {
    /// `duo_batches_accepted_total`: batches that this broker took in.
    pub(crate) accepted: IntCounter,
    /// `duo_batches_ended_total`: batches that this broker brought to their end, by `state`.
    ended: IntCounterVec,
    /// `duo_batch_lines_made_total`: lines of which this broker made jobs.
    pub(super) made: IntCounter,
    /// `duo_batch_lines_written_total`: lines of which this broker wrote down what came.
    pub(super) written: IntCounter,
    /// `duo_batches_open`: batches that are not over, by `state`, of all brokers together; each of them tells the same.
    open: IntGaugeVec,
    /// `duo_batches_oldest_open_seconds`: how long ago the first of them was made.
    oldest: IntGauge,
}

impl BulkMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let named = "a valid metric name";
        let counter = |name, help| register(registry, IntCounter::new(name, help).expect(named));
        let ended = Opts::new("duo_batches_ended_total", "Batches that this broker ended.");
        let open = Opts::new("duo_batches_open", "Batches that are not over, of all brokers.");
        let oldest = IntGauge::new(
            "duo_batches_oldest_open_seconds",
            "Age of the oldest batch that is not over.",
        );
        let metrics = Self {
            accepted: counter("duo_batches_accepted_total", "Batches accepted."),
            ended: register(registry, IntCounterVec::new(ended, &["state"]).expect(named)),
            made: counter("duo_batch_lines_made_total", "Lines of batches that became jobs."),
            written: counter(
                "duo_batch_lines_written_total",
                "Lines of batches whose end was written down.",
            ),
            open: register(registry, IntGaugeVec::new(open, &["state"]).expect(named)),
            oldest: register(registry, oldest.expect(named)),
        };
        for state in BatchState::ALL.into_iter().filter(|state| state.is_terminal()) {
            metrics.ended.with_label_values(&[state.as_str()]);
        }
        metrics.note_open(&OpenBatches::default());
        metrics
    }

    pub(super) fn note_ended(&self, state: BatchState) {
        self.ended.with_label_values(&[state.as_str()]).inc();
    }

    pub(super) fn note_open(&self, open: &OpenBatches) {
        for state in BatchState::ALL.into_iter().filter(|state| !state.is_terminal()) {
            let count = open.counts.get(&state).copied().unwrap_or(0);
            self.open.with_label_values(&[state.as_str()]).set(count);
        }
        self.oldest
            .set(i64::try_from(open.oldest.as_secs()).unwrap_or(i64::MAX));
    }
}
