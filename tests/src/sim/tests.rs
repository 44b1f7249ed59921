//! The simulated server over real sockets.

mod answers;
mod failures;

use std::time::Duration;

use serde_json::{Value, json};

use super::*;

const SOON: Duration = Duration::from_secs(10);
const MESSAGES: &str = r#"[{"role":"user","content":"hello \"world\"\n"}]"#;

async fn start(change: impl FnOnce(&mut Settings)) -> Sim {
    let mut settings = Settings::default();
    change(&mut settings);
    Sim::start(settings).await.unwrap()
}

fn messages() -> Value {
    serde_json::from_str(MESSAGES).unwrap()
}

async fn post(sim: &Sim, path: &str, body: &Value) -> reqwest::Response {
    reqwest::Client::new()
        .post(sim.url() + path)
        .json(body)
        .send()
        .await
        .unwrap()
}

async fn ask(sim: &Sim, path: &str, body: Value) -> Value {
    let response = post(sim, path, &body).await;
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// The events of a stream; the last one is `[DONE]` if nothing went wrong.
async fn events(sim: &Sim, path: &str, mut body: Value) -> Vec<String> {
    body["stream"] = json!(true);
    let text = post(sim, path, &body).await.text().await.unwrap();
    let events = text
        .strip_suffix("\n\n")
        .expect("an event ends with a blank line")
        .split("\n\n");
    events
        .map(|event| {
            event
                .strip_prefix("data: ")
                .expect("every line is data")
                .to_owned()
        })
        .collect()
}

fn parsed(events: &[String]) -> Vec<Value> {
    let events = events.iter().filter(|event| *event != "[DONE]");
    events.map(|event| serde_json::from_str(event).unwrap()).collect()
}

fn content(events: &[Value]) -> String {
    let choices = events.iter().map(|event| &event["choices"][0]);
    choices
        .filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()))
        .collect()
}
