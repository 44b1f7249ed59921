//! A whole broker in this process, without Postgres and sockets to clients: requests go into its router, and a
//! stand-in for NATS plays the worker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use duo_broker::admission::{Admission, Asker};
use duo_broker::api::{self, ApiState};
use duo_broker::audit::{AuditLog, sink};
use duo_broker::auth::{self, AuthConfig, Authenticator};
use duo_broker::config::QueueConfig;
use duo_broker::dispatch::inflight::{InFlight, Rules, Task};
use duo_broker::dispatch::storing::Storing;
use duo_broker::dispatch::{Dispatch, Parts, bundles, chores, supersede};
use duo_broker::exchange::Exchange;
use duo_broker::fleet::Fleet;
use duo_broker::identity;
use duo_broker::metrics::Metrics;
use duo_broker::prompt::Prompts;
use duo_broker::request::{RoutedRequest, Work};
use duo_broker::routing;
use duo_contract::audit::Who;
use duo_contract::bundle::{self, Entry, Kind};
use duo_contract::claim::{ClaimReply, ClaimRequest};
use duo_contract::envelope::{Endpoint, RequestEnvelope};
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame};
use duo_contract::name::{FeatureName, Lane, ModelName};
use duo_contract::presence::{BreakerState, Presence, ServedModel};
use duo_contract::snapshot::{
    ApiToken, BodyPolicy, ConfigSnapshot, Feature, IdentitySnapshot, Issuer, Model, Role, Support,
    SupportLevel,
};
use duo_contract::subject;
use duo_process::nats::{Nats, NatsConfig};
use duo_process::shutdown::Shutdown;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use prometheus::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tower::ServiceExt as _;
use uuid::Uuid;

use crate::inputs;
use crate::nats::{self, Message};

const BROKER: &str = "b";
const WORKER: &str = "w";
const SECRET: &str = "duo_a_client_of_the_instruction_counts";
/// A key set and a token that one of its keys signed; the private key is gone.
const GITLAB: &str = include_str!("../gitlab.json");
const ISSUER: &str = "http://gitlab.example";
const INSTANCE: &str = "5f0d3a52-7c0e-4b8e-9f6e-0f5f2b1f7a10";
/// Where the stand-in wants the answers to its claims and last frames.
const CLAIMED: &str = "stand.claimed";
const CONFIRMED: &str = "stand.confirmed";

/// Who asks, of which endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// `POST /v1/chat/completions` with an API token.
    Chat { stream: bool },
    /// `POST /v2/code/completions` with a GitLab token.
    Completion,
}

/// A broker with all its parts.
pub(crate) struct Broker {
    router: Router,
    fleet: Fleet,
    authenticator: Authenticator,
    admission: Admission,
    audit: AuditLog,
    revision: u64,
}

