//! A TCP balancer as one stands before several brokers.
//!
//! Round robin over its backends; a backend that refuses the connection is skipped, and one told to rest gets nothing
//! new. A connection that stands is never broken from here: each end's going is passed on to the other, a reset as a
//! reset.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Longest that a client waits for any backend to take its connection; a real balancer gives up later.
const LONGEST_SEARCH: Duration = Duration::from_secs(10);
/// Pause between two rounds in which every backend refused.
const PAUSE: Duration = Duration::from_millis(20);

/// A running balancer; dropped, it closes what it holds.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    backends: Vec<SocketAddr>,
    next: AtomicUsize,
    /// Which backend a client's connection went to, by the client's own address.
    taken: Mutex<HashMap<SocketAddr, usize>>,
}

impl Balancer {
    /// Starts one before these backends, on a free port.
    ///
    /// # Panics
    /// No port can be had.
    pub async fn start(backends: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            backends,
            next: AtomicUsize::new(0),
            taken: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            accepting,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Which backend took the connection that a client opened from `client`; nothing if none did.
    pub fn backend_of(&self, client: SocketAddr) -> Option<usize> {
        self.shared.taken().get(&client).copied()
    }
}

impl Shared {
    fn taken(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next backend that takes a connection.
    async fn connect(&self) -> Option<(usize, TcpStream)> {
        let searched = tokio::time::timeout(LONGEST_SEARCH, async {
            loop {
                let first = self.next.fetch_add(1, Ordering::Relaxed);
                for offset in 0..self.backends.len() {
                    let number = (first + offset) % self.backends.len();
                    if let Ok(socket) = TcpStream::connect(self.backends[number]).await {
                        return (number, socket);
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        searched.await.ok()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, from)) => drop(connections.spawn(carry(client, from, Arc::clone(&shared)))),
                // Out of descriptors: those who have a connection give some back.
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut client: TcpStream, from: SocketAddr, shared: Arc<Shared>) {
    let Some((number, mut backend)) = shared.connect().await else {
        return;
    };
    shared.taken().insert(from, number);
    let plain = client.set_nodelay(true).and(backend.set_nodelay(true));
    if plain.is_err() {
        return;
    }
    if copy_bidirectional(&mut client, &mut backend).await.is_err() {
        // One end was reset; so is the other, instead of an end that looks proper.
        let _gone = client.set_zero_linger().and(backend.set_zero_linger());
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn backend(word: &'static str) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.write_all(word.as_bytes()).await.unwrap();
            }
        });
        (address, serving)
    }

    async fn ask(balancer: &Balancer) -> (String, Option<usize>) {
        let mut socket = TcpStream::connect(balancer.address()).await.unwrap();
        let own = socket.local_addr().unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        (text, balancer.backend_of(own))
    }

    #[tokio::test]
    async fn connections_take_turns_and_one_that_refuses_is_skipped() {
        let ((one, first), (two, _second)) = (backend("one").await, backend("two").await);
        let balancer = Balancer::start(vec![one, two]).await;
        assert_eq!(ask(&balancer).await, ("one".to_owned(), Some(0)));
        assert_eq!(ask(&balancer).await, ("two".to_owned(), Some(1)));
        first.abort();
        let _aborted = first.await;
        for _ in 0..3 {
            assert_eq!(ask(&balancer).await, ("two".to_owned(), Some(1)));
        }
    }
}
