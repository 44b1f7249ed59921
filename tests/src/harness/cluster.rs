//! The whole set of programs, and what a test wants to do with and to know of it.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use duo_contract::subject::{AUDIT_STREAM, LIVE_STREAM};
use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::Row as _;

use super::client::Call;
use super::nats::Nats;
use super::postgres::{Database, Postgres};
use super::program::Program;
use super::proxy::Proxy;
use super::setup::{Builder, Cli, path_text, write_config};
use super::wait::{PATIENCE, until};
use crate::gitlab::{Gitlab, TokenSpec};
use crate::sim::{Sim, Stats, expected};

/// Everything that runs for one test. Dropped, it ends all of it.
#[derive(Debug)]
pub struct Cluster {
    /// The model server.
    pub sim: Sim,
    /// The GitLab instance.
    pub gitlab: Gitlab,
    /// The queue.
    pub nats: Nats,
    /// PostgreSQL, where it is this test's own.
    pub postgres: Option<Postgres>,
    /// The product's database.
    pub database: Database,
    /// The configuration in force.
    pub config: Value,
    /// An API token for the OpenAI features.
    pub client_token: String,
    /// An API token that may read the audit log.
    pub auditor_token: String,
    /// The first broker.
    pub broker: Program,
    /// The broker's program as a tool, with the broker's settings.
    pub cli: Cli,
    /// The brokers' way to NATS and then each worker's, where the builder put proxies there.
    pub links: Vec<Proxy>,
    /// The other brokers.
    pub(super) peers: Vec<Peer>,
    pub(super) workers: Vec<(Program, String)>,
    pub(crate) http: reqwest::Client,
    pub(super) api: String,
    pub(super) operations: String,
    pub(super) folder: Option<tempfile::TempDir>,
}

/// A broker beside the first.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) program: Program,
    pub(super) api: String,
    pub(super) operations: String,
}

impl Cluster {
    /// A cluster with other settings than the usual ones.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A cluster with the usual settings.
    ///
    /// # Panics
    /// Something does not start.
    pub async fn start() -> Self {
        Builder::default().start().await
    }

    // Calls.

    /// The API's base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Where the API of the broker with this number, from 0, listens.
    ///
    /// # Panics
    /// There is none.
    pub fn address_of(&self, number: usize) -> SocketAddr {
        let api = match number {
            0 => &self.api,
            _ => &self.peers[number - 1].api,
        };
        api.parse().expect("an address of ours")
    }

    /// A call to the API without any token.
    pub fn call(&self, method: Method, path: &str) -> Call {
        Call::new(&self.http, method, &format!("{}{path}", self.url()))
    }

    /// A call to one broker.
    ///
    /// # Panics
    /// There is no broker of that number.
    pub fn call_at(&self, number: usize, method: Method, path: &str) -> Call {
        let url = format!("http://{}{path}", self.address_of(number));
        Call::new(&self.http, method, &url)
    }

    /// A call with the API token of an OpenAI client.
    pub fn openai(&self, path: &str, body: &Value) -> Call {
        self.call(Method::POST, path).token(&self.client_token).json(body)
    }

    /// A call as Rails makes it, for the person `user`.
    pub fn rails(&self, path: &str, user: &str, body: &Value) -> Call {
        self.call(Method::POST, path)
            .headers(self.rails_headers(user))
            .json(body)
    }

    /// The headers Rails sends for the person `user`, with a token that holds every scope.
    ///
    /// # Panics
    /// The token cannot be signed.
    pub fn rails_headers(&self, user: &str) -> Vec<(&'static str, String)> {
        self.rails_headers_with(&TokenSpec::default(), user)
    }

    /// The headers Rails sends for the person `user`, with another token.
    ///
    /// # Panics
    /// The token cannot be signed.
    pub fn rails_headers_with(&self, spec: &TokenSpec, user: &str) -> Vec<(&'static str, String)> {
        let token = self.gitlab.token(spec).expect("the stand-in signs");
        let mut headers = self.gitlab.headers(&token);
        headers.push(("x-gitlab-global-user-id", user.to_owned()));
        headers
    }

