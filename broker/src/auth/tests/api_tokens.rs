//! API tokens of our own.

use duo_contract::name::ModelName;
use duo_contract::snapshot::Role;
use uuid::Uuid;

use super::*;
use crate::caller::Grant;

const SECRET: &str = "duo_0123456789abcdefghijklmnopqrstuvwxyz";

fn token(secret: &str, role: Role) -> ApiToken {
    ApiToken {
        id: Uuid::from_u128(7),
        name: "nightly".into(),
        sha256: hex::encode(sha256(secret)),
        role,
        expires_at_ms: Some((NOW + 60) * 1000),
        features: None,
        models: Some(vec![ModelName::parse("codestral").unwrap()]),
        limit: 40,
    }
}

fn setup(tokens: &[ApiToken]) -> Setup {
    Setup::new(&[], tokens, AuthConfig::default())
}

#[tokio::test]
async fn a_good_api_token_makes_a_caller_without_a_type_header() {
    for role in [Role::Client, Role::Auditor, Role::Admin] {
        let setup = setup(&[token(SECRET, role)]);
        let mut headers = bearer(SECRET);
        set(&mut headers, "user-agent", &"OpenAI/Python 2.1 ".repeat(20));
        let caller = setup.check(&headers).await.unwrap();

        let models = token(SECRET, role).models;
        assert_eq!(
            *caller.grant,
            Grant::ApiToken {
                role,
                features: None,
                models
            }
        );
        assert_eq!(caller.role(), Some(role));
        assert_eq!(caller.who.auth, "api_token");
        assert_eq!(caller.who.token_id, Some(Uuid::from_u128(7).to_string()));
        assert_eq!(caller.who.client.map(|client| client.len()), Some(128));
        assert_eq!((caller.limit, caller.share_key.len()), (40, 16));
    }
}

#[tokio::test]
async fn an_api_token_ends_at_its_time_sharp() {
    let setup = setup(&[token(SECRET, Role::Client)]);
    setup.set_clock_ms((NOW + 60) * 1000 - 1);
    assert!(setup.check(&bearer(SECRET)).await.is_ok());
    setup.set_clock_ms((NOW + 60) * 1000);
    assert_eq!(
        setup.check(&bearer(SECRET)).await.unwrap_err(),
        AuthError::ExpiredApiToken
    );
}

#[tokio::test]
async fn unknown_and_revoked_api_tokens_are_refused() {
    let mut broken = token(SECRET, Role::Admin);
    broken.sha256 = "not a hash".into();
    let setup = setup(&[broken, token("duo_other", Role::Client)]);
    for secret in [SECRET, "duo_", "duo_OTHER", "duo_other2"] {
        let error = setup.check(&bearer(secret)).await.unwrap_err();
        assert_eq!(error, AuthError::UnknownApiToken, "{secret}");
    }
    assert!(setup.check(&bearer("duo_other")).await.is_ok());
    setup.configure(&[], &[token(SECRET, Role::Client)]);
    assert!(setup.check(&bearer("duo_other")).await.is_err(), "revoked");
    assert!(setup.check(&bearer(SECRET)).await.is_ok());
}

#[tokio::test]
async fn every_result_is_counted_and_starts_at_zero() {
    let setup = setup(&[token(SECRET, Role::Client)]);
    setup.check(&bearer(SECRET)).await.unwrap();
    setup.check(&bearer("duo_wrong")).await.unwrap_err();

    let text = prometheus::TextEncoder::new()
        .encode_to_string(&setup.registry.gather())
        .unwrap();
    for line in [
        "duo_auth_total{result=\"api_token\"} 1",
        "duo_auth_total{result=\"unknown_api_token\"} 1",
        "duo_auth_total{result=\"cached\"} 0",
        "duo_auth_total{result=\"header_mismatch\"} 0",
        "duo_auth_key_fetches_total{result=\"loaded\"} 0",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let reasons = AuthError::REASONS
        .into_iter()
        .chain(["cached", "verified", "api_token"]);
    assert_eq!(text.matches("duo_auth_total{").count(), reasons.count());
}
