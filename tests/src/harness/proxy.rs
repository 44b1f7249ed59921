//! A network between a program and NATS that can be cut, slowed down and healed: a TCP proxy.
//!
//! What flows while a direction is cut is kept by the kernel's buffers and arrives after the healing, as TCP brings it
//! after a partition; connections stay open unless they are [`reset`](Proxy::reset).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Bytes that are read at once.
const PIECE: usize = 32 * 1024;
/// Pieces on their way in one direction of a connection.
const PIECES: usize = 256;

/// What the network does to each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Nothing flows from the program to NATS.
    pub up_cut: bool,
    /// Nothing flows from NATS to the program.
    pub down_cut: bool,
    /// How long each piece is under way.
    pub delay: Duration,
    /// One piece in so many is under way for three times the delay, and all after it in its direction wait: what a
    /// lost packet does to TCP. 0 is none.
    pub late_one_in: u32,
}

impl Weather {
    /// Nothing flows either way.
    pub const CUT: Self = Self {
        up_cut: true,
        down_cut: true,
        delay: Duration::ZERO,
        late_one_in: 0,
    };

    fn is_cut(self, direction: Direction) -> bool {
        match direction {
            Direction::Up => self.up_cut,
            Direction::Down => self.down_cut,
        }
    }
}

/// A proxy; its connections end with its value.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    resets: watch::Sender<u64>,
    accept: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Proxy {
    /// Starts a proxy in front of `port` of 127.0.0.1, in good weather.
    ///
    /// # Panics
    /// No port is free.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let weather = watch::Sender::new(Weather::default());
        let resets = watch::Sender::new(0);
        let accept = tokio::spawn(accept(listener, port, weather.clone(), resets.clone()));
        Self {
            address,
            weather,
            resets,
            accept,
        }
    }

    /// The URL at which NATS seems to be.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Changes the weather for all connections, those to come too.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Good weather again.
    pub fn heal(&self) {
        self.set(Weather::default());
    }

    /// Resets every connection.
    pub fn reset(&self) {
        self.resets.send_modify(|count| *count += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn accept(
    listener: TcpListener,
    port: u16,
    weather: watch::Sender<Weather>,
    resets: watch::Sender<u64>,
) {
    // Aborted together with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((program, _)) = accepted else { continue };
                connections.spawn(carry(program, port, weather.subscribe(), resets.subscribe()));
            }
        }
    }
}

async fn carry(
    mut program: TcpStream,
    port: u16,
    mut weather: watch::Receiver<Weather>,
    mut resets: watch::Receiver<u64>,
) {
    resets.mark_unchanged();
    // A connection is two ways: while one is cut it cannot be opened.
    let open = weather.wait_for(|weather| !weather.up_cut && !weather.down_cut);
    if open.await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
        return;
    };
    for stream in [&program, &server] {
        let _unset_is_only_slower = stream.set_nodelay(true);
    }
    let (from_program, to_program) = program.split();
    let (from_server, to_server) = server.split();
    let reset = tokio::select! {
        () = pump(Direction::Up, from_program, to_server, weather.clone()) => false,
        () = pump(Direction::Down, from_server, to_program, weather) => false,
        changed = resets.changed() => changed.is_ok(),
    };
    if reset {
        for stream in [&program, &server] {
            let _unset_is_only_gentler = stream.set_zero_linger();
        }
    }
}

/// Carries one direction until either end closes; what was read before the end still arrives.
async fn pump(
    direction: Direction,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut weather: watch::Receiver<Weather>,
) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let mut arrivals = weather.clone();
    let read = async move {
        // Gone with the end of the input, so that writing ends too.
        let sender = sender;
        let mut buffer = vec![0; PIECE];
        loop {
            if weather
                .wait_for(|weather| !weather.is_cut(direction))
                .await
                .is_err()
            {
                return;
            }
            let Ok(count @ 1..) = from.read(&mut buffer).await else {
                return;
            };
            let now = *weather.borrow();
            let late = now.late_one_in > 0 && rand::random_range(0..now.late_one_in) == 0;
            let delay = if late { now.delay * 3 } else { now.delay };
            let piece = buffer[..count].to_vec();
            if sender.send((Instant::now() + delay, piece)).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, piece)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            if arrivals
                .wait_for(|weather| !weather.is_cut(direction))
                .await
                .is_err()
                || to.write_all(&piece).await.is_err()
            {
                return;
            }
        }
    };
    let mut write = std::pin::pin!(write);
    tokio::select! {
        () = read => write.await,
        () = &mut write => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncBufReadExt as _;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(200);

    /// An echo of lines behind a proxy, and a connection to it.
    async fn echo() -> (Proxy, tokio::io::BufStream<TcpStream>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ends_with_its_peer = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let proxy = Proxy::start(port).await;
        let stream = TcpStream::connect(proxy.address)
            .await
            .expect("the proxy listens");
        (proxy, tokio::io::BufStream::new(stream))
    }

    async fn say(stream: &mut tokio::io::BufStream<TcpStream>, line: &str) {
        stream.write_all(line.as_bytes()).await.expect("it is open");
        stream.flush().await.expect("it is open");
    }

    async fn hear(stream: &mut tokio::io::BufStream<TcpStream>) -> std::io::Result<String> {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        Ok(line)
    }

    #[tokio::test]
    async fn what_is_sent_into_a_partition_arrives_after_it() {
        let (proxy, mut stream) = echo().await;
        say(&mut stream, "one\n").await;
        assert_eq!(hear(&mut stream).await.expect("open"), "one\n");
        for one_way in [
            Weather::CUT,
            Weather {
                down_cut: false,
                ..Weather::CUT
            },
            Weather {
                up_cut: false,
                ..Weather::CUT
            },
        ] {
            proxy.set(one_way);
            say(&mut stream, "two\n").await;
            assert!(timeout(SHORT, hear(&mut stream)).await.is_err(), "{one_way:?}");
            proxy.heal();
            let heard = timeout(LONG, hear(&mut stream)).await.expect("healed");
            assert_eq!(heard.expect("open"), "two\n");
        }
    }

    #[tokio::test]
    async fn a_delayed_piece_takes_its_time_both_ways_and_a_reset_ends_the_connection() {
        let (proxy, mut stream) = echo().await;
        proxy.set(Weather {
            delay: SHORT,
            ..Weather::default()
        });
        let sent = Instant::now();
        say(&mut stream, "slow\n").await;
        assert_eq!(hear(&mut stream).await.expect("open"), "slow\n");
        assert!(sent.elapsed() >= SHORT * 2);
        proxy.reset();
        let heard = timeout(LONG, hear(&mut stream)).await.expect("an end");
        assert!(heard.is_err() || heard.is_ok_and(|line| line.is_empty()));
    }
}