impl Broker {
    /// A broker whose requests are answered with `frames`.
    pub(crate) async fn start(frames: Vec<FrameKind>) -> anyhow::Result<Self> {
        auth::install_crypto();
        let (url, commands) = nats::start(Worker::new(frames)).await?;
        // Nothing is told to it, and without a sender it would end.
        std::mem::forget(commands);
        let config = NatsConfig {
            url,
            name: "broker".into(),
            inbox_prefix: "_INBOX.broker".into(),
            credentials_file: None,
            ca_file: None,
        };
        let nats = Nats::connect(&config).await?;
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let (shutdown, closing) = (Shutdown::new(), Shutdown::new());
        let stores = Storing::new(None);
        let outlets = (nats.clone(), metrics.clone(), stores.clone());
        let (audit_sink, task) = sink::sink(outlets, shutdown, closing.clone());
        tokio::spawn(task);
        let audit = AuditLog::new(BROKER, audit_sink.clone(), metrics.clone());
        let fleet = Fleet::new(Duration::from_secs(3600));
        let admission = Admission::new(fleet.clone());
        let (dispatch, chore_queue, letters) = Dispatch::new(Parts {
            broker: BROKER.into(),
            nats: nats.clone(),
            keys: inputs::keys(),
            queue: queue(),
            admission: admission.clone(),
            metrics,
            queue_stores: stores.clone(),
            audit_stores: stores,
        });
        std::mem::forget(letters);
        tokio::spawn(chores::run(chore_queue, nats, closing));
        tokio::spawn(bundles::run(
            dispatch.clone(),
            bundles::subscribe(&dispatch).await?,
        ));
        tokio::spawn(supersede::run(
            dispatch.clone(),
            supersede::subscribe(&dispatch).await?,
        ));

        let (routes, routing) = routing::routing();
        routes.store(configuration());
        let (identity_sink, identities) = identity::identities();
        identity_sink.store(identities_of_callers());
        let authenticator = Authenticator::new(identities, AuthConfig::default(), gitlab().await?, &registry);
        let state = ApiState {
            exchange: Exchange::new(routing, admission.clone(), audit.clone(), dispatch),
            authenticator: authenticator.clone(),
            prompts: Prompts::builtin(),
            audit: audit.clone(),
            documentation: None,
            bulk: None,
            jobs: None,
            readiness: Arc::new(|| true),
        };
        let mut broker = Self {
            router: api::router(Arc::new(state), None, None),
            fleet,
            authenticator,
            admission,
            audit,
            revision: 0,
        };
        broker.freshen();
        Ok(broker)
    }

    /// The worker is there as of now.
    pub(crate) fn freshen(&mut self) {
        self.revision += 1;
        let served = ServedModel {
            model: model().name,
            server: "gpu0".into(),
            slots: 64,
            in_flight: 0,
            breaker: BreakerState::Passing,
            tools: false,
        };
        let presence = Presence {
            worker: WORKER.into(),
            version: "1".into(),
            started_at_ms: 0,
            draining: false,
            models: vec![served],
        };
        self.fleet.put(presence, self.revision);
    }

    /// One request with its whole answer; the answer's length.
    pub(crate) async fn ask(&self, ask: Ask) -> usize {
        let (path, body, headers) = match ask {
            Ask::Chat { stream: false } => ("/v1/chat/completions", inputs::CHAT, client_headers()),
            Ask::Chat { stream: true } => ("/v1/chat/completions", inputs::CHAT_STREAM, client_headers()),
            Ask::Completion => ("/v2/code/completions", inputs::COMPLETION, gitlab_headers()),
        };
        let mut request = Request::post(path).body(Body::from(body)).expect("a request");
        *request.headers_mut() = headers;
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let status = response.status();
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        body.len()
    }

    /// Who a GitLab token belongs to, when the token is known.
    pub(crate) async fn authenticate(&self) -> usize {
        let caller = self.authenticator.authenticate(&gitlab_headers(), None).await;
        caller.expect("known").share_key.len()
    }

    /// The decision to take a request, and its end.
    pub(crate) fn admit(&self) {
        let (model, feature) = (model(), feature("openai_chat", Lane::Interactive, None));
        let asker = Asker {
            key: "k",
            limit: 8,
            replaces: false,
        };
        self.admission.check(asker, &feature, &model.name).expect("room");
        let now = Instant::now();
        let mut place = self.admission.admit(asker, &feature, &model.name).expect("room");
        place.stored();
        place.claimed(now);
        place.served(now);
    }

