//! How a broker runs, read once from the environment. What it serves (models,
//! features, prompts, issuers) comes from Postgres; nothing is set in both places.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use duo_process::config::{ConfigError, Effective, Env};
use duo_process::nats::NatsConfig;
use duo_process::telemetry::LogFormat;
use secrecy::SecretString;

use crate::audit::bodies::{self, KeptFor};
use crate::audit::forward;
use crate::audit::redact::Rules;
use crate::bulk::BulkConfig;
use crate::jobs::JobsConfig;
use crate::webhooks::schedule::Schedule;

/// Requests queue this long for a model that no worker serves, unless a
/// setting says otherwise: a worker may be restarting or loading the model.
/// After that they are refused.
pub const NO_WORKER_GRACE: Duration = Duration::from_secs(30);

/// A broker's settings, one section per concern.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this broker among the others: one subject token.
    pub name: String,
    /// Listeners and their bounds.
    pub http: HttpConfig,
    /// The connection to NATS.
    pub nats: NatsConfig,
    /// Streams and leases.
    pub queue: QueueConfig,
    /// How long a broker must be away before its requests are recorded as abandoned.
    pub abandon_after: Duration,
    /// How long requests queue for a model that no worker serves.
    pub no_worker_grace: Duration,
    /// Postgres.
    pub database_url: SecretString,
    /// File of the seal keys, the same for every broker and worker.
    pub seal_keys_file: PathBuf,
    /// File of the keys that sign tokens for IDEs, the same for every broker; without it there are no such tokens.
    pub signing_keys_file: Option<PathBuf>,
    /// How the audit log is signed.
    pub audit: AuditConfig,
    /// Folder of `tokenizer.json` files, each named `MODEL.json` or `FAMILY.json`; models without one have their tokens estimated.
    pub tokenizer_dir: Option<PathBuf>,
    /// Private certificate authorities for GitLab.
    pub gitlab_ca_file: Option<PathBuf>,
    /// Reading GitLab's own feature settings, where an operator wants that.
    pub gitlab_sync: Option<GitlabSyncConfig>,
    /// How jobs are kept.
    pub jobs: JobsConfig,
    /// How files and batches are kept.
    pub bulk: BulkConfig,
    /// Telling receivers that jobs have ended.
    pub webhooks: WebhookConfig,
    /// Logs.
    pub log: LogConfig,
}

/// Listeners and their bounds.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// The API's address.
    pub listen: SocketAddr,
    /// The operations port: `/metrics`, `/livez`, `/readyz`.
    pub admin_listen: SocketAddr,
    /// How long a drain waits for requests under way.
    pub drain_grace: Duration,
}

/// Streams, leases and attempts.
#[derive(Debug, Clone, Copy)]
pub struct QueueConfig {
    /// How long a worker may be silent before its delivery goes to another:
    /// the consumers' `ack_wait`.
    pub lease: Duration,
    /// Deliveries of a request that may proceed, before it is given up.
    pub max_attempts: u32,
    /// Copies of each stream; 1 or 3.
    pub replicas: usize,
    /// Requests that all live lanes together may hold.
    pub live_max_messages: i64,
    /// Bytes that all live lanes together may hold.
    pub live_max_bytes: i64,
    /// Bytes of audit records that may wait for Postgres.
    pub audit_max_bytes: i64,
}

/// Reading GitLab's own feature settings.
#[derive(Debug, Clone)]
pub struct GitlabSyncConfig {
    /// What becomes of them.
    pub mode: SyncMode,
    /// The GitLab to ask.
    pub url: String,
    /// An administrator's access token there.
    pub token: SecretString,
    /// How often it is asked, by all brokers together.
    pub every: Duration,
}

/// What becomes of GitLab's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// They are shown.
    Propose,
    /// They change the configuration, where its rules allow it.
    Apply,
}

impl SyncMode {
    /// Its name in the settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            SyncMode::Propose => "propose",
            SyncMode::Apply => "apply",
        }
    }
}

/// Telling receivers that jobs have ended.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// The delays between attempts.
    pub schedule: Schedule,
    /// How long a receiver may take to answer.
    pub timeout: Duration,
}

