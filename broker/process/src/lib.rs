//! What the broker and the worker programs do alike; no business nouns.

pub mod nats;
