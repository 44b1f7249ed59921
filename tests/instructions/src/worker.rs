//! A whole worker in this process: a stand-in for NATS hands it deliveries and plays the owner, another one is its
//! model server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use duo_contract::bundle::{self, Entry, Kind};
use duo_contract::claim::ClaimReply;
use duo_contract::frame::FrameAnswer;
use duo_contract::name::ModelName;
use duo_contract::presence::BreakerState;
use duo_contract::seal::SealKeys;
use duo_contract::subject;
use duo_process::nats::NatsConfig;
use duo_process::shutdown::Shutdown;
use duo_process::telemetry::LogFormat;
use duo_workers::config::{CallConfig, Config, ServedConfig, ServerConfig, ServerKind, Slots};
use duo_workers::model_server::health;
use duo_workers::{consumer, startup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use uuid::Uuid;

use crate::inputs;
use crate::nats::{self, Message};

const PULLS: &str = "$JS.API.CONSUMER.MSG.NEXT.DUO_LIVE.interactive-";
/// Frames and settlements that nobody has looked at yet.
const SEEN: usize = 1024;
const HEALTHY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const TIME_NS: u64 = 1_760_000_000_000_000_000;

/// How the model server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// In one piece.
    Whole,
    /// As a stream, each token when the one before it has arrived.
    TokenByToken,
    /// As a stream, in one write.
    AllAtOnce,
}

/// A worker that serves.
pub(crate) struct Worker {
    deliveries: mpsc::Sender<Message>,
    settled: mpsc::Receiver<()>,
    keys: SealKeys,
    stream: bool,
}

impl Worker {
    pub(crate) async fn start(answer: Answer) -> anyhow::Result<Self> {
        duo_broker::auth::install_crypto();
        let (frame_seen, frames) = mpsc::channel(SEEN);
        let (settle_seen, settled) = mpsc::channel(SEEN);
        let role = Owner {
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            frame_seen,
            settle_seen,
        };
        let (url, deliveries) = nats::start(role).await?;
        let server = ServerConfig {
            name: "gpu0".into(),
            url: model_server(answer, frames).await?,
            slots: Slots::Fixed(8),
            kind: ServerKind::Vllm,
            api_key: None,
            models: vec![ServedConfig {
                model: ModelName::parse("mistral").expect("a name"),
                served_as: "mistral".into(),
                tools: false,
            }],
        };
        let config = Config {
            worker: "w".into(),
            nats: NatsConfig {
                url,
                name: "worker".into(),
                inbox_prefix: "_INBOX.worker".into(),
                credentials_file: None,
                ca_file: None,
            },
            seal_keys: inputs::keys(),
            servers: vec![server],
            calls: CallConfig {
                ca_file: None,
                idle_timeout: Duration::from_secs(600),
                first_timeout: None,
            },
            admin_listen: ([127, 0, 0, 1], 0).into(),
            drain_grace: Duration::ZERO,
            log: String::new(),
            log_format: LogFormat::Json,
        };
        let worker = startup::build(config).await?;
        let server = Arc::clone(&worker.servers[0]);
        // One look at the server's health; later ones would be counted with whatever they happen to meet.
        let watch = tokio::spawn(health::watch(Arc::clone(&server)));
        let mut breaker = server.breaker.state();
        breaker.wait_for(|state| *state == BreakerState::Passing).await?;
        watch.abort();
        tokio::spawn(consumer::serve(worker, server, Shutdown::new()));
        Ok(Self {
            deliveries,
            settled,
            keys: inputs::keys(),
            stream: answer != Answer::Whole,
        })
    }

    /// So many deliveries that have not been made.
    pub(crate) fn deliveries(&self, count: usize) -> Vec<Message> {
        (1..=count)
            .map(|sequence| {
                let request = Uuid::now_v7();
                let envelope = inputs::envelope(request, self.stream);
                let (payload, key_id) = envelope.encode(&self.keys).expect("seals");
                let headers = format!(
                    "NATS/1.0\r\nNats-Msg-Id: {}-1\r\n{}: {key_id}\r\n\r\n",
                    request.simple(),
                    subject::KEY_ID_HEADER
                );
                let head = &envelope.head;
                Message {
                    subject: subject::request(head.lane, &head.feature, &head.model, "key"),
                    reply: Some(format!(
                        "$JS.ACK.DUO_LIVE.interactive-mistral.1.{sequence}.{sequence}.{TIME_NS}.0"
                    )),
                    headers: Some(headers.into()),
                    payload,
                    inbox: None,
                }
            })
            .collect()
    }

