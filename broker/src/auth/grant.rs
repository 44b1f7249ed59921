//! From a good token and a request's headers to the [`Caller`].

use std::net::IpAddr;
use std::sync::Arc;

use duo_contract::audit::Who;
use duo_contract::snapshot::ApiToken;
use http::HeaderMap;

use super::directory::GitLab;
use super::error::AuthError;
use super::headers::{self, INSTANCE_ID, MAX_ID_BYTES, REALM, USER_ID};
use super::keys::KeySet;
use super::sha256;
use super::token::Claims;
use crate::caller::{Caller, Grant, PERSON_LIMIT, SERVICE_LIMIT};

/// What a verified token of GitLab's, or of ours for an IDE, says, and what it was verified by.
#[derive(Debug)]
pub(super) struct Verified {
    /// Who signed it, or vouched for the person it is for.
    pub(super) issuer: Arc<GitLab>,
    signed_by: Signer,
    good_until_ms: u64,
    grant: Arc<Grant>,
    /// What the record calls this kind of token.
    kind: &'static str,
    /// The instance's id.
    instance: String,
    realm: Option<String>,
    /// The same as a claim of its own, where there is one.
    instance_claim: Option<String>,
    /// The one person that may present it, for a token of ours.
    person: Option<String>,
    token_id: Option<String>,
}

/// Whose keys verified a token.
#[derive(Debug)]
enum Signer {
    /// The issuer's at the time; others may no longer hold the one that verified it.
    Issuer(Arc<KeySet>),
    /// Ours, which do not change while we run.
    Ourselves,
}

/// An API token, ready for use.
#[derive(Debug)]
pub(super) struct ApiGrant {
    grant: Arc<Grant>,
    expires_at_ms: Option<u64>,
    share_key: String,
    token_id: String,
    limit: u32,
}

impl Verified {
    pub(super) fn new(claims: Claims, issuer: Arc<GitLab>, keys: Arc<KeySet>, leeway_ms: u64) -> Self {
        let sub = claims.sub().to_owned();
        let good_until_ms = claims.good_until_ms(leeway_ms);
        let scopes = claims.scopes.unwrap_or_default();
        // The ID token of a CI job is signed by the same keys, for an audience of the job author's choice. It has no
        // scopes, so it opens nothing; the OpenAI endpoints, which ask for none, must not be the exception.
        let openai = issuer.configured.openai && !scopes.is_empty();
        Self {
            good_until_ms,
            grant: Arc::new(Grant::GitLab {
                scopes: scopes.into_iter().collect(),
                openai,
                issuer: issuer.slot.url().to_owned(),
                realm: claims.gitlab_realm.clone(),
            }),
            kind: "gitlab",
            instance: sub,
            realm: claims.gitlab_realm,
            instance_claim: claims.gitlab_instance_id,
            person: None,
            token_id: claims.jti.filter(|id| id.len() <= MAX_ID_BYTES),
            issuer,
            signed_by: Signer::Issuer(keys),
        }
    }

    /// A token of ours, for a person that `issuer` vouched for.
    pub(super) fn direct(claims: Claims, issuer: Arc<GitLab>, leeway_ms: u64) -> Self {
        Self {
            good_until_ms: claims.good_until_ms(leeway_ms),
            grant: Arc::new(Grant::Direct),
            kind: "gitlab_direct",
            person: Some(claims.sub().to_owned()),
            instance: claims.gitlab_instance_id.clone().unwrap_or_default(),
            realm: claims.gitlab_realm,
            instance_claim: claims.gitlab_instance_id,
            token_id: claims.jti.filter(|id| id.len() <= MAX_ID_BYTES),
            issuer,
            signed_by: Signer::Ourselves,
        }
    }

    /// Has it time left, and does its issuer still sign with the same keys?
    pub(super) fn is_current(&self, now_ms: u64) -> bool {
        let same_keys = match &self.signed_by {
            Signer::Issuer(keys) => self.issuer.slot.has_same(keys),
            Signer::Ourselves => true,
        };
        now_ms < self.good_until_ms && same_keys
    }

    /// The caller, if this request's headers fit the token.
    pub(super) fn caller(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Caller, AuthError> {
        if let Some(realm) = &self.realm {
            headers::require_same(headers, &REALM, realm)?;
        }
        if let Some(instance_id) = &self.instance_claim {
            headers::require_same(headers, &INSTANCE_ID, instance_id)?;
        }
        headers::require_same(headers, &INSTANCE_ID, &self.instance)?;
        if let Some(person) = &self.person {
            headers::require_same(headers, &USER_ID, person)?;
        }

        let user_id = headers::user_id(headers)?;
        let (share_key, limit) = match user_id {
            Some(user_id) => (share_key("person", [&self.instance, user_id]), PERSON_LIMIT),
            None => (share_key("service", [&self.instance, ""]), SERVICE_LIMIT),
        };
        Ok(Caller {
            grant: Arc::clone(&self.grant),
            who: Who {
                auth: self.kind.to_owned(),
                instance_id: Some(self.instance.clone()),
                user_id: user_id.map(str::to_owned),
                token_id: self.token_id.clone(),
                client: headers::client(headers),
                address: peer.map(|address| address.to_string()),
            },
            share_key,
            limit,
            gitlab_version: headers::gitlab_version(headers),
        })
    }
}

impl ApiGrant {
    pub(super) fn new(token: &ApiToken) -> Self {
        let token_id = token.id.to_string();
        Self {
            grant: Arc::new(Grant::ApiToken {
                role: token.role,
                features: token.features.clone(),
                models: token.models.clone(),
            }),
            expires_at_ms: token.expires_at_ms,
            share_key: share_key("api_token", [&token_id, ""]),
            token_id,
            limit: token.limit,
        }
    }

    pub(super) fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|end| now_ms >= end)
    }

    pub(super) fn caller(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Caller {
        Caller {
            grant: Arc::clone(&self.grant),
            who: Who {
                auth: "api_token".to_owned(),
                instance_id: None,
                user_id: None,
                token_id: Some(self.token_id.clone()),
                client: headers::client(headers),
                address: peer.map(|address| address.to_string()),
            },
            share_key: self.share_key.clone(),
            limit: self.limit,
            gitlab_version: None,
        }
    }
}

/// 16 hexadecimal digits that differ between kinds of callers and between callers. The zero bytes keep the parts
/// apart: none of them can hold one.
fn share_key(kind: &str, parts: [&str; 2]) -> String {
    let text = [kind, parts[0], parts[1], ""].join("\0");
    hex::encode(&sha256(&text)[..8])
}
