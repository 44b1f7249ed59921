//! Bearer token to [`Caller`]: tokens that a GitLab instance signed, and API tokens of our own.
//!
//! It owns the signing keys of the configured instances and the cache of verified tokens. It does not decide what a
//! caller may use (that is [`Caller`]'s), nor how a refusal looks on the wire (that is the API's). A layer around the
//! router calls [`Authenticator::authenticate`] for each request, before its body is read.
//!
//! In order: the `Authorization` header; an API token (prefix `duo_`) is looked up by its hash; anything else must be
//! announced as `oidc` and is a JWT. Its `iss` picks one configured issuer, only that issuer's keys count, RS256 is
//! the only algorithm, and claims are checked before any signature, so that junk costs little. What the token says is
//! compared with the headers for every request, cached or not.
//!
//! A verified token stays cached until it expires, its issuer changes, or its issuer's keys change. The cache knows
//! tokens by their SHA-256, so it holds no secret.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use aws_lc_rs::digest::{SHA256, digest};
use duo_process::shutdown::Shutdown;
use futures_util::future::{join_all, pending};
use http::HeaderMap;
use prometheus::Registry;
use quick_cache::sync::Cache;

use crate::caller::Caller;
use crate::identity::Identities;

pub mod direct;
mod directory;
mod error;
mod fetch;
mod grant;
mod headers;
mod keys;
mod metrics;
mod refusals;
mod token;

use direct::{DirectToken, MintError, Person, SigningKeys};
use directory::Directory;
use grant::Verified;
use keys::{KeySet, KeySlot, Refresh};
use metrics::AuthMetrics;
use refusals::Refusals;
use token::Unverified;

pub use error::{AuthError, Forbidden};
pub use fetch::{Key, KeyFetchError, fetch_keys};
pub use keys::IssuerKeys;

/// How every API token of ours begins.
pub const API_TOKEN_PREFIX: &str = "duo_";

/// How tokens are checked and keys kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// How far an instance's clock may be off, for `exp` and `nbf`.
    pub leeway: Duration,
    /// How often keys are fetched anew in the background.
    pub keys_refresh: Duration,
    /// Age from which keys that could not be refreshed are called stale; they are used on.
    pub keys_max_age: Duration,
    /// Least time between two fetches that tokens provoke, per issuer.
    pub unknown_key_refresh: Duration,
    /// Bound of one fetch, discovery and keys together.
    pub fetch_timeout: Duration,
    /// Verified tokens kept.
    pub jwt_cache_entries: usize,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            leeway: Duration::from_secs(30),
            keys_refresh: Duration::from_secs(60 * 60),
            keys_max_age: Duration::from_secs(24 * 60 * 60),
            unknown_key_refresh: Duration::from_secs(30),
            fetch_timeout: fetch::TIMEOUT,
            jwt_cache_entries: 10_000,
        }
    }
}

/// Checks tokens; cheap to clone.
#[derive(Debug, Clone)]
pub struct Authenticator {
    inner: Arc<Inner>,
    metrics: AuthMetrics,
    /// Make and verify tokens for IDEs; without them there are none.
    signing: Option<Arc<SigningKeys>>,
}

struct Inner {
    identities: Identities,
    /// What follows from the identities; replaced when they change.
    directory: ArcSwap<Directory>,
    /// Held while the directory is rebuilt, never across an await.
    rebuilding: Mutex<()>,
    verified: Cache<[u8; 32], Arc<Verified>>,
    leeway_ms: u64,
    refresh: Refresh,
    refusals: Refusals,
    /// Milliseconds since the epoch.
    clock: Clock,
}

type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

impl Authenticator {
    /// An authenticator for whoever `identities` names, which fetches keys with `client`.
    ///
    /// The client decides which CAs are trusted and how many redirects are followed. Keys are fetched when a token
    /// needs them; [`Authenticator::run`] fetches them ahead of that.
    ///
    /// # Panics
    /// When `registry` holds this module's metrics already.
    #[must_use]
    pub fn new(
        identities: Identities,
        config: AuthConfig,
        client: reqwest::Client,
        registry: &Registry,
    ) -> Self {
        let clock = Box::new(duo_process::clock::unix_ms);
        Self::with_clock(identities, config, client, AuthMetrics::new(registry), clock)
    }

