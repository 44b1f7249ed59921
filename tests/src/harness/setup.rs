//! Builds a [`Cluster`]: what runs, with which settings, in which order.

use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine as _;
use serde_json::{Value, json};

use super::client::client;
use super::cluster::{Cluster, Peer};
use super::nats::{Nats, NatsPlan};
use super::postgres::Postgres;
use super::program::{Program, built, free_port, run};
use super::proxy::Proxy;
use super::wait::PATIENCE;
use crate::gitlab::Gitlab;
use crate::sim::{Settings, Sim};

/// What a cluster is to be like.
#[derive(Debug, Clone)]
pub struct Builder {
    sim: Settings,
    slots: Value,
    brokers: usize,
    workers: usize,
    own_postgres: bool,
    postgres_below: PathBuf,
    nats: NatsPlan,
    linked: bool,
    broker_env: Vec<(String, String)>,
    worker_env: Vec<(String, String)>,
    worker_env_of: Vec<(usize, String, String)>,
    key_variable: Option<String>,
    config: Value,
    model_url: Option<String>,
    model_kind: &'static str,
    served_as: String,
    calls_tools: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            sim: Settings::default(),
            slots: json!({"slots": 8}),
            brokers: 1,
            workers: 1,
            own_postgres: false,
            postgres_below: std::env::temp_dir(),
            nats: NatsPlan::default(),
            linked: false,
            broker_env: Vec::new(),
            worker_env: Vec::new(),
            worker_env_of: Vec::new(),
            key_variable: None,
            config: config(),
            model_url: None,
            model_kind: "vllm",
            served_as: "sim".to_owned(),
            calls_tools: false,
        }
    }
}

/// The configuration that every cluster starts with, issuers left out: CodeGemma completes, Mistral does the rest.
fn config() -> Value {
    let mistral = json!({"model": "mistral", "acknowledge": "system tests"});
    json!({
        "models": [
            {"name": "mistral", "family": "mistral_7b", "context_tokens": 8192, "max_output_tokens": 4096},
            {"name": "codegemma", "family": "codegemma_7b", "context_tokens": 8192, "max_output_tokens": 2048},
        ],
        "features": {
            "code_completion": {"model": "codegemma"},
            "code_generation": {"model": "mistral"},
            "duo_chat": mistral,
            "git_suggestions": mistral,
            "test_generation": mistral,
            "code_explanation": mistral,
            "generate_commit_message": mistral,
            "merge_request_summary": mistral,
            "root_cause_analysis": "inactive",
        },
    })
}

impl Builder {
    /// With a simulated model server like this.
    pub fn sim(mut self, settings: Settings) -> Self {
        self.sim = settings;
        self
    }

    /// With workers that say that their model server turns tool calls into data, as the simulated one does.
    pub fn calls_tools(mut self) -> Self {
        self.calls_tools = true;
        self
    }

