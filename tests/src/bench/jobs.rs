//! Jobs: how fast they are accepted at a steady pace, and how many a second come to their end.
//!
//! The pace is an open loop: a submission is due by the clock whatever became of those before it, and its latency
//! counts from there. For the second figure jobs are submitted as fast as they are accepted; they count from the first
//! submission until the broker has ended the last. Some results are read and compared to the byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::Options;
use super::cpu::Usage;
use super::http::Connection;
use super::load::{Measured, Sample};
use super::report::Row;
use super::target::Servers;
use super::throughput::{serves, taking_part};
use crate::sim::expected;
use crate::table;

/// Submissions a second of the steady pace.
const PACE: u32 = 300;
/// Connections that submit at that pace, and as fast as they may.
const CONNECTIONS: usize = 64;
/// Jobs that the second figure is of, for each second of a window.
const JOBS_A_SECOND: u64 = 1500;
/// Results that are read.
const READ: usize = 200;
/// Longest time in which the last job is to end.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(20);

/// Where jobs are submitted.
struct Door {
    address: SocketAddr,
    token: String,
    model: String,
    tokens: usize,
    /// No two runs have a question, and so a key, in common.
    run: Uuid,
}

impl Door {
    fn submission(&self, question: &str) -> Vec<u8> {
        let body = json!({
            "feature": "openai_chat",
            "model": self.model,
            "input": question,
            "max_output_tokens": self.tokens,
        })
        .to_string();
        format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             idempotency-key: {question}\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            self.token,
            body.len()
        )
        .into_bytes()
    }

    fn look(&self, id: &str) -> Vec<u8> {
        format!(
            "GET /v1/jobs/{id} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\r\n",
            self.address, self.token
        )
        .into_bytes()
    }

    /// The text that the job with this question comes to.
    fn expected(&self, question: &str) -> anyhow::Result<String> {
        let messages = json!([{"role": "user", "content": question}]);
        Ok(expected::chat_text(&messages.to_string(), self.tokens)?)
    }
}

async fn ask(connection: &mut Connection, request: &[u8]) -> anyhow::Result<(u16, Value)> {
    let status = connection.send(request).await?;
    let mut body = Vec::new();
    while let Some(part) = connection.part().await? {
        body.extend_from_slice(part);
    }
    Ok((status, serde_json::from_slice(&body)?))
}

/// Submits one job; its id.
async fn submit(connection: &mut Connection, door: &Door, question: &str) -> anyhow::Result<String> {
    let (status, body) = ask(connection, &door.submission(question)).await?;
    ensure!(status == 202, "{status} instead of 202: {body}");
    Ok(body["id"].as_str().context("no id")?.to_owned())
}

