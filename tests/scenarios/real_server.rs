//! The main path, cancellation, deaths and returns with a real model server: llama.cpp's `llama-server`, or vLLM when
//! `DUO_REAL_MODEL_KIND=vllm` says so. `tests/real-model` knows how to start either.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use duo_system_tests::harness::client::client;
use duo_system_tests::harness::cluster::{agent, chat, completion, generation, sum};
use duo_system_tests::harness::program::free_port;
use duo_system_tests::harness::{Call, Cluster, PATIENCE, Program, until};
use http::{Method, StatusCode};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// vLLM loads for a minute, longer on a busy machine.
const START: Duration = Duration::from_secs(280);
/// Within this a slot has to be free again after its client has left.
const FREE_WITHIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Llama,
    Vllm,
}

impl Kind {
    fn chosen() -> Self {
        let named = std::env::var_os("DUO_REAL_MODEL_KIND").unwrap_or_default();
        match named.to_str() {
            Some("" | "llama") => Self::Llama,
            Some("vllm") => Self::Vllm,
            other => panic!("DUO_REAL_MODEL_KIND={other:?}: llama or vllm"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Vllm => "vllm",
        }
    }

    /// Tokens of an answer that lasts for seconds.
    fn long(self) -> usize {
        match self {
            Self::Llama => 7_500,
            Self::Vllm => 3_000,
        }
    }
}

struct Server {
    kind: Kind,
    program: Program,
    url: String,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let kind = Kind::chosen();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("real-model");
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port().to_string();
        let arguments = [
            "--kind",
            kind.name(),
            "--port",
            &port,
            "--slots",
            "2",
            "--foreground",
        ];
        let kept = ["DUO_REAL_MODEL_CACHE", "XDG_CACHE_HOME"];
        let env = kept
            .iter()
            .filter_map(|&name| Some((name.to_owned(), std::env::var_os(name)?.into_string().ok()?)))
            .collect();
        let script: PathBuf = script;
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
        let body = json!({"model": "tiny-random", "prompt": "hello", "max_tokens": 2});
        let call = self.http.post(format!("{}/v1/completions", self.url)).json(&body);
        let answer = call.send().await.map_err(|error| error.to_string())?;
        answer
            .error_for_status()
            .map(drop)
            .map_err(|error| error.to_string())
    }

    async fn again(mut self) -> Self {
        self.program.again();
        self.started().await
    }

    async fn cluster(&self, workers: usize) -> Cluster {
        Cluster::builder()
            .slots(2)
            .workers(workers)
            .lease("1s")
            .configure(|config| {
                for model in config["models"].as_array_mut().expect("models") {
                    model["max_output_tokens"] = 8_000.into();
                }
            })
            .model_server(&format!("{}/v1", self.url), self.kind.name(), "tiny-random")
            .worker_env("DUO_MODEL_IDLE_TIMEOUT", "2s")
            .start()
            .await
    }

    /// What the server itself answers.
    async fn direct(&self, path: &str, body: &Value) -> Value {
        let mut body = body.clone();
        body["model"] = "tiny-random".into();
        let url = format!("{}{path}", self.url);
        Call::new(&self.http, Method::POST, &url)
            .json(&body)
            .send()
            .await
            .good()
            .json()
    }

