//! Starts the real programs together with their neighbours, for the system tests.
//!
//! A [`Cluster`] is nats-server, PostgreSQL, a simulated model server, a stand-in GitLab, a broker and workers: real
//! programs on free ports of 127.0.0.1, with their data and logs in one temporary folder that stays when a test
//! fails. The programs are those that cargo has put beside the test; `./tests/run` builds them first. Nothing here
//! waits without a bound, and nothing sleeps to let something happen: what is waited for is looked at again and again.

pub mod balancer;
pub mod client;
pub mod cluster;
pub mod model_server;
pub mod nats;
pub mod postgres;
pub mod program;
pub mod proxy;
pub mod setup;
pub mod wait;

pub use balancer::Balancer;
pub use client::{Answer, Call, Opened};
pub use cluster::Cluster;
pub use nats::{Nats, NatsPlan};
pub use postgres::{Database, Postgres};
pub use program::Program;
pub use proxy::{Proxy, Weather};
pub use setup::Builder;
pub use wait::{PATIENCE, until};
