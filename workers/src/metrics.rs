//! Every metric that a worker emits.
//!
//! | Name | Kind | Labels | Meaning |
//! |---|---|---|---|
//! | `duo_worker_slots` | gauge | `server` | requests the server takes at once; changes with `slots: auto` |
//! | `duo_worker_slots_in_use` | gauge | `server` | slots in use |
//! | `duo_worker_deliveries_total` | counter | `feature`, `model`, `lane` | deliveries that got a slot |
//! | `duo_worker_redeliveries_total` | counter | | those of them that were not the first |
//! | `duo_worker_handed_back_total` | counter | | deliveries that found no slot |
//! | `duo_worker_outcomes_total` | counter | `outcome` | how jobs ended |
//! | `duo_worker_undecodable_total` | counter | | messages that nobody can read |
//! | `duo_worker_frames_total` | counter | | frames sent, heartbeats included |
//! | `duo_worker_frames_resent_total` | counter | | frames sent again on request |
//! | `duo_worker_model_calls_total` | counter | `server`, `result` | calls begun (`ok`) or failed, by failure kind |
//! | `duo_worker_breaker_state` | gauge | `server` | 0 passing, 1 probing, 2 tripped |
//! | `duo_worker_time_to_first_token_seconds` | histogram | `model` | from the call to the first data of a stream |
//! | `duo_stage_seconds` | histogram | `stage` | time of requests in `claim`, `model` ([`Stage`]) |
//! | `model_inferences_in_flight` | gauge | `model_engine`, `model_name` | requests at model servers; named as in GitLab's AI Gateway |

use duo_contract::failure::FailureKind;
use duo_contract::stage::Stage;
use duo_process::metrics::register;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::config::ServerConfig;
use crate::outcome::Outcome;
use crate::slots::SlotGauges;

/// From a token that is there at once to the longest wait anyone sits through.
const FIRST_TOKEN_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// The metrics, injected where they are counted.
#[derive(Debug, Clone)]
pub struct Metrics {
    slots: IntGaugeVec,
    slots_in_use: IntGaugeVec,
    breaker_state: IntGaugeVec,
    model_calls: IntCounterVec,
    outcomes: IntCounterVec,
    first_token: HistogramVec,
    inferences: IntGaugeVec,
    /// [`Stage::Claim`].
    pub claim: Histogram,
    /// [`Stage::Model`].
    pub model: Histogram,
    /// Deliveries that got a slot.
    pub deliveries: IntCounterVec,
    /// Those of them that were not the first.
    pub redeliveries: IntCounter,
    /// Deliveries that found no slot.
    pub handed_back: IntCounter,
    /// Messages that nobody can read.
    pub undecodable: IntCounter,
    /// Frames sent.
    pub frames: IntCounter,
    /// Frames sent again on request.
    pub frames_resent: IntCounter,
}

/// The metrics of one model server.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    /// Its slots.
    pub slots: SlotGauges,
    /// The breaker's state.
    pub breaker_state: IntGauge,
    /// Calls whose answer began.
    pub calls_begun: IntCounter,
    calls_failed: Vec<IntCounter>,
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(
        registry,
        IntCounter::new(name, help).expect("a valid metric name"),
    )
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(
        registry,
        IntCounterVec::new(Opts::new(name, help), labels).expect("a valid metric name"),
    )
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(
        registry,
        IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid metric name"),
    )
}

