//! What the system tests, the demonstration and the benchmarks stand on.
//!
//! Nothing here is part of the product: these modules imitate its neighbours (the model server and the GitLab
//! instance) closely enough that the real programs cannot tell the difference on the wire.

pub mod bench;
pub mod demo;
pub mod gitlab;
pub mod harness;
pub mod server;
pub mod sim;
pub mod table;
