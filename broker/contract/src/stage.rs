//! The stages that a request's way takes its time in, under the names that the metrics give them.
//!
//! Each is measured on one clock, where it happens, in `duo_stage_seconds`. The broker's follow one another from the
//! request's head to the first data of its answer; the worker's are what lies within [`Stage::Work`] and, until the
//! claim has come to the broker, at the end of [`Stage::Wait`].

/// One stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Broker: from the head to a known caller.
    Auth,
    /// Broker: from there to a place in line; the body is read, routed and rendered.
    Admit,
    /// Broker: sealed, published and stored by NATS. It ends with the first claim if that comes sooner than NATS's
    /// acknowledgement.
    Publish,
    /// Broker: stored, but not claimed.
    Wait,
    /// Broker: from the first claim to the first data of the answer (all of it, where it is no stream).
    Work,
    /// Broker: from there until the client's side takes it; request and *admitted* record are acknowledged by then.
    Reply,
    /// Worker: from a delivery in hand to the owner's leave to answer it. The model's part of a first delivery lies
    /// beside it.
    Claim,
    /// Worker: from a delivery in hand or, where the call waited for it, the owner's leave to the model server's first
    /// data.
    Model,
}

impl Stage {
    /// All of them: the broker's in their order, then the worker's.
    pub const ALL: [Stage; 8] = [
        Stage::Auth,
        Stage::Admit,
        Stage::Publish,
        Stage::Wait,
        Stage::Work,
        Stage::Reply,
        Stage::Claim,
        Stage::Model,
    ];

    /// The metric's name.
    pub const METRIC: &'static str = "duo_stage_seconds";

    /// Upper bounds of the metric's buckets in seconds: fine where a hop's stages are, coarse where a queue's are.
    pub const BUCKETS: [f64; 24] = [
        10e-6, 20e-6, 30e-6, 50e-6, 70e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 700e-6, 1e-3, 1.5e-3,
        2e-3, 3e-3, 5e-3, 10e-3, 25e-3, 100e-3, 0.25, 1.0, 5.0, 15.0, 60.0,
    ];

    /// The name in metrics and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Auth => "auth",
            Stage::Admit => "admit",
            Stage::Publish => "publish",
            Stage::Wait => "wait",
            Stage::Work => "work",
            Stage::Reply => "reply",
            Stage::Claim => "claim",
            Stage::Model => "model",
        }
    }
}
