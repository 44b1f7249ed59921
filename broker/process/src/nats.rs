//! The connection to NATS, and requests whose answers are believed only when
//! they are answers.
//!
//! The client library's own requests leave an entry behind when nobody
//! answers, take a 503 status for an answer, and hold on to requests of a
//! connection that is gone. [`Inbox`] is one subscription for many requests:
//! an entry goes when its waiter goes, "no responders" is an error, and a lost
//! connection fails every waiter at once so that the caller can ask again.

mod inbox;
pub mod server;

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, ServerAddr};
use bytes::Bytes;
use tokio::sync::watch;

pub use inbox::{Inbox, Pending, RequestError};

/// A silent connection is pinged this often, and ended when two pings have had
/// no answer: after three seconds. A request may wait five for its
/// acknowledgement, so a server that hangs in a cluster need not cost it
/// anything. The library's default of a minute is noticed by every client.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// One try to connect; a server that hangs still accepts connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause between two tries to reconnect.
const RECONNECT_CAP: Duration = Duration::from_millis(500);
/// Messages a subscription buffers before it drops and reports.
const SUBSCRIPTION_CAPACITY: usize = 16_384;
/// Commands the client buffers before publishing waits.
const CLIENT_CAPACITY: usize = 16_384;
/// How long an acknowledgement sent as a request may take.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// What prolongs a delivery's lease.
const PROGRESS: Bytes = Bytes::from_static(b"+WPI");

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// One or more server URLs, separated by commas.
    pub url: String,
    /// Name the server shows for this connection.
    pub name: String,
    /// First token of this program's inboxes, its own so that nobody else may read them.
    pub inbox_prefix: String,
    /// Credentials file (`.creds`).
    pub credentials_file: Option<std::path::PathBuf>,
    /// Private certificate authorities.
    pub ca_file: Option<std::path::PathBuf>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// A server URL does not parse.
    #[error("{url:?} is no NATS URL; write nats://HOST:4222, several with commas")]
    Url {
        /// The text.
        url: String,
    },
    /// The credentials file cannot be read.
    #[error("the NATS credentials file cannot be read")]
    Credentials(#[source] std::io::Error),
    /// No server answered.
    #[error("no NATS server answers at {url}; is it running, and is the address right?")]
    Connect {
        /// The URLs tried.
        url: String,
        /// What the client says.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The inbox could not be subscribed.
    #[error("the inbox cannot be subscribed")]
    Subscribe(#[from] async_nats::SubscribeError),
}

/// A connection with its inbox. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nats {
    client: Client,
    inbox: Inbox,
    connections: watch::Receiver<Connection>,
}

/// The connection's state, as a watch tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Is it up now?
    pub up: bool,
    /// How many connections there have been.
    pub count: u64,
}

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// Done: the message goes.
    Ack,
    /// Not done: deliver again after this delay.
    Nak(Duration),
    /// Never deliver it again: the message goes.
    Term,
}

impl Settle {
    fn payload(self) -> Bytes {
        match self {
            Settle::Ack => Bytes::from_static(b"+ACK"),
            Settle::Nak(Duration::ZERO) => Bytes::from_static(b"-NAK"),
            Settle::Nak(delay) => format!("-NAK {{\"delay\": {}}}", delay.as_nanos()).into(),
            Settle::Term => Bytes::from_static(b"+TERM"),
        }
    }
}

