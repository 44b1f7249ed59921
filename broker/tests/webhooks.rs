//! Webhooks against a real PostgreSQL and a receiver that listens: what is sent, to whom, how often, and to whom never.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/receiver.rs"]
mod receiver;
#[path = "support/servers.rs"]
#[expect(dead_code, reason = "the store's tests use the rest")]
mod servers;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use duo_broker::auth::install_crypto;
use duo_broker::config::WebhookConfig;
use duo_broker::store::StoreError;
use duo_broker::store::webhooks::{Delivery, DeliveryState, JobEnded, NewReceiver, ReceiverChange, enqueue};
use duo_broker::webhooks::{self, Parts, WebhookMetrics, Webhooks};
use duo_contract::seal::SealKeys;
use duo_process::shutdown::Shutdown;
use prometheus::Registry;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::Row as _;
use time::OffsetDateTime;
use tokio::time::{Instant, interval};
use uuid::Uuid;

use self::receiver::{Receiver, Reply, Told};
use self::servers::Database;

const PATIENCE: Duration = Duration::from_secs(30);
/// Many quick attempts.
const QUICK: &str =
    "50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms,50ms";
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1"];

/// A database and the brokers that tell what is in it.
struct Site {
    database: Database,
    key: String,
}

/// A broker that tells receivers, and nothing else.
struct Broker {
    webhooks: Webhooks,
    shutdown: Shutdown,
    registry: Registry,
}

impl Site {
    async fn new() -> Self {
        install_crypto();
        Self {
            database: Database::create().await,
            key: SealKeys::generate_line("k1"),
        }
    }

    fn keys(&self) -> SealKeys {
        SealKeys::parse(&self.key).unwrap()
    }

    fn broker(&self, name: &str, schedule: &str) -> Broker {
        self.broker_with(name, schedule, Duration::from_secs(15))
    }

    fn broker_with(&self, name: &str, schedule: &str, timeout: Duration) -> Broker {
        let (webhooks, shutdown, registry) = (Webhooks::default(), Shutdown::new(), Registry::new());
        let parts = Parts {
            broker: name.to_owned(),
            config: WebhookConfig {
                schedule: schedule.parse().unwrap(),
                timeout,
            },
            store: self.database.store.clone(),
            keys: self.keys(),
            certificates: Vec::new(),
            webhooks: webhooks.clone(),
        };
        let metrics = WebhookMetrics::register(&registry);
        shutdown.spawn("webhooks", webhooks::run(parts, metrics, shutdown.clone()));
        Broker {
            webhooks,
            shutdown,
            registry,
        }
    }

