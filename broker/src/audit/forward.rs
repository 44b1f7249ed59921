//! Hands audit records on to an HTTP collector and to syslog, each at least once, in the order of their numbers.
//!
//! They come from Postgres, where they are safe already, so whoever takes them may be away for as long as records are
//! kept, and the writer notices nothing. Every broker would; one at a time does.

mod syslog;

use std::time::Duration;

use duo_process::metrics::register;
use duo_process::retry::RetryPolicy;
use duo_process::shutdown::Shutdown;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use secrecy::{ExposeSecret as _, SecretString};

use self::syslog::Syslog;
use crate::store::Store;
use crate::store::audit_events::Event;

/// Records in one batch at most.
const BATCH: i64 = 500;
/// How often it is looked for new records.
const LOOK: Duration = Duration::from_secs(1);
/// How long a batch may take to be taken.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses while nobody takes any.
const RETRY_BASE: Duration = Duration::from_millis(500);
const RETRY_CAP: Duration = Duration::from_secs(60);

/// Where records go.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The collector that takes newline-delimited JSON.
    pub url: Option<String>,
    /// What stands after `Bearer` there.
    pub token: Option<SecretString>,
    /// Host and port of a syslog server over TCP.
    pub syslog: Option<String>,
}

/// What forwarding tells of itself, by target: `http` or `syslog`.
#[derive(Debug, Clone)]
pub struct ForwardMetrics {
    /// `duo_audit_forward_backlog`: records that the target does not have yet.
    backlog: IntGaugeVec,
    /// `duo_audit_forward_sent_total`: records that this broker handed on.
    sent: IntCounterVec,
    /// `duo_audit_forward_failed_total`: batches that were not taken and are sent again.
    failed: IntCounterVec,
}

impl ForwardMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let named = "a valid metric name";
        let counters = |name: &str, help: &str| {
            register(
                registry,
                IntCounterVec::new(Opts::new(name, help), &["target"]).expect(named),
            )
        };
        Self {
            backlog: register(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "duo_audit_forward_backlog",
                        "Audit records that a target does not have yet.",
                    ),
                    &["target"],
                )
                .expect(named),
            ),
            sent: counters(
                "duo_audit_forward_sent_total",
                "Audit records that this broker handed on.",
            ),
            failed: counters(
                "duo_audit_forward_failed_total",
                "Batches of audit records that were not taken and are sent again.",
            ),
        }
    }
}

/// Somebody who takes records.
#[derive(Debug)]
enum Target {
    Http {
        client: reqwest::Client,
        url: String,
        token: Option<SecretString>,
    },
    Syslog(Syslog),
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("it answered {0}")]
    Status(reqwest::StatusCode),
    #[error("it cannot be asked")]
    Http(#[source] reqwest::Error),
    #[error("it cannot be reached")]
    Io(#[from] std::io::Error),
    #[error("it did not take the records in time")]
    Late,
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

/// Hands records on until the shutdown begins, to each target for itself.
pub fn spawn(
    settings: Settings,
    (store, client): (&Store, reqwest::Client),
    metrics: &ForwardMetrics,
    shutdown: &Shutdown,
) {
    let http = settings.url.map(|url| Target::Http {
        client,
        url,
        token: settings.token,
    });
    let syslog = settings
        .syslog
        .map(|address| Target::Syslog(Syslog::new(address)));
    for target in http.into_iter().chain(syslog) {
        let (store, metrics, until) = (store.clone(), metrics.clone(), shutdown.clone());
        shutdown.spawn("audit forwarding", run(target, store, metrics, until));
    }
}

async fn run(mut target: Target, store: Store, metrics: ForwardMetrics, shutdown: Shutdown) {
    let policy = RetryPolicy::try_new(RETRY_BASE, RETRY_CAP, u32::MAX).expect("constants that make a policy");
    let name = target.name();
    let failed = metrics.failed.with_label_values(&[name]);
    let mut attempt = 0;
    loop {
        let turn = tokio::select! {
            () = shutdown.begun() => return,
            turn = target.turn(&store, &metrics) => turn,
        };
        let pause = match turn {
            Ok(more) => {
                attempt = 0;
                if more { Duration::ZERO } else { LOOK }
            }
            Err(error) => {
                attempt += 1;
                failed.inc();
                let error = &error as &dyn std::error::Error;
                if attempt == 1 {
                    tracing::warn!(
                        error,
                        target_name = name,
                        "audit records are not taken; they wait in PostgreSQL"
                    );
                }
                policy.delay(attempt)
            }
        };
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Target {
    fn name(&self) -> &'static str {
        match self {
            Target::Http { .. } => "http",
            Target::Syslog(_) => "syslog",
        }
    }

    /// Hands on one batch; are there more?
    async fn turn(&mut self, store: &Store, metrics: &ForwardMetrics) -> Result<bool, ForwardError> {
        let name = self.name();
        let Some(turn) = store.forward_turn(name, BATCH).await? else {
            return Ok(false);
        };
        let backlog = metrics.backlog.with_label_values(&[name]);
        backlog.set(turn.backlog);
        if turn.events.is_empty() {
            return Ok(false);
        }
        let sent = tokio::time::timeout(TIMEOUT, self.send(&turn.events)).await;
        sent.map_err(|_| ForwardError::Late)??;
        let count = turn.events.len() as u64;
        let left = turn.done().await?;
        backlog.set(left);
        metrics.sent.with_label_values(&[name]).inc_by(count);
        Ok(left > 0)
    }

    async fn send(&mut self, events: &[Event]) -> Result<(), ForwardError> {
        match self {
            Target::Http { client, url, token } => {
                let mut request = client
                    .post(url.as_str())
                    .header(http::header::CONTENT_TYPE, "application/x-ndjson")
                    .body(lines(events));
                if let Some(token) = token {
                    request = request.bearer_auth(token.expose_secret());
                }
                // An address may hold a secret, so the error goes without it.
                let answer = request.send().await;
                let status = answer
                    .map_err(|error| ForwardError::Http(error.without_url()))?
                    .status();
                if status.is_success() {
                    Ok(())
                } else {
                    Err(ForwardError::Status(status))
                }
            }
            Target::Syslog(syslog) => Ok(syslog.send(events).await?),
        }
    }
}

/// A line of JSON for each record.
fn lines(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        text.push_str(&json(event));
        text.push('\n');
    }
    text
}

fn json(event: &Event) -> String {
    serde_json::to_string(event).expect("an event is plain data")
}
