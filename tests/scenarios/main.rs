//! The real programs together: every scenario starts its own broker, worker, queue, database and neighbours, and ends
//! by asserting that nothing is left over.

mod abandoned;
mod admin_api;
mod air_gap;
mod answers;
mod auth;
mod bad_input;
mod canary;
mod cancel;
mod chat_turns;
mod config;
mod dead_letters;
mod death;
mod docs_search;
mod edge;
mod gitlab_doors;
mod gitlab_sync;
mod ide_direct;
mod infer;
mod jobs;
mod language_server;
mod nats_restart;
mod neighbours;
mod openai_python;
mod openapi;
mod overload;
mod owner_death;
mod path;
mod postgres_away;
mod rails;
mod real_server;
mod ruby_gem;
mod shutdown;
mod streams;
mod webhooks;
mod worker_death;
