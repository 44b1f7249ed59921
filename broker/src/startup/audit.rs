//! The audit log's parts: what makes records, what brings them into Postgres, what sees to them there.

use duo_contract::snapshot::BodyPolicy;
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use prometheus::Registry;

use super::files::{http_client, read_audit_keys, read_master_keys};
use crate::audit::bodies::{Bodies, BodyMetrics};
use crate::audit::forward::ForwardMetrics;
use crate::audit::keys::DataKeys;
use crate::audit::{AuditLog, checkpoint, forward, retention, sign_ins, sink, sweeper, writer};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::routing::Routing;
use crate::store::Store;

/// Records of requests, and of callers that are not let in; and what sees to prompts and answers.
pub(super) fn log(
    config: &Config,
    sink: &sink::AuditSink,
    metrics: &Metrics,
    (nats, registry): (&Nats, &Registry),
    shutdown: &Shutdown,
) -> anyhow::Result<(AuditLog, Bodies)> {
    let masters = read_master_keys(config.audit.master_key_file.as_deref())?;
    let bodies = Bodies::new(
        nats.clone(),
        masters.map(DataKeys::new),
        config.audit.bodies.clone(),
        BodyMetrics::register(registry),
        shutdown.clone(),
    );
    let audit = AuditLog::new(&config.name, sink.clone(), metrics.clone()).with_bodies(bodies.clone());
    shutdown.spawn("sign-ins", sign_ins::run(audit.clone(), shutdown.clone()));
    Ok((audit, bodies))
}

/// A broker that cannot keep what it should does not start; one whose configuration comes to ask for it later says so
/// and keeps digests.
pub(super) fn can_keep(bodies: &Bodies, routing: &Routing) -> anyhow::Result<()> {
    let table = routing.load();
    let full: Vec<_> = table
        .features()
        .filter(|feature| feature.bodies == BodyPolicy::Full)
        .map(|feature| feature.name.as_str())
        .collect();
    if bodies.can_seal() || full.is_empty() {
        return Ok(());
    }
    anyhow::bail!(
        "the configuration has `bodies: full` for {}, and DUO_AUDIT_MASTER_KEY_FILE is not set: name a file with a line of \
         base64 of 32 random bytes, or choose `digest` or `none`",
        full.join(", ")
    )
}

/// Brings audit records into Postgres, signed ones where there is a key, and an end to those that would have none.
pub(super) fn keep(
    background: &Shutdown,
    registry: &Registry,
    config: &Config,
    (store, nats): (&Store, &Nats),
    records: sink::AuditSink,
) -> anyhow::Result<()> {
    if sink::UNAUDITED {
        return Ok(());
    }
    let gauges = writer::WriterMetrics::register(registry);
    let sweeper = sweeper::Parts {
        broker: config.name.clone(),
        after: config.abandon_after,
        store: store.clone(),
        nats: nats.clone(),
        sink: records,
    };
    background.spawn(
        "audit writer",
        writer::run(store.clone(), nats.clone(), gauges, background.clone()),
    );
    let gauges = retention::RetentionMetrics::register(registry);
    let days = config.audit.events_days;
    background.spawn(
        "audit retention",
        retention::run(store.clone(), days, gauges, background.clone()),
    );
    let gauges = sweeper::SweeperMetrics::register(registry);
    background.spawn("sweeper", sweeper::run(sweeper, gauges, background.clone()));
    forward_records(background, registry, config, store)?;
    sign_records(background, registry, config, store)
}

/// Hands audit records on, where an operator wants that.
fn forward_records(
    background: &Shutdown,
    registry: &Registry,
    config: &Config,
    store: &Store,
) -> anyhow::Result<()> {
    let metrics = ForwardMetrics::register(registry);
    let no_redirects = reqwest::redirect::Policy::none();
    let client = http_client(config.gitlab_ca_file.as_deref(), no_redirects)?;
    forward::spawn(
        config.audit.forward.clone(),
        (store, client),
        &metrics,
        background,
    );
    Ok(())
}

/// Keeps the audit log's hash tree and signs it, where there is a key.
fn sign_records(
    background: &Shutdown,
    registry: &Registry,
    config: &Config,
    store: &Store,
) -> anyhow::Result<()> {
    let Some(keys) = read_audit_keys(config.audit.key_file.as_deref())? else {
        return Ok(());
    };
    let parts = checkpoint::Parts {
        store: store.clone(),
        keys,
        file: config.audit.checkpoint_file.clone(),
    };
    let metrics = checkpoint::CheckpointMetrics::register(registry);
    background.spawn(
        "audit checkpoints",
        checkpoint::run(parts, metrics, background.clone()),
    );
    Ok(())
}