    /// How many requests the server is generating for.
    async fn generating(&self) -> Result<usize, String> {
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

    async fn shows(&self, count: usize, max: Duration) -> Duration {
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

fn temperate(mut body: Value) -> Value {
    body["temperature"] = 0.into();
    body
}

fn text_completion(tokens: usize, stream: bool) -> Value {
    json!({"model": "mistral", "prompt": "def main():", "max_tokens": tokens, "temperature": 0, "stream": stream})
}

#[tokio::test]
async fn answers_of_a_real_server_arrive_whole_and_streamed() {
    let server = Server::start().await;
    let cluster = server.cluster(1).await;
    let calls = [
        (
            "/v1/chat/completions",
            temperate(chat("hello", 12, false)),
            "/choices/0/message/content",
        ),
        ("/v1/completions", text_completion(12, false), "/choices/0/text"),
    ];
    for (path, mut body, text) in calls {
        body["x_unknown"] = json!({"a": [1]});
        let direct = server.direct(path, &body).await;
        let whole = cluster.openai(path, &body).send().await.good().json();
        assert!(
            direct
                .pointer(text)
                .is_some_and(|text| text.as_str().is_some_and(|text| !text.is_empty()))
        );
        assert_eq!(whole.pointer(text), direct.pointer(text));
        assert_eq!(whole["usage"]["completion_tokens"], 12);
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let streamed = cluster.openai(path, &body).send().await.good();
        assert_eq!(
            Some(&Value::from(streamed.said())),
            direct.pointer(text),
            "{streamed}"
        );
        assert_eq!(streamed.events().last().map(String::as_str), Some("[DONE]"));
        assert!(streamed.text().contains("\"completion_tokens\":12"), "{streamed}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn gitlabs_requests_are_served_by_a_real_server() {
    let server = Server::start().await;
    let cluster = server.cluster(1).await;
    for stream in [false, true] {
        let answers = [
            ("/v2/code/completions", completion("def add(a, b):\n", stream)),
            ("/v4/code/suggestions", generation("add two numbers", stream)),
            ("/v2/chat/agent", agent("What does a merge train do?")),
        ];
        for (path, body) in answers {
            let answer = cluster.rails(path, "alice", &body).send().await.good();
            assert!(
                !answer.text().is_empty() && !answer.text().contains("\"error\""),
                "{path}: {answer}"
            );
        }
    }
    let ends = until("six records", PATIENCE, async || match cluster.ends().await? {
        ends if ends.len() == 6 => Ok(ends),
        ends => Err(format!("{ends:?}")),
    })
    .await;
    assert!(
        ends.iter().all(|(outcome, ..)| outcome == "completed"),
        "{ends:?}"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_refused_in_the_servers_words() {
    let server = Server::start().await;
    let cluster = server.cluster(1).await;
    let long = "hello world ".repeat(2_000);
    for stream in [false, true] {
        let answer = cluster
            .openai("/v1/chat/completions", &chat(&long, 12, stream))
            .send()
            .await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(
            answer.json()["error"]["message"]
                .as_str()
                .is_some_and(|text| text.contains("context")),
            "{answer}"
        );
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_client_that_leaves_stops_a_real_servers_generation() {
    let server = Server::start().await;
    let cluster = server.cluster(1).await;
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for stream in [true, false] {
            let id = format!("left-{stream}{}", path.len());
            let body = match path {
                "/v1/completions" => text_completion(server.kind.long(), stream),
                _ => temperate(chat("hello", server.kind.long(), stream)),
            };
            let asked = tokio::spawn(cluster.openai(path, &body).header("x-request-id", &id).send());
            server.shows(1, PATIENCE).await;
            asked.abort();
            let took = server.shows(0, PATIENCE).await;
            assert_eq!(
                cluster.end_of(&id).await.0,
                "cancelled",
                "the answer was over too soon"
            );
            assert!(took < FREE_WITHIN * 2, "{path}, stream {stream}: {took:?}");
        }
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_real_server_that_dies_in_mid_stream_yields_nothing_whole_and_serves_again_on_its_return() {
    let mut server = Server::start().await;
    let cluster = server.cluster(1).await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let body = temperate(chat("hello", server.kind.long(), true));
        let mut stream = cluster.openai("/v1/chat/completions", &body).open().await;
        assert_eq!(stream.status, StatusCode::OK);
        stream.until(|text| text.matches("data: ").count() > 2).await;
        server.program.signal(signal);
        let answer = stream.rest().await;
        assert!(!answer.looks_whole(), "{signal}: {answer}");
        // A server that drains may stay for as long as it likes; this one has been left.
        if server.program.exited().is_none() {
            server.program.signal(Signal::SIGKILL);
        }
        server.program.ended().await;
        let url = server.url.clone();
        server = server.again().await;
        assert_eq!(server.url, url);
        let served = cluster
            .openai("/v1/chat/completions", &chat("hello", 4, false))
            .send()
            .await;
        assert_eq!(served.status, StatusCode::OK, "{signal}: {served}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_real_servers_stream_goes_on_after_its_worker_was_killed() {
    let server = Server::start().await;
    let mut cluster = server.cluster(2).await;
    let tokens = match server.kind {
        Kind::Llama => server.kind.long(),
        Kind::Vllm => 600,
    };
    let mut calls = vec![(
        "/v1/completions",
        text_completion(tokens, true),
        "/choices/0/text",
    )];
    if server.kind == Kind::Vllm {
        let body = temperate(chat("hello", tokens, true));
        calls.push(("/v1/chat/completions", body, "/choices/0/message/content"));
    }
    for (path, body, text) in calls {
        let mut uncut = body.clone();
        uncut["stream"] = false.into();
        let uncut = server.direct(path, &uncut).await;
        let uncut = uncut
            .pointer(text)
            .and_then(Value::as_str)
            .expect("text")
            .to_owned();
        let mut stream = cluster.openai(path, &body).open().await;
        stream.until(|text| text.matches("data: ").count() > 20).await;
        let mut victim = None;
        for number in 0..2 {
            let metrics = cluster.worker_metrics(number).await.expect("metrics");
            if sum(&metrics, "duo_worker_slots_in_use") > 0.0 {
                victim = Some(number);
            }
        }
        let victim = victim.expect("a worker is busy");
        cluster.kill_worker(victim).await;
        let answer = stream.rest().await;
        let said = answer.said();
        assert_eq!(answer.looks_whole(), said == uncut, "what looks whole is exact");
        cluster.restart_worker(victim).await;
    }
    cluster.assert_clean().await;
}
