//! Signing keys over HTTP: OIDC discovery, then the key set it names.
//!
//! It keeps nothing and retries nothing. What it reads is bounded in size and time, and a keys URL must not be less
//! protected than the issuer's own.

use std::error::Error;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::directory::without_slash;

/// Bound of one fetch, discovery and keys together.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Largest answer read.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// Most keys kept of one issuer; each costs a verification for a token that fits none.
const MAX_KEYS: usize = 32;
/// Sizes of RSA modulus that can verify.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// An RSA key that may verify RS256 signatures.
#[derive(Clone)]
pub struct Key {
    kid: Option<String>,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
    decoding: DecodingKey,
}

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum KeyFetchError {
    /// The issuer's URL is none to fetch from.
    #[error("{url:?} is not an http or https URL")]
    NotAUrl {
        /// As configured, or as discovery told it.
        url: String,
    },
    /// No connection, or it broke.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// What was asked for.
        url: Url,
        /// What went wrong, innermost last.
        reason: String,
    },
    /// Nothing, or not everything, in time.
    #[error("no answer from {url} within {timeout:?}")]
    TimedOut {
        /// The issuer.
        url: String,
        /// The bound of the whole fetch.
        timeout: Duration,
    },
    /// An answer with another status than 200.
    #[error("{url} answered {status}")]
    Status {
        /// What was asked for.
        url: Url,
        /// The answer's status.
        status: u16,
    },
    /// An answer that is longer than any key set.
    #[error("the answer of {url} is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge {
        /// What was asked for.
        url: Url,
    },
    /// An answer that is not what it should be.
    #[error("the answer of {url} is not a {expected}: {reason}")]
    Malformed {
        /// What was asked for.
        url: Url,
        /// What it should be.
        expected: &'static str,
        /// What is wrong with it.
        reason: serde_json::Error,
    },
    /// The instance calls itself by another URL, which is what its tokens carry.
    #[error("{configured} calls itself {issuer}: configure that URL, its tokens carry it as iss")]
    OtherIssuer {
        /// The URL as configured.
        configured: String,
        /// `issuer` of the discovery document.
        issuer: String,
    },
    /// Discovery by https names a keys URL without protection, or a redirect led there.
    #[error("{url} is not https, but its issuer is")]
    Unprotected {
        /// The URL.
        url: Url,
    },
    /// There is no key that could verify RS256.
    #[error("{url} holds no RSA signing key of 2048 to 8192 bits")]
    NoUsableKey {
        /// Where the keys should be.
        url: Url,
    },
}

#[derive(Deserialize)]
struct Discovery {
    issuer: Option<String>,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct PublishedKeys {
    /// Read one by one, so that a key of a kind we do not know hides no other.
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct PublishedKey {
    kty: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    kid: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

/// Fetches the keys of the issuer at this URL, within ten seconds.
///
/// # Errors
/// The instance cannot be reached, or does not answer with keys.
pub async fn fetch_keys(client: &reqwest::Client, issuer_url: &str) -> Result<Vec<Key>, KeyFetchError> {
    fetch_keys_within(client, issuer_url, TIMEOUT).await
}

pub(super) async fn fetch_keys_within(
    client: &reqwest::Client,
    issuer_url: &str,
    timeout: Duration,
) -> Result<Vec<Key>, KeyFetchError> {
    tokio::time::timeout(timeout, discover_and_fetch(client, issuer_url))
        .await
        .unwrap_or_else(|_| {
            let url = issuer_url.to_owned();
            Err(KeyFetchError::TimedOut { url, timeout })
        })
}

async fn discover_and_fetch(client: &reqwest::Client, issuer_url: &str) -> Result<Vec<Key>, KeyFetchError> {
    let base = without_slash(issuer_url);
    let url = parse_url(&format!("{base}/.well-known/openid-configuration"))?;
    let protected = url.scheme() == "https";
    let discovery: Discovery = answer(client, url, protected, "discovery document").await?;
    if let Some(issuer) = discovery.issuer
        && without_slash(&issuer) != base
    {
        return Err(KeyFetchError::OtherIssuer {
            configured: base.to_owned(),
            issuer,
        });
    }

    let url = parse_url(&discovery.jwks_uri)?;
    let published: PublishedKeys = answer(client, url.clone(), protected, "key set").await?;
    let usable = published.keys.into_iter().filter_map(Key::from_value);
    let keys: Vec<Key> = usable.take(MAX_KEYS).collect();
    if keys.is_empty() {
        return Err(KeyFetchError::NoUsableKey { url });
    }
    Ok(keys)
}

fn parse_url(text: &str) -> Result<Url, KeyFetchError> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| KeyFetchError::NotAUrl { url: text.to_owned() })
}

async fn answer<T: DeserializeOwned>(
    client: &reqwest::Client,
    url: Url,
    protected: bool,
    expected: &'static str,
) -> Result<T, KeyFetchError> {
    let unreachable = |error: &reqwest::Error| KeyFetchError::Unreachable {
        url: url.clone(),
        reason: chain(error),
    };
    if protected && url.scheme() != "https" {
        return Err(KeyFetchError::Unprotected { url });
    }
    let request = client
        .get(url.clone())
        .header(http::header::ACCEPT, "application/json");
    let mut response = request.send().await.map_err(|error| unreachable(&error))?;
    if protected && response.url().scheme() != "https" {
        let url = response.url().clone();
        return Err(KeyFetchError::Unprotected { url });
    }
    if response.status() != http::StatusCode::OK {
        let status = response.status().as_u16();
        return Err(KeyFetchError::Status { url, status });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(KeyFetchError::TooLarge { url });
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|reason| KeyFetchError::Malformed {
        url,
        expected,
        reason,
    })
}

/// An error and its causes on one line, without the URL that the first one repeats.
fn chain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    if causes.is_empty() {
        return error.to_string();
    }
    causes.join(": ")
}

