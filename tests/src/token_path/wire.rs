//! Frames on a connection of their own, and the clock on both ends of any way.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{BATCH, WAITING, say};

/// Length and request before a frame.
const HEADER: usize = 20;
/// Room for what is read at once.
pub(super) const READ: usize = 1 << 16;
/// Where the time of sending stands in a chunk, in microseconds and so many digits.
const STAMP: usize = 6;
const STAMP_DIGITS: usize = 16;

/// The next frame of a connection, if it is all there.
pub(super) fn cut(bytes: &mut BytesMut) -> Option<(Uuid, Bytes)> {
    let length = usize::try_from(u32::from_le_bytes(*bytes.first_chunk::<4>()?)).ok()?;
    if bytes.len() < HEADER + length {
        return None;
    }
    bytes.advance(4);
    let request = Uuid::from_slice(&bytes[..16]).ok()?;
    bytes.advance(16);
    Some((request, bytes.split_to(length).freeze()))
}

/// Writes what is ready together in one piece.
pub(super) fn writer(mut write: OwnedWriteHalf) -> mpsc::Sender<(Uuid, Bytes)> {
    let (sender, mut frames) = mpsc::channel::<(Uuid, Bytes)>(WAITING);
    tokio::spawn(async move {
        let mut out = BytesMut::new();
        while let Some(batch) = ready(&mut frames).await {
            for (request, frame) in batch {
                out.put_u32_le(u32::try_from(frame.len()).unwrap_or(u32::MAX));
                out.put_slice(request.as_bytes());
                out.put_slice(&frame);
            }
            if write.write_all(&out).await.is_err() {
                return;
            }
            out.clear();
        }
    });
    sender
}

/// What is ready, after all that is ready to run has had its word, as in the product.
pub(super) async fn ready<T>(frames: &mut mpsc::Receiver<T>) -> Option<Vec<T>> {
    let mut batch = vec![frames.recv().await?];
    tokio::task::yield_now().await;
    while batch.len() < BATCH
        && let Ok(next) = frames.try_recv()
    {
        batch.push(next);
    }
    Some(batch)
}

/// A chunk with one token, as a model server writes it but for the time in it.
pub(super) fn chunk(now: u64) -> String {
    format!(
        r#"{{"id":{now:016},"object":"chat.completion.chunk","created":1760000000,"model":"mistral","choices":[{{"index":0,"delta":{{"content":" a word"}},"logprobs":null,"finish_reason":null}}]}}"#
    )
}

/// When a chunk was made.
pub(super) fn made(chunk: &[u8]) -> Option<u64> {
    let digits = chunk.get(STAMP..STAMP + STAMP_DIGITS)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Microseconds since the epoch: one clock for all processes of the machine.
pub(super) fn now_us() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap_or(0)
}

/// Delays in microseconds while the window is open.
#[derive(Debug, Default)]
pub(super) struct Window(Mutex<Option<Vec<u32>>>);

impl Window {
    pub(super) fn note(&self, micros: u64) {
        if let Some(delays) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            delays.push(u32::try_from(micros).unwrap_or(u32::MAX));
        }
    }

    /// Opens it with the line `begin`, closes it with `end` and prints what was seen; ends the process when whoever
    /// started it has gone.
    pub(super) fn follow(self: &Arc<Self>) {
        let window = Arc::clone(self);
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let mut delays = window.0.lock().unwrap_or_else(PoisonError::into_inner);
                match line.as_str() {
                    "begin" => *delays = Some(Vec::with_capacity(1 << 20)),
                    "end" => {
                        let mut seen = delays.take().unwrap_or_default();
                        seen.sort_unstable();
                        let at = |thousandths: usize| {
                            let index = seen.len() * thousandths / 1000;
                            seen.get(index).or(seen.last()).copied().unwrap_or(0)
                        };
                        say(&format!("{} {} {} {}", seen.len(), at(500), at(990), at(1000)));
                    }
                    _ => {}
                }
            }
            std::process::exit(0);
        });
    }
}
