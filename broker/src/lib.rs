//! The API front end of the AI gateway: it checks the caller, picks the model
//! configured for the feature, queues the request durably and streams the
//! worker's answer back.
//!
//! One request reads from top to bottom: [`auth`], [`api`], [`routing`],
//! [`admission`], [`audit`], [`dispatch`]; [`exchange`] is its story.

pub mod admission;
pub mod api;
pub mod audit;
pub mod auth;
pub mod bulk;
pub mod caller;
pub(crate) mod chunk;
pub mod config;
pub mod config_file;
pub mod dispatch;
pub mod doctor;
pub mod documentation;
pub mod exchange;
pub mod fleet;
pub mod gitlab_sync;
pub mod identity;
pub mod jobs;
pub mod letters;
pub mod metrics;
pub mod probe;
pub mod prompt;
pub mod relay;
pub mod request;
pub mod routing;
pub mod startup;
pub mod store;
pub mod topology;
pub mod webhooks;
