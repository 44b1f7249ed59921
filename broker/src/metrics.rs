//! Every metric a broker emits. Labels come from closed sets: feature, model,
//! lane, outcome, reason; never a user, never a request.
//!
//! | Metric | Kind | Labels | Meaning |
//! |---|---|---|---|
//! | `duo_requests_received_total` | counter | | requests of known callers |
//! | `duo_requests_refused_early_total` | counter | | of these, refused before they were recorded as admitted |
//! | `duo_requests_answered_early_total` | counter | | of these, answered without a model (search in the documentation) |
//! | `duo_requests_admitted_total` | counter | | of these, recorded as admitted |
//! | `duo_requests_ended_total` | counter | `outcome` | admitted ones that have ended |
//! | `duo_requests_open` | gauge | | admitted ones that have not |
//! | `duo_refusals_total` | counter | `reason` | refusals by reason |
//! | `duo_queue_wait_seconds` | histogram | `lane` | from acceptance to the first claim |
//! | `duo_time_to_first_token_seconds` | histogram | `feature`, `model` | from acceptance to the first chunk |
//! | `duo_request_duration_seconds` | histogram | `feature`, `model`, `outcome` | from acceptance to the end |
//! | `duo_stage_seconds` | histogram | `stage` | time of requests in `auth`, `admit`, `publish`, `wait`, `work`, `reply` ([`Stage`]) |
//! | `duo_queue_depth` | gauge | `lane`, `model` | requests that no worker has taken |
//! | `duo_queue_oldest_age_seconds` | gauge | `lane`, `model` | age of the oldest open request of this broker that no worker has taken |
//! | `duo_in_flight` | gauge | `lane`, `model` | deliveries that workers hold |
//! | `duo_queue_work_seconds` | gauge | `model` | slot seconds of work that waits or runs, all brokers together: divided by the seconds in which it should be done, the slots it takes |
//! | `duo_expected_wait_seconds` | gauge | `lane`, `model` | wait of a newcomer until it has a slot |
//! | `duo_slot_time_seconds` | gauge | `lane`, `model` | mean time that a request of this broker holds a slot |
//! | `duo_serving_slots` | gauge | `model` | slots of model servers that take work |
//! | `duo_frames_total` | counter | `kind` | reply frames received |
//! | `duo_frames_dropped_total` | counter | `reason` | frames of nobody's or of an older attempt |
//! | `duo_redeliveries_total` | counter | | claims for a delivery after the first |
//! | `duo_republished_total` | counter | | requests published again |
//! | `duo_claims_total` | counter | `answer` | claims by answer |
//! | `duo_dead_letters_total` | counter | `feature`, `model`, `reason` | requests given up; `reason` is a failure kind |
//! | `duo_dead_letters_dropped_total` | counter | | dead letters that found no place while NATS took none |
//! | `duo_audit_backlog` | gauge | | audit records not yet acknowledged by NATS |
//! | `duo_audit_dropped_total` | counter | | records of refused requests that found no place while NATS took none |
//! | `duo_config_revision` | gauge | | revision served |
//! | `model_inferences_total` | counter | `model_engine`, `model_name`, `feature_category`, `error`, `streaming` | as the reference gateway names it |
//! | `model_inferences_in_flight` | gauge | `model_engine`, `model_name` | likewise |
//! | `inference_request_duration_seconds` | histogram | `model_engine`, `model_name` | likewise |
//! | `inference_input_tokens_total`, `inference_output_tokens_total` | counter | `model_engine`, `model_name` | likewise |

use std::sync::Arc;