    fn with_clock(
        identities: Identities,
        config: AuthConfig,
        client: reqwest::Client,
        metrics: AuthMetrics,
        clock: Clock,
    ) -> Self {
        let inner = Inner {
            directory: ArcSwap::from_pointee(Directory::build(&identities.load(), None)),
            identities,
            rebuilding: Mutex::default(),
            verified: Cache::new(config.jwt_cache_entries),
            leeway_ms: u64::try_from(config.leeway.as_millis()).unwrap_or(u64::MAX),
            refresh: Refresh::new(client, &config),
            refusals: Refusals::default(),
            clock,
        };
        Self {
            inner: Arc::new(inner),
            metrics,
            signing: None,
        }
    }

    /// The same, with keys to make and verify tokens for IDEs.
    #[must_use]
    pub fn with_signing_keys(mut self, keys: Option<Arc<SigningKeys>>) -> Self {
        self.signing = keys;
        self
    }

    /// A token with which the IDE of the person that `caller`, a GitLab instance, asks for may ask for completions.
    ///
    /// # Errors
    /// The caller may not have one, or nothing signs it.
    pub fn mint(&self, caller: &Caller) -> Result<DirectToken, MintError> {
        let person = Person::of(caller).ok_or(MintError::NotAllowed)?;
        let keys = self.signing.as_ref().ok_or(MintError::NoKey)?;
        keys.mint(&person, (self.inner.clock)())
    }

    /// Keys that tokens for IDEs are verified by, if there are any.
    #[must_use]
    pub fn signing_keys(&self) -> Option<&SigningKeys> {
        self.signing.as_deref()
    }

    /// Finds out who sent a request with these headers.
    ///
    /// It waits only when a token is new and its issuer's keys are missing or do not fit: for one fetch, shared with
    /// everybody who waits for the same, and rate-limited.
    ///
    /// # Errors
    /// The token is missing, of the wrong kind, not good, or does not fit the headers.
    pub async fn authenticate(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Caller, AuthError> {
        let checked = self.check(headers, peer).await;
        if let Err(error) = &checked {
            self.metrics.refused(*error);
            self.inner.refusals.note(*error, peer, (self.inner.clock)());
        }
        checked
    }

    /// Keeps the keys of all issuers fresh until `shutdown` begins: at once, on each change of the issuers, and then
    /// every [`AuthConfig::keys_refresh`]; after a failure with growing delays.
    pub async fn run(self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.begun() => {}
            () = self.keep_keys() => {}
        }
    }

    /// Are there keys for every configured issuer?
    #[must_use]
    pub fn keys_loaded(&self) -> bool {
        let directory = self.inner.directory();
        directory.issuers().iter().all(|issuer| issuer.slot.has_keys())
    }

    /// How the keys of each configured issuer stand.
    #[must_use]
    pub fn issuer_keys(&self) -> Vec<IssuerKeys> {
        let directory = self.inner.directory();
        let issuers = directory.issuers().iter();
        issuers
            .map(|issuer| issuer.slot.status(&self.inner.refresh))
            .collect()
    }

