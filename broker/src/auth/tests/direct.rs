//! Tokens of our own for IDEs.

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::auth::direct::{SigningKeyError, SigningKeys};
use crate::caller::Grant;

fn pem(key: usize) -> String {
    let der: Pkcs8V1Der<'_> = KEYS[key].as_der().unwrap();
    let encoded = STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = encoded
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        lines.join("\n")
    )
}

fn keys(text: &str) -> Option<Arc<SigningKeys>> {
    Some(Arc::new(SigningKeys::parse(text).unwrap()))
}

async fn signing(instance: &Instance, text: &str) -> Setup {
    let mut setup = Setup::of(instance);
    setup.auth = setup.auth.with_signing_keys(keys(text));
    setup
}

/// What an IDE sends with a token that `setup` has made for it.
async fn minted(setup: &Setup, instance: &Instance) -> HeaderMap {
    let caller = setup.check_claims(&instance.claims()).await.unwrap();
    headers(&setup.auth.mint(&caller).unwrap().token)
}

#[tokio::test]
async fn a_token_of_ours_makes_a_caller_who_shares_the_persons_place() {
    let instance = Instance::start().await;
    let setup = signing(&instance, &pem(1)).await;
    let through_gitlab = setup.check_claims(&instance.claims()).await.unwrap();
    let token = setup.auth.mint(&through_gitlab).unwrap();
    assert_eq!(token.expires_at, NOW + 3600);

    // Twice, since the second time it is known.
    for _ in 0..2 {
        let caller = setup.check(&headers(&token.token)).await.unwrap();
        assert_eq!(*caller.grant, Grant::Direct);
        assert_eq!(caller.who.auth, "gitlab_direct");
        assert_eq!(caller.who.instance_id.as_deref(), Some(INSTANCE));
        assert_eq!(caller.who.user_id.as_deref(), Some(PERSON));
        assert_eq!(caller.share_key, through_gitlab.share_key);
        assert!(!caller.has_scope("complete_code"));
        assert_eq!(setup.auth.mint(&caller).unwrap_err(), MintError::NotAllowed);
    }

    let mut other = headers(&token.token);
    set(&mut other, "x-gitlab-global-user-id", "somebody else");
    let refused = setup.check(&other).await.unwrap_err();
    assert_eq!(refused.to_string(), "Header mismatch 'X-Gitlab-Global-User-Id'");
    other.remove("x-gitlab-global-user-id");
    assert_eq!(setup.check(&other).await.unwrap_err(), refused);

    setup.set_clock_ms((NOW + 3600 + 60) * 1000);
    let refused = setup.check(&headers(&token.token)).await.unwrap_err();
    assert_eq!(refused, AuthError::Forbidden(Forbidden::Expired));
}

#[tokio::test]
async fn nothing_but_our_keys_and_a_configured_voucher_makes_a_token_ours() {
    let instance = Instance::start().await;
    let setup = signing(&instance, &pem(1)).await;
    let good = minted(&setup, &instance).await;

    // The instance's own key does not sign in our name, nor do ours in its name.
    let claims = json!({
        "iss": "gitlab-ai-gateway", "aud": "gitlab-ai-gateway", "sub": PERSON, "exp": NOW + 60,
        "gitlab_instance_id": INSTANCE, "duo_issuer": instance.url, "scopes": ["complete_code"],
    });
    let refused = |claims: &Value, key: usize| {
        let headers = headers(&signed(key, claims));
        let auth = setup.auth.clone();
        async move { auth.authenticate(&headers, None).await.unwrap_err() }
    };
    let forbidden = AuthError::Forbidden;
    assert_eq!(refused(&claims, 0).await, forbidden(Forbidden::BadSignature));
    assert_eq!(
        refused(&instance.claims(), 1).await,
        forbidden(Forbidden::BadSignature)
    );
    for (name, value, why) in [
        ("aud", json!("other"), Forbidden::WrongAudience),
        ("duo_issuer", Value::Null, Forbidden::MissingClaim),
        ("gitlab_instance_id", Value::Null, Forbidden::MissingClaim),
        (
            "duo_issuer",
            json!("http://127.0.0.1:9"),
            Forbidden::UnknownIssuer,
        ),
    ] {
        let mut changed = claims.clone();
        changed[name] = value;
        assert_eq!(refused(&changed, 1).await, forbidden(why), "{name}");
    }

    // Whoever is no longer configured vouches for nobody, known token or not.
    setup.check(&good).await.unwrap();
    setup.configure(&[], &[]);
    let refused = setup.check(&good).await.unwrap_err();
    assert_eq!(refused, forbidden(Forbidden::UnknownIssuer));
}

#[tokio::test]
async fn gitlab_alone_may_ask_for_a_person_and_with_the_scope() {
    let instance = Instance::start().await;
    let without = Setup::of(&instance);
    let caller = without.check_claims(&instance.claims()).await.unwrap();
    assert_eq!(without.auth.mint(&caller).unwrap_err(), MintError::NoKey);

    let setup = signing(&instance, &pem(1)).await;
    let mut nobody = headers(&signed(0, &instance.claims()));
    nobody.remove("x-gitlab-global-user-id");
    let caller = setup.check(&nobody).await.unwrap();
    assert_eq!(setup.auth.mint(&caller).unwrap_err(), MintError::NotAllowed);
    let mut claims = instance.claims();
    claims["scopes"] = json!(["duo_chat"]);
    let caller = setup.check_claims(&claims).await.unwrap();
    assert_eq!(setup.auth.mint(&caller).unwrap_err(), MintError::NotAllowed);
}

#[tokio::test]
async fn a_new_key_on_top_signs_and_the_old_one_still_verifies() {
    let instance = Instance::start().await;
    let old = signing(&instance, &pem(1)).await;
    let token = minted(&old, &instance).await;

    let both = format!("made today\n{}made last year\n{}", pem(2), pem(1));
    let rotated = signing(&instance, &both).await;
    rotated.check(&token).await.unwrap();
    let newer = minted(&rotated, &instance).await;
    rotated.check(&newer).await.unwrap();
    let refused = old.check(&newer).await.unwrap_err();
    assert_eq!(refused, AuthError::Forbidden(Forbidden::BadSignature));

    let published = rotated.auth.signing_keys().unwrap().published().clone();
    for (number, key) in [(0, 2), (1, 1)] {
        let jwk = &published["keys"][number];
        let plain = super::jwk(key, jwk["kid"].as_str().unwrap());
        assert_eq!(*jwk, plain);
    }
    assert_eq!(published["keys"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_file_without_good_keys_says_what_is_wrong() {
    install_crypto();
    let refusal = |text: &str| SigningKeys::parse(text).unwrap_err().to_string();
    assert!(refusal("").contains("openssl genpkey"));
    let broken = format!("{}-----BEGIN PRIVATE KEY-----\nAAAA\n", pem(0));
    assert!(refusal(&broken).starts_with("key 2 in it is no RSA private key"));
    let many = pem(0).repeat(9);
    assert!(matches!(SigningKeys::parse(&many), Err(SigningKeyError::TooMany)));
}