use duo_contract::audit::{End, Outcome, What};
use duo_contract::stage::Stage;
use duo_process::metrics::register;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// Waits worth telling apart: a hop is under a millisecond, a keystroke is dead after two seconds.
const WAIT_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];
/// The reference gateway's buckets of `inference_request_duration_seconds`.
const INFERENCE_BUCKETS: [f64; 7] = [0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Why admission refuses; these are there from the start.
const OVERLOAD_REASONS: [&str; 5] = [
    "lane_full",
    "caller_limit",
    "stream_full",
    "fair_share",
    "no_worker",
];
/// Value of `model_engine`: every model is a self-hosted one behind an OpenAI-compatible server.
const ENGINE: &str = "self_hosted";

/// The broker's metrics, injected wherever something is counted. Cheap to clone.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the module's table documents each")]
pub struct Metrics {
    pub received: IntCounter,
    pub refused_early: IntCounter,
    pub answered_early: IntCounter,
    pub admitted: IntCounter,
    pub ended: IntCounterVec,
    pub open: IntGauge,
    pub refusals: IntCounterVec,
    pub queue_wait: HistogramVec,
    pub first_token: HistogramVec,
    pub duration: HistogramVec,
    pub stages: Arc<Stages>,
    pub queue_depth: IntGaugeVec,
    pub queue_oldest: GaugeVec,
    pub in_flight: IntGaugeVec,
    pub queue_work: GaugeVec,
    pub expected_wait: GaugeVec,
    pub slot_time: GaugeVec,
    pub serving_slots: IntGaugeVec,
    pub frames: IntCounterVec,
    pub frames_dropped: IntCounterVec,
    pub redeliveries: IntCounter,
    pub republished: IntCounter,
    pub claims: IntCounterVec,
    pub dead_letters: IntCounterVec,
    pub dead_letters_dropped: IntCounter,
    pub audit_backlog: IntGauge,
    pub audit_dropped: IntCounter,
    pub config_revision: IntGauge,
    inferences: IntCounterVec,
    inferences_in_flight: IntGaugeVec,
    inference_duration: HistogramVec,
    input_tokens: IntCounterVec,
    output_tokens: IntCounterVec,
}

/// The broker's stages of `duo_stage_seconds`.
#[derive(Debug)]
#[expect(missing_docs, reason = "[`Stage`] documents each")]
pub struct Stages {
    pub auth: Histogram,
    pub admit: Histogram,
    pub publish: Histogram,
    pub wait: Histogram,
    pub work: Histogram,
    pub reply: Histogram,
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help).expect("the name is valid"))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(
        registry,
        IntCounterVec::new(Opts::new(name, help), labels).expect("the name is valid"),
    )
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help).expect("the name is valid"))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(
        registry,
        IntGaugeVec::new(Opts::new(name, help), labels).expect("the name is valid"),
    )
}

fn real_gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    register(
        registry,
        GaugeVec::new(Opts::new(name, help), labels).expect("the name is valid"),
    )
}

fn histograms(registry: &Registry, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(
        registry,
        HistogramVec::new(options, labels).expect("the name is valid"),
    )
}

impl Stages {
    fn new(registry: &Registry) -> Self {
        let all = histograms(
            registry,
            Stage::METRIC,
            "Time of requests by stage",
            &Stage::BUCKETS,
            &["stage"],
        );
        let stage = |stage: Stage| all.with_label_values(&[stage.as_str()]);
        Self {
            auth: stage(Stage::Auth),
            admit: stage(Stage::Admit),
            publish: stage(Stage::Publish),
            wait: stage(Stage::Wait),
            work: stage(Stage::Work),
            reply: stage(Stage::Reply),
        }
    }
}

