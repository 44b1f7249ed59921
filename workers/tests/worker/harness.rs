//! A real nats-server, an owner, a model server and a worker in one process.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{consumer, stream};
use bytes::Bytes;
use duo_contract::bundle::{self, Answer, Kind};
use duo_contract::claim::{ClaimReply, ClaimRequest, FIRST_ATTEMPT};
use duo_contract::envelope::{Endpoint, Head, RequestEnvelope};
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame};
use duo_contract::name::{FeatureName, Lane, ModelName};
use duo_contract::seal::SealKeys;
use duo_contract::subject;
use duo_process::clock;
use duo_process::config::Env;
use duo_process::shutdown::Shutdown;
use duo_workers::config::Config;
use duo_workers::startup;
use futures_util::StreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Longest that anything in these tests may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const LEASE: Duration = Duration::from_secs(2);

pub(crate) struct NatsServer {
    folder: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl NatsServer {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port().await;
        let process = spawn_nats(&folder, port);
        let server = Self {
            folder,
            port,
            process,
        };
        server.ready().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn stop(&mut self) {
        self.process.kill().expect("stops");
        self.process.wait().expect("ends");
    }

    pub(crate) async fn restart(&mut self) {
        self.process = spawn_nats(&self.folder, self.port);
        self.ready().await;
    }

    async fn ready(&self) {
        let ready = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port))
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready)
            .await
            .expect("nats-server starts");
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn_nats(folder: &tempfile::TempDir, port: u16) -> Child {
    let file = folder.path().join("nats.conf");
    let text = format!(
        "listen: \"127.0.0.1:{port}\"\nmax_payload: 8MB\njetstream {{ store_dir: {:?} }}\n",
        folder.path().join("data")
    );
    std::fs::write(&file, text).expect("writes");
    let binary = std::env::var_os("DUO_TEST_NATS_SERVER").unwrap_or_else(|| "nats-server".into());
    Command::new(&binary)
        .arg("-c")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{binary:?} does not start ({error}): put nats-server on PATH or set DUO_TEST_NATS_SERVER")
        })
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    listener.local_addr().expect("an address").port()
}

pub(crate) fn model() -> ModelName {
    ModelName::parse("mistral-0.3").expect("a name")
}

/// What the brokers would have made.
pub(crate) async fn set_up(client: &async_nats::Client) {
    let context = async_nats::jetstream::new(client.clone());
    let live = context
        .create_stream(stream::Config {
            name: subject::LIVE_STREAM.into(),
            subjects: vec![subject::LIVE_SUBJECTS.into()],
            retention: stream::RetentionPolicy::WorkQueue,
            storage: stream::StorageType::File,
            max_messages_per_subject: 8,
            discard: stream::DiscardPolicy::New,
            discard_new_per_subject: true,
            ..stream::Config::default()
        })
        .await
        .expect("a stream");
    for lane in Lane::ALL {
        let name = subject::consumer(lane, &model());
        live.create_consumer(pull::Config {
            durable_name: Some(name),
            filter_subject: subject::live_filter(lane, &model()),
            ack_policy: consumer::AckPolicy::Explicit,
            ack_wait: LEASE,
            max_deliver: -1,
            max_ack_pending: 1000,
            max_waiting: 512,
            ..pull::Config::default()
        })
        .await
        .expect("a consumer");
    }
    context
        .create_key_value(async_nats::jetstream::kv::Config {
            bucket: subject::WORKERS_BUCKET.into(),
            max_age: Duration::from_secs(10),
            ..async_nats::jetstream::kv::Config::default()
        })
        .await
        .expect("a bucket");
}

/// A worker's running program, without the process.
pub(crate) struct RunningWorker {
    pub(crate) name: String,
    pub(crate) admin: SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
    _folder: tempfile::TempDir,
}

pub(crate) struct WorkerSettings {
    pub(crate) slots: u32,
    pub(crate) kind: &'static str,
    pub(crate) extra: Vec<(&'static str, &'static str)>,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            slots: 4,
            kind: "vllm",
            extra: Vec::new(),
        }
    }
}

pub(crate) fn read_config(
    nats: &NatsServer,
    key_line: &str,
    model_url: &str,
    settings: &WorkerSettings,
) -> (Config, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("writes");
        path
    };
    let keys = write("keys", key_line);
    let file = write(
        "worker.yaml",
        &format!(
            "servers:\n  - name: sim\n    url: {model_url}\n    kind: {}\n    slots: {}\n    models:\n      - {{model: {}, served_as: tiny}}\n",
            settings.kind,
            settings.slots,
            model().as_str()
        ),
    );
    let name = format!("w-{:x}", rand::random::<u32>());
    let mut pairs = vec![
        ("DUO_NATS_URL", nats.url()),
        ("DUO_SEAL_KEYS_FILE", keys.display().to_string()),
        ("DUO_WORKER_FILE", file.display().to_string()),
        ("DUO_WORKER_NAME", name),
    ];
    pairs.extend(
        settings
            .extra
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned())),
    );
    (
        Config::read(Env::from_pairs(pairs)).expect("good settings").0,
        folder,
    )
}

