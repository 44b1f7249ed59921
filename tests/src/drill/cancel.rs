//! Clients leave, in every state that a request can be in and in every way that a connection can end.
//!
//! Measured is the time from the client's closing of its socket to the moment at which the model server finds its own
//! connection closed; both clocks are this process's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::Row as _;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::checker::Checker;
use super::history::{Asked, End, History, Left};
use super::kind::Kind;
use super::load::prefix;
use super::random::Random;
use super::report::Report;
use super::{Counts, Size};
use crate::harness::cluster::sum;
use crate::harness::{Cluster, PATIENCE, until};
use crate::sim::Settings;

/// Hang-ups at once.
const AT_ONCE: usize = 8;
/// Slots of both workers together, all of which are taken while clients leave the queue.
const SLOTS: usize = 16;
/// Rounds of each state in the short form.
const SHORT_ROUNDS: usize = 2;
/// Rounds of each state in the full form: more than a thousand hang-ups.
const FULL_ROUNDS: usize = 19;
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// Length of every answer: longer than any client waits here.
const WORDS: usize = 4000;
/// Between two tokens.
const PACE: Duration = Duration::from_millis(10);
/// The promise: the generation is over within this, for 99 in 100.
const STOPS_WITHIN: Duration = Duration::from_millis(50);
/// The promise: the slots are free within this, for 99 in 100.
const FREE_WITHIN: Duration = Duration::from_millis(100);
/// What the short form allows instead: it may run beside builds and other tests.
const NOISY: Duration = Duration::from_secs(3);
/// How far the record's time may be from the hang-up.
const RECORDED_WITHIN: Duration = Duration::from_secs(1);

/// In which state a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// Every slot is taken.
    Queued,
    /// Within milliseconds of asking: while it is published, delivered or claimed.
    Fresh,
    /// The model server has not said a word, and a stream is wanted.
    Prefill,
    /// The same, and a whole answer is wanted.
    PrefillWhole,
    /// In the middle of a stream.
    Streaming,
    /// In the middle of an answer that comes whole.
    Whole,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
    /// Only the client's side is closed; it would go on reading.
    HalfClose,
}

/// A client that has left.
#[derive(Debug)]
struct Gone {
    id: String,
    state: State,
    at: Instant,
    wall: OffsetDateTime,
    /// The model server had it when its client left.
    generated: bool,
}

/// What the audit log says of one request.
#[derive(Debug)]
struct Record {
    outcome: Option<String>,
    reason: Option<String>,
    worker: Option<String>,
    attempts: Option<i32>,
    at: OffsetDateTime,
    tokens: Option<i64>,
}

pub(super) async fn run(size: Size) -> Report {
    // vLLM writes whole answers in one piece; llama-server is asked for streams, which the worker folds.
    let mut report = vllm(size).await;
    if report.passed() {
        let other = llama(size).await;
        add(&mut report.counts, &other.counts);
        report.breaches.extend(other.breaches);
        report.logs = other.logs;
        let named = |(name, value)| (format!("llama-server: {name}"), value);
        report.figures.extend(other.figures.into_iter().map(named));
    }
    report
}

async fn vllm(size: Size) -> Report {
    use State::{Fresh, Prefill, PrefillWhole, Queued, Streaming, Whole};
    part(
        size,
        "vllm",
        &[Queued, Fresh, Prefill, PrefillWhole, Streaming, Whole],
    )
    .await
}

async fn llama(size: Size) -> Report {
    part(size, "llama", &[State::Whole]).await
}

fn add(to: &mut Counts, more: &Counts) {
    to.requests += more.requests;
    to.hung_up += more.hung_up;
    to.lost += more.lost;
    to.duplicated += more.duplicated;
    to.leaked += more.leaked;
    to.orphans += more.orphans;
}