/// How the audit log is signed, what it keeps, and for how long.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// File of the keys that sign checkpoints; without it nothing is signed.
    pub key_file: Option<PathBuf>,
    /// File that this broker appends its checkpoints to.
    pub checkpoint_file: Option<PathBuf>,
    /// File of the master keys; without it no feature may keep prompts and answers.
    pub master_key_file: Option<PathBuf>,
    /// What is kept of prompts and answers, and for how long.
    pub bodies: bodies::Settings,
    /// Days that records are kept.
    pub events_days: u16,
    /// Who is handed the records.
    pub forward: forward::Settings,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Filter, as in `info,duo_broker=debug`.
    pub filter: String,
    /// For people or for programs.
    pub format: LogFormat,
}

/// Shortest lease that a drill may set.
const MIN_LEASE: Duration = Duration::from_secs(1);
/// Brokers that come back after a restart of NATS need some moments to be heard again.
const MIN_ABANDON_AFTER: Duration = Duration::from_secs(1);

/// GitLab is not to be asked all the time.
const MIN_SYNC_EVERY: Duration = Duration::from_secs(1);

/// A receiver has to be given some time, and a delivery not for ever: its lease is as long.
const WEBHOOK_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

impl Config {
    /// Reads every section and reports all problems together.
    ///
    /// # Errors
    /// The list of what is missing, malformed or unknown.
    pub fn read(mut env: Env) -> Result<(Self, Effective), ConfigError> {
        let env_ref = &mut env;
        let config = Self {
            name: broker_name(env_ref),
            http: HttpConfig {
                listen: env_ref.parse("DUO_LISTEN", SocketAddr::from(([127, 0, 0, 1], 5052))),
                admin_listen: env_ref.parse("DUO_ADMIN_LISTEN", SocketAddr::from(([127, 0, 0, 1], 8082))),
                drain_grace: env_ref.duration("DUO_DRAIN_GRACE", Duration::from_secs(25)),
            },
            nats: NatsConfig {
                url: env_ref.required("DUO_NATS_URL", "where NATS is, as nats://HOST:4222"),
                name: String::new(),
                inbox_prefix: String::new(),
                credentials_file: env_ref.optional("DUO_NATS_CREDENTIALS_FILE").map(PathBuf::from),
                ca_file: env_ref.optional("DUO_NATS_CA_FILE").map(PathBuf::from),
            },
            queue: queue(env_ref),
            abandon_after: abandon_after(env_ref),
            no_worker_grace: env_ref.duration("DUO_NO_WORKER_GRACE", NO_WORKER_GRACE),
            database_url: database_url(env_ref),
            seal_keys_file: env_ref
                .required(
                    "DUO_SEAL_KEYS_FILE",
                    "file of ID:BASE64 lines that seals queued bodies",
                )
                .into(),
            signing_keys_file: env_ref.optional("DUO_SIGNING_KEYS_FILE").map(PathBuf::from),
            audit: audit(env_ref),
            tokenizer_dir: env_ref.optional("DUO_TOKENIZER_DIR").map(PathBuf::from),
            gitlab_ca_file: env_ref.optional("DUO_GITLAB_CA_FILE").map(PathBuf::from),
            gitlab_sync: gitlab_sync(env_ref),
            jobs: jobs(env_ref),
            bulk: bulk(env_ref),
            webhooks: webhooks(env_ref),
            log: LogConfig {
                filter: env_ref.text("DUO_LOG", "info"),
                format: env_ref.parse("DUO_LOG_FORMAT", LogFormat::Human),
            },
        };
        let config = config.named();
        let effective = env.finish()?;
        Ok((config, effective))
    }

    fn named(mut self) -> Self {
        self.nats.name = format!("duo-broker {}", self.name);
        self.nats.inbox_prefix = format!("_INBOX.brokers.{}", self.name);
        self
    }
}

