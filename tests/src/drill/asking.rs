//! Plain requests of an OpenAI client, for drills that look at one thing at a time.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::harness::cluster::{answer_to, chat, sum};
use crate::harness::{Answer, Cluster, PATIENCE, until};
use crate::sim::expected;

/// The model that is asked.
const MODEL: &str = "mistral";

/// One request: which endpoint, streamed or not, and how long its answer is.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// `/v1/chat/completions`, else `/v1/completions`.
    pub chat: bool,
    /// Is the answer to come in pieces?
    pub stream: bool,
    /// Words of the answer.
    pub words: usize,
}

impl Form {
    /// Where it is sent to.
    pub fn path(self) -> &'static str {
        if self.chat {
            "/v1/chat/completions"
        } else {
            "/v1/completions"
        }
    }

    /// Its body.
    pub fn body(self, question: &str) -> Value {
        if self.chat {
            return chat(question, self.words, self.stream);
        }
        json!({"model": MODEL, "prompt": question, "max_tokens": self.words, "stream": self.stream})
    }

    /// Is this the right answer, whole and byte for byte?
    pub fn is_right(self, question: &str, answer: &Answer) -> bool {
        let right = if self.chat {
            answer_to(question, self.words)
        } else {
            expected::completion_text(question, self.words)
        };
        if answer.status != 200 || answer.broken.is_some() {
            return false;
        }
        if self.stream {
            return answer.said() == right && answer.events().last().is_some_and(|last| last == "[DONE]");
        }
        let json: Value = serde_json::from_slice(&answer.bytes()).unwrap_or_default();
        let choice = &json["choices"][0];
        let said = choice["message"]["content"]
            .as_str()
            .or_else(|| choice["text"].as_str());
        said == Some(&*right)
    }
}

/// An API token that may have many requests under way, once the broker knows it.
///
/// # Panics
/// It does not learn it.
pub async fn busy_token(cluster: &Cluster) -> String {
    let token = cluster.cli.token("drill", "client", &["--limit", "1024"]).await;
    until("the broker knows a token", PATIENCE, async || {
        let answer = cluster.call(Method::GET, "/v1/models").token(&token).send().await;
        match answer.status.as_u16() {
            200 => Ok(()),
            _ => Err(answer.to_string()),
        }
    })
    .await;
    token
}

/// Asks over and over, so many at once, until it is aborted.
pub fn keep_asking(cluster: &Cluster, token: &str, form: Form, clients: usize) -> tokio::task::JoinSet<()> {
    let mut asking = tokio::task::JoinSet::new();
    for client in 0..clients {
        let call = cluster
            .call(Method::POST, form.path())
            .token(token)
            .json(&form.body(&format!("client {client}")));
        asking.spawn(async move {
            loop {
                let answer = call.again().send().await;
                if answer.status != 200 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    asking
}

/// A metric of a worker, or nothing if it does not answer.
pub async fn worker_metric(cluster: &Cluster, number: usize, name: &str) -> Option<f64> {
    let metrics = cluster.worker_metrics(number).await.ok()?;
    metrics.contains(name).then(|| sum(&metrics, name))
}