async fn part(size: Size, kind: &'static str, states: &[State]) -> Report {
    let sim = Settings {
        tokens: WORDS,
        pace_ms: PACE.as_millis() as u64,
        follow: Some(prefix(size.seed)),
        ..Settings::default()
    };
    let cluster = Cluster::builder()
        .sim(sim)
        .kind(kind)
        .slots(SLOTS / 2)
        .brokers(2)
        .workers(2)
        .lease("5s")
        .start()
        .await;
    let mut clients = Clients::new(&cluster, size).await;
    let rounds = if size.short { SHORT_ROUNDS } else { FULL_ROUNDS };
    for state in states {
        clients.leave(*state, rounds).await;
    }
    let Clients {
        gone, freed, history, ..
    } = clients;
    let mut report = Checker::new("cancel", size).check(&cluster, &history).await;
    judge(&mut report, size, kind, &cluster, &gone, freed).await;
    report.finish(cluster)
}

/// The clients of one cluster.
struct Clients<'a> {
    cluster: &'a Cluster,
    size: Size,
    token: String,
    random: Random,
    history: History,
    number: usize,
    gone: Vec<Gone>,
    /// From the last hang-up of a round to the look that found every slot free.
    freed: Vec<Duration>,
}

impl<'a> Clients<'a> {
    async fn new(cluster: &'a Cluster, size: Size) -> Self {
        let token = cluster.cli.token("leavers", "client", &["--limit", "1024"]).await;
        for number in 0..cluster.brokers() {
            until("the brokers know the token", PATIENCE, async || {
                let url = format!("http://{}/v1/models", cluster.address_of(number));
                let asked = cluster.http.get(url).bearer_auth(&token).send().await;
                let status = asked.map_err(|error| error.to_string())?.status();
                if status.is_success() {
                    Ok(())
                } else {
                    Err(status.to_string())
                }
            })
            .await;
        }
        Self {
            cluster,
            size,
            token,
            random: Random::new(size.seed, 3),
            history: History::default(),
            number: 0,
            gone: Vec::new(),
            freed: Vec::new(),
        }
    }

    /// Rounds of clients that leave in this state.
    async fn leave(&mut self, state: State, rounds: usize) {
        let silent = matches!(state, State::Prefill | State::PrefillWhole);
        let ttft_ms = if silent { 600_000 } else { 5 };
        self.cluster.sim.set(|sim| sim.ttft_ms = ttft_ms);
        let held = self.hold(state).await;
        for _ in 0..rounds {
            let mut leaving = JoinSet::new();
            for number in 0..AT_ONCE {
                let ask = self.ask(state, number);
                leaving.spawn(async move { ask.leave().await });
            }
            let mut round: Vec<_> = Vec::new();
            // Asking whether the model server has a request is left to this task, which owns the cluster.
            while let Some(left) = leaving.join_next().await {
                round.push(left.expect("a client does not fail"));
            }
            let last = round.iter().map(|gone| gone.at).max().expect("some left");
            self.free(held.len(), last).await;
            for gone in round {
                self.note(gone);
            }
        }
        drop(held);
        let idle = |stats: &crate::sim::Stats| stats.running + stats.waiting == 0;
        self.cluster.sim_shows(idle).await;
    }

    /// Takes every slot, where clients are to leave the queue.
    async fn hold(&mut self, state: State) -> Vec<TcpStream> {
        let mut held = Vec::new();
        if state != State::Queued {
            return held;
        }
        // Of the lane's slots, one in eight of each worker is kept for keystrokes.
        let open = (SLOTS - 2) as u64;
        for number in 0..open as usize {
            let body = crate::harness::cluster::chat("hold", WORDS, true);
            let mut socket = TcpStream::connect(self.cluster.address_of(number % 2))
                .await
                .expect("a broker listens");
            let request = request(Kind::ChatStream.path(), "held", &self.token, &body);
            socket.write_all(&request).await.expect("a broker reads");
            held.push(socket);
        }
        self.cluster.sim_shows(|stats| stats.running == open).await;
        held
    }

    fn ask(&mut self, state: State, number: usize) -> Ask {
        self.number += 1;
        let stream = !matches!(state, State::PrefillWhole | State::Whole);
        let kind = if stream { Kind::ChatStream } else { Kind::Chat };
        let id = format!("{}{}", prefix(self.size.seed), self.number);
        let after = match state {
            State::Fresh => Duration::ZERO..Duration::from_millis(8),
            _ => Duration::from_millis(5)..Duration::from_millis(250),
        };
        Ask {
            address: self.cluster.address_of(number % 2),
            request: request(kind.path(), &id, &self.token, &kind.body(&id, WORDS)),
            id,
            state,
            after: self.random.span(after),
            way: self
                .random
                .weighted(&[(Way::Close, 3), (Way::Reset, 1), (Way::HalfClose, 1)]),
            sim: self.cluster.sim.watcher(),
        }
    }