/// `DUO_DATABASE_URL`, which every subcommand needs, or its file.
pub fn database_url(env: &mut Env) -> SecretString {
    env.secret("DUO_DATABASE_URL").unwrap_or_else(|| {
        env.problem(
            "DUO_DATABASE_URL is not set: where Postgres is, as postgres://USER:PASSWORD@HOST/DATABASE"
                .into(),
        );
        SecretString::from("")
    })
}

/// Least time that results are kept: a client's own retry comes hours later.
const MIN_RESULTS_KEPT: Duration = Duration::from_secs(3600);
/// Two brokers' clocks and one late statement are to be no death.
const MIN_JOB_LEASE: Duration = Duration::from_secs(4);

fn jobs(env: &mut Env) -> JobsConfig {
    let usual = JobsConfig::default();
    let jobs = JobsConfig {
        results_kept: env.duration("DUO_JOB_RESULTS_FOR", usual.results_kept),
        kept: env.duration("DUO_JOBS_FOR", usual.kept),
        client_backlog: env.parse("DUO_JOBS_PER_CLIENT", usual.client_backlog),
        backlog: env.parse("DUO_JOBS_WAITING", usual.backlog),
        lease: env.duration("DUO_JOB_LEASE", usual.lease),
    };
    if jobs.results_kept < MIN_RESULTS_KEPT {
        env.problem("DUO_JOB_RESULTS_FOR has to be at least 1h".into());
    }
    if jobs.lease < MIN_JOB_LEASE {
        env.problem("DUO_JOB_LEASE has to be at least 4s".into());
    }
    jobs
}

/// The longest batch has to be over before its file is removed.
const MIN_FILES_KEPT: Duration = Duration::from_secs(9 * 24 * 3600);

fn bulk(env: &mut Env) -> BulkConfig {
    let usual = BulkConfig::default();
    let bulk = BulkConfig {
        files_kept: env.duration("DUO_FILES_FOR", usual.files_kept),
        client_bytes: env.bytes("DUO_FILE_BYTES_PER_CLIENT", usual.client_bytes),
    };
    if bulk.files_kept < MIN_FILES_KEPT {
        env.problem("DUO_FILES_FOR has to be at least 9d".into());
    }
    bulk
}

/// Bytes of one prompt or answer that are kept, unless a setting says otherwise.
const BODY_BYTES: u64 = 1 << 20;

fn audit(env: &mut Env) -> AuditConfig {
    let usual = KeptFor::default();
    let text = env.text("DUO_AUDIT_BODIES_FOR", &usual.to_string());
    let kept_for = text.parse().unwrap_or_else(|error| {
        env.problem(format!("DUO_AUDIT_BODIES_FOR {text:?}: {error}"));
        usual
    });
    let text = env.text("DUO_AUDIT_FOR", "400d");
    let events_days = bodies::days(&text).unwrap_or_else(|error| {
        env.problem(format!("DUO_AUDIT_FOR: {error}"));
        u16::MAX
    });
    let most = env.bytes("DUO_AUDIT_BODY_BYTES", BODY_BYTES);
    let audit = AuditConfig {
        key_file: env.optional("DUO_AUDIT_KEY_FILE").map(PathBuf::from),
        checkpoint_file: env.optional("DUO_AUDIT_CHECKPOINT_FILE").map(PathBuf::from),
        master_key_file: env.optional("DUO_AUDIT_MASTER_KEY_FILE").map(PathBuf::from),
        bodies: bodies::Settings {
            kept_for,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            rules: Rules {
                emails: env.parse("DUO_AUDIT_REDACT_EMAILS", false),
            },
        },
        events_days,
        forward: forwarding(env),
    };
    if audit.checkpoint_file.is_some() && audit.key_file.is_none() {
        env.problem(
            "DUO_AUDIT_CHECKPOINT_FILE is set and DUO_AUDIT_KEY_FILE is not: nothing would be signed".into(),
        );
    }
    audit
}

