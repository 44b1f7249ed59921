//! Tokens, good ones and every kind of bad one.

use std::io;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::keys::SigningKey;
use super::scopes::ALL_SCOPES;

/// How a token is signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signature {
    /// With the instance's key, as Rails does.
    #[default]
    Instance,
    /// With a key nobody published, under the instance's key id.
    Stranger,
    /// `alg: HS256`, the published modulus being the secret: the classic confusion of algorithms.
    Hs256,
    /// `alg: none`, without any signature.
    None,
}

/// What a token says. The default is the one Rails would present now: all scopes, one hour.
#[derive(Clone, Debug)]
pub struct TokenSpec {
    scopes: Vec<String>,
    ttl: Duration,
    not_before: Duration,
    audience: Vec<String>,
    realm: Option<String>,
    subject: Option<String>,
    issuer: Option<String>,
    kid: Option<String>,
    signature: Signature,
    extra: Map<String, Value>,
}

impl Default for TokenSpec {
    fn default() -> Self {
        Self {
            scopes: ALL_SCOPES.iter().map(|scope| (*scope).to_owned()).collect(),
            ttl: Duration::hours(1),
            not_before: Duration::ZERO,
            audience: vec!["gitlab-ai-gateway".to_owned()],
            realm: Some("self-managed".to_owned()),
            subject: None,
            issuer: None,
            kid: None,
            signature: Signature::Instance,
            extra: Map::new(),
        }
    }
}

impl TokenSpec {
    /// With these scopes only.
    pub fn scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.scopes = scopes.into_iter().map(Into::into).collect();
        self
    }

    /// Valid for so long from now; negative for one that has expired.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Valid only from so long after now; negative for earlier.
    pub fn not_before(mut self, skew: Duration) -> Self {
        self.not_before = skew;
        self
    }

    /// For these services.
    pub fn audience<S: Into<String>>(mut self, audience: impl IntoIterator<Item = S>) -> Self {
        self.audience = audience.into_iter().map(Into::into).collect();
        self
    }

    /// From this realm, or without the claim.
    pub fn realm(mut self, realm: Option<&str>) -> Self {
        self.realm = realm.map(str::to_owned);
        self
    }

    /// About another instance than the one that signs.
    pub fn subject(mut self, subject: &str) -> Self {
        self.subject = Some(subject.to_owned());
        self
    }

    /// Naming another issuer.
    pub fn issuer(mut self, issuer: &str) -> Self {
        self.issuer = Some(issuer.to_owned());
        self
    }

    /// Naming another key in the header; an empty name leaves it out.
    pub fn kid(mut self, kid: &str) -> Self {
        self.kid = Some(kid.to_owned());
        self
    }

    /// Signed in another way.
    pub fn signature(mut self, signature: Signature) -> Self {
        self.signature = signature;
        self
    }

    /// With one more claim, or another value of one.
    pub fn claim(mut self, name: &str, value: Value) -> Self {
        self.extra.insert(name.to_owned(), value);
        self
    }

    /// Signs the token with `key` in the name of an instance.
    ///
    /// # Errors
    /// The key cannot sign, or another one cannot be made.
    pub fn mint(&self, key: &SigningKey, issuer: &str, instance_id: &str) -> io::Result<String> {
        let header = self.header(key);
        let claims = self.claims(issuer, instance_id);
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = match self.signature {
            Signature::Instance => key.sign(message.as_bytes())?,
            Signature::Stranger => SigningKey::generate()?.sign(message.as_bytes())?,
            Signature::Hs256 => {
                let secret = hmac::Key::new(hmac::HMAC_SHA256, key.modulus().as_bytes());
                hmac::sign(&secret, message.as_bytes()).as_ref().to_vec()
            }
            Signature::None => Vec::new(),
        };
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn header(&self, key: &SigningKey) -> Value {
        let algorithm = match self.signature {
            Signature::Instance | Signature::Stranger => "RS256",
            Signature::Hs256 => "HS256",
            Signature::None => "none",
        };
        let kid = self.kid.as_deref().unwrap_or(key.kid());
        let mut header = json!({"typ": "JWT", "alg": algorithm});
        if !kid.is_empty() {
            header["kid"] = Value::from(kid);
        }
        header
    }

    fn claims(&self, issuer: &str, instance_id: &str) -> Value {
        let now = OffsetDateTime::now_utc();
        let mut claims = json!({
            "iss": self.issuer.as_deref().unwrap_or(issuer),
            "sub": self.subject.as_deref().unwrap_or(instance_id),
            "aud": self.audience,
            "iat": now.unix_timestamp(),
            "nbf": (now + self.not_before).unix_timestamp(),
            "exp": (now + self.ttl).unix_timestamp(),
            "jti": Uuid::new_v4(),
            "scopes": self.scopes,
            "skip_usage_cutoff": false,
        });
        if let Some(realm) = &self.realm {
            claims["gitlab_realm"] = Value::from(realm.as_str());
        }
        for (name, value) in &self.extra {
            claims[name] = value.clone();
        }
        claims
    }
}