impl RunningWorker {
    pub(crate) async fn start(bed: &Bed, settings: WorkerSettings) -> Self {
        let (config, folder) = read_config(&bed.nats, &bed.key_line, &bed.model_url, &settings);
        let name = config.worker.clone();
        let grace = config.drain_grace;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let admin = listener.local_addr().expect("an address");
        let shutdown = Shutdown::new();
        let worker = startup::build(config).await.expect("builds");
        let task = tokio::spawn(duo_workers::run(worker, listener, grace, shutdown.clone()));
        Self {
            name,
            admin,
            shutdown,
            task,
            _folder: folder,
        }
    }

    pub(crate) fn begin_drain(&self) {
        self.shutdown.begin();
    }

    pub(crate) async fn ended(self) {
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("ends")
            .expect("no panic")
            .expect("no error");
    }
}

/// Everything but the worker.
pub(crate) struct Bed {
    pub(crate) nats: NatsServer,
    pub(crate) client: async_nats::Client,
    pub(crate) keys: Arc<SealKeys>,
    pub(crate) key_line: String,
    pub(crate) model_url: String,
    pub(crate) owner: Owner,
}

impl Bed {
    pub(crate) async fn new(model_url: String) -> Self {
        // Started by the first test of the process; a failing test shows what the worker said.
        let _ = duo_process::telemetry::init("info", duo_process::telemetry::LogFormat::Human);
        let nats = NatsServer::start().await;
        let client = async_nats::ConnectOptions::new()
            .reconnect_delay_callback(|_| Duration::from_millis(20))
            .connect(nats.url())
            .await
            .expect("connects");
        set_up(&client).await;
        let key_line = SealKeys::generate_line("k1");
        let keys = Arc::new(SealKeys::parse(&key_line).expect("keys"));
        let owner = Owner::start(&client).await;
        Self {
            nats,
            client,
            keys,
            key_line,
            model_url,
            owner,
        }
    }

    pub(crate) fn head(&self, endpoint: Endpoint, stream: bool) -> Head {
        let now = clock::unix_ms();
        Head {
            request_id: Uuid::now_v7(),
            publication: 1,
            owner: self.owner.name.clone(),
            feature: FeatureName::parse("duo_chat").expect("a name"),
            model: model(),
            lane: Lane::Interactive,
            endpoint,
            stream,
            accepted_at_ms: now,
            first_byte_by_ms: now + 15_000,
            end_by_ms: now + 18_000,
            lease_ms: u32::try_from(LEASE.as_millis()).expect("short"),
            traceparent: None,
            config_revision: 1,
        }
    }

