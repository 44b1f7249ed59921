//! One attempt: the request that tells a receiver, and what its answer means.
//!
//! Where a name leads is decided by the resolver of the connection itself, so no name can mean one address when it is
//! checked and another when it is connected to. Nothing is followed and no proxy is asked.

use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use duo_process::clock;
use http::{HeaderMap, StatusCode, header};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, Response};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};
use uuid::Uuid;

use super::address::{Cidr, may_connect};
use super::receiver::AddressRefused;
use super::sign::{self, Secret};
use crate::store::webhooks::Due;

/// Longest detail that is kept, in characters.
const LONGEST_DETAIL: usize = 200;
/// As much of an answer is read, so that its connection can be used again; nobody looks at it.
const MOST_ANSWER: usize = 64 * 1024;
/// An answer's body that takes longer is not waited for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// Sets of networks that have a client of their own at a time.
const MOST_CLIENTS: usize = 64;
/// A receiver may close a connection that nothing was sent on for a while, so it is not used again after this time.
const IDLE: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("duo-broker/", env!("CARGO_PKG_VERSION"));

/// What an attempt met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// 2xx.
    Delivered,
    /// 410.
    Gone,
    /// 3xx.
    Redirect,
    /// Any other status.
    Status,
    /// No answer in time.
    TimedOut,
    /// No connection, or it broke.
    Unreachable,
    /// The name has no address.
    Unresolved,
    /// No address of it may be connected to.
    AddressRefused,
    /// No key here opens its secret.
    Unopened,
}

impl Met {
    /// Everything that may be met.
    pub(super) const ALL: [Self; 9] = [
        Self::Delivered,
        Self::Gone,
        Self::Redirect,
        Self::Status,
        Self::TimedOut,
        Self::Unreachable,
        Self::Unresolved,
        Self::AddressRefused,
        Self::Unopened,
    ];

    /// Its name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Gone => "gone",
            Self::Redirect => "redirect",
            Self::Status => "status",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Unresolved => "unresolved",
            Self::AddressRefused => "address_refused",
            Self::Unopened => "unopened",
        }
    }
}

/// How an attempt went.
#[derive(Debug)]
pub(super) struct Attempted {
    pub(super) met: Met,
    pub(super) status: Option<u16>,
    pub(super) detail: Option<String>,
    /// How long the receiver wants to be left alone.
    pub(super) hint: Option<Duration>,
    pub(super) at: OffsetDateTime,
    pub(super) duration: Duration,
}

/// Clients by the networks that their connections may go to.
#[derive(Debug)]
pub(super) struct Clients {
    certificates: Vec<Certificate>,
    made: HashMap<Vec<Cidr>, Client>,
}

impl Clients {
    /// Clients that trust these authorities too.
    pub(super) fn new(certificates: Vec<Certificate>) -> Self {
        Self {
            certificates,
            made: HashMap::new(),
        }
    }

    /// The client whose connections go to public addresses and into these networks only.
    pub(super) fn client(&mut self, named: &[Cidr]) -> reqwest::Result<Client> {
        if let Some(client) = self.made.get(named) {
            return Ok(client.clone());
        }
        let gate = Gate { named: named.into() };
        let mut builder = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE)
            .user_agent(USER_AGENT)
            .dns_resolver(gate);
        for certificate in &self.certificates {
            builder = builder.add_root_certificate(certificate.clone());
        }
        let client = builder.build()?;
        if self.made.len() >= MOST_CLIENTS {
            self.made.clear();
        }
        self.made.insert(named.to_vec(), client.clone());
        Ok(client)
    }
}

/// Resolves names to the addresses that may be connected to.
#[derive(Debug)]
struct Gate {
    named: Arc<[Cidr]>,
}

impl Resolve for Gate {
    fn resolve(&self, name: Name) -> Resolving {
        let named = Arc::clone(&self.named);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let (passing, refused): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|address| may_connect(address.ip(), &named));
            match refused.first() {
                Some(first) if passing.is_empty() => Err(AddressRefused(first.ip().to_string()).into()),
                _ => Ok(Box::new(passing.into_iter()) as Addrs),
            }
        })
    }
}

/// What a receiver is told: no more than it needs to ask.
#[derive(Serialize)]
struct Payload<'a> {
    r#type: &'a str,
    timestamp: &'a str,
    data: Subject<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Subject<'a> {
    Job { id: Uuid },
    Test { receiver: &'a str },
}

/// The body of a delivery, the same for each of its attempts.
fn body(due: &Due) -> String {
    let payload = Payload {
        r#type: &due.event,
        timestamp: &due.occurred_at.format(&Rfc3339).unwrap_or_default(),
        data: match due.job_id {
            Some(id) => Subject::Job { id },
            None => Subject::Test {
                receiver: &due.receiver_name,
            },
        },
    };
    serde_json::to_string(&payload).expect("texts and an id are JSON")
}