    /// One request's turns without I/O: stored, claimed, frames, its end.
    pub(crate) fn turns(&self, frames: &[FrameKind]) {
        let (model, feature) = (model(), feature("openai_chat", Lane::Interactive, None));
        let asker = Asker {
            key: "k",
            limit: 8,
            replaces: false,
        };
        let place = self.admission.admit(asker, &feature, &model.name).expect("room");
        let now = Instant::now();
        let record = self
            .audit
            .open(Who::default(), "/v1/chat/completions", None, None);
        let request_id = record.request_id();
        let work = Work {
            endpoint: Endpoint::ChatCompletions,
            body: Bytes::from_static(b"{}"),
            stream: true,
            prompt: None,
            supersede_key: None,
        };
        let routed = RoutedRequest {
            feature,
            model,
            revision: 1,
        };
        let rules = Rules {
            lease: queue().lease,
            max_attempts: queue().max_attempts,
        };
        let inflight = InFlight::new(Task { record, routed, work }, rules, place, now, now);
        drop(inflight.stored(1, 1, now));
        let (answer, _) = inflight.claim(&inputs::claim(request_id), now);
        assert_eq!(answer, ClaimReply::Proceed { attempt: 1 });
        for (number, kind) in (0..).zip(frames) {
            let frame = ReplyFrame {
                attempt: 1,
                number,
                kind: kind.clone(),
            };
            let (answer, _) = inflight.frame(frame, None, now);
            assert_eq!(answer, FrameAnswer::Confirmed);
        }
    }
}

fn queue() -> QueueConfig {
    QueueConfig {
        lease: Duration::from_secs(5),
        max_attempts: 3,
        replicas: 1,
        live_max_messages: 100_000,
        live_max_bytes: 1 << 30,
        audit_max_bytes: 1 << 30,
    }
}

fn model() -> Model {
    Model {
        name: ModelName::parse("mistral").expect("a name"),
        family: "mistral_7b".into(),
        context_tokens: 32_768,
        max_output_tokens: 4096,
    }
}

fn feature(name: &str, lane: Lane, model: Option<ModelName>) -> Feature {
    Feature {
        name: FeatureName::parse(name).expect("a name"),
        active: true,
        model,
        lane,
        first_byte_within_ms: 600_000,
        end_within_ms: 600_000,
        bodies: BodyPolicy::None,
    }
}

fn configuration() -> ConfigSnapshot {
    let model = model();
    let completion = feature("code_completion", Lane::Keystroke, Some(model.name.clone()));
    let support = Support {
        feature: completion.name.clone(),
        family: model.family.clone(),
        level: SupportLevel::Supported,
    };
    ConfigSnapshot {
        revision: 1,
        models: vec![model],
        features: vec![feature("openai_chat", Lane::Interactive, None), completion],
        support_levels: vec![support],
        prompts: Vec::new(),
    }
}

fn identities_of_callers() -> IdentitySnapshot {
    let token = ApiToken {
        id: Uuid::from_u128(7),
        name: "instructions".into(),
        sha256: hex::encode(digest(&SHA256, SECRET.as_bytes())),
        role: Role::Client,
        expires_at_ms: None,
        features: None,
        models: None,
        limit: 64,
    };
    let issuer = Issuer {
        url: ISSUER.into(),
        audience: "gitlab-ai-gateway".into(),
        openai: false,
    };
    IdentitySnapshot {
        revision: 1,
        tokens: vec![token],
        issuers: vec![issuer],
    }
}

fn client_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    let bearer = HeaderValue::try_from(format!("Bearer {SECRET}")).expect("text");
    headers.insert(header::AUTHORIZATION, bearer);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("openai/2.0"));
    headers
}