    /// One delivery, until it is settled.
    pub(crate) async fn work(&mut self, delivery: Message) {
        self.deliveries
            .send(delivery)
            .await
            .expect("the stand-in listens");
        self.settled.recv().await.expect("the stand-in speaks");
    }
}

/// What a pull asks for.
#[derive(serde::Deserialize)]
struct Pull {
    batch: usize,
}

/// NATS and the owner of every request behind it.
struct Owner {
    /// Where the pulls that wait want their answers, a place for each message.
    waiting: VecDeque<String>,
    /// Deliveries that wait for a pull.
    ready: VecDeque<Message>,
    frame_seen: mpsc::Sender<()>,
    settle_seen: mpsc::Sender<()>,
}

impl nats::Role for Owner {
    type Command = Message;

    fn published(&mut self, message: Message, out: &mut Vec<Message>) {
        let mut answer = |payload: Bytes| {
            out.push(Message {
                subject: message.reply.clone().expect("a request"),
                payload,
                ..Message::default()
            });
        };
        if message.subject.starts_with(PULLS) {
            let reply = message.reply.expect("a pull wants an answer");
            let pull: Pull = serde_json::from_slice(&message.payload).expect("a pull is JSON");
            self.waiting.extend(std::iter::repeat_n(reply, pull.batch));
            self.hand_out(out);
        } else if message.subject.starts_with("duo.bundles.") {
            let mut answers = Vec::new();
            for Entry { kind, token, .. } in bundle::decode(&message.payload).expect("a bundle") {
                let payload = match (kind, token) {
                    (Kind::Claim, _) => ClaimReply::Proceed { attempt: 1 }.encode(),
                    (Kind::Frame | Kind::EarlyFrame(_), 0) => {
                        self.frame_seen.try_send(()).expect("room");
                        continue;
                    }
                    // The last one asks.
                    (Kind::Frame | Kind::EarlyFrame(_), _) => FrameAnswer::Confirmed.encode(),
                };
                answers.push(bundle::Answer { token, payload });
            }
            if !answers.is_empty() {
                answer(bundle::encode_answers(&answers));
            }
        } else if message.subject.starts_with("$JS.ACK.") {
            assert_eq!(message.payload, "+ACK", "{} was not done", message.subject);
            answer(Bytes::new());
            self.settle_seen.try_send(()).expect("room");
        }
    }

    fn told(&mut self, delivery: Message, out: &mut Vec<Message>) {
        self.ready.push_back(delivery);
        self.hand_out(out);
    }
}

impl Owner {
    fn hand_out(&mut self, out: &mut Vec<Message>) {
        while !self.ready.is_empty() && !self.waiting.is_empty() {
            let delivery = self.ready.pop_front().unwrap_or_default();
            out.push(Message {
                inbox: self.waiting.pop_front(),
                ..delivery
            });
        }
    }
}

/// A model server for one worker: the base URL.
async fn model_server(answer: Answer, frames: mpsc::Receiver<()>) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    let frames = Arc::new(Mutex::new(frames));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer, Arc::clone(&frames)));
        }
    });
    Ok(url)
}

async fn serve(
    mut stream: TcpStream,
    answer: Answer,
    frames: Arc<Mutex<mpsc::Receiver<()>>>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    let (events, end) = inputs::events();
    let whole = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{}",
        inputs::WHOLE.len(),
        inputs::WHOLE
    );
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let last = chunk(&end) + "0\r\n\r\n";
    let burst: String =
        head.to_owned() + &events.iter().map(|event| chunk(event)).collect::<String>() + &last;
    loop {
        request.clear();
        while !is_whole(&request) {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        if request.starts_with(b"GET") {
            stream.write_all(HEALTHY).await?;
            continue;
        }
        let mut frames = frames.lock().await;
        match answer {
            Answer::Whole => stream.write_all(whole.as_bytes()).await?,
            Answer::AllAtOnce => {
                stream.write_all(burst.as_bytes()).await?;
                while frames.try_recv().is_ok() {}
            }
            Answer::TokenByToken => {
                stream.write_all(head.as_bytes()).await?;
                for event in &events {
                    stream.write_all(chunk(event).as_bytes()).await?;
                    frames.recv().await;
                }
                stream.write_all(last.as_bytes()).await?;
            }
        }
    }
}

/// Is the request all here?
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    body.len() >= length.unwrap_or(0)
}
