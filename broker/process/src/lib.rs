//! What both programs of the project do alike, and nothing that belongs to one of them.
//!
//! A program reads its settings with [`config`], starts its logs with [`telemetry`], runs its tasks on the threads of
//! [`runtime`], shows its health with [`admin`], ends with [`shutdown`], paces its retries with [`retry`], declares its
//! metrics with [`metrics`] and tells the time with [`clock`]. This package knows no business nouns: a name that means something to a user of
//! the service belongs to the program that serves it.

pub mod admin;
pub mod clock;
pub mod config;
pub mod metrics;
pub mod nats;
pub mod retry;
pub mod runtime;
pub mod shutdown;
pub mod telemetry;
