//! The stand-in instance and the set-up that the tests share.

mod api_tokens;
mod direct;
mod gitlab;
mod keys;

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use axum::Router;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use duo_contract::snapshot::{ApiToken, IdentitySnapshot, Issuer};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::identity::{IdentitySink, identities};

/// When the tests take place, seconds since the epoch.
const NOW: u64 = 1_760_000_000;
const INSTANCE: &str = "5f0d3a52-7c0e-4b8e-9f6e-0f5f2b1f7a10";
const PERSON: &str = "o3Hdj1zXq0kR";
const AUDIENCE: &str = "gitlab-ai-gateway";

/// Three RSA keys, made once.
static KEYS: LazyLock<[KeyPair; 3]> =
    LazyLock::new(|| [(); 3].map(|()| KeyPair::generate(KeySize::Rsa2048).unwrap()));

/// What to answer on each path.
type Answers = HashMap<&'static str, (StatusCode, String)>;

/// A GitLab instance as far as discovery goes.
struct Instance {
    url: String,
    /// Nothing while it hangs.
    answers: watch::Sender<Option<Answers>>,
    /// Discoveries begun.
    discoveries: watch::Sender<usize>,
    server: JoinHandle<()>,
}

impl Instance {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (answers, _) = watch::channel(None::<Answers>);
        let (discoveries, _) = watch::channel(0);
        let (served, counted) = (answers.clone(), discoveries.clone());
        let answer = move |uri: http::Uri| {
            let (served, counted) = (served.clone(), counted.clone());
            async move {
                if uri.path().contains("well-known") {
                    counted.send_modify(|count| *count += 1);
                }
                let mut served = served.subscribe();
                let answers = served.wait_for(Option::is_some).await.unwrap();
                let answer = answers.as_ref().and_then(|answers| answers.get(uri.path()));
                answer.cloned().unwrap_or((StatusCode::NOT_FOUND, String::new()))
            }
        };
        let router = Router::new().fallback(get(answer));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let instance = Self {
            url,
            answers,
            discoveries,
            server,
        };
        instance.publish(&[jwk(0, "first")]);
        instance
    }

    fn publish(&self, keys: &[Value]) {
        let discovery = json!({"issuer": self.url, "jwks_uri": format!("{}/keys", self.url)});
        self.answer([
            (
                "/.well-known/openid-configuration",
                (StatusCode::OK, discovery.to_string()),
            ),
            ("/keys", (StatusCode::OK, json!({"keys": keys}).to_string())),
        ]);
    }

    fn answer<const N: usize>(&self, answers: [(&'static str, (StatusCode, String)); N]) {
        self.answers.send_replace(Some(HashMap::from(answers)));
    }

    fn hang(&self) {
        self.answers.send_replace(None);
    }

    async fn stop(self) {
        self.server.abort();
        assert!(self.server.await.unwrap_err().is_cancelled());
    }

    fn fetches(&self) -> usize {
        *self.discoveries.borrow()
    }

    fn issuer(&self) -> Issuer {
        Issuer {
            url: self.url.clone(),
            audience: AUDIENCE.into(),
            openai: true,
        }
    }

    fn claims(&self) -> Value {
        json!({
            "iss": self.url, "sub": INSTANCE, "aud": [AUDIENCE, "other"], "iat": NOW, "nbf": NOW,
            "exp": NOW + 3600, "jti": "token-1", "gitlab_realm": "self-managed",
            "scopes": ["complete_code", "duo_chat"],
        })
    }
}

/// An authenticator, its identities and its clock.
struct Setup {
    auth: Authenticator,
    sink: IdentitySink,
    clock_ms: Arc<AtomicU64>,
    registry: Registry,
}

impl Setup {
    fn new(issuers: &[Issuer], tokens: &[ApiToken], config: AuthConfig) -> Self {
        install_crypto();
        let (sink, identities) = identities();
        let clock_ms = Arc::new(AtomicU64::new(NOW * 1000));
        let clock = Arc::clone(&clock_ms);
        let registry = Registry::new();
        let setup = Self {
            auth: Authenticator::with_clock(
                identities,
                config,
                reqwest::Client::new(),
                AuthMetrics::new(&registry),
                Box::new(move || clock.load(Ordering::Relaxed)),
            ),
            sink,
            clock_ms,
            registry,
        };
        setup.configure(issuers, tokens);
        setup
    }

    fn of(instance: &Instance) -> Self {
        Self::new(&[instance.issuer()], &[], AuthConfig::default())
    }

    fn configure(&self, issuers: &[Issuer], tokens: &[ApiToken]) {
        self.sink.store(IdentitySnapshot {
            revision: 1,
            tokens: tokens.to_vec(),
            issuers: issuers.to_vec(),
        });
    }

    fn set_clock_ms(&self, now_ms: u64) {
        self.clock_ms.store(now_ms, Ordering::Relaxed);
    }

    async fn check(&self, headers: &HeaderMap) -> Result<Caller, AuthError> {
        self.auth.authenticate(headers, None).await
    }

    async fn check_claims(&self, claims: &Value) -> Result<Caller, AuthError> {
        self.check(&headers(&signed(0, claims))).await
    }
}

fn jwk(key: usize, kid: &str) -> Value {
    let public = KEYS[key].public_key();
    json!({
        "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid,
        "n": URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
        "e": URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero()),
    })
}

fn signed(key: usize, claims: &Value) -> String {
    signed_under(key, &json!({"alg": "RS256", "typ": "JWT"}), claims)
}

fn signed_under(key: usize, header: &Value, claims: &Value) -> String {
    let signed = unsigned(header, claims);
    let mut signature = vec![0; KEYS[key].public_modulus_len()];
    KEYS[key]
        .sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            signed.as_bytes(),
            &mut signature,
        )
        .unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}", encode(header), encode(claims))
}

/// What Rails sends with `token`.
fn headers(token: &str) -> HeaderMap {
    let mut headers = bearer(token);
    set(&mut headers, "x-gitlab-authentication-type", "oidc");
    set(&mut headers, "x-gitlab-realm", "self-managed");
    set(&mut headers, "x-gitlab-instance-id", INSTANCE);
    set(&mut headers, "x-gitlab-global-user-id", PERSON);
    headers
}

fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    set(&mut headers, "authorization", &format!("Bearer {token}"));
    headers
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    headers.insert(
        HeaderName::from_static(name),
        HeaderValue::from_bytes(value.as_bytes()).unwrap(),
    );
}

fn forbidden(why: Forbidden) -> AuthError {
    AuthError::Forbidden(why)
}
