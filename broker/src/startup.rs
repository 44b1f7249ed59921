//! Builds each part once, in dependency order, and runs them until the drain
//! is over.

mod audit;
mod files;
mod follow;
mod front;
mod intake;
mod keep;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use duo_process::admin::{self, Readiness};
use duo_process::config::{CONFIG_EXIT_CODE, Env};
use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};

use files::{
    certificates, http_client, read_audit_keys, read_keys, read_master_keys, read_signing_keys,
    read_tokenizers,
};

use crate::admission::Admission;
use crate::api::admin::AdminState;
use crate::api::{self, ApiState};
use crate::audit::bodies::Bodies;
use crate::audit::reader::Reader;
use crate::audit::{AuditLog, sink};
use crate::auth::direct::SigningKeys;
use crate::auth::{AuthConfig, Authenticator};
use crate::bulk::metrics::BulkMetrics;
use crate::bulk::{self, Bulk};
use crate::config::{Config, QueueConfig};
use crate::dispatch::storing::{self, Storing};
use crate::dispatch::{Dispatch, Parts, bundles, chores, dead, questions, supersede, watch};
use crate::documentation::Documentation;
use crate::exchange::Exchange;
use crate::fleet::{self, Fleet};
use crate::gitlab_sync;
use crate::identity::{self, Identities};
use crate::jobs::{self, JobMetrics, Jobs};
use crate::letters::Letters;
use crate::metrics::Metrics;
use crate::prompt::Prompts;
use crate::relay;
use crate::routing::{self, Routing};
use crate::store::{PoolConfig, Store};
use crate::topology;
use crate::webhooks::{self, WebhookMetrics, Webhooks};

/// How long the first connection to NATS and its set-up may take: a broker
/// that is started together with NATS finds it within that time.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long the API waits for its first configuration; an installation may have none yet.
const CONFIGURATION_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries at start.
const START_PAUSE: Duration = Duration::from_millis(250);
/// How long runs of jobs that were cut may take to say so.
const LAST_RUNS: Duration = Duration::from_secs(1);
/// How long the last audit records may take to reach NATS at the end.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// How long sealed prompts and answers may take to reach NATS at the end, before their records.
const LAST_BODIES: Duration = Duration::from_secs(1);
/// How long the background may take to end: the audit writer's pull runs out first.
const BACKGROUND_PATIENCE: Duration = Duration::from_millis(2500);

