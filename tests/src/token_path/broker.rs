//! The broker's end: takes frames, knows their requests, confirms last ones.

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use duo_contract::bundle::{self, Answer};
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame};
use duo_contract::subject;
use futures_util::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::wire::{READ, Window, cut, made, now_us, writer};
use super::{BROKER, Over, SINGLE, connect, say};

/// Takes frames for ever.
pub(super) async fn run(over: Over, at: &str) -> anyhow::Result<()> {
    let window = Arc::new(Window::default());
    window.follow();
    match over {
        Over::Nothing => {
            say("ready");
            pending::<()>().await;
        }
        Over::Nats => {
            let client = connect(at).await?;
            let mut replies = client.subscribe(format!("{SINGLE}.*")).await?;
            client.flush().await?;
            let mut requests = Requests::default();
            say("ready");
            while let Some(message) = replies.next().await {
                let id = message.subject.rsplit('.').next().map(Uuid::try_parse);
                let Some(Ok(request)) = id else {
                    continue;
                };
                let answer = requests.take(request, &message.payload, &window);
                if let (Some(answer), Some(reply)) = (answer, message.reply) {
                    client.publish(reply, answer.encode()).await?;
                }
            }
        }
        Over::Bundles => {
            let client = connect(at).await?;
            let mut bundles = client.subscribe(subject::bundles(BROKER)).await?;
            client.flush().await?;
            let mut requests = Requests::default();
            say("ready");
            while let Some(message) = bundles.next().await {
                let entries = bundle::decode(&message.payload)?.into_iter();
                let answers: Vec<_> = entries
                    .filter_map(|entry| {
                        let answer = requests.take(entry.request_id, &entry.payload, &window)?;
                        let (token, payload) = (entry.token, answer.encode());
                        Some(Answer { token, payload })
                    })
                    .collect();
                if let Some(reply) = message.reply {
                    client.publish(reply, bundle::encode_answers(&answers)).await?;
                }
            }
        }
        Over::Direct => {
            let listener = TcpListener::bind(at.parse::<SocketAddr>()?).await?;
            say("ready");
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(read(stream, Arc::clone(&window)));
            }
        }
    }
    Ok(())
}

/// Takes the frames of one worker's connection until it ends.
async fn read(stream: TcpStream, window: Arc<Window>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let (mut read, write) = stream.into_split();
    let answers = writer(write);
    let mut requests = Requests::default();
    let mut bytes = BytesMut::with_capacity(READ);
    while read.read_buf(&mut bytes).await? > 0 {
        while let Some((request, payload)) = cut(&mut bytes) {
            if let Some(answer) = requests.take(request, &payload, &window) {
                answers.send((request, answer.encode())).await?;
            }
        }
        bytes.reserve(READ);
    }
    Ok(())
}

/// Open requests with their frames counted; the look-up is part of the leg.
#[derive(Default)]
struct Requests(HashMap<Uuid, u64>);

impl Requests {
    fn take(&mut self, request: Uuid, payload: &Bytes, window: &Window) -> Option<FrameAnswer> {
        let frame = ReplyFrame::decode(payload).ok()?;
        *self.0.entry(request).or_default() += 1;
        match &frame.kind {
            FrameKind::Tokens(_, chunk) => {
                window.note(now_us().saturating_sub(made(chunk)?));
                None
            }
            FrameKind::Done { .. } => {
                self.0.remove(&request);
                Some(FrameAnswer::Confirmed)
            }
            _ => None,
        }
    }
}
