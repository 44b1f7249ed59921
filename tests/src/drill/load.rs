//! A mixed load: clients that ask, read, sometimes leave, and keep in the history what they saw.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::history::{Asked, End, History, Left};
use super::kind::Kind;
use super::random::Random;
use crate::bench::http::Connection;
use crate::harness::{Balancer, Call, Cluster, PATIENCE, until};

/// Longer than any answer may take: the longest deadline of the features that are asked, and a pause behind it.
const LONGEST_ANSWER: Duration = Duration::from_secs(90);
/// API tokens that the OpenAI clients share, so that fairness between callers has callers.
const TOKENS: usize = 4;
/// Requests that one such token may have under way.
const TOKEN_LIMIT: &str = "1024";
/// Stands for a request's number while the prompts are learned; as long as one.
const LEARNED: &str = "learned";

/// What a load is like.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where all choices come from; part of every request's id.
    pub seed: u64,
    /// Which kinds, how often.
    pub mix: Vec<(Kind, u32)>,
    /// How many at once, or how often.
    pub pace: Pace,
    /// Fraction of the requests whose client leaves at a random time.
    pub hang_ups: f64,
    /// How many persons ask.
    pub persons: usize,
    /// A client that leaves does so within this.
    pub patience: Duration,
}

/// How many requests there are at a time.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// So many clients, each of which asks again as soon as it has its answer.
    Clients(usize),
    /// So many new requests a second, however long the answers take.
    Rate(f64),
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    history: Arc<History>,
    stop: watch::Sender<bool>,
    sending: JoinHandle<()>,
}

impl Plan {
    /// The usual mix at this pace, of which nobody leaves.
    pub fn mixed(seed: u64, pace: Pace) -> Self {
        let weights = [
            (Kind::Keystroke, 3),
            (Kind::KeystrokeStream, 2),
            (Kind::Chat, 2),
            (Kind::ChatStream, 4),
            (Kind::Agent, 3),
            (Kind::Prompt, 1),
            (Kind::PromptStream, 2),
        ];
        Self {
            seed,
            mix: weights.to_vec(),
            pace,
            hang_ups: 0.0,
            persons: 200,
            patience: Duration::from_millis(1500),
        }
    }

    /// What all ids of this load's requests begin with.
    pub fn prefix(&self) -> String {
        prefix(self.seed)
    }
}

/// What all ids of the requests of a load with this seed begin with.
pub fn prefix(seed: u64) -> String {
    format!("d{:08x}-", seed & 0xffff_ffff)
}

impl Load {
    /// Learns what the right answers are, and starts; the cluster has to be idle.
    ///
    /// # Panics
    /// A request of the preparations fails.
    pub async fn start(cluster: &Cluster, to: &Arc<Balancer>, plan: Plan) -> Self {
        let clients = Arc::new(Clients::prepare(cluster, Arc::clone(to), plan).await);
        let history = Arc::clone(&clients.history);
        let (stop, stopped) = watch::channel(false);
        let sending = tokio::spawn(clients.send(stopped));
        Self {
            history,
            stop,
            sending,
        }
    }

    /// What has happened so far.
    pub fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }

    /// Sends nothing new, waits until everything is over, and gives what happened.
    ///
    /// # Panics
    /// A client has.
    pub async fn stop(self) -> Arc<History> {
        self.stop.send_replace(true);
        self.sending.await.expect("the clients do not fail");
        self.history
    }
}

/// What all clients share.
#[derive(Debug)]
struct Clients {
    plan: Plan,
    to: Arc<Balancer>,
    history: Arc<History>,
    /// Of each kind: what the model server is asked, with [`LEARNED`] in place of the number.
    lessons: BTreeMap<Kind, String>,
    /// Words that the model says by itself.
    words: usize,
    /// `Authorization` of the OpenAI clients.
    tokens: Vec<String>,
    /// What Rails sends for every person.
    rails: String,
    number: AtomicU64,
}

impl Clients {
    async fn prepare(cluster: &Cluster, to: Arc<Balancer>, plan: Plan) -> Self {
        let mut lessons = BTreeMap::new();
        let usual = cluster.sim.settings();
        let words = usual.tokens;
        cluster.sim.set(|sim| (sim.ttft_ms, sim.pace_ms) = (0, 0));
        let id = format!("{}{LEARNED}", plan.prefix());
        for (kind, _) in &plan.mix {
            let (path, body) = (kind.path(), kind.body(&id, words));
            let call = if kind.is_openai() {
                cluster.openai(path, &body)
            } else {
                cluster.rails(path, "teacher", &body)
            };
            call.send().await.good();
            lessons.insert(*kind, cluster.last_body().to_string());
        }
        cluster.sim.set(|sim| *sim = usual);
        let mut tokens = Vec::new();
        for number in 0..TOKENS {
            let name = format!("drill-{number}");
            let limit = ["--limit", TOKEN_LIMIT];
            let token = cluster.cli.token(&name, "client", &limit).await;
            known(cluster, &token).await;
            tokens.push(token);
        }
        let rails = cluster.rails_headers("-").into_iter();
        let rails = rails.filter(|(name, _)| *name != "x-gitlab-global-user-id");
        Self {
            plan,
            to,
            history: Arc::default(),
            lessons,
            words,
            tokens,
            rails: rails
                .map(|(name, value)| format!("{name}: {value}\r\n"))
                .collect(),
            number: AtomicU64::new(0),
        }
    }