    // The programs.

    /// How many brokers there are.
    pub fn brokers(&self) -> usize {
        1 + self.peers.len()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The broker with this number, from 0.
    ///
    /// # Panics
    /// There is none.
    pub fn broker_at(&mut self, number: usize) -> &mut Program {
        match number {
            0 => &mut self.broker,
            _ => &mut self.peers[number - 1].program,
        }
    }

    /// The worker with this number, from 0.
    ///
    /// # Panics
    /// There is none.
    pub fn worker(&mut self, number: usize) -> &mut Program {
        &mut self.workers[number].0
    }

    /// Kills a worker as a power cut would.
    ///
    /// # Panics
    /// It does not run.
    pub async fn kill_worker(&mut self, number: usize) {
        self.worker(number).kill().await;
    }

    /// Starts a worker that was killed or has ended, and waits until it is ready.
    ///
    /// # Panics
    /// It does not start.
    pub async fn restart_worker(&mut self, number: usize) {
        self.workers[number].0.again();
        self.ready(PATIENCE).await;
    }

    /// Kills the broker as a power cut would and starts it again.
    ///
    /// # Panics
    /// It does not start.
    pub async fn restart_broker(&mut self) {
        self.broker.kill().await;
        self.broker.again();
        self.ready(PATIENCE).await;
    }

    /// Waits until every program that runs says that it is ready.
    ///
    /// # Panics
    /// One does not in time, or has ended.
    pub async fn ready(&mut self, max: Duration) {
        let workers = self.workers.iter_mut().map(|(program, at)| (program, &*at));
        let peers = self
            .peers
            .iter_mut()
            .map(|peer| (&mut peer.program, &peer.operations));
        let programs = std::iter::once((&mut self.broker, &self.operations))
            .chain(peers)
            .chain(workers);
        for (program, at) in programs {
            ready(program, at, &self.http, max).await;
        }
    }

    /// Waits until the broker with this number says that it is ready.
    ///
    /// # Panics
    /// It does not in time, or has ended.
    pub async fn broker_ready(&mut self, number: usize, max: Duration) {
        let (program, at) = match number {
            0 => (&mut self.broker, &self.operations),
            _ => {
                let peer = &mut self.peers[number - 1];
                (&mut peer.program, &peer.operations)
            }
        };
        ready(program, at, &self.http, max).await;
    }

    /// Waits until the worker with this number says that it is ready.
    ///
    /// # Panics
    /// It does not in time, or has ended.
    pub async fn worker_ready(&mut self, number: usize, max: Duration) {
        let (program, at) = &mut self.workers[number];
        ready(program, at, &self.http, max).await;
    }

    /// Changes the configuration by `config apply`: did it succeed, and what it said.
    ///
    /// # Panics
    /// The file cannot be written.
    pub async fn apply(&mut self, change: impl FnOnce(&mut Value)) -> (bool, String) {
        let mut config = self.config.clone();
        change(&mut config);
        let path = self.folder().join("config.yaml");
        write_config(&path, &config);
        let (fine, out, err) = self.cli.run(&["config", "apply", path_text(&path)]).await;
        if fine {
            self.config = config;
        }
        (fine, out + &err)
    }

    // What is to be seen.

    /// Lets every log and the files of NATS stay after the end, and tells where.
    pub fn keep(&mut self) -> PathBuf {
        let folder = self.folder.as_mut().expect("it stands");
        folder.disable_cleanup(true);
        folder.path().to_owned()
    }

    /// The folder with every log and with the files of NATS.
    ///
    /// # Panics
    /// Never while the cluster stands.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("it stands").path()
    }