fn forwarding(env: &mut Env) -> forward::Settings {
    let settings = forward::Settings {
        url: env.optional("DUO_AUDIT_FORWARD_URL"),
        token: env.secret("DUO_AUDIT_FORWARD_TOKEN"),
        syslog: env.optional("DUO_AUDIT_SYSLOG"),
    };
    if settings.url.as_deref().is_some_and(|url| !is_base_url(url)) {
        let text = "DUO_AUDIT_FORWARD_URL is no address: write https://HOST/PATH, without a user, a password or a query";
        env.problem(text.to_owned());
    }
    if settings.token.is_some() && settings.url.is_none() {
        env.problem("DUO_AUDIT_FORWARD_TOKEN has no DUO_AUDIT_FORWARD_URL".to_owned());
    }
    let is_address = |text: &str| {
        text.rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if settings.syslog.as_deref().is_some_and(|text| !is_address(text)) {
        env.problem("DUO_AUDIT_SYSLOG is no address: write HOST:PORT".to_owned());
    }
    settings
}

fn broker_name(env: &mut Env) -> String {
    // Unique per process: replies to a dead broker must not reach its successor.
    let name = env.text("DUO_BROKER_NAME", "broker");
    if !duo_contract::subject::is_token(&name) {
        env.problem(format!(
            "DUO_BROKER_NAME {name:?} may hold letters, digits, '-' and '_' only"
        ));
    }
    let run = uuid::Uuid::new_v4().simple().to_string();
    format!("{name}-{}", &run[..8])
}

/// Is it an address that paths can be appended to, and that may be shown to anybody?
pub(crate) fn is_base_url(text: &str) -> bool {
    reqwest::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    })
}

fn gitlab_sync(env: &mut Env) -> Option<GitlabSyncConfig> {
    let mode = match env.text("DUO_GITLAB_SYNC", "off").as_str() {
        "off" => None,
        "propose" => Some(SyncMode::Propose),
        "apply" => Some(SyncMode::Apply),
        other => {
            env.problem(format!("DUO_GITLAB_SYNC {other:?} is not off, propose or apply"));
            None
        }
    };
    let url = env.optional("DUO_GITLAB_SYNC_URL");
    let token = env.secret("DUO_GITLAB_SYNC_TOKEN");
    let every = env.duration("DUO_GITLAB_SYNC_EVERY", Duration::from_secs(300));
    let mode = mode?;
    if every < MIN_SYNC_EVERY {
        env.problem(format!(
            "DUO_GITLAB_SYNC_EVERY is shorter than {MIN_SYNC_EVERY:?}"
        ));
    }
    if !url.as_deref().is_some_and(is_base_url) {
        let text = "DUO_GITLAB_SYNC_URL is not set to an address: the GitLab to ask, as https://gitlab.example.com, without \
                    a user, a password or a query";
        env.problem(text.to_owned());
    }
    if token.is_none() {
        let text = "DUO_GITLAB_SYNC_TOKEN_FILE is not set: a file with an administrator's access token for GitLab, \
                    scope read_api";
        env.problem(text.to_owned());
    }
    Some(GitlabSyncConfig {
        mode,
        url: url?,
        token: token?,
        every,
    })
}

fn webhooks(env: &mut Env) -> WebhookConfig {
    let default = Schedule::default();
    let text = env.text("DUO_WEBHOOK_SCHEDULE", &default.to_string());
    let schedule = text.parse().unwrap_or_else(|error| {
        env.problem(format!("DUO_WEBHOOK_SCHEDULE {text:?}: {error}"));
        default
    });
    let timeout = env.duration("DUO_WEBHOOK_TIMEOUT", Duration::from_secs(15));
    if !WEBHOOK_TIMEOUTS.contains(&timeout) {
        let (least, most) = (WEBHOOK_TIMEOUTS.start(), WEBHOOK_TIMEOUTS.end());
        env.problem(format!(
            "DUO_WEBHOOK_TIMEOUT is not between {least:?} and {most:?}"
        ));
    }
    WebhookConfig { schedule, timeout }
}

fn abandon_after(env: &mut Env) -> Duration {
    let after = env.duration("DUO_ABANDON_AFTER", Duration::from_secs(15));
    if after < MIN_ABANDON_AFTER {
        env.problem(format!("DUO_ABANDON_AFTER is shorter than {MIN_ABANDON_AFTER:?}"));
    }
    after
}