impl KeyFetchError {
    /// Every reason, for metrics that start at zero.
    pub(super) const REASONS: [&'static str; 9] = [
        "not_a_url",
        "unreachable",
        "timed_out",
        "status",
        "too_large",
        "malformed",
        "other_issuer",
        "unprotected",
        "no_usable_key",
    ];

    /// The reason in one snake_case word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            KeyFetchError::NotAUrl { .. } => "not_a_url",
            KeyFetchError::Unreachable { .. } => "unreachable",
            KeyFetchError::TimedOut { .. } => "timed_out",
            KeyFetchError::Status { .. } => "status",
            KeyFetchError::TooLarge { .. } => "too_large",
            KeyFetchError::Malformed { .. } => "malformed",
            KeyFetchError::OtherIssuer { .. } => "other_issuer",
            KeyFetchError::Unprotected { .. } => "unprotected",
            KeyFetchError::NoUsableKey { .. } => "no_usable_key",
        }
    }
}

impl Key {
    /// Its name, if it has one.
    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Length of its modulus.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.modulus.len() * 8
    }

    pub(super) fn decoding_key(&self) -> &DecodingKey {
        &self.decoding
    }

    /// The same of a JSON Web Key that is not read yet.
    pub(super) fn from_value(jwk: serde_json::Value) -> Option<Self> {
        Self::from_published(serde_json::from_value(jwk).ok()?)
    }

    /// The key, unless it is no RSA key for RS256 signatures or too weak to verify any.
    fn from_published(key: PublishedKey) -> Option<Self> {
        let is_rsa = key.kty.as_deref() == Some("RSA");
        let signs = key.purpose.is_none_or(|purpose| purpose == "sig");
        let rs256 = key.alg.is_none_or(|alg| alg == "RS256");
        let modulus = decode_number(&key.n?)?;
        let exponent = decode_number(&key.e?)?;
        if !(is_rsa && signs && rs256 && MODULUS_BYTES.contains(&modulus.len())) {
            return None;
        }
        Some(Self {
            decoding: DecodingKey::from_rsa_raw_components(&modulus, &exponent),
            kid: key.kid,
            modulus,
            exponent,
        })
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        (&self.kid, &self.modulus, &self.exponent) == (&other.kid, &other.modulus, &other.exponent)
    }
}

impl Eq for Key {}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("bits", &self.bits())
            .finish_non_exhaustive()
    }
}

/// A big-endian number; padding and leading zeros, which some servers write, change nothing.
fn decode_number(text: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
    let first = bytes.iter().position(|byte| *byte != 0)?;
    Some(bytes[first..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_protected_issuer_is_not_followed_to_http() {
        crate::auth::install_crypto();
        let client = reqwest::Client::new();
        let url = Url::parse("http://gitlab.example.com/keys").unwrap();
        let fetched = answer::<PublishedKeys>(&client, url, true, "key set").await;
        let error = fetched.err().unwrap();
        assert_eq!(
            error.to_string(),
            "http://gitlab.example.com/keys is not https, but its issuer is"
        );
    }

    #[test]
    fn numbers_are_read_with_padding_and_leading_zeros() {
        for text in ["AQAB", "AAEAAQ", "AAEAAQ=="] {
            assert_eq!(decode_number(text), Some(vec![1, 0, 1]), "{text}");
        }
        for text in ["", "AA", "A+AB", "?"] {
            assert_eq!(decode_number(text), None, "{text}");
        }
    }
}