    async fn check(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Caller, AuthError> {
        let token = headers::bearer(headers)?;
        if token.starts_with(API_TOKEN_PREFIX) {
            let caller = self.inner.api_token(token, headers, peer)?;
            self.metrics.api_token.inc();
            return Ok(caller);
        }
        headers::require_oidc(headers)?;
        let hash = sha256(token);
        if let Some(verified) = self.inner.cached(&hash) {
            let caller = verified.caller(headers, peer)?;
            self.metrics.cached.inc();
            return Ok(caller);
        }
        // Boxed, so that requests with a known token do not carry the room for a fetch.
        let verified = Box::pin(self.verify(token)).await?;
        self.inner.verified.insert(hash, Arc::clone(&verified));
        let caller = verified.caller(headers, peer)?;
        self.metrics.verified.inc();
        Ok(caller)
    }

    /// Checks a token that the cache does not hold.
    async fn verify(&self, token: &str) -> Result<Arc<Verified>, AuthError> {
        let token = Unverified::parse(token)?;
        if direct::is_ours(&token.claims) {
            return self.verify_ours(token);
        }
        let issuer = self.inner.directory().issuer(&token.claims)?;
        token
            .claims
            .check_times((self.inner.clock)(), self.inner.leeway_ms)?;
        let keys = self.keys_for(&token, &issuer.slot).await?;
        Ok(Arc::new(Verified::new(
            token.claims,
            issuer,
            keys,
            self.inner.leeway_ms,
        )))
    }

    /// The same for a token that we have made.
    fn verify_ours(&self, token: Unverified<'_>) -> Result<Arc<Verified>, AuthError> {
        let keys = self.signing.as_ref().ok_or(Forbidden::UnknownIssuer)?;
        let issuer = self.inner.directory().at(direct::voucher(&token.claims)?)?;
        let leeway_ms = self.inner.leeway_ms;
        token.claims.check_times((self.inner.clock)(), leeway_ms)?;
        if !token.is_signed_by(keys.verifying()) {
            return Err(Forbidden::BadSignature.into());
        }
        Ok(Arc::new(Verified::direct(token.claims, issuer, leeway_ms)))
    }

    /// The issuer's keys, one of which verifies `token`.
    async fn keys_for(&self, token: &Unverified<'_>, slot: &KeySlot) -> Result<Arc<KeySet>, Forbidden> {
        let known = slot.keys();
        if let Some(keys) = known.as_ref().filter(|keys| token.is_signed_by(keys)) {
            return Ok(Arc::clone(keys));
        }
        let newer = slot
            .newer_than(known.as_ref(), &self.inner.refresh, &self.metrics)
            .await;
        match (newer, known) {
            (Some(keys), _) if token.is_signed_by(&keys) => Ok(keys),
            (None, None) => Err(Forbidden::KeysUnavailable),
            _ => Err(Forbidden::BadSignature),
        }
    }

    async fn keep_keys(&self) {
        let mut changes = self.inner.identities.changes();
        loop {
            // Marked as seen before it is read, so that no change slips between.
            changes.mark_unchanged();
            let directory = Guard::into_inner(self.inner.directory());
            let due = directory.issuers().iter().filter(|issuer| issuer.slot.is_due());
            join_all(due.map(|issuer| issuer.slot.refresh(&self.inner.refresh, &self.metrics))).await;

            let next = directory.issuers().iter().map(|i| i.slot.refresh_at()).min();
            tokio::select! {
                () = async {
                    if changes.changed().await.is_err() {
                        pending::<()>().await;
                    }
                } => {}
                () = async {
                    match next {
                        Some(moment) => tokio::time::sleep_until(moment).await,
                        None => pending().await,
                    }
                } => {}
            }
        }
    }
}

impl Inner {
    /// The directory of the current identities, rebuilt here when they have changed.
    fn directory(&self) -> Guard<Arc<Directory>> {
        let identities = self.identities.load();
        let directory = self.directory.load();
        if directory.is_of(&identities) {
            return directory;
        }
        let _rebuilding = self.rebuilding.lock().unwrap_or_else(PoisonError::into_inner);
        let identities = self.identities.load();
        let directory = self.directory.load();
        if !directory.is_of(&identities) {
            self.directory
                .store(Arc::new(Directory::build(&identities, Some(&directory))));
        }
        self.directory.load()
    }

    fn api_token(
        &self,
        secret: &str,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
    ) -> Result<Caller, AuthError> {
        let directory = self.directory();
        let token = directory
            .api_token(&sha256(secret))
            .ok_or(AuthError::UnknownApiToken)?;
        if token.is_expired((self.clock)()) {
            return Err(AuthError::ExpiredApiToken);
        }
        Ok(token.caller(headers, peer))
    }

    /// A token verified before, if what made it good still holds.
    fn cached(&self, hash: &[u8; 32]) -> Option<Arc<Verified>> {
        let verified = self.verified.get(hash)?;
        if verified.is_current((self.clock)()) && self.directory().holds(&verified.issuer) {
            return Some(verified);
        }
        self.verified.remove(hash);
        None
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

/// Installs the one crypto backend for JWTs and for TLS. Later calls change nothing.
pub fn install_crypto() {
    // Both report only that a provider is there already.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn sha256(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests;