/// Two windows.
pub(super) fn measure(
    options: &Options,
    servers: &Servers,
    runtime: &Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<Vec<Row>> {
    let broker = options.broker.as_ref().context("this scenario needs a broker")?;
    let addresses = broker.socket_addrs(|| None)?;
    let door = Arc::new(Door {
        address: *addresses.first().context("the broker's address is none")?,
        token: options.client_token.clone().context("the broker wants a token")?,
        model: options.model.clone(),
        tokens: options.tokens,
        run: Uuid::new_v4(),
    });
    let system = |name: &str| serves(options, "broker", name);
    progress(&format!("jobs: {PACE} submissions a second"));
    let paced = runtime.block_on(paced(options, servers, &door))?;
    progress("jobs: submitted as fast as they are accepted, until the last has ended");
    let flood = runtime.block_on(flood(options, servers, &door))?;
    Ok(vec![
        Row::new(("jobs", "accepted", "broker"), CONNECTIONS, paced, system),
        Row::new(("jobs", "ended", "broker"), CONNECTIONS, flood, system),
    ])
}

async fn paced(options: &Options, servers: &Servers, door: &Arc<Door>) -> anyhow::Result<Measured> {
    let processes = taking_part(options, "broker");
    let count = u64::from(PACE) * options.seconds;
    let warm_up = u64::from(PACE) * options.warm_up;
    let ended = ended(options, servers).await?;
    let connections = Arc::new(Mutex::new(Vec::new()));
    let mut submissions = JoinSet::new();
    let began = Instant::now();
    let before = Usage::of_all(&processes)?;
    for number in 0..warm_up + count {
        let due = began + Duration::from_secs(number) / PACE;
        tokio::time::sleep_until(due.into()).await;
        let (door, connections) = (Arc::clone(door), Arc::clone(&connections));
        submissions.spawn(async move {
            let kept = connections.lock().await.pop();
            let mut connection = match kept {
                Some(connection) => connection,
                None => Connection::open(door.address).await?,
            };
            submit(&mut connection, &door, &format!("paced-{number}-{}", door.run)).await?;
            let took = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
            connections.lock().await.push(connection);
            anyhow::Ok((number >= warm_up, took))
        });
    }
    let mut measured = Measured::default();
    while let Some(submission) = submissions.join_next().await {
        match submission? {
            Ok((true, took)) => measured.samples.push(Sample {
                first: took,
                whole: took,
            }),
            Ok((false, _)) => {}
            Err(error) => measured.tell(format!("{error:#}")),
        }
    }
    measured.window = began.elapsed();
    measured.ended = warm_up + count;
    measured.used = Usage::between(before, Usage::of_all(&processes)?);
    until_ended(options, servers, ended + warm_up + count - measured.wrong).await?;
    Ok(measured)
}

async fn flood(options: &Options, servers: &Servers, door: &Arc<Door>) -> anyhow::Result<Measured> {
    let processes = taking_part(options, "broker");
    let count = JOBS_A_SECOND * options.seconds;
    let ended = ended(options, servers).await?;
    let before = Usage::of_all(&processes)?;
    let began = Instant::now();
    let mut submissions = JoinSet::new();
    for first in 0..CONNECTIONS as u64 {
        let door = Arc::clone(door);
        submissions.spawn(async move {
            let mut connection = Connection::open(door.address).await?;
            let mut accepted = Vec::new();
            for number in (first..count).step_by(CONNECTIONS) {
                let (question, due) = (format!("flood-{number}-{}", door.run), Instant::now());
                let id = submit(&mut connection, &door, &question).await?;
                let took = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
                accepted.push((id, question, took));
            }
            anyhow::Ok(accepted)
        });
    }
    let (mut measured, mut accepted) = (Measured::default(), Vec::new());
    while let Some(submission) = submissions.join_next().await {
        match submission? {
            Ok(more) => accepted.extend(more),
            Err(error) => measured.tell(format!("{error:#}")),
        }
    }
    until_ended(options, servers, ended + accepted.len() as u64).await?;
    measured.window = began.elapsed();
    measured.ended = accepted.len() as u64;
    measured.used = Usage::between(before, Usage::of_all(&processes)?);
    let mut connection = Connection::open(door.address).await?;
    for (id, question, _) in accepted.iter().step_by(accepted.len() / READ + 1) {
        let (_, job) = ask(&mut connection, &door.look(id)).await?;
        let expected = door.expected(question)?;
        if job["state"] != "succeeded" || job["result"]["text"] != expected {
            measured.tell(format!("{job} instead of {expected:?}"));
        }
    }
    let samples = accepted.iter().map(|(_, _, took)| Sample {
        first: *took,
        whole: *took,
    });
    measured.samples.extend(samples);
    Ok(measured)
}

async fn until_ended(options: &Options, servers: &Servers, count: u64) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = ended(options, servers).await?;
        if now >= count {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("only {now} of {count} jobs ended in time");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Jobs that the broker has ended well so far.
async fn ended(options: &Options, servers: &Servers) -> anyhow::Result<u64> {
    let url = options
        .metrics
        .first()
        .context("this scenario needs --metrics URL of the broker")?;
    let page = servers.text(url).await?;
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("duo_jobs_ended_total{state=\"succeeded\"} "));
    Ok(line.and_then(|count| count.parse::<f64>().ok()).unwrap_or(0.0) as u64)
}

/// The table's lines.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    let parts = ["broker", "worker", "nats", "postgres"];
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![
                row.request.to_owned(),
                row.requests.to_string(),
                format!("{:.0}", row.per_second.unwrap_or_default()),
                format!("{:.2}", row.whole_us.p50 / 1000.0),
                format!("{:.2}", row.whole_us.p99 / 1000.0),
                format!("{:.0}", row.cpu_us.unwrap_or_default()),
            ];
            cells.extend(parts.map(|name| format!("{:.0}", row.share(name).unwrap_or_default())));
            cells
        })
        .collect();
    let headings = [
        "JOBS", "COUNT", "A SECOND", "202 P50", "202 P99", "CPU", "BROKER", "WORKER", "NATS", "POSTGRES",
    ];
    table::lines(1, &headings, &cells)
}