    async fn add(&self, name: &str, url: &str, addresses: &[&str]) -> SecretString {
        let new = NewReceiver {
            name: name.parse().unwrap(),
            url: url.parse().unwrap(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let added = self
            .database
            .store
            .add_receiver("tester", &new, &self.keys())
            .await;
        added.unwrap().1
    }

    /// Writes ends of jobs for these receivers as the transaction that ends jobs does.
    async fn end_jobs(&self, receivers: &[&str]) -> (u64, Vec<Uuid>) {
        let ends: Vec<_> = receivers.iter().map(|receiver| ended(receiver)).collect();
        let mut transaction = self.database.pool.begin().await.unwrap();
        let written = enqueue(&mut transaction, &ends).await.unwrap();
        transaction.commit().await.unwrap();
        (written, ends.iter().map(|end| end.job_id).collect())
    }

    async fn deliveries(&self, receiver: &str) -> Vec<Delivery> {
        let page = self.database.store.delivery_page(receiver, None, 100, None).await;
        page.unwrap().deliveries
    }

    /// Waits until every delivery of the receiver is in this state.
    async fn all(&self, receiver: &str, state: DeliveryState) -> Vec<Delivery> {
        until(&format!("deliveries are {state}"), async || {
            let found = self.deliveries(receiver).await;
            let done = !found.is_empty() && found.iter().all(|delivery| delivery.state == state);
            if done {
                Ok(found)
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await
    }
}

impl Broker {
    async fn stop(self) {
        self.shutdown.begin();
        assert!(self.shutdown.drained(Duration::from_secs(5)).await);
    }

    fn metric(&self, name: &str, result: Option<&str>) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let mut metrics = family.get_metric().iter();
        let metric = metrics
            .find(|metric| result.is_none_or(|result| metric.get_label()[0].value() == result))
            .unwrap();
        metric.get_counter().get_value() + metric.get_gauge().get_value()
    }
}

fn ended(receiver: &str) -> JobEnded {
    JobEnded {
        job_id: Uuid::now_v7(),
        receiver: receiver.to_owned(),
        event: "job.succeeded",
        ended_at: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
    }
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    let mut ticks = interval(Duration::from_millis(15));
    loop {
        ticks.tick().await;
        match look().await {
            Ok(found) => return found,
            Err(seen) => assert!(began.elapsed() < PATIENCE, "{what}: {seen}"),
        }
    }
}

async fn told(receiver: &Receiver, count: usize) -> Vec<Told> {
    until(&format!("{count} requests"), async || {
        let told = receiver.told();
        if told.len() >= count {
            Ok(told)
        } else {
            Err(format!("{}", told.len()))
        }
    })
    .await
}

/// The signature that this secret, as it was shown, makes of a request.
fn signature(secret: &SecretString, told: &Told) -> String {
    let secret = secret.expose_secret().strip_prefix("whsec_").unwrap();
    let secret = STANDARD.decode(secret).unwrap();
    assert_eq!(secret.len(), 32);
    let mut signed = format!("{}.{}.", told.id(), told.header("webhook-timestamp")).into_bytes();
    signed.extend_from_slice(&told.body);
    // By hand, so that it is not the same code that is asked twice: H((k ^ opad) || H((k ^ ipad) || text)).
    let hash = |pad: u8, text: &[u8]| {
        let mut whole: Vec<u8> = secret
            .iter()
            .copied()
            .chain(std::iter::repeat(0))
            .take(64)
            .map(|byte| byte ^ pad)
            .collect();
        whole.extend_from_slice(text);
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &whole)
    };
    let inner = hash(0x36, &signed);
    format!("v1,{}", STANDARD.encode(hash(0x5c, inner.as_ref())))
}

#[tokio::test]
async fn an_end_is_told_once_signed_and_at_once() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    let secret = site.add("ci", &receiver.url(), &LOOPBACK).await;
    let broker = site.broker("b1", "1h");
    // What is rolled back has never been.
    let mut transaction = site.database.pool.begin().await.unwrap();
    assert_eq!(enqueue(&mut transaction, &[ended("ci")]).await.unwrap(), 1);
    transaction.rollback().await.unwrap();

    let (written, jobs) = site.end_jobs(&["ci", "nobody"]).await;
    assert_eq!(written, 1, "whoever is not there is left out");
    broker.webhooks.wake();
    let found = site.all("ci", DeliveryState::Delivered).await;
    let told = receiver.told();
    assert_eq!((told.len(), found.len()), (1, 1));
    assert_eq!(
        String::from_utf8(told[0].body.to_vec()).unwrap(),
        format!(
            r#"{{"type":"job.succeeded","timestamp":"2026-09-21T14:13:20Z","data":{{"id":"{}"}}}}"#,
            jobs[0]
        )
    );
    assert_eq!(told[0].header("content-type"), "application/json");
    assert_eq!(told[0].header("webhook-signature"), signature(&secret, &told[0]));
    assert_eq!(told[0].id(), found[0].id);
    assert!(found[0].id.starts_with("msg_"));
    let sent: i64 = told[0].header("webhook-timestamp").parse().unwrap();
    assert!((OffsetDateTime::now_utc().unix_timestamp() - sent).abs() < 60);
    let [attempt] = &found[0].attempts[..] else {
        panic!("{found:?}");
    };
    assert_eq!(
        (attempt.result.as_str(), attempt.status),
        ("delivered", Some(204))
    );
    assert_eq!((attempt.broker.as_str(), &attempt.detail), ("b1", &None));
    assert_eq!((found[0].job_id, found[0].next_at), (Some(jobs[0]), None));
    assert!((broker.metric("duo_webhook_deliveries_total", Some("delivered")) - 1.0).abs() < 0.5);
    broker.stop().await;
}

#[tokio::test]
async fn after_a_rotation_both_secrets_sign_until_the_old_ones_end() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    let first = site.add("ci", &receiver.url(), &LOOPBACK).await;
    let broker = site.broker("b1", "1h");
    let rotate = async |overlap: u64| {
        let overlap = Duration::from_secs(overlap);
        let store = &site.database.store;
        store
            .rotate_secret("tester", "ci", overlap, &site.keys())
            .await
            .unwrap()
    };
    let signed = async |count: usize| {
        site.end_jobs(&["ci"]).await;
        broker.webhooks.wake();
        told(&receiver, count).await.pop().unwrap()
    };
    let second = rotate(3600).await;
    let until = second.old_valid_until.unwrap() - OffsetDateTime::now_utc();
    assert!((3500..=3600).contains(&until.whole_seconds()), "{until}");
    let request = signed(1).await;
    let both = [&second.secret, &first].map(|secret| signature(secret, &request));
    assert_eq!(request.header("webhook-signature"), both.join(" "));

    // Two at most: the first is no longer good, though its time is not over.
    let third = rotate(3600).await;
    let request = signed(2).await;
    let both = [&third.secret, &second.secret].map(|secret| signature(secret, &request));
    assert_eq!(request.header("webhook-signature"), both.join(" "));

    let fourth = rotate(0).await;
    assert_eq!(fourth.old_valid_until, None);
    let request = signed(3).await;
    assert_eq!(
        request.header("webhook-signature"),
        signature(&fourth.secret, &request)
    );

    // An overlap that has passed.
    let fifth = rotate(3600).await;
    sqlx::query("UPDATE webhook_secrets SET valid_until = now() WHERE valid_until IS NOT NULL")
        .execute(&site.database.pool)
        .await
        .unwrap();
    let request = signed(4).await;
    assert_eq!(
        request.header("webhook-signature"),
        signature(&fifth.secret, &request)
    );
    let records = "SELECT count(*) FROM change_records WHERE what LIKE 'webhook.%' AND actor = 'tester'";
    assert_eq!(site.database.count(records).await, 5);
    for secret in [&first, &second.secret, &fifth.secret] {
        let records = "SELECT count(*) FROM change_records WHERE strpos(before::text || after::text, $1) > 0";
        let found: i64 = sqlx::query_scalar(records)
            .bind(secret.expose_secret())
            .fetch_one(&site.database.pool)
            .await
            .unwrap();
        assert_eq!(found, 0, "a record has a secret");
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_failed_attempt_is_repeated_by_the_schedule_under_the_same_id_and_then_given_up() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    site.add("ci", &receiver.url(), &LOOPBACK).await;
    for status in [500, 404, 400] {
        receiver.reply(Reply::status(status));
    }
    let broker = site.broker("b1", "200ms,600ms");
    site.end_jobs(&["ci"]).await;
    broker.webhooks.wake();
    let found = site.all("ci", DeliveryState::Failed).await;
    let told = receiver.told();
    assert_eq!(told.len(), 3, "one, and one for each delay");
    for (pair, least) in told.windows(2).zip([180, 540]) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap >= Duration::from_millis(least), "{gap:?}");
        assert!(gap < Duration::from_millis(least + 5000), "{gap:?}");
        assert_eq!((pair[0].id(), &pair[0].body), (pair[1].id(), &pair[1].body));
    }
    let statuses: Vec<_> = found[0]
        .attempts
        .iter()
        .map(|attempt| attempt.status.unwrap())
        .collect();
    assert_eq!(statuses, [500, 404, 400]);
    assert!(found[0].ended_at.is_some());
    assert!((broker.metric("duo_webhook_given_up_total", None) - 1.0).abs() < 0.5);
    broker.stop().await;
}