    /// The first broker's metrics as text.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn metrics(&self) -> Result<String, String> {
        self.metrics_at(&self.operations).await
    }

    /// The metrics of the broker with this number as text.
    ///
    /// # Errors
    /// The broker does not answer.
    ///
    /// # Panics
    /// There is none.
    pub async fn broker_metrics(&self, number: usize) -> Result<String, String> {
        match number {
            0 => self.metrics().await,
            _ => self.metrics_at(&self.peers[number - 1].operations).await,
        }
    }

    /// A worker's metrics as text.
    ///
    /// # Errors
    /// The worker does not answer.
    pub async fn worker_metrics(&self, number: usize) -> Result<String, String> {
        self.metrics_at(&self.workers[number].1).await
    }

    /// What `/readyz` of the first broker says: `ok`, or what stands in the way.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn readiness(&self) -> Result<String, String> {
        let url = format!("http://{}/readyz", self.operations);
        let answer = self.http.get(url).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        answer.text().await.map_err(|error| error.to_string())
    }

    async fn metrics_at(&self, at: &str) -> Result<String, String> {
        let answer = self.http.get(format!("http://{at}/metrics")).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        answer.text().await.map_err(|error| error.to_string())
    }

    /// The broker's metric `name`, summed over its labels; 0 when it is not there.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn metric(&self, name: &str) -> Result<f64, String> {
        Ok(sum(&self.metrics().await?, name))
    }

    /// How many messages a stream holds.
    ///
    /// # Errors
    /// NATS does not answer.
    pub async fn messages(&self, stream: &str) -> Result<u64, String> {
        self.nats.messages(stream).await
    }

    /// Waits until every broker knows of slots: until it has, it lets requests wait for a worker that may
    /// still come, however long the line.
    ///
    /// # Panics
    /// One does not in time.
    pub async fn slots_known(&self) {
        until("the brokers know their workers", PATIENCE, async || {
            for number in 0..self.brokers() {
                let slots = sum(&self.broker_metrics(number).await?, "duo_serving_slots");
                if slots <= 0.0 {
                    return Err(format!("{slots} slots at broker {number}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Waits until so many requests are in the live stream.
    ///
    /// # Panics
    /// They are not in time.
    pub async fn queued(&self, count: u64) {
        until(
            &format!("{count} requests are queued"),
            PATIENCE,
            async || match self.messages(LIVE_STREAM).await? {
                found if found == count => Ok(()),
                found => Err(found.to_string()),
            },
        )
        .await;
    }

    /// Waits until the broker has granted so many attempts since it started. A model server shows a first attempt
    /// sooner, because its call begins beside its claim, and a worker killed in between has used none.
    ///
    /// # Panics
    /// It has not in time.
    pub async fn attempted(&self, count: u32) {
        until(&format!("{count} attempts are granted"), PATIENCE, async || {
            let granted = granted(&self.metrics().await?);
            if granted == f64::from(count) {
                Ok(())
            } else {
                Err(granted.to_string())
            }
        })
        .await;
    }

    /// Waits until the model server's counters are as wanted.
    ///
    /// # Panics
    /// They are not in time.
    pub async fn sim_shows(&self, enough: impl Fn(&Stats) -> bool) -> Stats {
        self.sim
            .wait_for(enough, PATIENCE)
            .await
            .expect("the model server gets there")
    }

    /// What the model server has to have said to the last request it got, if that was `words` words long.
    ///
    /// # Panics
    /// It got none.
    pub fn expected(&self, words: usize) -> String {
        let body = self.last_body();
        match body.get("messages") {
            Some(messages) => expected::chat_text(&messages.to_string(), words).expect("messages"),
            None => expected::completion_text(body["prompt"].as_str().expect("a prompt"), words),
        }
    }

    /// The body of the last request that the model server got.
    ///
    /// # Panics
    /// It got none.
    pub fn last_body(&self) -> Value {
        let last = self
            .sim
            .last_request()
            .expect("a request reached the model server");
        serde_json::from_slice(&last.body).expect("JSON")
    }

    /// The terminal records of the audit log, oldest first: outcome, reason and correlation id.
    ///
    /// # Errors
    /// PostgreSQL is away.
    pub async fn ends(&self) -> Result<Vec<(String, Option<String>, Option<String>)>, String> {
        let sql = "SELECT outcome, reason, correlation_id FROM audit_events WHERE kind = 'ended' ORDER BY occurred_at";
        let rows = sqlx::query(sql)
            .fetch_all(self.database.pool())
            .await
            .map_err(|error| error.to_string())?;
        Ok(rows
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2)))
            .collect())
    }

    /// Waits until the request with this correlation id has its terminal record: outcome and reason.
    ///
    /// # Panics
    /// It has not in time.
    pub async fn end_of(&self, correlation_id: &str) -> (String, Option<String>) {
        until(
            &format!("{correlation_id} has a terminal record"),
            PATIENCE,
            async || {
                let ends = self.ends().await?;
                let found = ends
                    .iter()
                    .find(|(_, _, id)| id.as_deref() == Some(correlation_id));
                found
                    .map(|(outcome, reason, _)| (outcome.clone(), reason.clone()))
                    .ok_or_else(|| format!("{ends:?}"))
            },
        )
        .await
    }

    /// What every test ends with: the queue is empty, no place is held, and no record is open.
    ///
    /// # Panics
    /// Something is left.
    pub async fn assert_clean(&self) {
        until("everything is clean", PATIENCE, async || {
            let stats = self.sim.stats();
            let mut metrics = String::new();
            for number in 0..self.brokers() {
                metrics += &self.broker_metrics(number).await?;
            }
            let count = |name: &str| sum(&metrics, name);
            let mut seen = vec![
                (
                    "messages in the live stream",
                    self.messages(LIVE_STREAM).await? as f64,
                ),
                ("audit records in NATS", self.messages(AUDIT_STREAM).await? as f64),
                ("requests open", count("duo_requests_open")),
                (
                    "requests admitted and not ended",
                    count("duo_requests_admitted_total") - count("duo_requests_ended_total"),
                ),
                (
                    "requests received and neither refused nor admitted",
                    count("duo_requests_received_total")
                        - count("duo_requests_refused_early_total")
                        - count("duo_requests_answered_early_total")
                        - count("duo_requests_admitted_total"),
                ),
                ("generations running", (stats.running + stats.waiting) as f64),
                (
                    "admitted without one end",
                    self.database.count(UNENDED).await? as f64,
                ),
                (
                    "late ends",
                    self.database
                        .count("SELECT count(*) FROM audit_late_ends")
                        .await? as f64,
                ),
                (
                    "rejected records",
                    self.database.count("SELECT count(*) FROM audit_rejects").await? as f64,
                ),
            ];
            for number in 0..self.workers.len() {
                if let Ok(metrics) = self.worker_metrics(number).await {
                    seen.push(("slots in use", sum(&metrics, "duo_worker_slots_in_use")));
                }
            }
            seen.retain(|(_, count)| *count != 0.0);
            if seen.is_empty() {
                Ok(())
            } else {
                Err(format!("{seen:?}; {stats:?}"))
            }
        })
        .await;
    }
}

/// Admitted requests without exactly one terminal record, and terminal records that say nothing.
pub const UNENDED: &str = "SELECT count(*) FROM (SELECT request_id FROM audit_events WHERE kind IN ('admitted', 'ended') \
     GROUP BY request_id HAVING count(*) FILTER (WHERE kind = 'ended') <> 1) AS unended";

async fn ready(program: &mut Program, at: &str, http: &reqwest::Client, max: Duration) {
    let url = format!("http://{at}/readyz");
    let name = program.name().to_owned();
    until(&format!("{name} is ready"), max, async || {
        if let Some(status) = program.exited() {
            panic!("{name} ended ({status}); its log:\n{}", program.last_words());
        }
        let answer = http.get(&url).send().await.map_err(|error| error.to_string())?;
        let fine = answer.status().is_success();
        let text = answer.text().await.unwrap_or_default();
        if fine { Ok(()) } else { Err(text) }
    })
    .await;
}

/// The sum of all series of a metric.
pub fn sum(metrics: &str, name: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once("} ")?.1,
            None => rest.strip_prefix(' ')?,
        };
        rest.trim().parse::<f64>().ok()
    });
    values.sum()
}

