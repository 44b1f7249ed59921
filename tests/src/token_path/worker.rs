//! The worker's end: makes frames at a pace, or answers one after the other.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use async_nats::Subject;
use bytes::{Bytes, BytesMut};
use duo_contract::bundle::{self, Entry, Kind};
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame, Summary, Tokens};
use duo_contract::subject;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::wire::{READ, Window, chunk, cut, now_us, ready, writer};
use super::{BROKER, Options, Over, SINGLE, WAITING, connect, say};

/// Between two tokens of a stream.
const PACE: Duration = Duration::from_millis(50);
/// Chunks of an answer that comes at once.
const CHUNKS: usize = 16;

/// Makes frames for ever, from the line `go` on.
pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    let way = Way::open(options.over, &options.at).await?;
    say("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let window = Arc::new(Window::default());
    window.follow();
    let streams = options.streams.first().copied().unwrap_or_default();
    for index in 0..streams {
        let (way, window) = (way.clone(), Arc::clone(&window));
        // Spread over the pace, as streams that began at any time are.
        let phase = PACE * u32::try_from(index)? / u32::try_from(streams)?;
        tokio::spawn(async move { stream(way, phase, &window).await.expect("the way stays") });
    }
    for _ in 0..options.burst {
        let (way, window) = (way.clone(), Arc::clone(&window));
        tokio::spawn(async move { answers(way, &window).await.expect("the way stays") });
    }
    pending::<()>().await;
    Ok(())
}

/// A way to the broker.
#[derive(Clone)]
enum Way {
    Nothing,
    Nats(async_nats::Client),
    Bundles(mpsc::Sender<Outgoing>),
    Direct(mpsc::Sender<(Uuid, Bytes)>, Waiters),
}

type Waiters = Arc<Mutex<HashMap<Uuid, oneshot::Sender<Bytes>>>>;

impl Way {
    async fn open(over: Over, at: &str) -> anyhow::Result<Self> {
        Ok(match over {
            Over::Nothing => Self::Nothing,
            Over::Nats => Self::Nats(connect(at).await?),
            Over::Bundles => Self::Bundles(outbox(connect(at).await?)),
            Over::Direct => {
                let stream = TcpStream::connect(at).await?;
                stream.set_nodelay(true)?;
                let (mut read, write) = stream.into_split();
                let waiters = Waiters::default();
                let answered = Arc::clone(&waiters);
                tokio::spawn(async move {
                    let mut bytes = BytesMut::with_capacity(READ);
                    while read.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
                        while let Some((request, answer)) = cut(&mut bytes) {
                            let waiter = answered
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .remove(&request);
                            if let Some(waiter) = waiter {
                                let _ = waiter.send(answer);
                            }
                        }
                        bytes.reserve(READ);
                    }
                });
                Self::Direct(writer(write), waiters)
            }
        })
    }

    async fn send(&self, request: Uuid, subject: &Subject, frame: Bytes) -> anyhow::Result<()> {
        match self {
            Self::Nothing => {}
            Self::Nats(client) => client.publish(subject.clone(), frame).await?,
            Self::Bundles(outbox) => outbox.send((request, frame, None)).await?,
            Self::Direct(frames, _) => frames.send((request, frame)).await?,
        }
        Ok(())
    }

    /// The last frame, whose answer is waited for.
    async fn finish(&self, request: Uuid, subject: &Subject, frame: Bytes) -> anyhow::Result<Bytes> {
        match self {
            Self::Nothing => Ok(Bytes::new()),
            Self::Nats(client) => Ok(client.request(subject.clone(), frame).await?.payload),
            Self::Bundles(outbox) => {
                let (sender, answer) = oneshot::channel();
                outbox.send((request, frame, Some(sender))).await?;
                Ok(answer.await?)
            }
            Self::Direct(frames, waiters) => {
                let (sender, answer) = oneshot::channel();
                waiters
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(request, sender);
                frames.send((request, frame)).await?;
                Ok(answer.await?)
            }
        }
    }
}

/// A frame, and where the answer to a last one goes.
type Outgoing = (Uuid, Bytes, Option<oneshot::Sender<Bytes>>);

/// Sends what is ready together as one bundle, as the product's outbox does.
fn outbox(client: async_nats::Client) -> mpsc::Sender<Outgoing> {
    let (sender, mut frames) = mpsc::channel::<Outgoing>(WAITING);
    let subject = Subject::from(subject::bundles(BROKER));
    tokio::spawn(async move {
        while let Some(batch) = ready(&mut frames).await {
            let mut waiters = HashMap::new();
            let entries: Vec<_> = (1..)
                .zip(batch)
                .map(|(number, (request_id, payload, waiter))| {
                    let token = waiter.map_or(0, |waiter| {
                        waiters.insert(number, waiter);
                        number
                    });
                    Entry {
                        kind: Kind::Frame,
                        token,
                        request_id,
                        payload,
                    }
                })
                .collect();
            let (client, subject, payload) = (client.clone(), subject.clone(), bundle::encode(&entries));
            if waiters.is_empty() {
                client.publish(subject, payload).await.expect("connected");
                continue;
            }
            tokio::spawn(async move {
                let message = client
                    .request(subject, payload)
                    .await
                    .expect("the broker answers");
                for answer in bundle::decode_answers(&message.payload).expect("answers") {
                    if let Some(waiter) = waiters.remove(&answer.token) {
                        // Whoever asked waits as long as this runs.
                        let _ = waiter.send(answer.payload);
                    }
                }
            });
        }
    });
    sender
}

/// One token every [`PACE`], for ever.
async fn stream(way: Way, phase: Duration, window: &Window) -> anyhow::Result<()> {
    let request = Uuid::now_v7();
    let subject = Subject::from(format!("{SINGLE}.{}", request.simple()));
    let mut due = Instant::now() + phase;
    for number in 0.. {
        tokio::time::sleep_until(due).await;
        due += PACE;
        let tokens = Tokens {
            prompt: Vec::new(),
            after: number,
            lines: vec![1],
            ids: vec![4711],
        };
        let kind = FrameKind::Tokens(tokens, chunk(now_us()).into());
        let frame = ReplyFrame {
            attempt: 1,
            number,
            kind,
        }
        .encode();
        way.send(request, &subject, frame).await?;
        window.note(0);
    }
    Ok(())
}

/// Answers of one frame with all chunks and the last one, one after the other.
async fn answers(way: Way, window: &Window) -> anyhow::Result<()> {
    loop {
        let began = Instant::now();
        let request = Uuid::now_v7();
        let subject = Subject::from(format!("{SINGLE}.{}", request.simple()));
        let lines = (0..CHUNKS).map(|_| chunk(0)).collect::<Vec<_>>().join("\n");
        let frame = ReplyFrame {
            attempt: 1,
            number: 0,
            kind: FrameKind::Chunk(lines.into()),
        }
        .encode();
        way.send(request, &subject, frame).await?;
        let summary = Summary {
            worker: "w".into(),
            output_tokens: Some(16),
            ..Summary::default()
        };
        let kind = FrameKind::Done {
            summary,
            body: Bytes::new(),
        };
        let last = ReplyFrame {
            attempt: 1,
            number: 1,
            kind,
        }
        .encode();
        let answer = way.finish(request, &subject, last).await?;
        ensure!(
            FrameAnswer::decode(&answer)? == FrameAnswer::Confirmed,
            "not confirmed"
        );
        window.note(u64::try_from(began.elapsed().as_micros())?);
    }
}