impl Metrics {
    /// Declares every metric in `registry`; closed sets start at zero.
    ///
    /// # Panics
    /// If one of the names is taken, which is a programmer's error.
    #[must_use]
    #[expect(
        clippy::too_many_lines,
        reason = "a list of declarations, one per line of the table"
    )]
    pub fn new(registry: &Registry) -> Self {
        let r = registry;
        let engine = ["model_engine", "model_name"];
        let metrics = Self {
            received: counter(r, "duo_requests_received_total", "Requests of known callers"),
            refused_early: counter(
                r,
                "duo_requests_refused_early_total",
                "Requests refused before admission",
            ),
            answered_early: counter(
                r,
                "duo_requests_answered_early_total",
                "Requests answered without a model",
            ),
            admitted: counter(r, "duo_requests_admitted_total", "Requests recorded as admitted"),
            ended: counters(
                r,
                "duo_requests_ended_total",
                "Admitted requests that have ended",
                &["outcome"],
            ),
            open: gauge(r, "duo_requests_open", "Admitted requests that have not ended"),
            refusals: counters(r, "duo_refusals_total", "Refusals", &["reason"]),
            queue_wait: histograms(
                r,
                "duo_queue_wait_seconds",
                "Acceptance to first claim",
                &WAIT_BUCKETS,
                &["lane"],
            ),
            first_token: histograms(
                r,
                "duo_time_to_first_token_seconds",
                "Acceptance to first chunk",
                &WAIT_BUCKETS,
                &["feature", "model"],
            ),
            duration: histograms(
                r,
                "duo_request_duration_seconds",
                "Acceptance to end",
                &WAIT_BUCKETS,
                &["feature", "model", "outcome"],
            ),
            stages: Arc::new(Stages::new(r)),
            queue_depth: gauges(
                r,
                "duo_queue_depth",
                "Requests that no worker has taken",
                &["lane", "model"],
            ),
            queue_oldest: real_gauges(
                r,
                "duo_queue_oldest_age_seconds",
                "Age of the oldest request that no worker has taken",
                &["lane", "model"],
            ),
            in_flight: gauges(
                r,
                "duo_in_flight",
                "Deliveries that workers hold",
                &["lane", "model"],
            ),
            queue_work: real_gauges(
                r,
                "duo_queue_work_seconds",
                "Slot seconds of work that waits or runs",
                &["model"],
            ),
            expected_wait: real_gauges(
                r,
                "duo_expected_wait_seconds",
                "Wait of a newcomer until it has a slot",
                &["lane", "model"],
            ),
            slot_time: real_gauges(
                r,
                "duo_slot_time_seconds",
                "Mean time that a request holds a slot",
                &["lane", "model"],
            ),
            serving_slots: gauges(
                r,
                "duo_serving_slots",
                "Slots of model servers that take work",
                &["model"],
            ),
            frames: counters(r, "duo_frames_total", "Reply frames received", &["kind"]),
            frames_dropped: counters(r, "duo_frames_dropped_total", "Reply frames dropped", &["reason"]),
            redeliveries: counter(
                r,
                "duo_redeliveries_total",
                "Claims for a delivery after the first",
            ),
            republished: counter(r, "duo_republished_total", "Requests published again"),
            claims: counters(r, "duo_claims_total", "Claims", &["answer"]),
            dead_letters: counters(
                r,
                "duo_dead_letters_total",
                "Requests given up",
                &["feature", "model", "reason"],
            ),
            dead_letters_dropped: counter(
                r,
                "duo_dead_letters_dropped_total",
                "Dead letters that found no place",
            ),
            audit_backlog: gauge(
                r,
                "duo_audit_backlog",
                "Audit records not yet acknowledged by NATS",
            ),
            audit_dropped: counter(
                r,
                "duo_audit_dropped_total",
                "Audit records of refused requests that found no place",
            ),
            config_revision: gauge(r, "duo_config_revision", "Configuration revision served"),
            inferences: counters(
                r,
                "model_inferences_total",
                "Model inferences",
                &[
                    "model_engine",
                    "model_name",
                    "feature_category",
                    "error",
                    "streaming",
                ],
            ),
            inferences_in_flight: gauges(
                r,
                "model_inferences_in_flight",
                "Model inferences under way",
                &engine,
            ),
            inference_duration: histograms(
                r,
                "inference_request_duration_seconds",
                "Duration of inferences",
                &INFERENCE_BUCKETS,
                &engine,
            ),
            input_tokens: counters(r, "inference_input_tokens_total", "Prompt tokens", &engine),
            output_tokens: counters(r, "inference_output_tokens_total", "Generated tokens", &engine),
        };
        for outcome in Outcome::ALL {
            metrics.ended.with_label_values(&[outcome.as_str()]);
        }
        for reason in OVERLOAD_REASONS {
            metrics.refusals.with_label_values(&[reason]);
        }
        for answer in ["proceed", "continue", "busy", "gone"] {
            metrics.claims.with_label_values(&[answer]);
        }
        for kind in ["chunk", "heartbeat", "done", "failed"] {
            metrics.frames.with_label_values(&[kind]);
        }
        metrics
    }

    /// An admitted request goes to its model.
    pub fn inference_began(&self, model: &str) {
        self.inferences_in_flight
            .with_label_values(&[ENGINE, model])
            .inc();
    }

    /// An admitted request has ended.
    pub fn inference_ended(&self, what: &What, end: &End) {
        let feature = what.feature.as_ref().map_or("none", |f| f.as_str());
        let model = what.model.as_ref().map_or("none", |m| m.as_str());
        let seconds = micros(end.duration_us);
        self.inferences_in_flight
            .with_label_values(&[ENGINE, model])
            .dec();
        self.duration
            .with_label_values(&[feature, model, end.outcome.as_str()])
            .observe(seconds);
        self.inference_duration
            .with_label_values(&[ENGINE, model])
            .observe(seconds);
        if let Some(first) = end.first_byte_us {
            self.first_token
                .with_label_values(&[feature, model])
                .observe(micros(first));
        }
        let error = if end.outcome == Outcome::Completed {
            "no"
        } else {
            "yes"
        };
        let streaming = if what.stream { "yes" } else { "no" };
        self.inferences
            .with_label_values(&[ENGINE, model, feature, error, streaming])
            .inc();
        let count = |tokens: Option<i64>| tokens.and_then(|t| u64::try_from(t).ok()).unwrap_or(0);
        self.input_tokens
            .with_label_values(&[ENGINE, model])
            .inc_by(count(end.input_tokens));
        self.output_tokens
            .with_label_values(&[ENGINE, model])
            .inc_by(count(end.output_tokens));
    }

    /// The wait in a lane until the first claim.
    #[must_use]
    pub fn wait_of(&self, lane: duo_contract::name::Lane) -> Histogram {
        self.queue_wait.with_label_values(&[lane.as_str()])
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a histogram needs no microsecond of a century"
)]
fn micros(us: i64) -> f64 {
    us as f64 / 1e6
}
