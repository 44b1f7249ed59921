//! Every byte that crosses NATS between brokers and workers.
//!
//! Owns subjects, stream and consumer names, the request envelope, reply
//! frames, claims and the bundles both travel in, cancels, presence, the
//! configuration snapshot, audit records, dead letters, and the names of the
//! stages that both measure. Does no I/O and knows no runtime, so a client may take the
//! protocol without the servers. Messages grow by optional fields only;
//! `fixtures/` holds the bytes that older versions wrote.

#![warn(unreachable_pub)]

pub mod audit;
pub mod body;
pub mod bundle;
pub mod cancel;
pub mod claim;
pub mod dead;
pub mod envelope;
pub mod failure;
pub mod frame;
pub mod name;
pub mod presence;
pub mod seal;
pub mod snapshot;
pub mod stage;
pub mod subject;
pub mod trace;
