//! Webhooks of the programs together: administered over HTTP and on the command line, told by whichever broker lives.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use bytes::Bytes;
use duo_system_tests::harness::client::client;
use duo_system_tests::harness::{Answer, Call, Cluster, PATIENCE, until};
use duo_system_tests::server::Server;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

/// An attempt's time, with which the lease of one that died is over soon.
const TIMEOUT: &str = "5s";

/// A receiver that keeps the ids and signatures that it is told, and answers while it is not held.
struct Receiver {
    server: Server,
    told: Arc<Told>,
}

#[derive(Default)]
struct Told {
    requests: Mutex<Vec<(String, String)>>,
    held: watch::Sender<bool>,
}

impl Receiver {
    async fn start() -> Self {
        let told = Arc::new(Told::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&told));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::start(address, 1, router).await.expect("a free port");
        Self { server, told }
    }

    fn url(&self) -> String {
        format!("http://localhost:{}/hook", self.server.address().port())
    }

    fn hold(&self, held: bool) {
        self.told.held.send_replace(held);
    }

    /// Id and signature of each request so far.
    fn requests(&self) -> Vec<(String, String)> {
        let requests = self.told.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn requested(&self, count: usize) -> Vec<(String, String)> {
        until(&format!("{count} requests"), PATIENCE, async || {
            let requests = self.requests();
            if requests.len() >= count {
                Ok(requests)
            } else {
                Err(requests.len().to_string())
            }
        })
        .await
    }
}

async fn answer(State(told): State<Arc<Told>>, headers: HeaderMap, _body: Bytes) -> StatusCode {
    let header = |name: &str| headers[name].to_str().expect("text").to_owned();
    let request = (header("webhook-id"), header("webhook-signature"));
    let requests = told.requests.lock();
    requests.unwrap_or_else(PoisonError::into_inner).push(request);
    let mut held = told.held.subscribe();
    let _ = held.wait_for(|held| !held).await;
    StatusCode::OK
}

/// An administrator at the first broker.
struct Admin<'a> {
    cluster: &'a Cluster,
    token: String,
    http: reqwest::Client,
}

