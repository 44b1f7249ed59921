//! The identity snapshot in the form that look-ups want.

use std::collections::HashMap;
use std::sync::Arc;

use duo_contract::snapshot::{IdentitySnapshot, Issuer};

use super::error::Forbidden;
use super::grant::ApiGrant;
use super::keys::KeySlot;
use super::token::Claims;

/// Tokens by hash and issuers by URL, of one snapshot.
#[derive(Debug)]
pub(super) struct Directory {
    snapshot: Arc<IdentitySnapshot>,
    tokens: HashMap<[u8; 32], ApiGrant>,
    issuers: Vec<Arc<GitLab>>,
}

/// A configured GitLab instance and its keys. It is kept from one snapshot to the next as long as nothing about it
/// changes, so that its identity tells whether what was verified under it still holds.
#[derive(Debug)]
pub(super) struct GitLab {
    pub(super) configured: Issuer,
    pub(super) slot: Arc<KeySlot>,
}

impl Directory {
    /// The directory of `snapshot`, with issuers and keys taken over from the one `before`.
    pub(super) fn build(snapshot: &Arc<IdentitySnapshot>, before: Option<&Directory>) -> Self {
        let before = before.map_or(&[][..], |directory| &directory.issuers);
        let mut tokens = HashMap::with_capacity(snapshot.tokens.len());
        for token in &snapshot.tokens {
            let mut hash = [0; 32];
            match hex::decode_to_slice(&token.sha256, &mut hash) {
                Ok(()) => drop(tokens.insert(hash, ApiGrant::new(token))),
                Err(error) => {
                    tracing::warn!(token_id = %token.id, %error, "api token ignored: its hash is not SHA-256");
                }
            }
        }
        let mut issuers: Vec<Arc<GitLab>> = Vec::with_capacity(snapshot.issuers.len());
        for issuer in &snapshot.issuers {
            let same = before.iter().find(|known| known.configured == *issuer);
            let gitlab = same.cloned().unwrap_or_else(|| {
                let known = issuers.iter().chain(before);
                Arc::new(GitLab::new(issuer, known))
            });
            issuers.push(gitlab);
        }
        Self {
            snapshot: Arc::clone(snapshot),
            tokens,
            issuers,
        }
    }

    pub(super) fn is_of(&self, snapshot: &Arc<IdentitySnapshot>) -> bool {
        Arc::ptr_eq(&self.snapshot, snapshot)
    }

    pub(super) fn issuers(&self) -> &[Arc<GitLab>] {
        &self.issuers
    }

    pub(super) fn api_token(&self, hash: &[u8; 32]) -> Option<&ApiGrant> {
        self.tokens.get(hash)
    }

    /// The issuer that the claims name and whose audience they hold.
    pub(super) fn issuer(&self, claims: &Claims) -> Result<Arc<GitLab>, Forbidden> {
        let url = claims.iss.as_deref().map(without_slash);
        let mut named = self
            .issuers
            .iter()
            .filter(|issuer| Some(issuer.slot.url()) == url)
            .peekable();
        if named.peek().is_none() {
            return Err(Forbidden::UnknownIssuer);
        }
        named
            .find(|issuer| claims.is_for(&issuer.configured.audience))
            .cloned()
            .ok_or(Forbidden::WrongAudience)
    }

    /// An issuer with this URL, whatever its audience.
    pub(super) fn at(&self, url: &str) -> Result<Arc<GitLab>, Forbidden> {
        let url = without_slash(url);
        let mut issuers = self.issuers.iter();
        let named = issuers.find(|issuer| issuer.slot.url() == url);
        named.cloned().ok_or(Forbidden::UnknownIssuer)
    }

    /// Is this issuer still configured just so?
    pub(super) fn holds(&self, issuer: &Arc<GitLab>) -> bool {
        self.issuers.iter().any(|known| Arc::ptr_eq(known, issuer))
    }
}

impl GitLab {
    fn new<'k>(issuer: &Issuer, mut known: impl Iterator<Item = &'k Arc<GitLab>>) -> Self {
        let url = without_slash(&issuer.url);
        let slot = known
            .find(|other| other.slot.url() == url)
            .map_or_else(|| Arc::new(KeySlot::new(url)), |other| Arc::clone(&other.slot));
        Self {
            configured: issuer.clone(),
            slot,
        }
    }
}

/// A base URL with and without its last slash is the same.
pub(super) fn without_slash(url: &str) -> &str {
    url.strip_suffix('/').unwrap_or(url)
}
