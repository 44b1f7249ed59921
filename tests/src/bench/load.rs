//! Closed loops that do not look away while the system stands still.
//!
//! A number of connections each send one request after the other. A request is *due* the moment its predecessor
//! has ended, and its latency counts from there: connecting anew and the generator's own delays are in it. The
//! window is one of due times: a request due within it is counted however late its answer comes, so a stall at the
//! end is not left out. Throughput counts the answers that came within the window.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::check::{Checker, Shape};
use super::cpu::{Process, Usage};
use super::http::Connection;

/// How long an answer may take before the connection is given up.
pub const LONGEST_ANSWER: Duration = Duration::from_secs(30);
/// How many wrong answers are told in words; all are counted.
const TOLD: usize = 5;

/// One kind of request to one server.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// The path asked for.
    pub path: &'static str,
    /// Header lines each request has, besides host, type and length.
    pub headers: Vec<(String, String)>,
    /// Every connection is a person of its own to the gateway, whose share is per person.
    pub person_each: bool,
    /// How its answers are written.
    pub shape: Shape,
    /// The requests, sent in turn.
    pub asks: Vec<Ask>,
}

/// A request's body and the one right answer.
#[derive(Clone, Debug)]
pub struct Ask {
    /// JSON.
    pub body: String,
    /// The text of the answer.
    pub expected: String,
}

/// How much load, for how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Connections, each with one request under way.
    pub concurrency: usize,
    /// Threads of the generator.
    pub threads: usize,
    /// Before the window: connections open, caches fill.
    pub warm_up: Duration,
    /// The window.
    pub window: Duration,
}

/// When one request was answered, in nanoseconds since it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its first text.
    pub first: u64,
    /// Its end.
    pub whole: u64,
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The requests due in the window.
    pub samples: Vec<Sample>,
    /// Right answers that ended in the window.
    pub ended: u64,
    /// How long the window was.
    pub window: Duration,
    /// Wrong or missing answers, warm-up included.
    pub wrong: u64,
    /// The first few of them in words.
    pub told: Vec<String>,
    /// What each process used in the window.
    pub used: Vec<Usage>,
}

impl Measured {
    /// Notes a wrong answer.
    pub fn tell(&mut self, problem: String) {
        self.wrong += 1;
        if self.told.len() < TOLD {
            self.told.push(problem);
        }
    }

    /// Adds what came of another part of the same load.
    pub fn add(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.ended += other.ended;
        self.wrong += other.wrong;
        self.told.extend(other.told);
        self.told.truncate(TOLD);
    }
}

/// Runs a load and looks at the processes at both ends of the window.
///
/// # Errors
/// A thread or runtime cannot be started, or a process is not there.
pub fn run(target: &Target, load: Load, processes: &[Process]) -> io::Result<Measured> {
    let opens = Instant::now() + load.warm_up;
    let closes = opens + load.window;
    thread::scope(|scope| {
        let generators: Vec<_> = (0..load.threads)
            .map(|thread| scope.spawn(move || generate(target, load, thread, (opens, closes))))
            .collect();
        thread::sleep(opens.saturating_duration_since(Instant::now()));
        let (before, began) = (Usage::of_all(processes)?, Instant::now());
        thread::sleep(closes.saturating_duration_since(Instant::now()));
        let (after, ended) = (Usage::of_all(processes)?, Instant::now());
        let mut all = Measured {
            // Sleeping never wakes early, and late by no more than what CPU time was counted for.
            window: ended - began,
            used: Usage::between(before, after),
            ..Measured::default()
        };
        for generator in generators {
            all.add(
                generator
                    .join()
                    .map_err(|_| io::Error::other("a generator's thread panicked"))??,
            );
        }
        Ok(all)
    })
}

/// One thread's share of the connections.
fn generate(target: &Target, load: Load, thread: usize, window: (Instant, Instant)) -> io::Result<Measured> {
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let target = Arc::new(target.clone());
            let mut connections = JoinSet::new();
            for number in (thread..load.concurrency).step_by(load.threads) {
                let client = Client::new(Arc::clone(&target), number);
                connections.spawn(client.ask_until_the_end(load, window));
            }
            let mut all = Measured::default();
            while let Some(one) = connections.join_next().await {
                all.add(one.map_err(io::Error::other)?);
            }
            Ok(all)
        })
}

