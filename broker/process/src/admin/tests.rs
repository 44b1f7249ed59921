//! The operator's port over real connections, and the rules of readiness.

use std::future::pending;

use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn readiness_waits_for_every_latch_and_condition() {
    let readiness = Readiness::new();
    assert!(readiness.blockers().is_empty());

    let schema = readiness.latch("schema");
    let cache = readiness.latch("cache");
    let connected = readiness.condition("nats");
    assert_eq!(readiness.blockers(), ["cache", "schema", "nats"]);

    schema.release();
    drop(cache);
    assert_eq!(readiness.blockers(), ["nats"]);

    connected.set(true);
    assert!(readiness.blockers().is_empty());
    connected.clone().set(false);
    assert_eq!(readiness.blockers(), ["nats"]);
}

#[test]
fn two_latches_of_one_name_are_both_waited_for() {
    let readiness = Readiness::new();
    let (first, second) = (readiness.latch("consumer"), readiness.latch("consumer"));

    first.release();
    assert_eq!(readiness.blockers(), ["consumer"]);
    second.release();
    assert!(readiness.blockers().is_empty());
}

#[test]
fn a_drain_cannot_be_undone() {
    let readiness = Readiness::new();
    let connected = readiness.condition("nats");

    readiness.drain();
    connected.set(true);
    assert_eq!(readiness.blockers(), ["draining"]);
}

#[tokio::test]
async fn the_port_answers_probes_and_scrapes() {
    let registry = Registry::new();
    let counter = IntCounter::new("duo_requests_total", "Requests.").unwrap();
    crate::metrics::register(&registry, counter).inc_by(4);
    let readiness = Readiness::new();
    let latch = readiness.latch("schema");
    let _condition = readiness.condition("nats");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, registry, readiness.clone(), pending()));

    let live = get_text(address, "/livez").await;
    assert!(
        live.starts_with("HTTP/1.1 200 OK\r\n") && live.ends_with("\r\n\r\nok"),
        "{live}"
    );

    let waiting = get_text(address, "/readyz").await;
    assert!(waiting.starts_with("HTTP/1.1 503 "), "{waiting}");
    assert!(waiting.ends_with("\r\n\r\nschema\nnats"), "{waiting}");

    latch.release();
    readiness.condition("nats").set(true);
    let welcome = get_text(address, "/readyz").await;
    assert!(
        welcome.starts_with("HTTP/1.1 200 OK\r\n") && welcome.ends_with("\r\n\r\nok"),
        "{welcome}"
    );

    let metrics = get_text(address, "/metrics").await;
    assert!(
        metrics.contains("content-type: text/plain; version=0.0.4\r\n"),
        "{metrics}"
    );
    assert!(metrics.contains("\nduo_requests_total 4\n"), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_left_open_does_not_hold_up_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut idler = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    idler.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    let shutdown = tokio::time::sleep(Duration::from_secs(3));
    let start = Instant::now();

    serve(listener, Registry::new(), Readiness::new(), shutdown)
        .await
        .unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(3) + LINGER);
}

async fn get_text(address: std::net::SocketAddr, path: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, connection.read_to_string(&mut answer))
        .await
        .expect("an answer in time")
        .unwrap();
    answer
}
