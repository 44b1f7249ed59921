//! `duo-worker check`: says in words what is wrong with this installation.

use std::time::Duration;

use duo_contract::name::Lane;
use duo_contract::subject;
use duo_process::nats::{Nats, RequestError};
use serde::Serialize;

use crate::config::{Config, ServerConfig, ServerKind};
use crate::metrics::Metrics;
use crate::model_server::ModelServer;
use crate::model_server::openai::Health;
use crate::slots::auto::{Bounds, Pressure};
use crate::startup::nats_version_problem;

/// How long NATS may take to answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// A pull that only asks whether the consumer is there: it takes no message,
/// since none is that small.
const PROBE: &[u8] = br#"{"batch":1,"no_wait":true,"max_bytes":1}"#;
/// Bodies go up to 4 MiB; the server's limit has to leave room for their envelope.
const LEAST_PAYLOAD: usize = 5 << 20;

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Is it good?
    pub ok: bool,
    /// What was looked at.
    pub subject: String,
    /// What was found, and what to do about it.
    pub text: String,
}

fn good(subject: &str, text: impl Into<String>) -> Finding {
    Finding {
        ok: true,
        subject: subject.to_owned(),
        text: text.into(),
    }
}

fn bad(subject: &str, text: impl Into<String>) -> Finding {
    Finding {
        ok: false,
        subject: subject.to_owned(),
        text: text.into(),
    }
}

/// Looks at everything a worker needs; never stops at the first problem.
pub async fn check(config: Config) -> Vec<Finding> {
    let keys: Vec<_> = config.seal_keys.ids().collect();
    let mut findings = vec![good("seal keys", format!("{} sealing first", keys.join(", ")))];
    let nats = match Nats::connect(&config.nats).await {
        Ok(nats) => {
            findings.extend(nats_findings(&nats));
            Some(nats)
        }
        Err(error) => {
            findings.push(bad("NATS", chain(&error)));
            None
        }
    };
    let metrics = Metrics::new(&prometheus::Registry::new());
    for server in &config.servers {
        if let Some(nats) = &nats {
            findings.extend(consumer_findings(nats, server).await);
        }
        match ModelServer::try_new(server.clone(), &config.calls, &metrics) {
            Ok(built) => findings.extend(server_findings(&built).await),
            Err(error) => findings.push(bad(&server.name, format!("{error:#}"))),
        }
    }
    findings
}

fn nats_findings(nats: &Nats) -> Vec<Finding> {
    let server = nats.client().server_info();
    let version = match nats_version_problem(&server.version) {
        None => good("NATS", format!("connected, nats-server {}", server.version)),
        Some(problem) => bad("NATS", problem),
    };
    let payload = if server.max_payload >= LEAST_PAYLOAD {
        good("NATS max_payload", format!("{} bytes", server.max_payload))
    } else {
        bad(
            "NATS max_payload",
            format!(
                "{} bytes is too little: set max_payload to 8MB in the server's configuration",
                server.max_payload
            ),
        )
    };
    vec![version, payload]
}

async fn consumer_findings(nats: &Nats, server: &ServerConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    for served in &server.models {
        for lane in Lane::ALL {
            let consumer = subject::consumer(lane, &served.model);
            let pull = subject::pull(subject::LIVE_STREAM, &consumer);
            let about = format!("consumer {consumer}");
            findings.push(match nats.request(pull, PROBE.into(), ANSWER_TIMEOUT).await {
                Ok(_) => good(&about, "there"),
                Err(RequestError::NoResponders) => bad(
                    &about,
                    format!(
                        "does not exist, or JetStream is off: configure model {:?} in the broker and start one",
                        served.model.as_str()
                    ),
                ),
                Err(error) => bad(&about, format!("{error}; may this worker's account pull from it?")),
            });
        }
    }
    findings
}

async fn server_findings(server: &ModelServer) -> Vec<Finding> {
    let name = &*server.name;
    match server.http().health().await {
        Health::Well => {}
        Health::Unwell(reason) => {
            return vec![bad(
                name,
                format!("the model server is not ready ({reason}); is it still loading?"),
            )];
        }
        Health::Refused => {
            return vec![bad(
                name,
                "the model server cannot be reached; is it running, and is its url right?",
            )];
        }
    }
    let mut findings = vec![good(name, "reachable")];
    if server.kind == ServerKind::Kserve {
        for (model, served_as) in server.served() {
            let about = format!("model {}", model.as_str());
            findings.push(match server.http().model_ready(served_as).await {
                Health::Well => good(&about, format!("{name} has {served_as:?} ready")),
                Health::Unwell(reason) => bad(
                    &about,
                    format!("{name} does not have {served_as:?} ready ({reason}): correct served_as in the worker file, or load it"),
                ),
                Health::Refused => bad(&about, "the model server cannot be reached any more"),
            });
        }
        return findings;
    }
    match server.http().model_names().await {
        Ok(listed) => findings.extend(server.served().map(|(model, served_as)| {
            let about = format!("model {}", model.as_str());
            if listed.iter().any(|listed| listed == served_as) {
                good(&about, format!("{name} serves it as {served_as:?}"))
            } else {
                bad(
                    &about,
                    format!(
                        "{name} lists {listed:?} but not {served_as:?}: correct served_as in the worker file"
                    ),
                )
            }
        })),
        Err(error) => findings.push(bad(name, format!("its list of models cannot be read: {error:#}"))),
    }
    if let Some(Bounds { min, max }) = server.auto {
        let about = format!("{name} slots");
        findings.push(match server.http().pressure().await {
            Ok(Pressure { waiting, cache }) => good(
                &about,
                format!(
                    "auto, between {min} and {max}, by its own queue: {waiting} waiting now, {:.0} % of its cache in use",
                    cache * 100.0
                ),
            ),
            Err(error) => bad(
                &about,
                format!("auto, but its load cannot be read ({error:#}): {min} would be used; make the server tell its metrics, or give slots a number"),
            ),
        });
    }
    findings
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
