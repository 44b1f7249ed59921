//! A GitLab token's form and claims, before and without trust.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, decode_header};
use serde::Deserialize;

use super::error::Forbidden;
use super::headers::MAX_ID_BYTES;
use super::keys::KeySet;

/// A token taken apart; nothing in it is believed yet.
pub(super) struct Unverified<'t> {
    /// What the signature covers: header and claims in their encoded form.
    signed: &'t str,
    signature: &'t str,
    /// Names the key to try first, nothing more.
    kid: Option<String>,
    pub(super) claims: Claims,
}

/// The claims we read. Unknown ones are ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    pub(super) iss: Option<String>,
    sub: Option<String>,
    aud: Option<Audience>,
    /// Seconds since the epoch, with or without a fraction.
    exp: Option<f64>,
    nbf: Option<f64>,
    pub(super) jti: Option<String>,
    pub(super) gitlab_realm: Option<String>,
    pub(super) gitlab_instance_id: Option<String>,
    pub(super) scopes: Option<Vec<String>>,
    /// In tokens of our own: URL of the instance that vouched for the person.
    pub(super) duo_issuer: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl<'t> Unverified<'t> {
    /// Takes a token apart and refuses every algorithm but RS256.
    pub(super) fn parse(token: &'t str) -> Result<Self, Forbidden> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Forbidden::MalformedToken)?;
        let (_, claims) = signed.split_once('.').ok_or(Forbidden::MalformedToken)?;
        let header = decode_header(token).map_err(|_| Forbidden::MalformedToken)?;
        if header.alg != Algorithm::RS256 {
            return Err(Forbidden::UnsupportedAlgorithm);
        }
        // We know no extension, so a header that must be understood is not.
        if header.crit.is_some() {
            return Err(Forbidden::MalformedToken);
        }
        let claims = URL_SAFE_NO_PAD
            .decode(claims)
            .map_err(|_| Forbidden::MalformedToken)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| Forbidden::MalformedToken)?;
        claims.check_presence()?;
        Ok(Self {
            signed,
            signature,
            kid: header.kid,
            claims,
        })
    }

    /// Does one of `keys` verify it? The key it names is tried first; a missing or unknown name is no fault.
    pub(super) fn is_signed_by(&self, keys: &KeySet) -> bool {
        keys.best_first(self.kid.as_deref()).any(|key| {
            let verified = jsonwebtoken::crypto::verify(
                self.signature,
                self.signed.as_bytes(),
                key.decoding_key(),
                Algorithm::RS256,
            );
            matches!(verified, Ok(true))
        })
    }
}

impl Claims {
    fn check_presence(&self) -> Result<(), Forbidden> {
        if self.aud.is_none() || self.exp.is_none() {
            return Err(Forbidden::MissingClaim);
        }
        match self.sub.as_deref().map(str::len) {
            None | Some(0) => Err(Forbidden::MissingClaim),
            Some(1..=MAX_ID_BYTES) => Ok(()),
            Some(_) => Err(Forbidden::MalformedToken),
        }
    }

    /// Is `now_ms` between `nbf` and `exp`, give or take the leeway?
    pub(super) fn check_times(&self, now_ms: u64, leeway_ms: u64) -> Result<(), Forbidden> {
        if now_ms >= self.good_until_ms(leeway_ms) {
            return Err(Forbidden::Expired);
        }
        match self.nbf {
            Some(nbf) if unix_ms(nbf) > now_ms.saturating_add(leeway_ms) => Err(Forbidden::NotYetValid),
            _ => Ok(()),
        }
    }

    pub(super) fn good_until_ms(&self, leeway_ms: u64) -> u64 {
        self.exp.map_or(0, |exp| unix_ms(exp).saturating_add(leeway_ms))
    }

    pub(super) fn is_for(&self, audience: &str) -> bool {
        match &self.aud {
            Some(Audience::One(one)) => one == audience,
            Some(Audience::Many(many)) => many.iter().any(|one| one == audience),
            None => false,
        }
    }

    pub(super) fn sub(&self) -> &str {
        self.sub.as_deref().unwrap_or_default()
    }
}

/// Seconds to milliseconds; a negative number is the epoch, a huge one the end of time.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, which is what is wanted"
)]
fn unix_ms(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}
