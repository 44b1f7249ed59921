//! Tokens of our own, for IDEs that ask for completions without a detour through GitLab.
//!
//! GitLab fetches one for a person it has checked, the IDE presents it. It opens `/v2/completions` alone, for an hour,
//! and only as long as the instance that vouched for the person is configured. Every broker has the same keys, from
//! a file; without one no token is made, and IDEs ask through GitLab by themselves.

use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::error::Forbidden;
use super::fetch::Key;
use super::keys::KeySet;
use super::token::Claims;
use crate::caller::{Caller, Grant};

/// What GitLab's own gateway writes into `iss` and `aud` of such tokens.
pub(super) const OURSELVES: &str = "gitlab-ai-gateway";
/// As long as those of GitLab's own gateway; an IDE renews its token 40 s before the end.
const LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The scope that a person's instance needs, and the only one in the token.
const SCOPE: &str = "complete_code";
/// More keys than a rotation needs; each costs a verification for a token that fits none.
const MAX_KEYS: usize = 8;

/// RSA keys that sign and verify our own tokens.
pub struct SigningKeys {
    signing: EncodingKey,
    kid: String,
    verifying: KeySet,
    published: Value,
}

/// Whom a token is for, and who vouches.
pub(super) struct Person<'c> {
    id: &'c str,
    instance: &'c str,
    issuer: &'c str,
    realm: Option<&'c str>,
}

/// A token for an IDE.
#[derive(Debug, Serialize)]
pub struct DirectToken {
    /// The token itself.
    pub token: String,
    /// When it ends, seconds since the epoch.
    pub expires_at: u64,
}

/// Why a file holds no signing keys.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// It holds none at all.
    #[error(
        "there is no private key in it; \
         \"openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072\" makes one"
    )]
    Empty,
    /// One of them is of no use.
    #[error("key {number} in it is no RSA private key of 2048 to 8192 bits in PEM form")]
    Unusable {
        /// Which one, from 1.
        number: usize,
    },
    /// There are more than a rotation needs.
    #[error("there are more than {MAX_KEYS} keys in it; remove the oldest, which are the last")]
    TooMany,
}

/// Why a caller gets no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// Only GitLab may ask, for a person, and with the scope of completions.
    #[error("the caller may not ask for a token")]
    NotAllowed,
    /// There is no key to sign with.
    #[error("there is no signing key")]
    NoKey,
    /// The key does not sign.
    #[error("the token could not be signed")]
    Unsigned,
}

#[derive(Serialize)]
struct OurClaims<'c> {
    iss: &'static str,
    aud: &'static str,
    sub: &'c str,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    gitlab_realm: Option<&'c str>,
    gitlab_instance_id: &'c str,
    /// URL of the instance that vouched for the person.
    duo_issuer: &'c str,
    scopes: [&'static str; 1],
}

impl SigningKeys {
    /// Reads a file of private keys in PEM form. The first signs; the others still verify what they signed.
    ///
    /// # Errors
    /// There is no key, too many, or one of them is no RSA key of a good size.
    pub fn parse(text: &str) -> Result<Self, SigningKeyError> {
        let mut first = None;
        let (mut verifying, mut published) = (Vec::new(), Vec::new());
        for (number, block) in (1..).zip(blocks(text)) {
            if number > MAX_KEYS {
                return Err(SigningKeyError::TooMany);
            }
            let unusable = SigningKeyError::Unusable { number };
            let Some((key, jwk, verifies)) = read(block) else {
                return Err(unusable);
            };
            let kid = verifies.kid().unwrap_or_default().to_owned();
            first.get_or_insert((key, kid));
            published.push(jwk);
            verifying.push(verifies);
        }
        let (signing, kid) = first.ok_or(SigningKeyError::Empty)?;
        Ok(Self {
            signing,
            kid,
            verifying: KeySet::of(verifying),
            published: json!({"keys": published}),
        })
    }

    /// The public halves, as a JSON Web Key Set.
    #[must_use]
    pub fn published(&self) -> &Value {
        &self.published
    }

    /// How many there are and how the one that signs is named, for an operator.
    #[must_use]
    pub fn describe(&self) -> String {
        let bits: Vec<String> = self
            .verifying
            .iter()
            .map(|key| format!("{} bits", key.bits()))
            .collect();
        format!("{} signs; {}", self.kid, bits.join(", "))
    }

    pub(super) fn verifying(&self) -> &KeySet {
        &self.verifying
    }

    /// A token for `person`.
    pub(super) fn mint(&self, person: &Person<'_>, now_ms: u64) -> Result<DirectToken, MintError> {
        let now = now_ms / 1000;
        let expires_at = now + LIFETIME.as_secs();
        let claims = OurClaims {
            iss: OURSELVES,
            aud: OURSELVES,
            sub: person.id,
            iat: now,
            nbf: now,
            exp: expires_at,
            jti: Uuid::new_v4(),
            gitlab_realm: person.realm,
            gitlab_instance_id: person.instance,
            duo_issuer: person.issuer,
            scopes: [SCOPE],
        };
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(self.kid.clone());
        let token = jsonwebtoken::encode(&header, &claims, &self.signing).map_err(|_| MintError::Unsigned)?;
        tracing::info!(token_id = %claims.jti, instance_id = person.instance, "token for an IDE made");
        Ok(DirectToken { token, expires_at })
    }
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeys")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl<'c> Person<'c> {
    /// The person that `caller` asks for, if it may have a token made.
    pub(super) fn of(caller: &'c Caller) -> Option<Self> {
        let Grant::GitLab { issuer, realm, .. } = &*caller.grant else {
            return None;
        };
        let person = Self {
            id: caller.who.user_id.as_deref()?,
            instance: caller.who.instance_id.as_deref()?,
            issuer,
            realm: realm.as_deref(),
        };
        caller.has_scope(SCOPE).then_some(person)
    }
}

/// Is it to be checked against our own keys?
pub(super) fn is_ours(claims: &Claims) -> bool {
    claims.iss.as_deref() == Some(OURSELVES)
}

/// The URL of the instance that vouched, if the claims are all there.
pub(super) fn voucher(claims: &Claims) -> Result<&str, Forbidden> {
    if !claims.is_for(OURSELVES) {
        return Err(Forbidden::WrongAudience);
    }
    match (&claims.gitlab_instance_id, claims.duo_issuer.as_deref()) {
        (Some(_), Some(url)) => Ok(url),
        _ => Err(Forbidden::MissingClaim),
    }
}

/// Every PEM block of a text, whatever stands between them left out.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN ";
    text.match_indices(BEGIN).map(|(start, _)| {
        let block = &text[start..];
        let next = block[BEGIN.len()..].find(BEGIN);
        &block[..next.map_or(block.len(), |at| at + BEGIN.len())]
    })
}

/// A private key, its public half as it is published, and as it verifies.
fn read(block: &str) -> Option<(EncodingKey, Value, Key)> {
    let key = EncodingKey::from_rsa_pem(block.as_bytes()).ok()?;
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).ok()?;
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256).ok()?);
    let published = serde_json::to_value(&jwk).ok()?;
    let verifies = Key::from_value(published.clone())?;
    Some((key, published, verifies))
}