/// Runs a broker from its environment; with `check_only` prints the effective
/// settings and leaves.
///
/// # Errors
/// Something at start that only a person can mend.
pub async fn serve(env: Env, check_only: bool) -> anyhow::Result<ExitCode> {
    let (config, effective) = match Config::read(env) {
        Ok(read) => read,
        Err(error) => {
            complain(&error.to_string());
            return Ok(ExitCode::from(CONFIG_EXIT_CODE));
        }
    };
    if check_only {
        say(&effective.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    duo_process::telemetry::init(&config.log.filter, config.log.format)?;
    crate::auth::install_crypto();
    let shutdown = Shutdown::new();
    shutdown.listen_to_signals();
    let api = listen(config.http.listen, "DUO_LISTEN").await?;
    let operations = listen(config.http.admin_listen, "DUO_ADMIN_LISTEN").await?;
    run(config, api, operations, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

async fn listen(address: std::net::SocketAddr, variable: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; is the port taken? {variable} chooses another"))
}

/// Runs a broker on these listeners until `shutdown` has begun and requests
/// under way have ended.
///
/// # Errors
/// Something at start that only a person can mend.
pub async fn run(
    config: Config,
    api_listener: TcpListener,
    operations: TcpListener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let readiness = Readiness::new();
    let (configured, first) = follow::Configured::new(readiness.latch("configuration not loaded"));
    let connected = readiness.condition("no connection to NATS");
    let (queue_stores, audit_stores) = stores(&readiness);
    let operations_end = serve_operations(operations, &registry, &readiness);

    let keys = read_keys(&config.seal_keys_file)?;
    let signing = read_signing_keys(config.signing_keys_file.as_deref())?;
    let store = Store::connect(&config.database_url, PoolConfig::default())?;
    let nats = connect(&config, &shutdown).await?;
    follow::connection(&nats, connected, &shutdown);

    let (routing_sink, routing) = routing::routing();
    let (identity_sink, identities) = identity::identities();
    let fleet = Fleet::new(config.no_worker_grace);
    let admission = Admission::new(fleet.clone());
    // Begins when nothing is to be said any more; what was said still leaves.
    let closing = Shutdown::new();
    let outlets = (nats.clone(), metrics.clone(), audit_stores.clone());
    let (audit_sink, audit_task) = sink::sink(outlets, shutdown.clone(), closing.clone());
    let audit_done = tokio::spawn(audit_task);
    let (audit, bodies) = audit::log(&config, &audit_sink, &metrics, (&nats, &registry), &shutdown)?;
    let parts = Parts {
        broker: config.name.clone(),
        nats: nats.clone(),
        keys,
        queue: config.queue,
        admission: admission.clone(),
        metrics: metrics.clone(),
        queue_stores,
        audit_stores,
    };
    let (dispatch, [chores_done, letters_kept]) = start_dispatch(parts, &shutdown, &closing);
    spawn_dispatch(&dispatch, &audit_sink).await?;

    let background = Shutdown::new();
    background.spawn(
        "relay",
        relay::run(store.clone(), nats.clone(), background.clone()),
    );
    follow_gitlab(&background, &registry, &config, &store)?;
    let webhooks = tell_receivers(&background, &registry, &config, &store)?;
    audit::keep(&background, &registry, &config, (&store, &nats), audit_sink)?;
    background.spawn("fleet", fleet::watch(nats.clone(), fleet, background.clone()));
    watch_queue(&background, &nats, config.queue, &dispatch, &routing);
    let authenticator = authenticator(&config, identities, signing, &registry)?;
    background.spawn("signing keys", authenticator.clone().run(background.clone()));
    let prompts = Prompts::with_tokenizers(read_tokenizers(config.tokenizer_dir.clone()).await?);
    let followed = follow::Followed {
        nats: nats.clone(),
        queue: config.queue,
        routing: routing_sink,
        prompts: prompts.clone(),
        identities: identity_sink,
        metrics: metrics.clone(),
    };
    background.spawn(
        "configuration",
        follow::snapshots(followed, configured, background.clone()),
    );

    let exchange = Exchange::new(routing.clone(), admission, audit.clone(), dispatch.clone());
    let run_by = (&exchange, &audit, &dispatch, &webhooks);
    let parts = job_parts(&config, &registry, (&store, &nats), run_by);
    let (jobs, jobs_settled) = Jobs::start(parts, &shutdown, &background, &closing);
    let parts = bulk_parts(&config, &registry, &store, (&exchange, &dispatch, &jobs));
    let bulk = Bulk::start(parts, &shutdown, &background);
    let state = ApiState {
        exchange,
        authenticator,
        prompts,
        audit,
        documentation: Some(Documentation::new(store.clone())),
        jobs: Some(jobs.clone()),
        bulk: Some(bulk),
        readiness: Arc::new({
            let readiness = readiness.clone();
            move || readiness.blockers().is_empty()
        }),
    };
    let app = application(&config, state, &dispatch, (&nats, &store), webhooks)?;
    first_configuration(first, (&bodies, &routing), &shutdown).await?;
    tracing::info!(broker = config.name, listen = %api_listener.local_addr()?, "serving");
    let under_way = front::UnderWay {
        grace: config.http.drain_grace,
        besides: jobs.finished(),
        cut: || dispatch.leave(),
    };
    let drained = front::serve(api_listener, app, &shutdown, &readiness, under_way).await;
    tracing::info!(drained, "the API has stopped");
    // Records of requests that ended well before may still wait for a worker's last word.
    dispatch.leave();
    last_runs(&jobs, &bodies).await;
    closing.begin();
    background.begin();
    let last_words = [chores_done, audit_done, letters_kept, jobs_settled];
    wind_down(&nats, last_words, &background).await;
    end(&operations_end).await;
    Ok(())
}

/// Closes the operations port, which was open to the end.
async fn end(operations: &Shutdown) {
    operations.begin();
    operations.drained(Duration::from_secs(1)).await;
}

/// Waits for what has yet to say something: runs of jobs, then prompts and answers on their way.
async fn last_runs(jobs: &Jobs, bodies: &Bodies) {
    let _ = tokio::time::timeout(LAST_RUNS, jobs.finished()).await;
    let _ = bodies.settled(LAST_BODIES).await;
}

/// The dispatch and what runs beside it: its chores and its dead letters, until nothing is to be said any more.
fn start_dispatch(
    parts: Parts,
    shutdown: &Shutdown,
    closing: &Shutdown,
) -> (Dispatch, [tokio::task::JoinHandle<()>; 2]) {
    let nats = parts.nats.clone();
    let (dispatch, chores, letters) = Dispatch::new(parts);
    let chores_done = tokio::spawn(chores::run(chores, nats.clone(), closing.clone()));
    let letters_kept = tokio::spawn(dead::run(letters, nats, shutdown.clone(), closing.clone()));
    (dispatch, [chores_done, letters_kept])
}

fn job_parts(
    config: &Config,
    registry: &Registry,
    (store, nats): (&Store, &Nats),
    (exchange, audit, dispatch, webhooks): (&Exchange, &AuditLog, &Dispatch, &Webhooks),
) -> jobs::Parts {
    jobs::Parts {
        broker: config.name.clone(),
        config: config.jobs,
        store: store.clone(),
        dispatch: dispatch.clone(),
        exchange: exchange.clone(),
        audit: audit.clone(),
        nats: nats.clone(),
        webhooks: webhooks.clone(),
        metrics: JobMetrics::register(registry),
    }
}

fn bulk_parts(
    config: &Config,
    registry: &Registry,
    store: &Store,
    (exchange, dispatch, jobs): (&Exchange, &Dispatch, &Jobs),
) -> bulk::Parts {
    bulk::Parts {
        broker: config.name.clone(),
        config: config.bulk,
        lease: config.jobs.lease,
        results_kept: config.jobs.results_kept,
        store: store.clone(),
        dispatch: dispatch.clone(),
        exchange: exchange.clone(),
        jobs: jobs.clone(),
        metrics: BulkMetrics::register(registry),
    }
}

/// The API with all that it has for auditors and administrators.
fn application(
    config: &Config,
    state: ApiState,
    dispatch: &Dispatch,
    (nats, store): (&Nats, &Store),
    webhooks: Webhooks,
) -> anyhow::Result<axum::Router> {
    let admin = administration(&state, dispatch, (nats, store), webhooks);
    let masters = read_master_keys(config.audit.master_key_file.as_deref())?;
    let reader = Reader::new(store.clone(), masters, &config.name);
    let keys = match &config.audit.key_file {
        Some(file) => read_audit_keys(Some(file))?.map(Arc::new),
        None => None,
    };
    let audit_log =
        api::audit::router(store.clone(), state.audit.clone(), keys).merge(api::audit_bodies::router(reader));
    Ok(api::router(Arc::new(state), Some(audit_log), Some(admin)))
}

fn administration(
    state: &ApiState,
    dispatch: &Dispatch,
    (nats, store): (&Nats, &Store),
    webhooks: Webhooks,
) -> axum::Router {
    api::admin::router(AdminState {
        exchange: state.exchange.clone(),
        audit: state.audit.clone(),
        dispatch: dispatch.clone(),
        letters: Letters::new(nats.clone()),
        store: store.clone(),
        admission: dispatch.admission().clone(),
        prompts: state.prompts.clone(),
        nats: nats.clone(),
        webhooks,
    })
}

/// Lets what was said leave, and the background end.
async fn wind_down(nats: &Nats, last_words: [tokio::task::JoinHandle<()>; 4], background: &Shutdown) {
    let flushed = async {
        for task in last_words {
            // Nothing but a panic ends them early.
            let _ = task.await;
        }
        let _ = nats.client().flush().await;
    };
    let (flushed, _) = tokio::join!(
        tokio::time::timeout(FLUSH_PATIENCE, flushed),
        background.drained(BACKGROUND_PATIENCE),
    );
    if flushed.is_err() {
        tracing::error!("some audit records did not reach NATS in time; the sweeper will close them");
    }
}

/// Whether NATS stores requests and audit records, as readiness tells.
fn stores(readiness: &Readiness) -> (Storing, Storing) {
    let stores = |what| Storing::new(Some(readiness.condition(what)));
    (
        stores("NATS does not store requests"),
        stores("NATS does not store audit records"),
    )
}

/// Waits until callers and features are known. Whoever a balancer sends before that waits in the listener's backlog,
/// where it would have been a stranger with a request for an unknown feature.
async fn first_configuration(
    first: oneshot::Receiver<()>,
    (bodies, routing): (&Bodies, &Routing),
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    tokio::select! {
        _ = first => {}
        () = tokio::time::sleep(CONFIGURATION_PATIENCE) => {}
        () = shutdown.begun() => {}
    }
    audit::can_keep(bodies, routing)
}

/// The operations port answers from the start, so that a slow start can be seen.
fn serve_operations(listener: TcpListener, registry: &Registry, readiness: &Readiness) -> Shutdown {
    let end = Shutdown::new();
    let operations = admin::serve(listener, registry.clone(), readiness.clone(), {
        let end = end.clone();
        async move { end.begun().await }
    });
    end.spawn("operations", async move {
        if let Err(error) = operations.await {
            tracing::error!(error = %error, "the operations port failed");
        }
    });
    end
}

/// Reads GitLab's own feature settings, where an operator wants that.
fn follow_gitlab(
    background: &Shutdown,
    registry: &Registry,
    config: &Config,
    store: &Store,
) -> anyhow::Result<()> {
    let Some(sync) = &config.gitlab_sync else {
        return Ok(());
    };
    let no_redirects = reqwest::redirect::Policy::none();
    let parts = gitlab_sync::Parts {
        config: sync.clone(),
        broker: config.name.clone(),
        store: store.clone(),
        client: http_client(config.gitlab_ca_file.as_deref(), no_redirects)?,
    };
    let metrics = gitlab_sync::SyncMetrics::register(registry);
    background.spawn(
        "gitlab sync",
        gitlab_sync::run(parts, metrics, background.clone()),
    );
    Ok(())
}

/// Tells receivers of what was written for them; what comes back has that done at once.
fn tell_receivers(
    background: &Shutdown,
    registry: &Registry,
    config: &Config,
    store: &Store,
) -> anyhow::Result<Webhooks> {
    let webhooks = Webhooks::default();
    let parts = webhooks::Parts {
        broker: config.name.clone(),
        config: config.webhooks.clone(),
        store: store.clone(),
        keys: read_keys(&config.seal_keys_file)?,
        certificates: certificates(config.gitlab_ca_file.as_deref())?,
        webhooks: webhooks.clone(),
    };
    let metrics = WebhookMetrics::register(registry);
    background.spawn("webhooks", webhooks::run(parts, metrics, background.clone()));
    Ok(webhooks)
}

/// Keeps the gauges of the queue true, and streams and consumers there.
fn watch_queue(
    background: &Shutdown,
    nats: &Nats,
    queue: QueueConfig,
    dispatch: &Dispatch,
    routing: &Routing,
) {
    let missing = Arc::new(Notify::new());
    let depths = watch::depths(
        dispatch.clone(),
        routing.clone(),
        Arc::clone(&missing),
        background.clone(),
    );
    let topology = keep::topology(nats.clone(), queue, routing.clone(), missing, background.clone());
    background.spawn("depths", depths);
    background.spawn("storing", storing::probe(dispatch.clone(), background.clone()));
    background.spawn("topology", topology);
}

/// Checks tokens of the configured instances, and of ours where there are keys for them.
fn authenticator(
    config: &Config,
    identities: Identities,
    signing: Option<Arc<SigningKeys>>,
    registry: &Registry,
) -> anyhow::Result<Authenticator> {
    let few_redirects = reqwest::redirect::Policy::limited(3);
    let client = http_client(config.gitlab_ca_file.as_deref(), few_redirects)?;
    Ok(Authenticator::new(identities, AuthConfig::default(), client, registry).with_signing_keys(signing))
}

/// Connects and sets the queue up, again and again for [`START_PATIENCE`].
async fn connect(config: &Config, shutdown: &Shutdown) -> anyhow::Result<Nats> {
    let give_up = tokio::time::Instant::now() + START_PATIENCE;
    loop {
        let attempt = async {
            let nats = Nats::connect(&config.nats).await?;
            topology::ensure(&nats, &config.queue).await?;
            anyhow::Ok(nats)
        };
        match attempt.await {
            Ok(nats) => return Ok(nats),
            Err(error)
                if error
                    .downcast_ref::<topology::TopologyError>()
                    .is_some_and(is_final) =>
            {
                return Err(error);
            }
            Err(error) if tokio::time::Instant::now() >= give_up => return Err(error),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "NATS is not ready; trying again"),
        }
        tokio::select! {
            () = shutdown.begun() => anyhow::bail!("stopped before NATS was reached"),
            () = tokio::time::sleep(START_PAUSE) => {}
        }
    }
}

/// A server that is too old or too small stays so.
fn is_final(error: &topology::TopologyError) -> bool {
    matches!(error, topology::TopologyError::Server(_))
}

async fn spawn_dispatch(dispatch: &Dispatch, records: &sink::AuditSink) -> anyhow::Result<()> {
    let bundles = bundles::subscribe(dispatch).await?;
    let questions = questions::subscribe(dispatch).await?;
    let superseded = supersede::subscribe(dispatch).await?;
    tokio::spawn(bundles::run(dispatch.clone(), bundles));
    tokio::spawn(questions::run(dispatch.clone(), records.clone(), questions));
    tokio::spawn(supersede::run(dispatch.clone(), superseded));
    tokio::spawn(watch::deadlines(dispatch.clone()));
    tokio::spawn(watch::lost(dispatch.clone()));
    Ok(())
}

#[expect(clippy::print_stderr, reason = "settings are wrong, so there are no logs yet")]
fn complain(text: &str) {
    eprintln!("{text}");
}

#[expect(clippy::print_stdout, reason = "the command's output")]
fn say(text: &str) {
    print!("{text}");
}
