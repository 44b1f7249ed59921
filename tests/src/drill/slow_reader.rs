//! Clients stop reading their streams: each costs a bounded amount of memory, its generation is stopped, and what it
//! reads at last is an answer that is visibly cut. Nobody else notices.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::Size;
use super::queue_trouble::{Scene, builder};
use super::report::Report;
use crate::harness::cluster::chat;
use crate::harness::cluster::sum;
use crate::harness::{PATIENCE, until};

/// Words of an answer that nobody reads: several times of what a broker keeps for a client and the kernel for a socket.
const WORDS: usize = 100_000;
/// Bytes that the client's kernel takes.
const RECEIVES: u32 = 16 * 1024;
/// Bytes of an answer that a broker keeps for a slow client, and what it may need besides for each.
const KEPT: u64 = (1 << 20) + (1 << 20);
/// Memory that a broker may take for the load beside.
const BESIDE: u64 = 48 << 20;
/// How long the others may wait.
const OTHERS: Duration = Duration::from_secs(3);

pub(super) async fn run(size: Size) -> Report {
    let readers = if size.short { 6 } else { 50 };
    let builder = builder().configure(|config| {
        for model in config["models"].as_array_mut().expect("models") {
            model["context_tokens"] = json!(4 * WORDS);
            model["max_output_tokens"] = json!(2 * WORDS);
        }
    });
    let scene = Scene::begin("slow-reader", builder.slots(32 + readers), size).await;
    // Fast, or it would take minutes until a buffer is full.
    scene
        .cluster
        .sim
        .set(|sim| (sim.context, sim.pace_ms) = (8 * WORDS, 1));
    let before = memory(&scene);
    let from = scene.history.now();
    let mut slow = Vec::new();
    for number in 0..readers {
        slow.push(ask(&scene, number).await);
    }
    let cancelled = until("the slow readers are cancelled", PATIENCE * 3, async || {
        let ends = scene.cluster.ends().await?;
        let slow = |end: &&(String, Option<String>, Option<String>)| end.1.as_deref() == Some("slow_reader");
        match ends.iter().filter(slow).count() {
            count if count >= readers => Ok(count),
            count => Err(format!("{count} of {readers}")),
        }
    })
    .await;
    let most = memory(&scene);
    scene.struck("a client stops reading", from);
    let mut whole = 0;
    for stream in slow {
        whole += usize::from(looks_whole(stream).await);
    }
    sleep(size.span(1, 20)).await;
    let metrics = scene.cluster.metrics().await.expect("the broker runs");
    let open = sum(&metrics, "duo_requests_open");
    let (mut report, cluster) = scene.end(OTHERS).await;
    report.figure(
        "slow readers",
        format!("{readers}, {cancelled} cancelled, {open} requests open behind them"),
    );
    report.figure(
        "memory before and at most",
        format!("{} and {} MiB", before >> 20, most >> 20),
    );
    report.demand(whole == 0, || format!("{whole} cut answers look whole"));
    let allowed = before + BESIDE + KEPT * readers as u64;
    report.demand(most <= allowed, || {
        format!(
            "the broker has {} MiB, more than {} MiB",
            most >> 20,
            allowed >> 20
        )
    });
    report.finish(cluster)
}

/// Sends a request whose answer nobody reads.
async fn ask(scene: &Scene, number: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(RECEIVES).expect("a small buffer");
    let address = scene.cluster.address_of(0);
    let mut stream = socket.connect(address).await.expect("the broker listens");
    let mut body = chat(&format!("slow reader {number}"), WORDS, true);
    // The answers of the load beside end by themselves; these do not.
    body["ignore_eos"] = true.into();
    let body = body.to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: drill\r\nconnection: close\r\ncontent-type: application/json\r\n\
         authorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        scene.cluster.client_token,
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("it is taken");
    stream
}

/// Reads what is there at last: does it end as whole answers do?
async fn looks_whole(mut stream: TcpStream) -> bool {
    let mut bytes = Vec::new();
    // Reset or closed: either way no more comes.
    let _end = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8_lossy(&bytes);
    text.contains("[DONE]") || text.contains("\"finish_reason\":\"")
}

/// Resident bytes of the broker.
fn memory(scene: &Scene) -> u64 {
    let path = format!("/proc/{}/status", scene.cluster.broker.pid());
    let text = std::fs::read_to_string(path).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("a line with its memory") << 10
}