    /// Waits until no slot is in use beside those held.
    async fn free(&mut self, held: usize, since: Instant) {
        until("every slot is free", PATIENCE, async || {
            let mut used = 0.0;
            for number in 0..self.cluster.workers() {
                used += sum(
                    &self.cluster.worker_metrics(number).await?,
                    "duo_worker_slots_in_use",
                );
            }
            if used == held as f64 {
                Ok(())
            } else {
                Err(format!("{used} slots in use, {held} held"))
            }
        })
        .await;
        self.freed.push(since.elapsed());
    }

    fn note(&mut self, gone: Gone) {
        let now = self.history.now();
        self.history.add(Asked {
            id: gone.id.clone(),
            kind: Kind::ChatStream,
            sent: now,
            first_byte: None,
            longest_gap: Duration::ZERO,
            ended: now,
            broker: None,
            end: End::HungUp(match gone.state {
                State::Streaming => Left::Answering,
                _ => Left::Unanswered,
            }),
        });
        self.gone.push(gone);
    }
}

/// One client that is going to leave.
struct Ask {
    address: SocketAddr,
    request: Vec<u8>,
    id: String,
    state: State,
    after: Duration,
    way: Way,
    sim: crate::sim::Watcher,
}

impl Ask {
    async fn leave(self) -> Gone {
        let mut socket = TcpStream::connect(self.address).await.expect("a broker listens");
        socket.set_nodelay(true).expect("a socket");
        socket.write_all(&self.request).await.expect("a broker reads");
        match self.state {
            State::Queued | State::Fresh => {}
            State::Prefill | State::PrefillWhole | State::Whole => {
                let there = async {
                    while !self.sim.is_under_way(&self.id) {
                        sleep(LOOK).await;
                    }
                };
                timeout(PATIENCE, there)
                    .await
                    .expect("it reaches the model server");
            }
            State::Streaming => {
                let mut seen = Vec::new();
                while !seen.windows(7).any(|window| window == b"content") {
                    let count = socket.read_buf(&mut seen).await.expect("an answer");
                    assert!(count > 0, "it ended: {}", String::from_utf8_lossy(&seen));
                }
            }
        }
        sleep(self.after).await;
        let generated = self.sim.is_under_way(&self.id);
        let (at, wall) = (Instant::now(), OffsetDateTime::now_utc());
        match self.way {
            Way::Close => drop(socket),
            Way::Reset => {
                socket.set_zero_linger().expect("a socket");
                drop(socket);
            }
            Way::HalfClose => {
                socket.shutdown().await.expect("a socket");
                // Until the broker closes its side, which is its answer.
                let mut rest = Vec::new();
                let _cut = timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
            }
        }
        Gone {
            id: self.id,
            state: self.state,
            at,
            wall,
            generated,
        }
    }
}