    /// With so many requests served at once by each worker.
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = json!({"slots": slots});
        self
    }

    /// With slots that follow the model server's own line, within these bounds.
    pub fn slots_auto(mut self, min: usize, max: usize) -> Self {
        self.slots = json!({"slots": "auto", "slots_min": min, "slots_max": max});
        self
    }

    /// With so many brokers, named `b1`, `b2` and so on.
    pub fn brokers(mut self, brokers: usize) -> Self {
        self.brokers = brokers;
        self
    }

    /// With so many workers.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// With this lease, such as `1s`.
    pub fn lease(self, span: &str) -> Self {
        self.broker_env("DUO_LEASE", span)
    }

    /// With one more variable for the brokers.
    pub fn broker_env(mut self, name: &str, value: &str) -> Self {
        self.broker_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With one more variable for the worker with this number, from 0.
    pub fn worker_env_of(mut self, number: usize, name: &str, value: &str) -> Self {
        self.worker_env_of
            .push((number, name.to_owned(), value.to_owned()));
        self
    }

    /// With workers that send the value of this variable of theirs as the model server's key.
    pub fn key_variable(mut self, name: &str) -> Self {
        self.key_variable = Some(name.to_owned());
        self
    }

    /// With one more variable for the workers.
    pub fn worker_env(mut self, name: &str, value: &str) -> Self {
        self.worker_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a PostgreSQL server of its own, which can be stopped.
    pub fn own_postgres(mut self) -> Self {
        self.own_postgres = true;
        self
    }

    /// With a PostgreSQL server of its own whose files are below this folder.
    #[must_use]
    pub fn own_postgres_below(mut self, folder: &Path) -> Self {
        self.own_postgres = true;
        self.postgres_below = folder.to_owned();
        self
    }

    /// With nats-servers like this; a cluster keeps every stream on three of them.
    pub fn nats(mut self, plan: NatsPlan) -> Self {
        self.nats = plan;
        self
    }

    /// With a proxy between each program and the (single) nats-server.
    pub fn linked(mut self) -> Self {
        self.linked = true;
        self
    }

    /// With another configuration.
    pub fn configure(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// With a simulated model server that the worker takes for one of this kind.
    pub fn kind(mut self, kind: &'static str) -> Self {
        self.model_kind = kind;
        self
    }

    /// With a real model server in the simulated one's place.
    pub fn model_server(mut self, url: &str, kind: &'static str, served_as: &str) -> Self {
        self.model_url = Some(url.to_owned());
        self.model_kind = kind;
        served_as.clone_into(&mut self.served_as);
        self
    }

    /// Starts everything and waits until it is ready.
    ///
    /// # Panics
    /// Something does not start.
    pub async fn start(mut self) -> Cluster {
        // Looked for first: without them nothing else is worth starting.
        let (broker_path, worker_path) = (built("duo-broker"), built("duo-worker"));
        let folder = tempfile::Builder::new()
            .prefix("duo-test-")
            .tempdir()
            .expect("a folder");
        let (nats, (postgres, database), sim, gitlab) = tokio::join!(
            Nats::start_as(folder.path(), &self.nats),
            Box::pin(storage(self.own_postgres.then_some(&self.postgres_below))),
            Sim::start(self.sim.clone()),
            Gitlab::start(),
        );
        let (sim, gitlab) = (sim.expect("a simulated server"), gitlab.expect("a stand-in"));
        self.config["issuers"] = json!([{"url": gitlab.url(), "audience": "gitlab-ai-gateway"}]);
        let (keys, master) = key_files(folder.path());
        let shared = vec![
            ("DUO_NATS_URL".to_owned(), nats.url()),
            ("DUO_SEAL_KEYS_FILE".to_owned(), keys.display().to_string()),
            ("DUO_LOG".to_owned(), "info,duo=debug".to_owned()),
        ];
        let (api, operations) = (local(), local());
        let mut links = Vec::new();
        if self.linked {
            for _ in 0..=self.workers {
                links.push(Proxy::start(nats.port()).await);
            }
        }
        let broker_env = |name: String, api: &str, operations: &str| {
            let mut env = shared.clone();
            env.extend([
                ("DUO_DATABASE_URL".to_owned(), database.url().to_owned()),
                ("DUO_BROKER_NAME".to_owned(), name),
                ("DUO_LISTEN".to_owned(), api.to_owned()),
                ("DUO_ADMIN_LISTEN".to_owned(), operations.to_owned()),
                (
                    "DUO_AUDIT_MASTER_KEY_FILE".to_owned(),
                    master.display().to_string(),
                ),
            ]);
            if self.nats.servers > 1 {
                env.push(("DUO_NATS_REPLICAS".to_owned(), "3".to_owned()));
            }
            env.extend(links.first().map(|link| ("DUO_NATS_URL".to_owned(), link.url())));
            env.extend(self.broker_env.clone());
            env
        };
        let cli = Cli {
            path: broker_path,
            env: broker_env("b1".to_owned(), &api, &operations),
        };
        cli.succeed(&["migrate"]).await;
        let file = folder.path().join("config.yaml");
        write_config(&file, &self.config);
        cli.succeed(&["config", "apply", path_text(&file)]).await;
        let client_token = cli.token("system-client", "client", &[]).await;
        let auditor_token = cli.token("system-auditor", "auditor", &[]).await;

        let broker = Program::start("broker", &cli.path, &["serve"], cli.env.clone(), folder.path());
        let start_peer = |number: usize| {
            let (api, operations) = (local(), local());
            let env = broker_env(format!("b{number}"), &api, &operations);
            let name = format!("broker-b{number}");
            let program = Program::start(&name, &cli.path, &["serve"], env, folder.path());
            Peer {
                program,
                api,
                operations,
            }
        };
        let peers = (2..=self.brokers).map(start_peer).collect();
        let model_url = self
            .model_url
            .clone()
            .unwrap_or_else(|| format!("{}/v1", sim.url()));
        let worker_file = folder.path().join("worker.yaml");
        self.write_worker_file(&worker_file, &model_url);
        let workers = self.start_workers(&worker_path, &worker_file, &shared, &links, folder.path());
        let mut cluster = Cluster {
            sim,
            gitlab,
            nats,
            links,
            postgres,
            database,
            config: self.config,
            client_token,
            auditor_token,
            http: client(),
            api,
            operations,
            broker,
            peers,
            workers,
            cli,
            folder: Some(folder),
        };
        cluster.ready(PATIENCE).await;
        cluster
    }

    fn start_workers(
        &self,
        program: &Path,
        file: &Path,
        shared: &[(String, String)],
        links: &[Proxy],
        folder: &Path,
    ) -> Vec<(Program, String)> {
        let start = |number: usize| {
            let name = format!("w{number}");
            let operations = local();
            let mut env = shared.to_vec();
            env.extend([
                ("DUO_WORKER_NAME".to_owned(), name.clone()),
                ("DUO_WORKER_FILE".to_owned(), file.display().to_string()),
                ("DUO_ADMIN_LISTEN".to_owned(), operations.clone()),
            ]);
            env.extend(
                links
                    .get(number)
                    .map(|link| ("DUO_NATS_URL".to_owned(), link.url())),
            );
            env.extend(self.worker_env.clone());
            let own = self.worker_env_of.iter().filter(|(of, ..)| of + 1 == number);
            env.extend(own.map(|(_, name, value)| (name.clone(), value.clone())));
            let worker = Program::start(&format!("worker-{name}"), program, &["run"], env, folder);
            (worker, operations)
        };
        (1..=self.workers).map(start).collect()
    }

    fn write_worker_file(&self, path: &Path, url: &str) {
        let served =
            |model: &str| json!({"model": model, "served_as": self.served_as, "tools": self.calls_tools});
        let mut server = json!({
            "name": "local",
            "url": url,
            "kind": self.model_kind,
            "models": [served("mistral"), served("codegemma")],
        });
        for (name, value) in self.slots.as_object().expect("fields") {
            server[name] = value.clone();
        }
        if let Some(name) = &self.key_variable {
            server["api_key_env"] = name.as_str().into();
        }
        write_config(path, &json!({"servers": [server]}));
    }
}

/// The broker's program as a command-line tool.
#[derive(Debug)]
pub struct Cli {
    pub(super) path: PathBuf,
    pub(super) env: Vec<(String, String)>,
}

impl Cli {
    /// Runs a subcommand: did it succeed, standard output, standard error.
    pub async fn run(&self, arguments: &[&str]) -> (bool, String, String) {
        let (status, out, err) = run(&self.path, arguments, &self.env).await;
        (status.success(), out, err)
    }

    /// Runs a subcommand that has to succeed, and gives its standard output.
    ///
    /// # Panics
    /// It fails.
    pub async fn succeed(&self, arguments: &[&str]) -> String {
        let (fine, out, err) = self.run(arguments).await;
        assert!(fine, "duo-broker {}: {out}{err}", arguments.join(" "));
        out
    }

    /// The same tool with one more variable.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut env = self.env.clone();
        env.push((name.to_owned(), value.to_owned()));
        Self {
            path: self.path.clone(),
            env,
        }
    }

    /// The same tool without a variable.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let mut env = self.env.clone();
        env.retain(|(known, _)| known != name);
        Self {
            path: self.path.clone(),
            env,
        }
    }

    /// Starts a further broker with these variables changed; its log is in `folder`.
    pub fn serve(&self, name: &str, changes: &[(&str, String)], folder: &Path) -> Program {
        let mut env = self.env.clone();
        env.retain(|(known, _)| !changes.iter().any(|(changed, _)| known == changed));
        env.extend(
            changes
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
        Program::start(name, &self.path, &["serve"], env, folder)
    }

    /// Makes an API token and gives its secret.
    ///
    /// # Panics
    /// It is refused.
    pub async fn token(&self, name: &str, role: &str, more: &[&str]) -> String {
        let mut arguments = vec!["token", "create", "--name", name, "--role", role];
        arguments.extend(more);
        let secret = self.succeed(&arguments).await;
        secret.trim().to_owned()
    }
}

/// Writes a file of settings: JSON is YAML too.
pub(super) fn write_config(path: &Path, config: &Value) {
    fs::write(path, format!("{config:#}\n")).expect("our folder");
}

pub(super) fn path_text(path: &Path) -> &str {
    path.to_str().expect("a path of plain characters")
}

async fn storage(own: Option<&PathBuf>) -> (Option<Postgres>, super::postgres::Database) {
    if let Some(folder) = own {
        let server = Postgres::start_below(folder).await;
        let database = server.database().await;
        return (Some(server), database);
    }
    (None, Postgres::shared_database().await)
}

/// Writes a file with a key that signs tokens for IDEs, in the form of `openssl genpkey`, and tells where. A broker
/// reads it at its start; the folder may go then.
///
/// # Panics
/// No key can be made, or the file cannot be written.
pub fn signing_keys(folder: &Path) -> String {
    let key = KeyPair::generate(KeySize::Rsa2048).expect("a key");
    let der: Pkcs8V1Der<'_> = key.as_der().expect("its bytes");
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    let base64 = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    for line in base64.as_bytes().chunks(64) {
        pem.extend([std::str::from_utf8(line).expect("base64"), "\n"]);
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    let path = folder.join("signing-keys.pem");
    fs::write(&path, pem).expect("our folder");
    path_text(&path).to_owned()
}

fn local() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// The keys of request bodies, and those of kept prompts and answers.
fn key_files(folder: &Path) -> (PathBuf, PathBuf) {
    let key = || base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>());
    let (seal, master) = (folder.join("seal-keys"), folder.join("master-key"));
    write_private(&seal, &format!("key-1:{}\n", key()));
    write_private(&master, &key());
    (seal, master)
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).expect("our folder");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(path, private).expect("our file");
}