impl<'a> Admin<'a> {
    async fn new(cluster: &'a Cluster) -> Self {
        let token = cluster.cli.token("ops", "admin", &[]).await;
        let admin = Self {
            cluster,
            token,
            http: client(),
        };
        until("the token is known", PATIENCE, async || {
            match admin.ask(Method::GET, "", None).await.status {
                StatusCode::OK => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
        admin
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let url = format!("{}/admin/v1/webhooks{path}", self.cluster.url());
        let call = Call::new(&self.http, method, &url).token(&self.token);
        match body {
            Some(body) => call.json(body).send().await,
            None => call.send().await,
        }
    }

    async fn get(&self, path: &str) -> Value {
        self.ask(Method::GET, path, None).await.good().json()
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Waits until the newest delivery of `ci` is in this state.
    async fn newest(&self, state: &str) -> Value {
        until(&format!("the newest is {state}"), PATIENCE, async || {
            let page = self.get("/ci/deliveries?limit=1").await;
            let newest = page["deliveries"][0].clone();
            if newest["state"] == state {
                Ok(newest)
            } else {
                Err(page.to_string())
            }
        })
        .await
    }
}

#[tokio::test]
async fn a_receiver_is_added_tested_rotated_disabled_and_removed_and_each_change_is_recorded() {
    let cluster = Cluster::builder()
        .broker_env("DUO_WEBHOOK_SCHEDULE", "200ms,200ms")
        .start()
        .await;
    let admin = Admin::new(&cluster).await;
    let receiver = Receiver::start().await;
    assert_eq!(admin.get("").await, json!({"webhooks": []}));
    let new = json!({"name": "ci", "url": receiver.url(), "addresses": ["127.0.0.0/8", "::1"]});
    let added = admin.post("", &new).await;
    assert_eq!(added.status, StatusCode::CREATED, "{added}");
    let first = added.json()["secret"].as_str().expect("a secret").to_owned();
    assert!(first.starts_with("whsec_"), "{first}");
    let shown = admin.get("/ci").await;
    assert_eq!(shown["addresses"], json!(["127.0.0.0/8", "::1/128"]));
    assert_eq!((&shown["enabled"], shown.get("secret")), (&json!(true), None));
    assert_eq!(admin.get("").await["webhooks"], json!([shown]));
    assert_eq!(admin.post("", &new).await.status, StatusCode::CONFLICT);

    // What is sent at once, by the broker that was asked, is signed.
    let queued = admin.post("/ci/test", &json!({})).await;
    assert_eq!(queued.status, StatusCode::ACCEPTED, "{queued}");
    let delivered = admin.newest("delivered").await;
    assert_eq!(
        (&delivered["id"], &delivered["event"]),
        (&queued.json()["id"], &json!("webhook.test"))
    );
    assert_eq!(delivered["attempts"][0]["status"], 200);
    let requests = receiver.requests();
    assert_eq!(
        (requests.len(), json!(requests[0].0)),
        (1, delivered["id"].clone())
    );
    assert!(requests[0].1.starts_with("v1,") && !requests[0].1.contains(' '));

    let rotated = admin
        .post("/ci/secret", &json!({"overlap": "1h"}))
        .await
        .good()
        .json();
    let second = rotated["secret"].as_str().expect("a secret").to_owned();
    assert_ne!(second, first);
    assert!(rotated["old_valid_until"].is_string());
    assert_eq!(
        admin.get("/ci").await["secrets"].as_array().map(Vec::len),
        Some(2)
    );
    let id = delivered["id"].as_str().expect("an id");
    let replayed = admin
        .post(&format!("/ci/deliveries/{id}/replay"), &json!({}))
        .await;
    assert_eq!(replayed.status, StatusCode::ACCEPTED, "{replayed}");
    let requests = receiver.requested(2).await;
    assert_eq!(requests[1].0, requests[0].0);
    assert_eq!(requests[1].1.split(' ').count(), 2, "{requests:?}");

    let disabled = admin
        .ask(Method::PUT, "/ci", Some(&json!({"enabled": false})))
        .await
        .good();
    assert_eq!(disabled.json()["disabled_reason"], "administrator");
    assert_eq!(
        admin.post("/ci/test", &json!({})).await.status,
        StatusCode::CONFLICT
    );
    let enabled = json!({"enabled": true, "addresses": ["127.0.0.1"]});
    let enabled = admin.ask(Method::PUT, "/ci", Some(&enabled)).await.good().json();
    assert_eq!(
        (&enabled["enabled"], &enabled["addresses"]),
        (&json!(true), &json!(["127.0.0.1/32"]))
    );
    assert_eq!(
        admin.ask(Method::DELETE, "/ci", None).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        admin.ask(Method::DELETE, "/ci", None).await.status,
        StatusCode::NOT_FOUND
    );

    let sql =
        "SELECT what, actor, coalesce(before::text, '') || coalesce(after::text, '') FROM change_records
               WHERE what LIKE 'webhook.%' ORDER BY id";
    let rows: Vec<(String, String, String)> = sqlx::query_as(sql)
        .fetch_all(cluster.database.pool())
        .await
        .expect("Postgres is there");
    let whats: Vec<&str> = rows.iter().map(|(what, ..)| what.as_str()).collect();
    let expected = ["add", "test", "rotate", "replay", "put", "put", "remove"];
    assert_eq!(whats, expected.map(|what| format!("webhook.{what}")));
    for (what, actor, text) in &rows {
        assert!(actor.starts_with("token:"), "{what} by {actor}");
        assert!(
            !text.contains(&first) && !text.contains(&second),
            "{what} has a secret"
        );
    }
    let metrics = cluster.metrics().await.expect("metrics");
    assert!(
        metrics.contains("duo_webhook_deliveries_total{result=\"delivered\"} 2"),
        "{metrics}"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_receiver_is_named_and_changes_nothing() {
    let cluster = Cluster::start().await;
    let admin = Admin::new(&cluster).await;
    let fields = |answer: &Answer| {
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
        let problems = answer.json()["problems"].clone();
        let problems = problems.as_array().expect("problems").iter();
        let mut fields: Vec<_> = problems.map(|problem| problem["field"].to_string()).collect();
        fields.sort();
        fields.join(" ")
    };
    let bad = json!({"name": "c i", "url": "ftp://x", "addresses": ["10.1.2.3/8"], "secret": "mine"});
    assert_eq!(
        fields(&admin.post("", &bad).await),
        r#""addresses[0]" "name" "secret" "url""#
    );
    for url in [
        "http://127.0.0.1:1/",
        "http://[::1]/",
        "http://169.254.169.254/latest",
        "http://2130706433/",
    ] {
        let new = json!({"name": "ci", "url": url});
        assert_eq!(fields(&admin.post("", &new).await), r#""url""#, "{url}");
    }
    let unreadable = admin.ask(Method::POST, "", None).await;
    assert_eq!(unreadable.status, StatusCode::BAD_REQUEST, "{unreadable}");
    assert_eq!(admin.get("").await, json!({"webhooks": []}));

    let new = json!({"name": "ci", "url": "https://ci.example.com/"});
    assert_eq!(admin.post("", &new).await.status, StatusCode::CREATED);
    let literal = admin
        .ask(Method::PUT, "/ci", Some(&json!({"url": "http://10.0.0.1/"})))
        .await;
    assert_eq!(literal.status, StatusCode::CONFLICT, "{literal}");
    assert_eq!(
        fields(&admin.post("/ci/secret", &json!({"overlap": "31d"})).await),
        r#""overlap""#
    );
    for query in ["limit=0", "limit=1001", "state=lost", "cursor=%00", "since=now"] {
        let answer = admin
            .ask(Method::GET, &format!("/ci/deliveries?{query}"), None)
            .await;
        assert_eq!(
            answer.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{query}: {answer}"
        );
    }
    for (method, path) in [
        (Method::GET, "/none"),
        (Method::GET, "/n%00ne"),
        (Method::GET, "/none/deliveries"),
        (Method::POST, "/none/test"),
        (Method::POST, "/none/secret"),
        (Method::POST, "/ci/deliveries/msg_1/replay"),
    ] {
        let answer = admin.ask(method, path, None).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {answer}");
    }
    let stranger = cluster.call(Method::GET, "/admin/v1/webhooks");
    let stranger = stranger.token(&cluster.client_token).send().await;
    assert_eq!(stranger.status, StatusCode::FORBIDDEN);
    cluster.assert_clean().await;
}

#[tokio::test]
async fn the_command_line_does_without_a_broker_and_brokers_follow() {
    let cluster = Cluster::builder()
        .broker_env("DUO_WEBHOOK_SCHEDULE", "200ms")
        .start()
        .await;
    let receiver = Receiver::start().await;
    let url = receiver.url();
    let cli = &cluster.cli;
    let (fine, _, told) = cli.run(&["webhooks", "add", "ci", "http://127.0.0.1/"]).await;
    assert!(!fine && told.contains("addresses"), "{told}");
    let network = ["--address", "127.0.0.0/8", "--address", "::1", "--actor", "jo"];
    let add = [&["webhooks", "add", "ci", &url][..], &network].concat();
    let secret = cli.succeed(&add).await;
    assert!(
        secret.starts_with("whsec_") && secret.trim().lines().count() == 1,
        "{secret}"
    );
    let listed = cli.succeed(&["webhooks", "list"]).await;
    assert!(
        listed.contains("ci") && listed.contains("enabled") && listed.contains(&url),
        "{listed}"
    );
    assert!(!listed.contains("whsec_"));
    let rotated = cli
        .succeed(&["webhooks", "rotate", "ci", "--overlap", "1h"])
        .await;
    assert!(rotated.starts_with("whsec_") && rotated != secret);
    // Written for a job that ended, as the broker writes it.
    let sql = "INSERT INTO webhook_deliveries (id, receiver, job_id, event, occurred_at, state)
               SELECT 'msg_00000000000000000000000000000001', id, gen_random_uuid(), 'job.failed', now(), 'pending'
               FROM webhook_receivers WHERE name = 'ci'";
    sqlx::query(sql)
        .execute(cluster.database.pool())
        .await
        .expect("Postgres is there");
    let id = &receiver.requested(1).await[0].0;
    let listed = until("it is delivered", PATIENCE, async || {
        let listed = cli
            .succeed(&["webhooks", "deliveries", "ci", "--format", "json"])
            .await;
        let page: Value = serde_json::from_str(&listed).expect("JSON");
        match page["deliveries"][0]["state"].as_str() {
            Some("delivered") => Ok(page),
            _ => Err(listed),
        }
    })
    .await;
    assert_eq!(listed["deliveries"][0]["id"], json!(id));
    let table = cli
        .succeed(&["webhooks", "deliveries", "ci", "--state", "delivered"])
        .await;
    assert!(
        table.contains("job.failed") && table.contains("delivered 200"),
        "{table}"
    );
    cli.succeed(&["webhooks", "replay", id]).await;
    assert_eq!(receiver.requested(2).await[1].0, *id);
    cli.succeed(&["webhooks", "enable", "ci"]).await;
    cli.succeed(&["webhooks", "remove", "ci"]).await;
    let (fine, _, told) = cli.run(&["webhooks", "deliveries", "ci"]).await;
    assert!(!fine && told.contains("no receiver"), "{told}");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_killed_brokers_delivery_is_made_by_another() {
    let mut cluster = Cluster::builder()
        .brokers(2)
        .broker_env("DUO_WEBHOOK_TIMEOUT", TIMEOUT)
        .start()
        .await;
    let receiver = Receiver::start().await;
    receiver.hold(true);
    let network = ["--address", "127.0.0.0/8", "--address", "::1"];
    let url = receiver.url();
    let add = [&["webhooks", "add", "ci", &url][..], &network].concat();
    cluster.cli.succeed(&add).await;
    let sql = "INSERT INTO webhook_deliveries (id, receiver, job_id, event, occurred_at, state)
               SELECT 'msg_00000000000000000000000000000001', id, gen_random_uuid(), 'job.failed', now(), 'pending'
               FROM webhook_receivers WHERE name = 'ci'";
    sqlx::query(sql)
        .execute(cluster.database.pool())
        .await
        .expect("Postgres is there");
    receiver.requested(1).await;
    let owner: String = sqlx::query_scalar("SELECT leased_by FROM webhook_deliveries")
        .fetch_one(cluster.database.pool())
        .await
        .expect("a broker has it");
    let number = usize::from(owner.starts_with("b2-"));
    assert!(number == 1 || owner.starts_with("b1-"), "{owner}");
    cluster.broker_at(number).kill().await;
    receiver.hold(false);
    let (state, attempts, other) = until("it is delivered", PATIENCE, async || {
        let sql = "SELECT state, attempt, (SELECT broker FROM webhook_attempts) FROM webhook_deliveries";
        let row: (String, i32, Option<String>) = sqlx::query_as(sql)
            .fetch_one(cluster.database.pool())
            .await
            .map_err(|error| error.to_string())?;
        if row.0 == "delivered" {
            Ok(row)
        } else {
            Err(format!("{row:?}"))
        }
    })
    .await;
    assert_eq!((state.as_str(), attempts), ("delivered", 1));
    assert_ne!(other.as_deref(), Some(owner.as_str()));
    let requests = receiver.requests();
    assert_eq!((requests.len(), &requests[0].0), (2, &requests[1].0));
    cluster.broker_at(number).again();
    cluster.ready(Duration::from_secs(30)).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn the_end_of_a_job_is_told_to_its_receiver() {
    let cluster = Cluster::builder().start().await;
    let admin = Admin::new(&cluster).await;
    let receiver = Receiver::start().await;
    let new = json!({"name": "ci", "url": receiver.url(), "addresses": ["127.0.0.0/8", "::1"]});
    assert_eq!(admin.post("", &new).await.status, StatusCode::CREATED);
    let submit = async |callback: &str| {
        let body = json!({
            "feature": "openai_chat", "model": "mistral", "input": "tell me", "max_output_tokens": 3,
            "callback": callback,
        });
        let url = format!("{}/v1/jobs", cluster.url());
        let call = Call::new(&admin.http, Method::POST, &url).token(&cluster.client_token);
        call.json(&body).send().await
    };
    let refused = submit("nobody").await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    assert_eq!(refused.json()["problems"][0]["field"], "callback");
    for callback in ["ci", &receiver.url()] {
        let accepted = submit(callback).await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED, "{accepted}");
        let id = accepted.json()["id"].clone();
        let told = until("the receiver was told", PATIENCE, async || {
            let newest = admin.get("/ci/deliveries?limit=1").await["deliveries"][0].clone();
            if newest["job_id"] == id && newest["state"] == "delivered" {
                Ok(newest)
            } else {
                Err(newest.to_string())
            }
        })
        .await;
        assert_eq!(told["event"], "job.succeeded");
    }
    assert_eq!(receiver.requests().len(), 2);
    cluster.assert_clean().await;
}