impl Metrics {
    /// Registers every metric; outcomes start at zero.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let first_token = HistogramOpts::new(
            "duo_worker_time_to_first_token_seconds",
            "From the call of the model server to the first data of a stream.",
        )
        .buckets(FIRST_TOKEN_BUCKETS.to_vec());
        let stages =
            HistogramOpts::new(Stage::METRIC, "Time of requests by stage.").buckets(Stage::BUCKETS.to_vec());
        let stages = register(
            registry,
            HistogramVec::new(stages, &["stage"]).expect("a valid metric name"),
        );
        let metrics = Self {
            claim: stages.with_label_values(&[Stage::Claim.as_str()]),
            model: stages.with_label_values(&[Stage::Model.as_str()]),
            slots: gauges(
                registry,
                "duo_worker_slots",
                "Requests the server takes at once.",
                &["server"],
            ),
            slots_in_use: gauges(registry, "duo_worker_slots_in_use", "Slots in use.", &["server"]),
            breaker_state: gauges(
                registry,
                "duo_worker_breaker_state",
                "0 passing, 1 probing, 2 tripped.",
                &["server"],
            ),
            model_calls: counters(
                registry,
                "duo_worker_model_calls_total",
                "Calls of the model server, by how they began.",
                &["server", "result"],
            ),
            outcomes: counters(
                registry,
                "duo_worker_outcomes_total",
                "How jobs ended.",
                &["outcome"],
            ),
            first_token: register(
                registry,
                HistogramVec::new(first_token, &["model"]).expect("a valid metric name"),
            ),
            inferences: gauges(
                registry,
                "model_inferences_in_flight",
                "Requests at model servers.",
                &["model_engine", "model_name"],
            ),
            deliveries: counters(
                registry,
                "duo_worker_deliveries_total",
                "Deliveries that got a slot.",
                &["feature", "model", "lane"],
            ),
            redeliveries: counter(
                registry,
                "duo_worker_redeliveries_total",
                "Deliveries that got a slot and were not the first.",
            ),
            handed_back: counter(
                registry,
                "duo_worker_handed_back_total",
                "Deliveries that found no slot.",
            ),
            undecodable: counter(
                registry,
                "duo_worker_undecodable_total",
                "Messages that nobody can read.",
            ),
            frames: counter(
                registry,
                "duo_worker_frames_total",
                "Frames sent, heartbeats included.",
            ),
            frames_resent: counter(
                registry,
                "duo_worker_frames_resent_total",
                "Frames sent again on request.",
            ),
        };
        for name in Outcome::NAMES {
            metrics.outcomes.with_label_values(&[name]);
        }
        metrics
    }

    /// The metrics of one server, its models' series at zero.
    #[must_use]
    pub fn server(&self, config: &ServerConfig) -> ServerMetrics {
        let name = &*config.name;
        for served in &config.models {
            let _ = self.inferences(config.kind.as_str(), served.model.as_str());
            let _ = self.first_token(served.model.as_str());
        }
        let failed = |kind: FailureKind| self.model_calls.with_label_values(&[name, kind.as_str()]);
        ServerMetrics {
            slots: SlotGauges {
                total: self.slots.with_label_values(&[name]),
                in_use: self.slots_in_use.with_label_values(&[name]),
            },
            breaker_state: self.breaker_state.with_label_values(&[name]),
            calls_begun: self.model_calls.with_label_values(&[name, "ok"]),
            calls_failed: FailureKind::ALL.into_iter().map(failed).collect(),
        }
    }

    /// Counts a job's end.
    pub fn ended(&self, outcome: Outcome) {
        self.outcomes.with_label_values(&[outcome.as_str()]).inc();
    }

    /// Requests of one model at its servers.
    #[must_use]
    pub fn inferences(&self, engine: &str, model: &str) -> IntGauge {
        self.inferences.with_label_values(&[engine, model])
    }

    /// Times to the first data of one model's streams.
    #[must_use]
    pub fn first_token(&self, model: &str) -> Histogram {
        self.first_token.with_label_values(&[model])
    }
}

impl ServerMetrics {
    /// Counts a failed call.
    pub fn call_failed(&self, kind: FailureKind) {
        let index = FailureKind::ALL.iter().position(|known| *known == kind);
        if let Some(counter) = index.and_then(|index| self.calls_failed.get(index)) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_metric() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        metrics.deliveries.with_label_values(&["f", "m", "l"]);
        let config = ServerConfig {
            name: "s".to_owned(),
            url: String::new(),
            slots: crate::config::Slots::Fixed(1),
            kind: crate::config::ServerKind::Vllm,
            api_key: None,
            models: vec![crate::config::ServedConfig {
                model: duo_contract::name::ModelName::parse("m").expect("a name"),
                served_as: "m".to_owned(),
                tools: false,
            }],
        };
        let _server = metrics.server(&config);
        let table = include_str!("metrics.rs");
        let families = registry.gather();
        assert_eq!(families.len(), 14);
        for family in families {
            assert!(
                table.contains(&format!("//! | `{}`", family.name())),
                "{}",
                family.name()
            );
        }
    }
}

/// One request at the model server, counted until it is dropped.
#[derive(Debug)]
pub struct InFlight(prometheus::IntGauge);

impl InFlight {
    /// Counts one in `gauge`.
    #[must_use]
    pub fn new(gauge: prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
