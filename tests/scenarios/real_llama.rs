//! The main path, cancellation and a server's death with llama.cpp's real `llama-server`.

use std::path::PathBuf;
use std::time::Duration;

use duo_system_tests::harness::cluster::{chat, completion};
use duo_system_tests::harness::program::free_port;
use duo_system_tests::harness::{Call, Cluster, PATIENCE, Program, until};
use http::{Method, StatusCode};
use nix::sys::signal::Signal;
use serde_json::Value;

struct Llama {
    program: Program,
    url: String,
    _folder: tempfile::TempDir,
}

fn path(variable: &str) -> PathBuf {
    let found = std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("{variable} names no file: eval \"$(tests/real-model --install-only)\", as ./tests/run does")
    })
}

impl Llama {
    async fn start() -> Self {
        let (server, model) = (path("DUO_TEST_LLAMA_SERVER"), path("DUO_TEST_LLAMA_MODEL"));
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port().to_string();
        let model = model.to_str().expect("a plain path");
        let arguments = [
            "-m",
            model,
            "--alias",
            "tiny-random",
            "--parallel",
            "2",
            "--ctx-size",
            "4096",
            "--threads",
            "1",
            "--metrics",
            "--slots",
            "--offline",
            "--host",
            "127.0.0.1",
            "--port",
            &port,
        ];
        let mut program = Program::start("llama-server", &server, &arguments, Vec::new(), folder.path());
        let url = format!("http://127.0.0.1:{port}");
        let client = reqwest::Client::new();
        until("llama-server is ready", PATIENCE, async || {
            if let Some(status) = program.exited() {
                panic!("llama-server ended ({status}):\n{}", program.last_words());
            }
            let answer = client
                .get(format!("{url}/health"))
                .send()
                .await
                .map_err(|error| error.to_string())?;
            if answer.status().is_success() {
                Ok(())
            } else {
                Err(answer.status().to_string())
            }
        })
        .await;
        Self {
            program,
            url,
            _folder: folder,
        }
    }

    async fn cluster(&self) -> Cluster {
        Cluster::builder()
            .slots(2)
            .model_server(&format!("{}/v1", self.url), "llama", "tiny-random")
            .worker_env("DUO_MODEL_IDLE_TIMEOUT", "2s")
            .start()
            .await
    }

    /// How many slots the server is generating in.
    async fn generating(&self) -> Result<usize, String> {
        let client = reqwest::Client::new();
        let slots = client
            .get(format!("{}/slots", self.url))
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let slots: Vec<Value> = slots.json().await.map_err(|error| error.to_string())?;
        Ok(slots.iter().filter(|slot| slot["is_processing"] == true).count())
    }
}

#[tokio::test]
async fn answers_of_a_real_server_arrive_whole_and_streamed() {
    let llama = Llama::start().await;
    let cluster = llama.cluster().await;
    let mut body = chat("hello", 12, false);
    body["temperature"] = 0.into();
    let whole = cluster.openai("/v1/chat/completions", &body).send().await.good();
    let whole = whole.json()["choices"][0]["message"]["content"]
        .as_str()
        .expect("text")
        .to_owned();
    let mut direct = body.clone();
    direct["model"] = "tiny-random".into();
    let url = format!("{}/v1/chat/completions", llama.url);
    let direct = Call::new(&reqwest::Client::new(), Method::POST, &url)
        .json(&direct)
        .send()
        .await
        .good();
    assert_eq!(direct.json()["choices"][0]["message"]["content"], *whole);
    body["stream"] = true.into();
    let streamed = cluster.openai("/v1/chat/completions", &body).send().await.good();
    assert_eq!(streamed.said(), whole);
    assert_eq!(streamed.events().last().map(String::as_str), Some("[DONE]"));

    let code = cluster
        .rails(
            "/v2/code/completions",
            "alice",
            &completion("def add(a, b):\n", false),
        )
        .send()
        .await;
    assert!(
        !code.good().json()["choices"]
            .as_array()
            .expect("a list")
            .is_empty()
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_client_that_leaves_stops_a_real_servers_generation() {
    let llama = Llama::start().await;
    let cluster = llama.cluster().await;
    for stream in [true, false] {
        let id = format!("left-{stream}");
        let call = cluster
            .openai("/v1/chat/completions", &chat("hello", 1_900, stream))
            .header("x-request-id", &id);
        let asked = tokio::spawn(call.send());
        let generating = async |count: usize| {
            until(
                &format!("{count} generate"),
                Duration::from_secs(5),
                async || match llama.generating().await? {
                    found if found == count => Ok(()),
                    found => Err(found.to_string()),
                },
            )
            .await;
        };
        generating(1).await;
        asked.abort();
        generating(0).await;
        assert_eq!(
            cluster.end_of(&id).await.0,
            "cancelled",
            "the answer was over too soon"
        );
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_real_server_that_dies_in_mid_stream_yields_nothing_that_looks_whole() {
    let mut llama = Llama::start().await;
    let cluster = llama.cluster().await;
    let mut stream = cluster
        .openai("/v1/chat/completions", &chat("hello", 1_900, true))
        .open()
        .await;
    assert_eq!(stream.status, StatusCode::OK);
    stream.until(|text| text.matches("data: ").count() > 2).await;
    llama.program.signal(Signal::SIGKILL);
    llama.program.ended().await;
    let answer = stream.rest().await;
    assert!(!answer.looks_whole(), "{answer}");
    cluster.assert_clean().await;
}