/// Makes one attempt.
pub(super) async fn attempt(client: &Client, due: &Due, secrets: &[Secret], timeout: Duration) -> Attempted {
    let (at, began) = (clock::now(), Instant::now());
    let mut attempted = match due.url.check(&due.addresses) {
        Err(refused) => failed(Met::AddressRefused, &refused.to_string()),
        Ok(()) => {
            let body = body(due);
            let timestamp = at.unix_timestamp();
            let request = client
                .post(due.url.url().clone())
                .timeout(timeout)
                .header(header::CONTENT_TYPE, "application/json")
                .header("webhook-id", &due.id)
                .header("webhook-timestamp", timestamp)
                .header(
                    "webhook-signature",
                    sign::signatures(secrets, &due.id, timestamp, &body),
                )
                .body(body);
            match request.send().await {
                Ok(response) => answered(response).await,
                Err(error) => broken(&error),
            }
        }
    };
    attempted.at = at;
    attempted.duration = began.elapsed();
    attempted
}

/// An attempt that could not be made.
pub(super) fn unopened(detail: &str) -> Attempted {
    failed(Met::Unopened, detail)
}

fn failed(met: Met, detail: &str) -> Attempted {
    let plain = |sign: char| if sign.is_control() { '\u{fffd}' } else { sign };
    Attempted {
        met,
        status: None,
        detail: Some(detail.chars().take(LONGEST_DETAIL).map(plain).collect()),
        hint: None,
        at: clock::now(),
        duration: Duration::ZERO,
    }
}

async fn answered(response: Response) -> Attempted {
    let status = response.status();
    let met = match status {
        StatusCode::GONE => Met::Gone,
        _ if status.is_success() => Met::Delivered,
        _ if status.is_redirection() => Met::Redirect,
        _ => Met::Status,
    };
    let hint = retry_after(response.headers());
    // Whether it comes or not, the status was the answer.
    let _ = tokio::time::timeout(ANSWER_PATIENCE, drain(response)).await;
    Attempted {
        met,
        status: Some(status.as_u16()),
        detail: None,
        hint,
        at: clock::now(),
        duration: Duration::ZERO,
    }
}

async fn drain(mut response: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > MOST_ANSWER {
            return;
        }
    }
}

fn broken(error: &reqwest::Error) -> Attempted {
    let mut cause: &dyn Error = error;
    loop {
        if let Some(refused) = cause.downcast_ref::<AddressRefused>() {
            return failed(Met::AddressRefused, &refused.to_string());
        }
        match cause.source() {
            Some(source) => cause = source,
            None => break,
        }
    }
    let met = if error.is_timeout() {
        Met::TimedOut
    } else if error.is_dns() {
        Met::Unresolved
    } else {
        Met::Unreachable
    };
    // The innermost cause: the outer ones repeat the URL.
    failed(met, &cause.to_string())
}

/// Seconds, or a moment.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let moment = OffsetDateTime::parse(text, &Rfc2822).ok()?;
    (moment - clock::now()).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, text.parse().expect("a value"));
        retry_after(&headers)
    }

    #[test]
    fn a_receiver_asks_for_time_in_seconds_or_by_a_moment() {
        assert_eq!(hint("120"), Some(Duration::from_secs(120)));
        assert_eq!(hint("soon"), None);
        assert_eq!(hint("-1"), None);
        assert_eq!(hint("Sun, 06 Nov 1994 08:49:37 GMT"), None, "that is over");
        let moment = hint("Fri, 31 Dec 2100 23:59:59 GMT").expect("a moment");
        assert!(moment > Duration::from_secs(365 * 24 * 3600), "{moment:?}");
    }

    fn due(event: &str, job_id: Option<Uuid>) -> Due {
        Due {
            id: "msg_1".to_owned(),
            receiver: Uuid::nil(),
            receiver_name: "ci".to_owned(),
            url: "https://ci.example.com/".parse().expect("a URL"),
            addresses: Vec::new(),
            event: event.to_owned(),
            job_id,
            occurred_at: time::macros::datetime!(2026-01-31 12:00:00.25 UTC),
            attempt: 0,
        }
    }

    #[test]
    fn a_body_says_what_happened_to_what() {
        assert_eq!(
            body(&due("job.succeeded", Some(Uuid::nil()))),
            r#"{"type":"job.succeeded","timestamp":"2026-01-31T12:00:00.25Z","data":{"id":"00000000-0000-0000-0000-000000000000"}}"#
        );
        assert_eq!(
            body(&due("webhook.test", None)),
            r#"{"type":"webhook.test","timestamp":"2026-01-31T12:00:00.25Z","data":{"receiver":"ci"}}"#
        );
    }

    #[test]
    fn a_detail_is_short_and_plain() {
        let detail = failed(Met::Unreachable, &format!("a\u{1b}{}", "ü".repeat(999))).detail;
        let detail = detail.expect("a detail");
        assert_eq!(detail.chars().count(), LONGEST_DETAIL);
        assert!(detail.starts_with("a\u{fffd}ü"));
    }
}