#[tokio::test]
async fn a_receiver_that_asks_for_time_gets_it() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    site.add("ci", &receiver.url(), &LOOPBACK).await;
    receiver.reply(Reply::status(503).header("retry-after", "600"));
    let broker = site.broker("b1", QUICK);
    site.end_jobs(&["ci"]).await;
    broker.webhooks.wake();
    let next = until("the attempt is written down", async || {
        let found = site.deliveries("ci").await.remove(0);
        match found.attempts.first() {
            Some(_) => Ok(found.next_at.unwrap()),
            None => Err(format!("{found:?}")),
        }
    })
    .await;
    let wait = next - OffsetDateTime::now_utc();
    assert!((550..=600).contains(&wait.whole_seconds()), "{wait}");
    until("the gauges tell of it", async || {
        let gauges = ["duo_webhook_pending", "duo_webhook_oldest_pending_seconds"];
        match gauges.map(|name| broker.metric(name, None)) {
            [pending, oldest] if pending > 0.5 && oldest > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_nobody_is_asked_where_it_leads() {
    let site = Site::new().await;
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    site.add("ci", &receiver.url(), &LOOPBACK).await;
    receiver.reply(Reply::status(302).header("location", &elsewhere.url()));
    receiver.reply(Reply::status(307).header("location", &elsewhere.url()));
    let broker = site.broker("b1", "50ms");
    site.end_jobs(&["ci"]).await;
    broker.webhooks.wake();
    let found = site.all("ci", DeliveryState::Failed).await;
    let results: Vec<_> = found[0]
        .attempts
        .iter()
        .map(|attempt| attempt.result.as_str())
        .collect();
    assert_eq!(results, ["redirect", "redirect"]);
    assert!(elsewhere.told().is_empty());
    broker.stop().await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_disabled_and_what_waits_for_it_is_kept_as_dropped() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    site.add("ci", &receiver.url(), &LOOPBACK).await;
    // The first one fails and waits, the second meets the end.
    receiver.reply(Reply::status(500));
    receiver.reply(Reply::status(410));
    let broker = site.broker("b1", "1h");
    site.end_jobs(&["ci"]).await;
    broker.webhooks.wake();
    told(&receiver, 1).await;
    site.end_jobs(&["ci"]).await;
    broker.webhooks.wake();
    let found = site.all("ci", DeliveryState::Dropped).await;
    assert_eq!(found.len(), 2);
    assert!(
        found
            .iter()
            .all(|delivery| delivery.reason.as_deref() == Some("receiver_gone"))
    );
    let shown = site.database.store.receiver("ci").await.unwrap();
    assert_eq!(shown.disabled.unwrap().reason, "gone");
    let records = "SELECT count(*) FROM change_records WHERE what = 'webhook.disable' AND subject = 'ci'";
    assert_eq!(site.database.count(records).await, 1);

    // What comes now is kept and not sent, and nothing of it is sent again.
    assert_eq!(site.end_jobs(&["ci"]).await.0, 1);
    assert_eq!(site.all("ci", DeliveryState::Dropped).await.len(), 3);
    let store = &site.database.store;
    let refused = store.replay_delivery("tester", None, &found[0].id).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert!(matches!(
        store.queue_test("tester", "ci").await,
        Err(StoreError::Conflict(_))
    ));
    let enabled = ReceiverChange {
        enabled: Some(true),
        ..ReceiverChange::default()
    };
    store.change_receiver("tester", "ci", &enabled).await.unwrap();
    store
        .replay_delivery("tester", Some("ci"), &found[0].id)
        .await
        .unwrap();
    broker.webhooks.wake();
    let told = told(&receiver, 3).await;
    assert_eq!((told.len(), told[2].id()), (3, found[0].id.as_str()));
    broker.stop().await;
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_never_connected_to() {
    let site = Site::new().await;
    // Whoever connects stays in the backlog of a socket that nobody accepts from.
    let closed = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    closed.set_nonblocking(true).unwrap();
    let port = closed.local_addr().unwrap().port();
    site.add("by-name", &format!("http://localhost:{port}/"), &[])
        .await;
    site.add(
        "other-network",
        &format!("http://localhost:{port}/a"),
        &["10.0.0.0/8"],
    )
    .await;
    site.add("by-address", &format!("http://127.0.0.1:{port}/"), &LOOPBACK)
        .await;
    site.add("mapped", &format!("http://[::ffff:127.0.0.1]:{port}/"), &LOOPBACK)
        .await;
    // As if the networks had been taken from them after the URL was checked.
    sqlx::query("UPDATE webhook_receivers SET addresses = '{}' WHERE name IN ('by-address', 'mapped')")
        .execute(&site.database.pool)
        .await
        .unwrap();
    let new = NewReceiver {
        name: "literal".parse().unwrap(),
        url: "http://127.0.0.1/".parse().unwrap(),
        addresses: Vec::new(),
    };
    let refused = site
        .database
        .store
        .add_receiver("tester", &new, &site.keys())
        .await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    let broker = site.broker("b1", "50ms");
    let names = ["by-name", "other-network", "by-address", "mapped"];
    site.end_jobs(&names).await;
    broker.webhooks.wake();
    for name in names {
        let found = site.all(name, DeliveryState::Failed).await;
        for attempt in &found[0].attempts {
            assert_eq!(attempt.result, "address_refused", "{name}: {attempt:?}");
        }
        assert_eq!(found[0].attempts.len(), 2);
    }
    let nobody = closed.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    broker.stop().await;
}

#[tokio::test]
async fn a_receiver_that_was_down_gets_everything_once_with_the_ids_of_before() {
    let site = Site::new().await;
    let port = {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        free.local_addr().unwrap().port()
    };
    site.add("ci", &format!("http://localhost:{port}/"), &LOOPBACK)
        .await;
    let schedule = vec!["100ms"; 32].join(",");
    let brokers = [site.broker("b1", &schedule), site.broker("b2", &schedule)];
    let (_, jobs) = site.end_jobs(&["ci"; 20]).await;
    brokers[0].webhooks.wake();
    let before = until("each was tried in vain", async || {
        let found = site.deliveries("ci").await;
        let tried = found
            .iter()
            .filter(|delivery| !delivery.attempts.is_empty())
            .count();
        if tried == jobs.len() {
            Ok(found)
        } else {
            Err(tried.to_string())
        }
    })
    .await;
    assert!(before[0].attempts[0].result == "unreachable", "{:?}", before[0]);
    let receiver = Receiver::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
    let after = site.all("ci", DeliveryState::Delivered).await;
    let mut counts: HashMap<String, usize> = HashMap::new();
    for told in receiver.told() {
        *counts.entry(told.id().to_owned()).or_default() += 1;
    }
    assert_eq!(counts.len(), jobs.len());
    for delivery in &after {
        assert_eq!(counts[&delivery.id], 1);
        assert!(before.iter().any(|earlier| earlier.id == delivery.id));
    }
    for broker in brokers {
        broker.stop().await;
    }
}

#[tokio::test]
async fn what_a_dead_broker_had_taken_is_told_by_another_when_its_lease_is_over() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    site.add("ci", &receiver.url(), &LOOPBACK).await;
    receiver.hold(true);
    let timeout = Duration::from_millis(500);
    let dead = site.broker_with("b1", "1h", timeout);
    site.end_jobs(&["ci"]).await;
    dead.webhooks.wake();
    told(&receiver, 1).await;
    // As kill -9 would: nothing is written down, nothing given back.
    dead.shutdown.abort();
    let leased = "SELECT count(*) FROM webhook_deliveries WHERE leased_by = 'b1' AND attempt = 0";
    assert_eq!(site.database.count(leased).await, 1);
    let began = Instant::now();
    receiver.hold(false);
    let broker = site.broker_with("b2", "1h", timeout);
    let found = site.all("ci", DeliveryState::Delivered).await;
    assert!(
        began.elapsed() > Duration::from_secs(3),
        "the lease was waited for"
    );
    assert_eq!(found[0].attempts.len(), 1);
    assert_eq!(found[0].attempts[0].broker, "b2");
    let told = receiver.told();
    assert_eq!((told.len(), told[0].id()), (2, told[1].id()));
    broker.stop().await;
}

#[tokio::test]
async fn a_broker_that_stops_gives_back_what_it_has_not_ended() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    site.add("ci", &receiver.url(), &LOOPBACK).await;
    receiver.hold(true);
    let leaving = site.broker("b1", "1h");
    site.end_jobs(&["ci"]).await;
    leaving.webhooks.wake();
    told(&receiver, 1).await;
    leaving.stop().await;
    let free = "SELECT count(*) FROM webhook_deliveries WHERE leased_by IS NULL AND next_at <= now() AND attempt = 0";
    assert_eq!(site.database.count(free).await, 1);
}

#[tokio::test]
async fn a_slow_receiver_holds_up_nobody_but_itself() {
    let site = Site::new().await;
    let (slow, quick) = (Receiver::start().await, Receiver::start().await);
    site.add("slow", &slow.url(), &LOOPBACK).await;
    site.add("quick", &quick.url(), &LOOPBACK).await;
    slow.hold(true);
    let broker = site.broker("b1", "1h");
    site.end_jobs(&["slow"; 40]).await;
    broker.webhooks.wake();
    told(&slow, 8).await;
    site.end_jobs(&["quick"; 40]).await;
    broker.webhooks.wake();
    site.all("quick", DeliveryState::Delivered).await;
    assert_eq!(slow.told().len(), 8, "so many at once and no more");
    slow.hold(false);
    site.all("slow", DeliveryState::Delivered).await;
    assert_eq!((slow.told().len(), quick.told().len()), (40, 40));
    broker.stop().await;
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_is_a_failure() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    site.add("ci", &receiver.url(), &LOOPBACK).await;
    receiver.hold(true);
    let broker = site.broker_with("b1", "50ms", Duration::from_millis(300));
    site.end_jobs(&["ci"]).await;
    broker.webhooks.wake();
    let found = site.all("ci", DeliveryState::Failed).await;
    for attempt in &found[0].attempts {
        assert_eq!((attempt.result.as_str(), attempt.status), ("timed_out", None));
        assert!((300..5000).contains(&attempt.duration_ms), "{attempt:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_replay_has_the_id_of_before_and_all_attempts_again() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    site.add("ci", &receiver.url(), &LOOPBACK).await;
    let broker = site.broker("b1", "50ms");
    receiver.reply(Reply::status(500));
    receiver.reply(Reply::status(500));
    site.end_jobs(&["ci"]).await;
    broker.webhooks.wake();
    let found = site.all("ci", DeliveryState::Failed).await;
    let store = &site.database.store;
    receiver.reply(Reply::status(500));
    let queued = store.replay_delivery("tester", None, &found[0].id).await.unwrap();
    assert_eq!(queued.state, DeliveryState::Pending);
    broker.webhooks.wake();
    let found = site.all("ci", DeliveryState::Delivered).await;
    assert_eq!((found.len(), found[0].attempts.len()), (1, 4));
    let told = receiver.told();
    assert!(told.iter().all(|told| told.id() == found[0].id));
    // One that was delivered too.
    store.replay_delivery("tester", None, &found[0].id).await.unwrap();
    broker.webhooks.wake();
    until("it is told again", async || match receiver.told().len() {
        5 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    for id in ["msg_0", "msg_00000000000000000000000000000000", "x\0"] {
        let unknown = store.replay_delivery("tester", None, id).await;
        assert!(matches!(unknown, Err(StoreError::NotFound(_))), "{unknown:?}");
    }
    let records = "SELECT count(*) FROM change_records WHERE what = 'webhook.replay' AND actor = 'tester'";
    assert_eq!(site.database.count(records).await, 2);
    broker.stop().await;
}

#[tokio::test]
async fn a_test_is_told_once_whatever_comes_of_it() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    let secret = site.add("ci", &receiver.url(), &LOOPBACK).await;
    let broker = site.broker("b1", QUICK);
    receiver.reply(Reply::status(500));
    site.database.store.queue_test("tester", "ci").await.unwrap();
    broker.webhooks.wake();
    let found = site.all("ci", DeliveryState::Failed).await;
    assert_eq!((found[0].attempts.len(), found[0].job_id), (1, None));
    let told = receiver.told();
    let body: serde_json::Value = serde_json::from_slice(&told[0].body).unwrap();
    assert_eq!(body["type"], "webhook.test");
    assert_eq!(body["data"], serde_json::json!({"receiver": "ci"}));
    assert_eq!(told[0].header("webhook-signature"), signature(&secret, &told[0]));
    broker.stop().await;
}

/// What the documentation gives to who writes a receiver.
#[tokio::test]
async fn the_documented_python_takes_what_is_sent_and_nothing_else() {
    let site = Site::new().await;
    let receiver = Receiver::start().await;
    let first = site.add("ci", &receiver.url(), &LOOPBACK).await;
    let (store, hour, keys) = (&site.database.store, Duration::from_secs(3600), site.keys());
    let rotated = store.rotate_secret("tester", "ci", hour, &keys).await;
    let second = rotated.unwrap().secret;
    let broker = site.broker("b1", "1h");
    site.end_jobs(&["ci"]).await;
    broker.webhooks.wake();
    let told = told(&receiver, 1).await.pop().unwrap();
    let documentation = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/webhooks.md");
    let documentation = std::fs::read_to_string(documentation).unwrap();
    let (_, code) = documentation.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    let verified = |secret: &str, headers: &[(&str, &str)], body: &[u8]| {
        let headers: HashMap<_, _> = headers.iter().copied().collect();
        let (headers, body) = (
            serde_json::to_string(&headers).unwrap(),
            String::from_utf8_lossy(body),
        );
        let program = format!(
            "{code}\nimport json, sys\n\
             print(verified(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3].encode()))"
        );
        let output = Command::new("python3")
            .args(["-c", &program, secret, &headers, &body])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
    };
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers = names.map(|name| (name, told.header(name)));
    for secret in [&first, &second] {
        assert_eq!(verified(secret.expose_secret(), &headers, &told.body), "True\n");
    }
    let other = webhooks::sign::Secret::generate().text();
    assert_eq!(verified(other.expose_secret(), &headers, &told.body), "False\n");
    assert_eq!(verified(first.expose_secret(), &headers, b"{}"), "False\n");
    for (at, value) in [(0, "msg_1"), (1, "1790000000"), (2, "v1,AAAA")] {
        let mut altered = headers;
        altered[at].1 = value;
        assert_eq!(
            verified(first.expose_secret(), &altered, &told.body),
            "False\n",
            "{value}"
        );
    }
    broker.stop().await;
}

#[tokio::test]
async fn secrets_are_sealed_and_go_over_to_a_new_first_key() {
    let mut site = Site::new().await;
    let receiver = Receiver::start().await;
    let secret = site.add("ci", &receiver.url(), &LOOPBACK).await;
    let plain = secret.expose_secret().strip_prefix("whsec_").unwrap().to_owned();
    let plain = STANDARD.decode(plain).unwrap();
    let rows = sqlx::query("SELECT key_id, sealed FROM webhook_secrets")
        .fetch_all(&site.database.pool)
        .await
        .unwrap();
    assert_eq!(rows[0].get::<String, _>(0), "k1");
    let sealed: Vec<u8> = rows[0].get(1);
    assert!(!sealed.windows(plain.len()).any(|window| window == plain));

    // Without the key nothing is sent, nothing counts and nothing is lost.
    let old = std::mem::replace(&mut site.key, SealKeys::generate_line("k2"));
    let closed = site.broker("b1", "1h");
    site.end_jobs(&["ci"]).await;
    closed.webhooks.wake();
    until("it cannot be made", async || {
        let unopened = closed.metric("duo_webhook_deliveries_total", Some("unopened"));
        if unopened > 0.5 {
            Ok(())
        } else {
            Err(unopened.to_string())
        }
    })
    .await;
    closed.stop().await;
    let waits = "SELECT count(*) FROM webhook_deliveries WHERE state = 'pending' AND attempt = 0";
    assert_eq!(site.database.count(waits).await, 1);
    assert!(receiver.told().is_empty());

    site.key.push_str(&old);
    let broker = site.broker("b2", "1h");
    let id = &site.deliveries("ci").await[0].id;
    site.database
        .store
        .replay_delivery("tester", None, id)
        .await
        .unwrap();
    broker.webhooks.wake();
    site.all("ci", DeliveryState::Delivered).await;
    let told = receiver.told();
    assert_eq!(told[0].header("webhook-signature"), signature(&secret, &told[0]));
    until("it is sealed by the new key", async || {
        let sealed = "SELECT count(*) FROM webhook_secrets WHERE key_id = 'k2'";
        match site.database.count(sealed).await {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    site.key.truncate(site.key.len() - old.len());
    site.end_jobs(&["ci"]).await;
    let last = site.broker("b3", "1h");
    last.webhooks.wake();
    site.all("ci", DeliveryState::Delivered).await;
    for broker in [broker, last] {
        broker.stop().await;
    }
}

#[tokio::test]
async fn a_receiver_is_found_by_its_name_and_by_exactly_its_url() {
    let site = Site::new().await;
    site.add("ci", "https://ci.example.com/hook?x=1", &["10.0.0.0/8"])
        .await;
    let find = async |text: &str| {
        let found = site.database.store.find_receiver(text).await.unwrap();
        found.map(|receiver| receiver.name)
    };
    for text in [
        "ci",
        "https://ci.example.com/hook?x=1",
        "HTTPS://ci.example.com:443/hook?x=1",
    ] {
        assert_eq!(find(text).await.as_deref(), Some("ci"), "{text}");
    }
    for text in [
        "",
        "CI",
        "https://ci.example.com/hook",
        "https://ci.example.com/",
        "http://169.254.169.254/",
        "c\0",
    ] {
        assert_eq!(find(text).await, None, "{text}");
    }
    site.database.store.remove_receiver("tester", "ci").await.unwrap();
    assert_eq!(find("ci").await, None);
    let count = "SELECT count(*) FROM webhook_secrets";
    assert_eq!(site.database.count(count).await, 0);
}

#[tokio::test]
async fn a_removal_waits_for_the_ends_that_are_being_written_and_breaks_none() {
    let site = Site::new().await;
    site.add("ci", "https://ci.example.com/", &[]).await;
    let mut transaction = site.database.pool.begin().await.unwrap();
    assert_eq!(enqueue(&mut transaction, &[ended("ci")]).await.unwrap(), 1);
    let store = site.database.store.clone();
    let removal = tokio::spawn(async move { store.remove_receiver("tester", "ci").await });
    until("the removal waits", async || {
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        match site.database.count(waits).await {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    assert_eq!(enqueue(&mut transaction, &[ended("ci")]).await.unwrap(), 1);
    transaction.commit().await.unwrap();
    removal.await.unwrap().unwrap();
    assert_eq!(
        site.database
            .count("SELECT count(*) FROM webhook_deliveries")
            .await,
        0
    );
}

#[tokio::test]
async fn pages_do_not_shift_and_old_deliveries_are_forgotten() {
    let site = Site::new().await;
    site.add("ci", "https://ci.example.com/", &[]).await;
    let disabled = ReceiverChange {
        enabled: Some(false),
        ..ReceiverChange::default()
    };
    let store = &site.database.store;
    store.change_receiver("tester", "ci", &disabled).await.unwrap();
    site.end_jobs(&["ci"; 5]).await;
    let page = store.delivery_page("ci", None, 2, None).await.unwrap();
    site.end_jobs(&["ci"]).await;
    let next = store
        .delivery_page("ci", None, 2, page.next_cursor.as_deref())
        .await
        .unwrap();
    let dropped = Some(DeliveryState::Dropped);
    let last = store
        .delivery_page("ci", dropped, 2, next.next_cursor.as_deref())
        .await
        .unwrap();
    let sizes = [&page, &next, &last].map(|page| page.deliveries.len());
    assert_eq!((sizes, &last.next_cursor), ([2, 2, 1], &None));
    let mut ids: Vec<_> = [page, next, last]
        .into_iter()
        .flat_map(|page| page.deliveries)
        .map(|delivery| delivery.id)
        .collect();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count);
    assert!(ids.is_sorted_by(|a, b| a > b), "{ids:?}");
    let failed = store
        .delivery_page("ci", Some(DeliveryState::Failed), 2, None)
        .await
        .unwrap();
    assert!(failed.deliveries.is_empty());

    let sql = "UPDATE webhook_deliveries SET id = 'msg_00000000' || substr(id, 13) WHERE id = $1";
    sqlx::query(sql)
        .bind(&ids[1])
        .execute(&site.database.pool)
        .await
        .unwrap();
    let broker = site.broker("b1", "1h");
    until("the old one is gone", async || {
        match site
            .database
            .count("SELECT count(*) FROM webhook_deliveries")
            .await
        {
            5 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    broker.stop().await;
}