/// Claims that a worker was told to work on.
fn granted(metrics: &str) -> f64 {
    let lines = metrics.lines();
    let lines = lines.filter(|line| ["proceed", "continue"].iter().any(|answer| line.contains(answer)));
    sum(&lines.collect::<Vec<_>>().join("\n"), "duo_claims_total")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // The rest happens on its own; here only the traces are kept for whoever looks for the cause.
        let Some(folder) = self.folder.take().map(tempfile::TempDir::keep) else {
            return;
        };
        let mut text = format!("\nlogs and files of this test: {}\n", folder.display());
        let peers = self.peers.iter().map(|peer| &peer.program);
        let workers = self.workers.iter().map(|(program, _)| program);
        for program in std::iter::once(&self.broker).chain(peers).chain(workers) {
            text += &format!(
                "--- the end of {}\n{}\n",
                program.log().display(),
                program.last_words()
            );
        }
        let _shown = std::io::stderr().write_all(text.as_bytes());
    }
}

/// Files below `folder` that hold `needle`.
///
/// # Panics
/// A file cannot be read.
pub fn files_with(folder: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // A file that goes while one looks holds nothing any more.
            let content = fs::read(&path).unwrap_or_default();
            if content.windows(needle.len()).any(|window| window == needle) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// Freezes a process, or lets it go on.
pub fn freeze(program: &Program, on: bool) {
    program.signal(if on { Signal::SIGSTOP } else { Signal::SIGCONT });
}

/// The body of a chat for the OpenAI endpoint.
pub fn chat(question: &str, words: usize, stream: bool) -> Value {
    json!({
        "model": "mistral",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": words,
        "stream": stream,
    })
}

/// The answer of `words` words that [`chat`]'s question gets.
///
/// # Panics
/// Never: the messages are ours.
pub fn answer_to(question: &str, words: usize) -> String {
    let messages = json!([{"role": "user", "content": question}]);
    expected::chat_text(&messages.to_string(), words).expect("messages")
}

/// The body of a code completion as Rails sends it.
pub fn completion(above: &str, stream: bool) -> Value {
    json!({
        "prompt_version": 2,
        "project_path": "group/project",
        "project_id": 7,
        "current_file": {
            "file_name": "app/main.py",
            "language_identifier": "python",
            "content_above_cursor": above,
            "content_below_cursor": "\n",
        },
        "model_provider": "litellm",
        "model_name": "codegemma",
        "prompt": null,
        "stream": stream,
        "choices_count": 1,
        "intent": "completion",
    })
}

/// The body of a code generation as Rails sends it.
pub fn generation(instruction: &str, stream: bool) -> Value {
    json!({
        "prompt_components": [{
            "type": "code_editor_generation",
            "payload": {
                "file_name": "app/main.py",
                "content_above_cursor": "# add two numbers\n",
                "content_below_cursor": "",
                "language_identifier": "Python",
                "stream": stream,
                "prompt_id": "code_suggestions/generations",
                "prompt_version": "^1.0.0",
                "prompt_enhancer": {
                    "examples_array": [],
                    "trimmed_content_above_cursor": "# add two numbers\n",
                    "trimmed_content_below_cursor": "",
                    "related_files": [],
                    "related_snippets": [],
                    "libraries": ["numpy"],
                    "user_instruction": instruction,
                },
            },
            "metadata": {"source": "GitLab EE", "version": "18.9.0"},
        }],
        "current_file": {"file_name": "app/main.py"},
        "intent": "generation",
    })
}

/// The body of the first turn of a chat as Rails sends it.
pub fn agent(question: &str) -> Value {
    json!({
        "messages": [{"role": "user", "content": question}],
        "unavailable_resources": ["Pipelines", "Vulnerabilities"],
    })
}
