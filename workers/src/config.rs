//! How a worker runs: `DUO_` variables for the process, one YAML file for the
//! model servers beside it.

mod file;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use duo_contract::seal::SealKeys;
use duo_contract::subject;
use duo_process::config::{ConfigError, Effective, Env, parse_duration};
use duo_process::nats::NatsConfig;
use duo_process::telemetry::LogFormat;

pub use file::{ServedConfig, ServerConfig, ServerKind, Slots};

/// Everything a worker is told at its start.
#[derive(Debug)]
pub struct Config {
    /// `DUO_WORKER_NAME`: a subject token; by default the host's name and four random digits.
    pub worker: String,
    /// `DUO_NATS_URL`, `DUO_NATS_CREDENTIALS_FILE`, `DUO_NATS_CA_FILE`.
    pub nats: NatsConfig,
    /// `DUO_SEAL_KEYS_FILE`: the keys that open request bodies, shared with the brokers.
    pub seal_keys: SealKeys,
    /// `DUO_WORKER_FILE`: the model servers beside this worker.
    pub servers: Vec<ServerConfig>,
    /// How model servers are called.
    pub calls: CallConfig,
    /// `DUO_ADMIN_LISTEN`: where `/metrics`, `/livez` and `/readyz` are.
    pub admin_listen: SocketAddr,
    /// `DUO_DRAIN_GRACE`: how long running jobs may take after SIGTERM.
    pub drain_grace: Duration,
    /// `DUO_LOG`: filter of the log.
    pub log: String,
    /// `DUO_LOG_FORMAT`: `human` or `json`.
    pub log_format: LogFormat,
}

/// How model servers are called.
#[derive(Debug, Clone)]
pub struct CallConfig {
    /// `DUO_MODEL_CA_FILE`: private certificate authorities of model servers.
    pub ca_file: Option<PathBuf>,
    /// `DUO_MODEL_IDLE_TIMEOUT`: longest time between two data events; comments do not count.
    pub idle_timeout: Duration,
    /// `DUO_MODEL_FIRST_TIMEOUT`: longest wait for the first data, beside the request's own deadline.
    pub first_timeout: Option<Duration>,
}

impl Config {
    /// Reads every setting and reports all problems together.
    ///
    /// # Errors
    /// At least one setting is missing, unknown or wrong.
    pub fn read(mut env: Env) -> Result<(Self, Effective), ConfigError> {
        let worker = worker_name(&mut env);
        let nats = NatsConfig {
            url: env.required("DUO_NATS_URL", "the NATS servers, such as nats://127.0.0.1:4222"),
            name: format!("duo-worker {worker}"),
            inbox_prefix: format!("_INBOX.workers.{worker}"),
            credentials_file: env.optional("DUO_NATS_CREDENTIALS_FILE").map(PathBuf::from),
            ca_file: env.optional("DUO_NATS_CA_FILE").map(PathBuf::from),
        };
        let seal_keys = seal_keys(&mut env);
        let servers = servers(&mut env);
        let calls = CallConfig {
            ca_file: env.optional("DUO_MODEL_CA_FILE").map(PathBuf::from),
            idle_timeout: env.duration("DUO_MODEL_IDLE_TIMEOUT", Duration::from_secs(30)),
            first_timeout: first_timeout(&mut env),
        };
        let admin_listen = env.parse("DUO_ADMIN_LISTEN", SocketAddr::from(([127, 0, 0, 1], 9091)));
        let drain_grace = env.duration("DUO_DRAIN_GRACE", Duration::from_secs(25));
        let log = env.text("DUO_LOG", "info");
        let log_format = env.parse("DUO_LOG_FORMAT", LogFormat::Human);
        let effective = env.finish()?;
        let missing = || ConfigError {
            problems: vec!["the settings are incomplete".to_owned()],
        };
        let config = Self {
            worker,
            nats,
            seal_keys: seal_keys.ok_or_else(missing)?,
            servers,
            calls,
            admin_listen,
            drain_grace,
            log,
            log_format,
        };
        Ok((config, effective))
    }
}

fn worker_name(env: &mut Env) -> String {
    let name = env.optional("DUO_WORKER_NAME").unwrap_or_else(default_name);
    if !subject::is_token(&name) {
        env.problem(format!(
            "DUO_WORKER_NAME={name} is not valid: letters, digits, '-' and '_' only, 64 at most"
        ));
    }
    name
}

/// The host's name as a subject token, and four digits: two workers may share a host.
fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .trim()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '-'
            }
        })
        .take(48)
        .collect();
    let host = if host.is_empty() { "worker" } else { &host };
    format!("{host}-{:04x}", rand::random::<u16>())
}

fn seal_keys(env: &mut Env) -> Option<SealKeys> {
    let name = "DUO_SEAL_KEYS_FILE";
    let path = env.required(name, "the file of seal keys that the brokers use too");
    if path.is_empty() {
        return None;
    }
    let keys = std::fs::read_to_string(&path)
        .map_err(|error| format!("{name}: cannot read {path}: {error}"))
        .and_then(|text| SealKeys::parse(&text).map_err(|error| format!("{name}: {path}: {error}")));
    keys.map_err(|problem| env.problem(problem)).ok()
}

fn servers(env: &mut Env) -> Vec<ServerConfig> {
    let name = "DUO_WORKER_FILE";
    let path = env.required(
        name,
        "the YAML file that lists the model servers beside this worker",
    );
    if path.is_empty() {
        return Vec::new();
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            env.problem(format!("{name}: cannot read {path}: {error}"));
            return Vec::new();
        }
    };
    file::parse(&text, |variable| std::env::var_os(variable)?.into_string().ok()).unwrap_or_else(|problems| {
        for problem in problems {
            env.problem(format!("{name}: {path}: {problem}"));
        }
        Vec::new()
    })
}

fn first_timeout(env: &mut Env) -> Option<Duration> {
    let name = "DUO_MODEL_FIRST_TIMEOUT";
    let text = env.optional(name)?;
    parse_duration(&text)
        .map_err(|error| env.problem(format!("{name}={text} is not valid: {error}")))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_reported_together() {
        let error = Config::read(Env::from_pairs([
            ("DUO_WORKER_NAME", "a.b"),
            ("DUO_MODEL_FIRST_TIMEOUT", "soon"),
            ("DUO_NATS_ULR", "nats://x"),
        ]))
        .expect_err("refused");
        let text = error.to_string();
        for part in [
            "DUO_WORKER_NAME=a.b",
            "DUO_NATS_URL is not set",
            "DUO_SEAL_KEYS_FILE is not set",
            "DUO_WORKER_FILE is not set",
            "DUO_MODEL_FIRST_TIMEOUT=soon",
            "did you mean DUO_NATS_URL?",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }

    #[test]
    fn a_default_name_is_a_subject_token() {
        assert!(subject::is_token(&default_name()));
    }
}
