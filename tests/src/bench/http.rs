//! The cheapest HTTP/1.1 client that is still right: one connection, one request at a time.
//!
//! It shares two cores with what it measures, so it does no more than it must: no pool, no redirects, no
//! compression. A body that ends early is an error, never a short answer.

use std::io;
use std::net::SocketAddr;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest line or header block that is read.
const LONGEST_HEAD: usize = 64 * 1024;

/// A connection that is kept open between requests.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    buffer: BytesMut,
    /// Bytes at the front of the buffer that the caller has seen.
    lent: usize,
    rest: Rest,
    /// The server will close the connection after this answer.
    pub closing: bool,
    /// What the last answer's head says of a refusal.
    pub refusal: Refusal,
}

/// What an answer's head says of a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// `X-Duo-Reason`.
    pub reason: Option<String>,
}

/// What is still to come of a body.
#[derive(Clone, Copy, Debug)]
enum Rest {
    Nothing,
    Bytes(u64),
    ChunkSize,
    Chunk(u64),
}

impl Connection {
    /// Opens a connection without delayed sending.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            buffer: BytesMut::with_capacity(16 * 1024),
            lent: 0,
            rest: Rest::Nothing,
            closing: false,
            refusal: Refusal::default(),
        })
    }

    /// This end's own address.
    ///
    /// # Errors
    /// The socket is no longer good.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends a whole request and reads the answer's head; returns the status.
    ///
    /// # Errors
    /// The connection failed, or what came is not an HTTP/1.1 answer with a length or chunks.
    pub async fn send(&mut self, request: &[u8]) -> io::Result<u16> {
        self.socket.write_all(request).await?;
        let line = self.line().await?;
        let status = status(&self.buffer[..line])?;
        self.buffer.advance(line);
        self.rest = Rest::Nothing;
        self.refusal = Refusal::default();
        let mut framed = status == 204 || status == 304;
        loop {
            let line = self.line().await?;
            let header = self.buffer.split_to(line);
            let Some((name, value)) = field(&header)? else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                let length = value.parse().map_err(|_| broken("content-length is no number"))?;
                (self.rest, framed) = (Rest::Bytes(length), true);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                (self.rest, framed) = (Rest::ChunkSize, true);
            } else if name.eq_ignore_ascii_case("connection") {
                self.closing = value.eq_ignore_ascii_case("close");
            } else if name.eq_ignore_ascii_case("retry-after") {
                self.refusal.retry_after = value.parse().ok();
            } else if name.eq_ignore_ascii_case("x-duo-reason") {
                self.refusal.reason = Some(value.to_owned());
            }
        }
        if framed {
            Ok(status)
        } else {
            Err(broken("an answer without length and without chunks"))
        }
    }

    /// The next piece of the body as it arrives, or nothing when it has ended properly.
    ///
    /// # Errors
    /// The connection failed or ended early, or the chunks are malformed.
    pub async fn part(&mut self) -> io::Result<Option<&[u8]>> {
        self.buffer.advance(std::mem::take(&mut self.lent));
        loop {
            match self.rest {
                Rest::Nothing | Rest::Bytes(0) => return Ok(None),
                Rest::Bytes(left) => {
                    self.rest = Rest::Bytes(left - self.lend(left).await?);
                    return Ok(Some(&self.buffer[..self.lent]));
                }
                Rest::ChunkSize => {
                    let line = self.line().await?;
                    let size = chunk_size(&self.buffer[..line])?;
                    self.buffer.advance(line);
                    self.rest = Rest::Chunk(size);
                    if size == 0 {
                        self.trailers().await?;
                    }
                }
                Rest::Chunk(0) => {
                    let line = self.line().await?;
                    if &self.buffer[..line] != b"\r\n" {
                        return Err(broken("a chunk longer than it said"));
                    }
                    self.buffer.advance(line);
                    self.rest = Rest::ChunkSize;
                }
                Rest::Chunk(left) => {
                    self.rest = Rest::Chunk(left - self.lend(left).await?);
                    return Ok(Some(&self.buffer[..self.lent]));
                }
            }
        }
    }

    /// Makes up to `most` bytes of the buffer the caller's; at least one.
    async fn lend(&mut self, most: u64) -> io::Result<u64> {
        if self.buffer.is_empty() {
            self.fill().await?;
        }
        self.lent = self.buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(self.lent as u64)
    }

    /// What may follow the last chunk, up to an empty line.
    async fn trailers(&mut self) -> io::Result<()> {
        self.rest = Rest::Nothing;
        loop {
            let line = self.line().await?;
            self.buffer.advance(line);
            if line <= 2 {
                return Ok(());
            }
        }
    }

    /// Length of the line at the front of the buffer, its end included.
    async fn line(&mut self) -> io::Result<usize> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                return Ok(searched + end + 1);
            }
            searched = self.buffer.len();
            if searched > LONGEST_HEAD {
                return Err(broken("a header line without end"));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.reserve(8 * 1024);
        match self.socket.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection ended early",
            )),
            _ => Ok(()),
        }
    }
}

fn status(line: &[u8]) -> io::Result<u16> {
    let digits = line.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
    digits
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        .ok_or_else(|| broken("no HTTP/1.1 status line"))
}

/// Name and value of a header line; nothing for the line that ends the head.
fn field(line: &[u8]) -> io::Result<Option<(&str, &str)>> {
    let text = std::str::from_utf8(line).map_err(|_| broken("a header that is no text"))?;
    let text = text.trim_end();
    if text.is_empty() {
        return Ok(None);
    }
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| broken("a header without a colon"))?;
    Ok(Some((name, value.trim_start())))
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(line).unwrap_or_default();
    let size = text.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(size, 16).map_err(|_| broken("a chunk without a size"))
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