/// One connection and what it sends.
#[derive(Debug)]
pub struct Client {
    target: Arc<Target>,
    head: String,
    connection: Option<Connection>,
    checker: Checker,
    request: Vec<u8>,
    next: usize,
}

impl Client {
    /// The client with this number; each begins with another request.
    #[must_use]
    pub fn new(target: Arc<Target>, number: usize) -> Self {
        let mut head = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n",
            target.path, target.address
        );
        for (name, value) in &target.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        if target.person_each {
            head.push_str(&format!("x-gitlab-global-user-id: {:064x}\r\n", number + 1));
        }
        head.push_str("content-length: ");
        Self {
            head,
            connection: None,
            checker: Checker::new(target.shape),
            request: Vec::new(),
            next: number * 7,
            target,
        }
    }

    async fn ask_until_the_end(mut self, load: Load, (opens, closes): (Instant, Instant)) -> Measured {
        // Enough for any rate that one connection reaches, so that growing does not show as latency.
        let mut measured = Measured {
            samples: Vec::with_capacity(
                8192 * load.window.as_secs().clamp(1, 60) as usize / load.concurrency.clamp(1, 32),
            ),
            ..Measured::default()
        };
        let mut due = Instant::now();
        while due < closes {
            let answered = self.ask(due).await;
            let now = Instant::now();
            match answered {
                Ok(sample) => {
                    if due >= opens {
                        measured.samples.push(sample);
                    }
                    measured.ended += u64::from(now >= opens && now < closes);
                }
                Err(problem) => {
                    measured.tell(problem);
                    // A server that refuses at once must not make a busy loop of this.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            due = Instant::now();
        }
        measured
    }

    /// One request that was due at `due`, and the check of its answer.
    ///
    /// # Errors
    /// What is wrong with the answer.
    pub async fn ask(&mut self, due: Instant) -> Result<Sample, String> {
        self.watch(due, LONGEST_ANSWER, |_| {}).await
    }

    /// The same, with `longest` as its limit; `seen` hears, at each arrival, how many events with text have come.
    ///
    /// # Errors
    /// What is wrong with the answer.
    pub async fn watch(
        &mut self,
        due: Instant,
        longest: Duration,
        seen: impl FnMut(u64),
    ) -> Result<Sample, String> {
        let number = self.next % self.target.asks.len();
        self.next += 1;
        let limit = tokio::time::Instant::from_std(due + longest);
        let answered = timeout_at(limit, self.exchange(number, due, seen)).await;
        let answered =
            answered.unwrap_or_else(|_| Err(format!("no whole answer in {} s", longest.as_secs())));
        if answered.is_err()
            || self
                .connection
                .as_ref()
                .is_some_and(|connection| connection.closing)
        {
            self.connection = None;
        }
        answered.map_err(|problem| format!("{} at {}: {problem}", self.target.path, self.target.address))
    }

    async fn exchange(
        &mut self,
        number: usize,
        due: Instant,
        mut seen: impl FnMut(u64),
    ) -> Result<Sample, String> {
        let ask = &self.target.asks[number];
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(self.target.address)
                .await
                .map_err(|error| error.to_string())?,
        };
        self.request.clear();
        self.request.extend_from_slice(self.head.as_bytes());
        self.request
            .extend_from_slice(ask.body.len().to_string().as_bytes());
        self.request.extend_from_slice(b"\r\n\r\n");
        self.request.extend_from_slice(ask.body.as_bytes());
        let status = connection
            .send(&self.request)
            .await
            .map_err(|error| error.to_string())?;
        if status != 200 {
            return Err(refusal(status, &mut connection).await);
        }
        self.checker.begin();
        let mut first = None;
        while let Some(part) = connection.part().await.map_err(|error| error.to_string())? {
            if self.checker.feed(part)? && first.is_none() {
                first = Some(nanoseconds(due));
            }
            seen(self.checker.texts());
        }
        let whole = nanoseconds(due);
        self.checker.end(&ask.expected)?;
        self.connection = Some(connection);
        Ok(Sample {
            first: first.unwrap_or(whole),
            whole,
        })
    }
}

/// What a server said that did not answer.
async fn refusal(status: u16, connection: &mut Connection) -> String {
    let mut body = Vec::new();
    while let Ok(Some(part)) = connection.part().await {
        body.extend_from_slice(part);
    }
    body.truncate(300);
    format!("status {status}: {}", String::from_utf8_lossy(&body))
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