    async fn send(self: Arc<Self>, mut stopped: watch::Receiver<bool>) {
        let mut clients = JoinSet::new();
        match self.plan.pace {
            Pace::Clients(count) => {
                for number in 0..count {
                    clients.spawn(Arc::clone(&self).keep_asking(number as u64, stopped.clone()));
                }
            }
            Pace::Rate(rate) => {
                let mut random = Random::new(self.plan.seed, 0);
                let mut ticks = interval(Duration::from_secs_f64(1.0 / rate.max(0.001)));
                // Those that could not be sent in time are sent at once: the rate is kept.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                loop {
                    tokio::select! {
                        _ = stopped.changed() => break,
                        _ = ticks.tick() => {
                            let ask = self.draw(&mut random);
                            let own = Arc::clone(&self);
                            clients.spawn(async move { own.ask(ask).await });
                        }
                        Some(done) = clients.join_next() => done.expect("a client does not fail"),
                    }
                }
            }
        }
        while let Some(done) = clients.join_next().await {
            done.expect("a client does not fail");
        }
    }

    async fn keep_asking(self: Arc<Self>, number: u64, stopped: watch::Receiver<bool>) {
        let mut random = Random::new(self.plan.seed, 1 + number);
        while !*stopped.borrow() {
            let ask = self.draw(&mut random);
            self.ask(ask).await;
        }
    }

    fn draw(&self, random: &mut Random) -> Ask {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let leaves = random.chance(self.plan.hang_ups);
        // One in five leaves at once: before a worker has it, often before the broker has read it all.
        let within = match random.chance(0.2) {
            true => self.plan.patience / 100,
            false => self.plan.patience,
        };
        let leaving = random.span(Duration::ZERO..within.max(Duration::from_micros(1)));
        Ask {
            number: format!("{number:07}"),
            kind: random.weighted(&self.plan.mix),
            person: random.below(self.plan.persons.max(1)),
            leaves_after: leaves.then_some(leaving),
        }
    }

    async fn ask(&self, ask: Ask) {
        let kind = ask.kind;
        let id = format!("{}{}", self.plan.prefix(), ask.number);
        let request = self.request(&id, &ask);
        let mut seen = Seen::default();
        let sent = self.history.now();
        let patience = ask.leaves_after.unwrap_or(LONGEST_ANSWER);
        let read = timeout(patience, self.exchange(&request, &mut seen)).await;
        let ended = self.history.now();
        let judge = |ended| {
            let lesson = self.lessons[&kind].replace(LEARNED, &ask.number);
            let asked: Value = serde_json::from_str(&lesson).expect("it was JSON");
            let right = kind.answer(&asked, self.words);
            kind.judge(seen.status, &seen.body, ended, &right, self.words)
        };
        let end = match read {
            Ok(Ok(())) => judge(true),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => End::Corrupt(error.to_string()),
            Ok(Err(_)) if seen.status == 0 => End::Cut,
            Ok(Err(_)) => judge(false),
            Err(_) if ask.leaves_after.is_none() => End::Silent,
            // What had come until then has to be right all the same.
            Err(_) if seen.body.is_empty() => End::HungUp(Left::Unanswered),
            Err(_) => match judge(false) {
                corrupt @ End::Corrupt(_) => corrupt,
                _ => End::HungUp(Left::Answering),
            },
        };
        self.history.add(Asked {
            id,
            kind,
            sent,
            first_byte: seen.first,
            longest_gap: seen.longest_gap,
            ended,
            broker: seen.client.and_then(|client| self.to.backend_of(client)),
            end,
        });
    }

    async fn exchange(&self, request: &[u8], seen: &mut Seen) -> io::Result<()> {
        let mut connection = Connection::open(self.to.address()).await?;
        seen.client = Some(connection.local_address()?);
        seen.status = connection.send(request).await?;
        let mut last = None;
        while let Some(part) = connection.part().await? {
            let now = self.history.now();
            seen.first.get_or_insert(now);
            seen.longest_gap = seen.longest_gap.max(now - last.unwrap_or(now));
            last = Some(now);
            seen.body.extend_from_slice(part);
        }
        Ok(())
    }

    fn request(&self, id: &str, ask: &Ask) -> Vec<u8> {
        let body = ask.kind.body(id, self.words).to_string();
        let who = if ask.kind.is_openai() {
            format!("authorization: Bearer {}\r\n", self.tokens[ask.person % TOKENS])
        } else {
            format!("{}x-gitlab-global-user-id: person-{}\r\n", self.rails, ask.person)
        };
        format!(
            "POST {} HTTP/1.1\r\nhost: drill\r\nconnection: close\r\ncontent-type: application/json\r\n\
             x-request-id: {id}\r\n{who}content-length: {}\r\n\r\n{body}",
            ask.kind.path(),
            body.len()
        )
        .into_bytes()
    }
}

/// Waits until every broker knows a token.
async fn known(cluster: &Cluster, token: &str) {
    for number in 0..cluster.brokers() {
        until("the brokers know a token", PATIENCE, async || {
            let url = format!("http://{}/v1/models", cluster.address_of(number));
            let answer = Call::new(&cluster.http, Method::GET, &url)
                .token(token)
                .send()
                .await;
            match answer.status.as_u16() {
                200 => Ok(()),
                _ => Err(answer.to_string()),
            }
        })
        .await;
    }
}

/// One request that is to be made.
#[derive(Debug)]
struct Ask {
    number: String,
    kind: Kind,
    person: usize,
    leaves_after: Option<Duration>,
}

/// What a client has seen of an answer.
#[derive(Debug, Default)]
struct Seen {
    client: Option<std::net::SocketAddr>,
    status: u16,
    first: Option<Duration>,
    longest_gap: Duration,
    body: Vec<u8>,
}