impl Nats {
    /// Connects once and from then on for ever again, with a jittered pause.
    ///
    /// # Errors
    /// A bad URL or credentials file, or no server at the first try.
    pub async fn connect(config: &NatsConfig) -> Result<Self, NatsError> {
        let servers = config
            .url
            .split(',')
            .map(|url| url.trim().parse::<ServerAddr>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| NatsError::Url {
                url: config.url.clone(),
            })?;
        let (state, connections) = watch::channel(Connection { up: true, count: 1 });
        let state = Arc::new(state);
        let mut options = ConnectOptions::new()
            .name(&config.name)
            .custom_inbox_prefix(&config.inbox_prefix)
            .ping_interval(PING_INTERVAL)
            .connection_timeout(CONNECT_TIMEOUT)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .client_capacity(CLIENT_CAPACITY)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                let state = Arc::clone(&state);
                async move { note(&state, &event) }
            });
        if let Some(path) = &config.credentials_file {
            options = options
                .credentials_file(path)
                .await
                .map_err(NatsError::Credentials)?;
        }
        if let Some(path) = &config.ca_file {
            options = options.add_root_certificates(path.clone());
        }
        let client = options
            .connect(servers)
            .await
            .map_err(|source| NatsError::Connect {
                url: config.url.clone(),
                source,
            })?;
        let inbox = Inbox::open(&client, connections.clone()).await?;
        Ok(Self {
            client,
            inbox,
            connections,
        })
    }

    /// The library's client, for subscriptions and plain publishes.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The library's JetStream context, for set-up and key-value buckets.
    #[must_use]
    pub fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client.clone())
    }

    /// Up or not, and how often it came up.
    #[must_use]
    pub fn connections(&self) -> watch::Receiver<Connection> {
        self.connections.clone()
    }

    /// Is the connection up at this moment?
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.connections.borrow().up && self.client.connection_state() == State::Connected
    }

    /// A further inbox, such as one for pulls that a drain closes.
    ///
    /// # Errors
    /// The subscription failed.
    pub async fn inbox(&self) -> Result<Inbox, NatsError> {
        Ok(Inbox::open(&self.client, self.connections.clone()).await?)
    }

    /// Sends a request now and returns its answer's future, so that several
    /// can be under way together.
    ///
    /// # Errors
    /// The connection is closed for good or the payload is over the server's limit.
    pub async fn send(
        &self,
        subject: impl async_nats::subject::ToSubject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Pending, RequestError> {
        self.inbox.send(subject, headers, payload).await
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// Nobody there, no answer in time, or the connection was lost on the way.
    pub async fn request(
        &self,
        subject: impl async_nats::subject::ToSubject,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<async_nats::Message, RequestError> {
        self.send(subject, None, payload).await?.within(timeout).await
    }

    /// Settles a delivery as a request and looks at the answer, since an
    /// acknowledgement that nobody processed is worth nothing.
    ///
    /// # Errors
    /// The server did not confirm; the delivery may come again.
    pub async fn settle(&self, ack_subject: &str, settle: Settle) -> Result<(), RequestError> {
        self.request(ack_subject.to_owned(), settle.payload(), ACK_TIMEOUT)
            .await
            .map(|_| ())
    }

    /// Prolongs a delivery's lease as a request: what comes back shows that the queue is there.
    ///
    /// # Errors
    /// The server did not confirm.
    pub async fn prolong(&self, ack_subject: &str, timeout: Duration) -> Result<(), RequestError> {
        self.request(ack_subject.to_owned(), PROGRESS, timeout)
            .await
            .map(|_| ())
    }

    /// Prolongs a delivery's lease; lost ones do no harm, the next one follows.
    pub async fn progress(&self, ack_subject: &str) {
        // A failure here means a lost connection, which the lease already covers.
        let _ = self.client.publish(ack_subject.to_owned(), PROGRESS).await;
    }
}

/// Doubling from 4 ms up to [`RECONNECT_CAP`], each half fixed and half random.
fn reconnect_delay(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts.min(10)).unwrap_or(10);
    let ceiling = Duration::from_millis(2u64 << exponent).min(RECONNECT_CAP);
    let jitter = f64::from(rand_u16()) / f64::from(u16::MAX);
    ceiling.mul_f64(0.5 + jitter / 2.0)
}

fn rand_u16() -> u16 {
    // The low bits of a v4 UUID are random; no further dependency is needed.
    let bytes = uuid::Uuid::new_v4().into_bytes();
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn note(state: &watch::Sender<Connection>, event: &Event) {
    match event {
        Event::Connected => {
            state.send_modify(|c| {
                c.count += u64::from(!c.up);
                c.up = true;
            });
            tracing::info!("connected to NATS");
        }
        Event::Disconnected => {
            state.send_modify(|c| c.up = false);
            tracing::warn!("lost the connection to NATS; trying again");
        }
        Event::SlowConsumer(id) => tracing::warn!(subscription = id, "a NATS subscription dropped messages"),
        other => tracing::debug!(event = %other, "NATS"),
    }
}
