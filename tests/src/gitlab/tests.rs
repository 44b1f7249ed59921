//! Tokens checked with another library than the one that signs them.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation, decode, decode_header};
use serde_json::{Value, json};
use time::Duration;

use super::*;

async fn keys(gitlab: &Gitlab) -> JwkSet {
    let client = reqwest::Client::new();
    let discovery = format!("{}/.well-known/openid-configuration", gitlab.url());
    let found: Value = client.get(discovery).send().await.unwrap().json().await.unwrap();
    assert_eq!(found["issuer"], gitlab.url());
    client
        .get(found["jwks_uri"].as_str().unwrap())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap()
}

fn check(keys: &JwkSet, token: &str) -> Result<TokenData<Value>, jsonwebtoken::errors::Error> {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&["gitlab-ai-gateway"]);
    validation.validate_nbf = true;
    validation.leeway = 5;
    let key = DecodingKey::from_jwk(&keys.keys[0])?;
    decode(token, &key, &validation)
}

#[tokio::test]
async fn a_token_verifies_against_the_published_key_and_says_what_rails_says() {
    let gitlab = Gitlab::start().await.unwrap();
    let token = gitlab.token(&TokenSpec::default()).unwrap();
    let keys = keys(&gitlab).await;
    let claims = check(&keys, &token).unwrap().claims;
    assert_eq!(claims["sub"], gitlab.instance_id());
    assert_eq!(claims["iss"], gitlab.url());
    assert_eq!(claims["aud"], json!(["gitlab-ai-gateway"]));
    assert_eq!(claims["gitlab_realm"], "self-managed");
    assert_eq!(claims["scopes"].as_array().unwrap().len(), ALL_SCOPES.len());
    assert_eq!(decode_header(&token).unwrap().kid, keys.keys[0].common.key_id);
    assert_eq!(gitlab.key_fetches(), 1);
}

#[tokio::test]
async fn every_kind_of_bad_token_is_refused() {
    let gitlab = Gitlab::start().await.unwrap();
    let keys = keys(&gitlab).await;
    let spec = TokenSpec::default;
    let bad = [
        spec().ttl(Duration::minutes(-1)),
        spec().not_before(Duration::minutes(1)),
        spec().audience(["another-service"]),
        spec().signature(Signature::Stranger),
        spec().signature(Signature::Hs256),
        spec().signature(Signature::None),
    ];
    for spec in bad {
        let token = gitlab.token(&spec).unwrap();
        assert!(check(&keys, &token).is_err(), "{spec:?}");
    }
}

#[tokio::test]
async fn a_rotated_key_replaces_the_old_one_and_a_restart_keeps_it() {
    let mut gitlab = Gitlab::start().await.unwrap();
    let (url, old) = (gitlab.url(), gitlab.token(&TokenSpec::default()).unwrap());
    gitlab.rotate_keys().unwrap();
    let new = gitlab.token(&TokenSpec::default().scopes(["duo_chat"])).unwrap();
    gitlab.stop().await;
    assert!(reqwest::get(gitlab.url()).await.is_err());
    gitlab.restart().await.unwrap();
    assert_eq!(gitlab.url(), url);
    let keys = keys(&gitlab).await;
    assert!(check(&keys, &old).is_err());
    assert_eq!(check(&keys, &new).unwrap().claims["scopes"], json!(["duo_chat"]));
}

#[test]
fn key_and_identity_stay_in_their_folder_and_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let (first, id) = load_or_create(folder.path()).unwrap();
    let (second, same) = load_or_create(folder.path()).unwrap();
    assert_eq!((first.kid(), &id), (second.kid(), &same));
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        assert_eq!(
            entry.unwrap().metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}

#[test]
fn no_scope_is_listed_twice() {
    assert_eq!(ALL_SCOPES.iter().collect::<HashSet<_>>().len(), ALL_SCOPES.len());
}
