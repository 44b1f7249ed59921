//! Records are handed on to collectors, at least once and in order.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(dead_code, reason = "other tests use the rest of it")]

#[path = "support/servers.rs"]
mod servers;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::routing::post;
use duo_broker::audit::forward::{self, ForwardMetrics, Settings};
use duo_broker::store::api_tokens::NewToken;
use duo_contract::snapshot::Role;
use duo_process::shutdown::Shutdown;
use http::{HeaderMap, StatusCode};
use prometheus::{Registry, TextEncoder};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use self::servers::Database;

/// Writes a record: a change by an administrator.
async fn change(database: &Database, name: &str) {
    let token = NewToken {
        name: name.into(),
        role: Role::Client,
        features: None,
        models: None,
        limit: 7,
        expires_at: None,
    };
    database.store.create_token("tester", &token).await.unwrap();
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a collector has had, and how many batches it is still to refuse.
#[derive(Debug, Default)]
struct Collector {
    refuse: u32,
    seqs: Vec<i64>,
    tokens: Vec<String>,
}

async fn collect(
    State(collector): State<Arc<Mutex<Collector>>>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let mut collector = collector.lock().unwrap();
    let token = headers["authorization"].to_str().unwrap().to_owned();
    collector.tokens.push(token);
    let records = body
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let seqs: Vec<_> = records.map(|record| record["seq"].as_i64().unwrap()).collect();
    // It takes what it then says that it did not: the same comes again.
    collector.seqs.extend(seqs);
    if collector.refuse > 0 {
        collector.refuse -= 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    StatusCode::NO_CONTENT
}

/// The target is known, so what comes next is forwarded.
async fn begun(database: &Database) {
    until("the target is known", async || {
        database.count("SELECT count(*) FROM audit_forwards").await == 1
    })
    .await;
}

#[tokio::test]
async fn a_collector_that_refuses_gets_everything_again_in_order() {
    let database = Database::create().await;
    change(&database, "before anybody wanted to know").await;
    let collector = Arc::new(Mutex::new(Collector {
        refuse: 2,
        ..Collector::default()
    }));
    let app = axum::Router::new()
        .route("/in", post(collect))
        .with_state(Arc::clone(&collector));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/in", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let registry = Registry::new();
    let metrics = ForwardMetrics::register(&registry);
    // Two brokers: one at a time forwards.
    let shutdown = Shutdown::new();
    for _ in 0..2 {
        let settings = Settings {
            url: Some(url.clone()),
            token: Some("secret".into()),
            syslog: None,
        };
        forward::spawn(
            settings,
            (&database.store, reqwest::Client::new()),
            &metrics,
            &shutdown,
        );
    }
    begun(&database).await;
    for number in 0..5 {
        change(&database, &format!("token {number}")).await;
    }
    until("all are there", async || {
        database.count("SELECT next_seq FROM audit_forwards").await == 6
    })
    .await;
    let collector = collector.lock().unwrap();
    let mut once = collector.seqs.clone();
    once.dedup();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once, [1, 2, 3, 4, 5], "{collector:?}");
    assert_eq!(collector.seqs.last(), Some(&5));
    assert!(collector.tokens.iter().all(|token| token == "Bearer secret"));
    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in [
        r#"duo_audit_forward_backlog{target="http"} 0"#,
        r#"duo_audit_forward_sent_total{target="http"} 5"#,
        r#"duo_audit_forward_failed_total{target="http"} 2"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    shutdown.begin();
}

/// The next message of a stream of messages behind their lengths.
async fn frame(stream: &mut tokio::net::TcpStream) -> String {
    let mut length = String::new();
    loop {
        match stream.read_u8().await.unwrap() {
            b' ' => break,
            digit => length.push(digit.into()),
        }
    }
    let mut message = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut message).await.unwrap();
    String::from_utf8(message).unwrap()
}

#[tokio::test]
async fn syslog_gets_messages_behind_their_lengths_and_a_new_connection_after_a_break() {
    let database = Database::create().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = Settings {
        syslog: Some(listener.local_addr().unwrap().to_string()),
        ..Settings::default()
    };
    let shutdown = Shutdown::new();
    let metrics = ForwardMetrics::register(&Registry::new());
    forward::spawn(
        settings,
        (&database.store, reqwest::Client::new()),
        &metrics,
        &shutdown,
    );
    begun(&database).await;
    for name in ["ünïcode", "second"] {
        change(&database, name).await;
        let (mut stream, _) = listener.accept().await.unwrap();
        let message = frame(&mut stream).await;
        let (head, json) = message.split_once('\u{feff}').unwrap();
        assert!(
            head.starts_with("<110>1 20") && head.ends_with(" administration duo-broker - changed - "),
            "{head}"
        );
        let record: Value = serde_json::from_str(json).unwrap();
        assert_eq!(record["details"]["after"]["name"], name);
    }
    shutdown.begin();
}
