//! What the system tests, the demonstration, the benchmarks and the failure drills stand on.
//!
//! Nothing here is part of the product: these modules imitate its neighbours (the model server and the GitLab
//! instance) closely enough that the real programs cannot tell the difference on the wire.

pub mod bench;
pub mod demo;
pub mod drill;
pub mod gitlab;
pub mod harness;
pub mod language_server;
pub mod rails;
pub mod scripted;
pub mod server;
pub mod sim;
pub mod svg;
pub mod table;
pub mod token_path;
