//! The demonstration against a hand-made broker that is right, refuses, cuts, or forgets its records.

use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::*;
use crate::gitlab::{SigningKey, TokenSpec};
use crate::server::Server;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broker {
    Right,
    Refusing,
    Cutting,
    Forgetful,
    Failing,
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

type Records = Arc<Mutex<Vec<Value>>>;

/// Runs the demonstration against such a broker; the report and what was shown.
async fn demonstrate(broker: Broker) -> (Report, String) {
    let server = Server::start("127.0.0.1:0".parse().unwrap(), 1, router(broker))
        .await
        .unwrap();
    let url = format!("http://{}", server.address());
    let key = SigningKey::generate().unwrap();
    let jwt = TokenSpec::default()
        .mint(&key, "https://gitlab.test", "the-instance")
        .unwrap();
    let words = [
        "duo-demo",
        "--url",
        &url,
        "--jwt",
        &jwt,
        "--auditor-token",
        "auditor",
        "--audit-wait",
        "1",
    ];
    let options = Arguments::parse_from(words).options;
    let mut out = Vec::new();
    let report = run(&options, &mut Screen::new(Some(&mut out), false))
        .await
        .unwrap();
    (report, String::from_utf8(out).unwrap())
}

fn router(broker: Broker) -> Router {
    let records = Records::default();
    let answer = move |State(records): State<Records>, request: Request| answer(broker, records, request);
    Router::new()
        .route("/v2/code/completions", post(answer))
        .route("/v4/code/suggestions", post(answer))
        .route("/v2/chat/agent", post(answer))
        .route("/audit/v1/events", get(events))
        .with_state(records)
}

async fn answer(broker: Broker, records: Records, request: Request) -> Response {
    let headers = request.headers();
    assert_eq!(headers["x-gitlab-instance-id"], "the-instance");
    let path = request.uri().path().to_owned();
    assert_eq!(
        headers.contains_key("x-supports-sse-streaming"),
        path == "/v4/code/suggestions"
    );
    let correlation_id = headers["x-request-id"].to_str().unwrap().to_owned();
    if broker != Broker::Forgetful {
        let outcome = match broker {
            Broker::Refusing => "refused",
            Broker::Failing => "failed",
            _ => "completed",
        };
        let admitted = json!({"request_id": "r", "kind": "admitted", "correlation_id": correlation_id});
        let mut ended = admitted.clone();
        ended["kind"] = json!("ended");
        ended["outcome"] = json!(outcome);
        ended["queue_wait_us"] = json!(640);
        ended["something_new"] = json!({"a": 1});
        records.lock().unwrap().splice(0..0, [ended, admitted]);
    }
    if broker == Broker::Refusing {
        return (StatusCode::FORBIDDEN, Json(json!({"detail": "Unauthorized"}))).into_response();
    }
    let text = match path.as_str() {
        "/v2/code/completions" => "net * (1 + vat)",
        "/v4/code/suggestions" => {
            "event: content_chunk\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"def read\"},\"index\":0}]}\r\n\r\n\
             event: stream_end\r\ndata: null\r\n\r\n"
        }
        _ => {
            "{\"type\":\"final_answer_delta\",\"data\":{\"text\":\"It merges.\",\"finish_reason\":\"stop\"}}\n"
        }
    };
    let rest = stream::once(async {
        // While the body waits, what came before it is sent.
        tokio::task::yield_now().await;
        Err(io::Error::other("cut"))
    });
    let cut = stream::iter((broker == Broker::Cutting).then_some(rest)).flatten();
    Body::from_stream(stream::iter([Ok(Bytes::from(text))]).chain(cut)).into_response()
}

async fn events(State(records): State<Records>, headers: HeaderMap) -> Response {
    assert_eq!(headers["authorization"], "Bearer auditor");
    Json(json!({"events": *records.lock().unwrap(), "next_cursor": null})).into_response()
}

#[tokio::test]
async fn three_whole_answers_with_completed_records_pass() {
    let (report, shown) = demonstrate(Broker::Right).await;
    assert!(report.passed, "{report:?}");
    let texts: Vec<_> = report.steps.iter().map(|step| step.text.as_str()).collect();
    assert_eq!(texts, ["net * (1 + vat)", "def read", "It merges."]);
    assert!(
        report
            .steps
            .iter()
            .all(|step| step.records.len() == 2 && step.records[0].outcome.is_none())
    );
    for words in [
        "1/3  Code completion",
        "│ def read",
        "of it in the queue 0.64 ms",
        "OUTCOME",
        "All three",
    ] {
        assert!(shown.contains(words), "{words}:\n{shown}");
    }
}

#[tokio::test]
async fn whatever_goes_wrong_fails_in_words() {
    for (broker, words) in [
        (
            Broker::Refusing,
            "answered 403 Forbidden: {\"detail\":\"Unauthorized\"}",
        ),
        (Broker::Cutting, "the answer was cut"),
        (Broker::Forgetful, "no audit record"),
        (
            Broker::Failing,
            "its audit record says failed (it gives no reason)",
        ),
    ] {
        let (report, shown) = demonstrate(broker).await;
        assert!(!report.passed, "{broker:?}");
        assert!(
            shown.contains(words) && shown.contains(".local/logs"),
            "{words}:\n{shown}"
        );
    }
}