fn queue(env: &mut Env) -> QueueConfig {
    const GIB: u64 = 1 << 30;
    let lease = env.duration("DUO_LEASE", Duration::from_secs(5));
    if lease < MIN_LEASE {
        env.problem(format!("DUO_LEASE is shorter than {MIN_LEASE:?}"));
    }
    let replicas = env.parse("DUO_NATS_REPLICAS", 1_usize);
    if ![1, 3, 5].contains(&replicas) {
        env.problem("DUO_NATS_REPLICAS is 1, 3 or 5; two copies survive less than one".into());
    }
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    QueueConfig {
        lease,
        max_attempts: env.parse("DUO_MAX_ATTEMPTS", 3_u32).max(1),
        replicas,
        live_max_messages: env.parse("DUO_LIVE_MAX_MESSAGES", 100_000_i64),
        live_max_bytes: signed(env.bytes("DUO_LIVE_MAX_BYTES", GIB)),
        audit_max_bytes: signed(env.bytes("DUO_AUDIT_MAX_BYTES", 2 * GIB)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_gitlabs_settings_needs_an_address_and_a_token() {
        let read = |pairs: &[(&str, &str)]| {
            let mut env = Env::from_pairs(pairs.iter().copied());
            let config = gitlab_sync(&mut env);
            (config, env.finish().err().map(|error| error.problems.join("\n")))
        };
        assert!(matches!(read(&[]), (None, None)));
        let url = ("DUO_GITLAB_SYNC_URL", "https://gitlab");
        assert!(matches!(
            read(&[url, ("DUO_GITLAB_SYNC_TOKEN", "t")]),
            (None, None)
        ));
        let (_, problems) = read(&[("DUO_GITLAB_SYNC", "apply"), ("DUO_GITLAB_SYNC_EVERY", "10ms")]);
        for word in ["_URL", "_TOKEN_FILE", "_EVERY"] {
            assert!(
                problems.as_ref().is_some_and(|text| text.contains(word)),
                "{word}: {problems:?}"
            );
        }
        assert!(read(&[("DUO_GITLAB_SYNC", "yes")]).1.is_some());
        for url in [
            "https://oauth2:secret@gitlab",
            "https://gitlab?private_token=secret",
            "https://",
        ] {
            let token = ("DUO_GITLAB_SYNC_TOKEN", "t");
            let (_, problems) = read(&[("DUO_GITLAB_SYNC", "apply"), ("DUO_GITLAB_SYNC_URL", url), token]);
            let problems = problems.expect(url);
            assert!(
                problems.contains("_URL") && !problems.contains("secret"),
                "{url}: {problems}"
            );
        }
        let (config, problems) = read(&[("DUO_GITLAB_SYNC", "apply"), url, ("DUO_GITLAB_SYNC_TOKEN", "t")]);
        assert_eq!(
            (config.map(|config| config.mode), problems),
            (Some(SyncMode::Apply), None)
        );
    }

    #[test]
    fn every_problem_is_reported_together() {
        let env = Env::from_pairs([
            ("DUO_LEASE", "10ms"),
            ("DUO_BROKER_NAME", "a.b"),
            ("DUO_NATS_ULR", "x"),
            ("DUO_WEBHOOK_SCHEDULE", "now"),
            ("DUO_WEBHOOK_TIMEOUT", "1h"),
            ("DUO_AUDIT_CHECKPOINT_FILE", "/tmp/checkpoints"),
        ]);
        let problems = Config::read(env)
            .expect_err("it has problems")
            .problems
            .join("\n");
        for word in [
            "DUO_LEASE",
            "DUO_BROKER_NAME",
            "DUO_NATS_URL",
            "DUO_DATABASE_URL",
            "DUO_SEAL_KEYS_FILE",
            "DUO_NATS_ULR",
            "DUO_WEBHOOK_SCHEDULE",
            "DUO_WEBHOOK_TIMEOUT",
            "DUO_AUDIT_KEY_FILE",
        ] {
            assert!(problems.contains(word), "{word} is missing in {problems}");
        }
    }
}