fn gitlab_headers() -> HeaderMap {
    static TOKEN: std::sync::LazyLock<HeaderValue> = std::sync::LazyLock::new(|| {
        let file: serde_json::Value = serde_json::from_str(GITLAB).expect("the file is JSON");
        let token = file["token"].as_str().expect("a token");
        HeaderValue::try_from(format!("Bearer {token}")).expect("text")
    });
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, TOKEN.clone());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [
        ("x-gitlab-authentication-type", "oidc"),
        ("x-gitlab-realm", "self-managed"),
        ("x-gitlab-instance-id", INSTANCE),
        ("x-gitlab-global-user-id", "o3Hdj1zXq0kR"),
        ("x-gitlab-version", "18.5.0"),
        ("x-gitlab-client-type", "ide"),
        ("x-gitlab-client-name", "vscode"),
        ("x-gitlab-client-version", "6.40.0"),
        ("x-request-id", "01K8ZC3MZ0Q4N8V2M6Y1T0R5AB"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
}

/// A client that finds the instance, and only that, wherever it asks.
async fn gitlab() -> anyhow::Result<reqwest::Client> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = reqwest::Proxy::http(format!("http://{}", listener.local_addr()?))?;
    let file: serde_json::Value = serde_json::from_str(GITLAB)?;
    let discovery =
        serde_json::json!({"issuer": ISSUER, "jwks_uri": format!("{ISSUER}/oauth/discovery/keys")});
    let (discovery, keys) = (discovery.to_string(), file["keys"].to_string());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.unwrap_or(0);
            let asks = String::from_utf8_lossy(&request[..count]).into_owned();
            let body = if asks.contains("well-known") {
                &discovery
            } else {
                &keys
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            // Whoever has gone will ask again.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Ok(reqwest::Client::builder().proxy(proxy).build()?)
}

/// NATS and a worker behind it: stores at once, claims at once, answers each request with the same frames.
struct Worker {
    frames: Vec<FrameKind>,
    sequence: u64,
    claiming: VecDeque<Uuid>,
}

impl Worker {
    fn new(frames: Vec<FrameKind>) -> Self {
        Self {
            frames,
            sequence: 0,
            claiming: VecDeque::new(),
        }
    }

    fn store(&mut self, message: &Message, out: &mut Vec<Message>) {
        self.sequence += 1;
        out.push(Message {
            subject: message
                .reply
                .clone()
                .expect("publications into a stream want an answer"),
            payload: format!("{{\"stream\":\"S\",\"seq\":{}}}", self.sequence).into(),
            ..Message::default()
        });
    }

    fn answer(&mut self, request: Uuid, out: &mut Vec<Message>) {
        for (number, kind) in (0..).zip(&self.frames) {
            let frame = ReplyFrame {
                attempt: 1,
                number,
                kind: kind.clone(),
            };
            let asks = frame.is_last().then_some(CONFIRMED);
            out.push(said(Kind::Frame, request, frame.encode(), asks));
        }
    }
}

/// What a worker says in a message of its own.
fn said(kind: Kind, request_id: Uuid, payload: Bytes, asks: Option<&str>) -> Message {
    let entry = Entry {
        kind,
        token: u32::from(asks.is_some()),
        request_id,
        payload,
    };
    Message {
        subject: subject::bundles(BROKER),
        reply: asks.map(str::to_owned),
        payload: bundle::encode(&[entry]),
        ..Message::default()
    }
}

impl nats::Role for Worker {
    type Command = ();

    fn published(&mut self, message: Message, out: &mut Vec<Message>) {
        if message.subject.starts_with("duo.requests.") {
            self.store(&message, out);
            let head = RequestEnvelope::decode_head(&message.payload).expect("an envelope");
            self.claiming.push_back(head.request_id);
            let claim = ClaimRequest {
                stream_sequence: self.sequence,
                ..inputs::claim(head.request_id)
            };
            out.push(said(Kind::Claim, head.request_id, claim.encode(), Some(CLAIMED)));
        } else if message.subject == subject::AUDIT_RECORDS {
            self.store(&message, out);
        } else if message.subject == CLAIMED {
            let request = self.claiming.pop_front().expect("claimed");
            self.answer(request, out);
        } else if message.subject.starts_with("duo.superseded.") {
            out.push(message);
        } else if message.subject == CONFIRMED {
            let answers = bundle::decode_answers(&message.payload).expect("answers");
            let answer = FrameAnswer::decode(&answers[0].payload).expect("an answer");
            assert_eq!(answer, FrameAnswer::Confirmed);
        }
    }

    fn told(&mut self, (): (), _: &mut Vec<Message>) {}
}
