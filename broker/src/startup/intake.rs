//! The API's listening socket, closed so that nobody is left in its backlog.
//!
//! The kernel completes connections before the program accepts them. A socket that is simply closed resets those
//! that still wait, and their clients see an error although the restart was announced. This one first takes in
//! whoever is there, then closes; whoever comes afterwards is refused by the kernel and goes to another broker.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use duo_process::shutdown::Shutdown;
use tokio::net::{TcpListener, TcpStream};

use crate::api::Peer;

/// Pause after an `accept` that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening socket until it is told to close, then what was in its backlog.
#[derive(Debug)]
pub(super) struct Intake {
    /// Nothing once it is closed.
    socket: Option<TcpListener>,
    address: SocketAddr,
    backlog: VecDeque<(TcpStream, SocketAddr)>,
    /// When to close.
    close: Shutdown,
    /// Begins when everybody from the backlog has been handed on.
    closed: Shutdown,
}

impl Intake {
    /// Takes connections from `socket` until `close` begins; `closed` begins once nobody waits any more.
    pub(super) fn new(socket: TcpListener, close: Shutdown, closed: Shutdown) -> io::Result<Self> {
        Ok(Self {
            address: socket.local_addr()?,
            socket: Some(socket),
            backlog: VecDeque::new(),
            close,
            closed,
        })
    }

    /// Takes in whoever is connected, then closes the socket.
    fn shut(&mut self) -> io::Result<()> {
        let Some(socket) = self.socket.take() else {
            return Ok(());
        };
        // Asked directly: the runtime may not have heard yet that somebody waits.
        let socket = socket.into_std()?;
        loop {
            match socket.accept() {
                Ok((stream, peer)) => {
                    stream.set_nonblocking(true)?;
                    self.backlog.push_back((TcpStream::from_std(stream)?, peer));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Listener for Intake {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let Some(socket) = &self.socket else {
                if let Some(waiting) = self.backlog.pop_front() {
                    return without_delay(waiting);
                }
                self.closed.begin();
                return std::future::pending().await;
            };
            tokio::select! {
                accepted = socket.accept() => match accepted {
                    Ok(accepted) => return without_delay(accepted),
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        tracing::error!(error = %error, "no connection can be taken; trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = self.close.begun() => {
                    if let Err(error) = self.shut() {
                        tracing::warn!(error = %error, "connections that waited to be taken are lost");
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, Intake>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Intake>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

/// The client had gone before it was taken.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

fn without_delay((stream, peer): (TcpStream, SocketAddr)) -> (TcpStream, SocketAddr) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "a socket keeps its delay");
    }
    (stream, peer)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn whoever_is_connected_when_it_closes_is_taken_and_later_ones_are_refused() {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (close, closed) = (Shutdown::new(), Shutdown::new());
        let mut intake = Intake::new(socket, close.clone(), closed.clone()).unwrap();
        let address = intake.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..40 {
            waiting.push(TcpStream::connect(address).await.unwrap());
        }
        close.begin();
        let mut taken = Vec::new();
        for _ in 0..waiting.len() {
            taken.push(intake.accept().await);
        }
        let mut ports: Vec<_> = taken.iter().map(|(_, peer)| *peer).collect();
        let mut expected: Vec<_> = waiting
            .iter()
            .map(|stream| stream.local_addr().unwrap())
            .collect();
        ports.sort();
        expected.sort();
        assert_eq!(ports, expected);
        tokio::select! {
            _ = intake.accept() => panic!("nobody is there"),
            () = closed.begun() => {}
        }
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
