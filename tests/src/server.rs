//! A small HTTP server that dies like a process.
//!
//! It runs on a thread and a runtime of its own, so stopping it closes every socket at once, idle or in mid-stream,
//! just as a killed program would. The simulated model server and the stand-in GitLab both run on it. It does not
//! drain: nothing in these tests wants a polite neighbour.

use std::io;
use std::net::SocketAddr;
use std::thread;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};

/// How many connections may wait to be accepted; thousands of streams open at once in the load tests.
const BACKLOG: u32 = 4096;

/// A running server; dropping it stops it without waiting.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
}

impl Server {
    /// Serves `router` on `address` (port 0 picks a free one) with `threads` worker threads.
    ///
    /// # Errors
    /// The address cannot be bound, or the thread or its runtime cannot be started.
    pub async fn start(address: SocketAddr, threads: usize, router: Router) -> io::Result<Self> {
        let (ready, bound) = oneshot::channel();
        let (stop, asked) = watch::channel(false);
        let (ended, stopped) = watch::channel(false);
        thread::Builder::new()
            .name("stand-in".to_owned())
            .spawn(move || {
                run(address, threads, router, ready, asked);
                // Only now are the runtime and with it every socket gone.
                ended.send_replace(true);
            })?;
        let address = bound
            .await
            .map_err(|_| io::Error::other("the server thread ended early"))??;
        Ok(Self {
            address,
            stop,
            stopped,
        })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle with which the server's own handlers may stop it.
    pub fn stopper(&self) -> watch::Sender<bool> {
        self.stop.clone()
    }

    /// Stops and returns once every socket is closed.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        self.stopped().await;
    }

    /// Waits until the server has stopped, whoever stopped it.
    pub async fn stopped(&self) {
        let mut stopped = self.stopped.clone();
        // An error means that the thread is gone, which is what is waited for.
        let _ended = stopped.wait_for(|stopped| *stopped).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn run(
    address: SocketAddr,
    threads: usize,
    router: Router,
    ready: oneshot::Sender<io::Result<SocketAddr>>,
    mut asked: watch::Receiver<bool>,
) {
    let runtime = match Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async {
        let listener = match listen(address) {
            Ok(listener) => listener,
            Err(error) => return drop(ready.send(Err(error))),
        };
        if ready.send(listener.local_addr()).is_err() {
            return;
        }
        // A socket that refuses the option is still a working socket.
        let listener = listener.tap_io(|socket| drop(socket.set_nodelay(true)));
        // Accepting happens on a worker, not on this thread, which only waits to be stopped.
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        tokio::select! {
            _ = serving => {}
            _ = asked.wait_for(|stop| *stop) => {}
        }
    });
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A stopped server starts again on its port while old connections linger in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