    pub(crate) async fn publish(&self, head: Head, body: &str) -> Uuid {
        let request_id = head.request_id;
        let key = request_id.simple().to_string();
        let subject = subject::request(head.lane, &head.feature, &head.model, &key);
        let envelope = RequestEnvelope {
            head,
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        let (bytes, key_id) = envelope.encode(&self.keys).expect("encodes");
        let mut headers = HeaderMap::new();
        headers.insert(subject::KEY_ID_HEADER, &*key_id);
        let context = async_nats::jetstream::new(self.client.clone());
        let stored = context
            .publish_with_headers(subject, headers, bytes)
            .await
            .expect("sent")
            .await;
        stored.expect("stored");
        request_id
    }

    /// Waits until the stream is empty.
    pub(crate) async fn drained(&self) {
        self.drained_to(0).await;
    }

    /// Waits until the stream holds `left` messages: those that are queued, and those that run.
    pub(crate) async fn drained_to(&self, left: u64) {
        let context = async_nats::jetstream::new(self.client.clone());
        let settled = async {
            loop {
                let mut stream = context.get_stream(subject::LIVE_STREAM).await.expect("a stream");
                if stream.info().await.expect("its state").state.messages == left {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled)
            .await
            .expect("the stream drains");
    }
}

/// A broker's part of the protocol, as far as a worker sees it.
pub(crate) struct Owner {
    pub(crate) name: String,
    pub(crate) claims: mpsc::Receiver<ClaimRequest>,
    pub(crate) frames: mpsc::Receiver<ReplyFrame>,
    early: mpsc::Receiver<Uuid>,
    answers: mpsc::Sender<Option<ClaimReply>>,
    last_answers: mpsc::Sender<FrameAnswer>,
    client: async_nats::Client,
}

impl Owner {
    async fn start(client: &async_nats::Client) -> Self {
        let name = format!("b-{:x}", rand::random::<u32>());
        let mut bundles = client
            .subscribe(subject::bundles(&name))
            .await
            .expect("subscribes");
        client.flush().await.expect("flushes");
        let (claims_out, claims) = mpsc::channel(1000);
        let (frames_out, frames) = mpsc::channel(10_000);
        let (early_out, early) = mpsc::channel(1000);
        let (answers, mut answers_in) = mpsc::channel::<Option<ClaimReply>>(1000);
        let (last_answers, mut last_answers_in) = mpsc::channel::<FrameAnswer>(1000);
        let answering = client.clone();
        tokio::spawn(async move {
            let mut attempts = HashMap::new();
            // Jobs that have leave for a first attempt.
            let mut first = HashSet::new();
            // What each job was told: who asks again because the answer was lost hears the same.
            let mut told = HashMap::new();
            while let Some(message) = bundles.next().await {
                let mut said = Vec::new();
                for entry in bundle::decode(&message.payload).expect("a bundle") {
                    let answer = match entry.kind {
                        Kind::Claim => {
                            let claim = ClaimRequest::decode(&entry.payload).expect("a claim");
                            let before = claim.job.and_then(|job| told.get(&job).cloned());
                            let Some(answer) = answers_in.try_recv().unwrap_or_else(|_| {
                                if before.is_some() {
                                    return before;
                                }
                                let attempt = attempts.entry(claim.request_id).or_insert(0);
                                *attempt += 1;
                                Some(ClaimReply::Proceed { attempt: *attempt })
                            }) else {
                                claims_out.send(claim).await.expect("room");
                                continue;
                            };
                            let leave = ClaimReply::Proceed {
                                attempt: FIRST_ATTEMPT,
                            };
                            first.extend(claim.job.filter(|_| answer == leave));
                            told.extend(claim.job.map(|job| (job, answer.clone())));
                            claims_out.send(claim).await.expect("room");
                            answer.encode()
                        }
                        Kind::EarlyFrame(job) if !first.contains(&job) => {
                            early_out.send(job).await.expect("room");
                            FrameAnswer::Stale.encode()
                        }
                        Kind::Frame | Kind::EarlyFrame(_) => {
                            let frame = ReplyFrame::decode(&entry.payload).expect("a frame");
                            // A last frame that is sent again among the missing ones does not ask.
                            let last = frame.is_last() && entry.token > 0;
                            frames_out.send(frame).await.expect("room");
                            let answer = last.then(|| last_answers_in.try_recv().ok()).flatten();
                            answer.unwrap_or(FrameAnswer::Confirmed).encode()
                        }
                    };
                    if entry.token > 0 {
                        said.push(Answer {
                            token: entry.token,
                            payload: answer,
                        });
                    }
                }
                if let Some(reply) = message.reply.filter(|_| !said.is_empty()) {
                    let answers = bundle::encode_answers(&said);
                    answering.publish(reply, answers).await.expect("sent");
                }
            }
        });
        Self {
            name,
            claims,
            frames,
            early,
            answers,
            last_answers,
            client: client.clone(),
        }
    }

    /// The answer to the next claim that has none yet.
    pub(crate) async fn will_answer(&self, reply: ClaimReply) {
        self.answers.send(Some(reply)).await.expect("room");
    }

    /// The next claim that has no answer yet gets none, as if it were lost.
    pub(crate) async fn will_miss_a_claim(&self) {
        self.answers.send(None).await.expect("room");
    }

    /// A frame has come of a job that has no leave.
    pub(crate) async fn early_frame(&mut self) -> Uuid {
        tokio::time::timeout(PATIENCE, self.early.recv())
            .await
            .expect("in time")
            .expect("an owner")
    }

    /// The answer to the next last frame that has none yet.
    pub(crate) async fn will_answer_last(&self, answer: FrameAnswer) {
        self.last_answers.send(answer).await.expect("room");
    }

    pub(crate) async fn order(&self, worker: &str, order: duo_contract::cancel::Order) {
        self.client
            .publish(subject::cancels(worker), order.encode())
            .await
            .expect("sent");
    }

    pub(crate) async fn claim(&mut self) -> ClaimRequest {
        tokio::time::timeout(PATIENCE, self.claims.recv())
            .await
            .expect("a claim comes")
            .expect("open")
    }

    pub(crate) async fn frame(&mut self) -> ReplyFrame {
        tokio::time::timeout(PATIENCE, self.frames.recv())
            .await
            .expect("a frame comes")
            .expect("open")
    }

    /// Frames up to the last, heartbeats left out.
    pub(crate) async fn frames(&mut self) -> Vec<ReplyFrame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.frame().await;
            let last = frame.is_last();
            if frame.kind != FrameKind::Heartbeat {
                frames.push(frame);
            }
            if last {
                return frames;
            }
        }
    }
}

/// The chunks of an answer, one a line.
pub(crate) fn lines(frames: &[ReplyFrame]) -> Vec<String> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).expect("text");
    let bodies = frames.iter().filter_map(|frame| match &frame.kind {
        FrameKind::Chunk(chunks) | FrameKind::Tokens(_, chunks) => Some(text(chunks)),
        FrameKind::Done { body, .. } if !body.is_empty() => Some(text(body)),
        FrameKind::Done { .. } | FrameKind::Heartbeat | FrameKind::Failed(_) => None,
    });
    bodies
        .flat_map(|body| body.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}