fn request(path: &str, id: &str, token: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: drill\r\ncontent-type: application/json\r\nx-request-id: {id}\r\n\
         authorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn judge(
    report: &mut Report,
    size: Size,
    kind: &str,
    cluster: &Cluster,
    gone: &[Gone],
    mut freed: Vec<Duration>,
) {
    let records = records(cluster).await;
    let over: HashMap<String, _> = cluster
        .sim
        .over()
        .into_iter()
        .map(|over| (over.id.clone(), over))
        .collect();
    let reached: HashSet<_> = over.keys().cloned().collect();
    let mut stopped: BTreeMap<State, Vec<Duration>> = BTreeMap::new();
    let (mut unrecorded, mut unclaimed, mut off, mut uncounted) = (0, 0, Duration::ZERO, 0);
    for client in gone {
        let end = over.get(&client.id);
        let took = end.map(|end| end.at.saturating_duration_since(client.at));
        stopped.entry(client.state).or_default().extend(took);
        report.demand(
            client.state != State::Queued || !reached.contains(&client.id),
            || format!("{} left the queue and was generated all the same", client.id),
        );
        let Some(record) = records.get(&client.id) else {
            // Who left before the broker had read the request was never heard.
            unrecorded += 1;
            let unheard = matches!(client.state, State::Fresh | State::Queued) && end.is_none();
            report.demand(unheard, || format!("{client:?} has no record"));
            continue;
        };
        let said = (record.outcome.as_deref(), record.reason.as_deref());
        report.demand(said == (Some("cancelled"), Some("client_gone")), || {
            format!("{client:?} is recorded as {record:?}")
        });
        // The model call begins beside the claim: who left before the claim was heard has no worker.
        let claimed = record.attempts.is_some_and(|attempts| attempts > 0);
        unclaimed += usize::from(client.generated && !claimed);
        report.demand(claimed == record.worker.is_some(), || {
            format!("{client:?}: by whom it was generated is not recorded: {record:?}")
        });
        let away = (record.at - client.wall).unsigned_abs();
        off = off.max(away);
        let generated = end.map_or(0, |end| end.tokens as i64);
        // What the server said while the order to stop was on its way may not have been read any more.
        let late = took.unwrap_or_default() + if size.short { NOISY } else { PACE };
        let unread = (late.as_micros() / PACE.as_micros()) as i64;
        let counted = client.state == State::Streaming || (client.state == State::Whole && kind == "llama");
        if counted && claimed {
            let tokens = record.tokens.unwrap_or(0);
            let close = tokens <= generated && generated - tokens <= unread;
            report.demand(close, || {
                format!("{client:?}: {generated} tokens generated, {tokens} recorded, {unread} may be unread")
            });
        } else if record.tokens.is_none() && client.generated {
            uncounted += 1;
        }
    }
    for (state, mut spans) in stopped {
        if !spans.is_empty() {
            let p99 = figures(report, &format!("generation over, {state:?}"), &mut spans);
            bound(
                report,
                size,
                &format!("generations stopped ({state:?})"),
                p99,
                STOPS_WITHIN,
            );
        }
    }
    let p99 = figures(report, "every slot of a round free", &mut freed);
    bound(report, size, "slots were free", p99, FREE_WITHIN);
    report.demand(size.short || off <= RECORDED_WITHIN, || {
        format!("a record is {off:?} off")
    });
    report.figure("record's time off by at most", format!("{:.1} ms", ms(off)));
    report.figure("left before they were heard", unrecorded.to_string());
    report.figure(
        "left while the model call ran beside the claim",
        unclaimed.to_string(),
    );
    report.figure(
        "generated, cost unknown to the server's client",
        uncounted.to_string(),
    );
}

fn bound(report: &mut Report, size: Size, what: &str, p99: Duration, promised: Duration) {
    let limit = if size.short { NOISY } else { promised };
    report.demand(p99 <= limit, || {
        format!("{what} only after {:.1} ms (p99)", ms(p99))
    });
}

/// Adds middle, 99th percentile and maximum; gives the 99th percentile.
fn figures(report: &mut Report, name: &str, spans: &mut [Duration]) -> Duration {
    spans.sort_unstable();
    let at = |part: f64| spans[((spans.len() - 1) as f64 * part).round() as usize];
    let text = format!(
        "p50 {:.1}, p99 {:.1}, most {:.1} ms of {}",
        ms(at(0.5)),
        ms(at(0.99)),
        ms(at(1.0)),
        spans.len()
    );
    report.figure(name, text);
    at(0.99)
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

async fn records(cluster: &Cluster) -> HashMap<String, Record> {
    let sql = "SELECT correlation_id, outcome, reason, worker, attempts, occurred_at, output_tokens \
               FROM audit_events WHERE kind = 'ended' AND correlation_id IS NOT NULL";
    let rows = sqlx::query(sql).fetch_all(cluster.database.pool()).await;
    let rows = rows.expect("PostgreSQL answers");
    let record = |row: &sqlx::postgres::PgRow| Record {
        outcome: row.get("outcome"),
        reason: row.get("reason"),
        worker: row.get("worker"),
        attempts: row.get("attempts"),
        at: row.get("occurred_at"),
        tokens: row.get("output_tokens"),
    };
    rows.iter()
        .map(|row| (row.get("correlation_id"), record(row)))
        .collect()
}
