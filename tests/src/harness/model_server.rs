//! A real model server for tests: llama.cpp's `llama-server`, or vLLM. `tests/real-model` knows how to start either.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::client::{Call, client};
use super::cluster::{Cluster, sum};
use super::program::{Program, free_port};
use super::setup::Builder;
use super::wait::until;

/// The name it serves its model under.
pub const MODEL: &str = "tiny-random";

/// vLLM loads for a minute, longer on a busy machine.
const START: Duration = Duration::from_secs(280);

/// Which server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// llama.cpp's.
    #[default]
    Llama,
    /// vLLM on the CPU.
    Vllm,
}

impl Kind {
    /// The one that the environment chooses.
    ///
    /// # Panics
    /// It chooses one that is not known.
    pub fn chosen() -> Self {
        let named = std::env::var_os("DUO_REAL_MODEL_KIND").unwrap_or_default();
        match named.to_str() {
            Some("") => Self::default(),
            named => named
                .and_then(Self::named)
                .expect("DUO_REAL_MODEL_KIND is llama or vllm"),
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Llama, Self::Vllm]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// Its name, as in the worker file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Vllm => "vllm",
        }
    }

    /// Tokens of an answer that lasts for seconds.
    pub fn long(self) -> usize {
        match self {
            Self::Llama => 7_500,
            Self::Vllm => 3_000,
        }
    }
}

/// A running server; dropped, it ends.
#[derive(Debug)]
pub struct ModelServer {
    /// Which it is.
    pub kind: Kind,
    /// Its process.
    pub program: Program,
    /// Where it is, without a slash at its end.
    pub url: String,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl ModelServer {
    /// Starts one with this many slots and waits until it answers.
    ///
    /// # Panics
    /// It does not start; `tests/real-model --install-only` prepares it.
    pub async fn start(kind: Kind, slots: usize) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("real-model");
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port().to_string();
        let arguments = [
            "--kind",
            kind.name(),
            "--port",
            &port,
            "--slots",
            &slots.to_string(),
            "--foreground",
        ];
        let kept = ["DUO_REAL_MODEL_CACHE", "XDG_CACHE_HOME"];
        let env = kept
            .iter()
            .filter_map(|&name| Some((name.to_owned(), std::env::var_os(name)?.into_string().ok()?)))
            .collect();
        let server = Self {
            program: Program::start("model-server", &script, &arguments, env, folder.path()),
            kind,
            url: format!("http://127.0.0.1:{port}"),
            http: client(),
            _folder: folder,
        };
        server.started().await
    }

    async fn started(mut self) -> Self {
        until("the model server answers", START, async || {
            if let Some(status) = self.program.exited() {
                panic!(
                    "the model server ended ({status}; tests/real-model --install-only prepares it):\n{}",
                    self.program.last_words()
                );
            }
            self.complete().await
        })
        .await;
        self
    }

    /// A first call, which may still load something.
    async fn complete(&self) -> Result<(), String> {
        let body = json!({"model": MODEL, "prompt": "hello", "max_tokens": 2});
        let call = self.http.post(format!("{}/v1/completions", self.url)).json(&body);
        let answer = call.send().await.map_err(|error| error.to_string())?;
        answer
            .error_for_status()
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Starts it again after its end.
    ///
    /// # Panics
    /// As [`ModelServer::start`].
    pub async fn again(mut self) -> Self {
        self.program.again();
        self.started().await
    }

    /// A cluster with this server behind its workers, and leases of a second.
    pub fn cluster(&self) -> Builder {
        Cluster::builder()
            .lease("1s")
            .configure(|config| {
                for model in config["models"].as_array_mut().expect("models") {
                    model["max_output_tokens"] = 8_000.into();
                }
            })
            .model_server(&format!("{}/v1", self.url), self.kind.name(), MODEL)
            .worker_env("DUO_MODEL_IDLE_TIMEOUT", "2s")
    }

    /// A call to the server itself, with its model's name put in.
    pub fn call(&self, path: &str, body: &Value) -> Call {
        let mut body = body.clone();
        body["model"] = MODEL.into();
        let url = format!("{}{path}", self.url);
        Call::new(&self.http, Method::POST, &url).json(&body)
    }

    /// What the server itself answers.
    ///
    /// # Panics
    /// It answers with an error.
    pub async fn direct(&self, path: &str, body: &Value) -> Value {
        self.call(path, body).send().await.good().json()
    }

    /// How many requests the server is generating for.
    ///
    /// # Errors
    /// It does not say.
    pub async fn generating(&self) -> Result<usize, String> {
        let page = match self.kind {
            Kind::Llama => "/slots",
            Kind::Vllm => "/metrics",
        };
        let answer = self.http.get(format!("{}{page}", self.url)).send().await;
        let text = answer.map_err(|error| error.to_string())?.text().await;
        let text = text.map_err(|error| error.to_string())?;
        Ok(match self.kind {
            Kind::Llama => {
                let slots: Vec<Value> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                slots.iter().filter(|slot| slot["is_processing"] == true).count()
            }
            Kind::Vllm => sum(&text, "vllm:num_requests_running") as usize,
        })
    }

    /// Waits until it generates for so many; how long that took.
    ///
    /// # Panics
    /// Not within `max`.
    pub async fn shows(&self, count: usize, max: Duration) -> Duration {
        let began = Instant::now();
        until(&format!("{count} generate"), max, async || {
            match self.generating().await? {
                found if found == count => Ok(()),
                found => Err(found.to_string()),
            }
        })
        .await;
        began.elapsed()
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        // vLLM's engine is a process of its own, which may stay when its server is killed.
        for process in self.program.descendants() {
            let _gone = kill(process, Signal::SIGKILL);
        }
    }
}
