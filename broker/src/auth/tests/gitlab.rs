//! Tokens that a GitLab instance signed.

use aws_lc_rs::hmac;

use super::*;
use crate::caller::{Grant, PERSON_LIMIT, SERVICE_LIMIT};

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[tokio::test]
async fn a_good_token_makes_a_caller() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let mut headers = headers(&signed(0, &instance.claims()));
    set(&mut headers, "x-gitlab-version", "18.9.0");
    set(&mut headers, "x-gitlab-client-type", "ide");
    set(&mut headers, "x-gitlab-client-name", "VS\u{e9}Code");
    set(&mut headers, "user-agent", "not asked");

    let peer = "10.1.2.3".parse().ok();
    let caller = setup.auth.authenticate(&headers, peer).await.unwrap();

    let scopes = ["complete_code", "duo_chat"].map(str::to_owned).into();
    let grant = Grant::GitLab {
        scopes,
        openai: true,
        issuer: instance.url.clone(),
        realm: Some("self-managed".to_owned()),
    };
    assert_eq!(*caller.grant, grant);
    assert_eq!(caller.who.auth, "gitlab");
    assert_eq!(caller.who.instance_id.as_deref(), Some(INSTANCE));
    assert_eq!(caller.who.user_id.as_deref(), Some(PERSON));
    assert_eq!(caller.who.token_id.as_deref(), Some("token-1"));
    assert_eq!(caller.who.client.as_deref(), Some("ide VSCode"));
    assert_eq!(caller.who.address.as_deref(), Some("10.1.2.3"));
    assert_eq!(caller.gitlab_version.as_deref(), Some("18.9.0"));
    assert_eq!(caller.limit, PERSON_LIMIT);
    assert_eq!(caller.share_key.len(), 16);
}

#[tokio::test]
async fn people_and_the_instance_itself_have_shares_of_their_own() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let mut headers = headers(&signed(0, &instance.claims()));

    let person = setup.check(&headers).await.unwrap();
    let again = setup.check(&headers).await.unwrap();
    set(&mut headers, "x-gitlab-global-user-id", "somebody else");
    let other = setup.check(&headers).await.unwrap();
    headers.remove("x-gitlab-global-user-id");
    let service = setup.check(&headers).await.unwrap();

    assert_eq!(person.share_key, again.share_key);
    assert_ne!(person.share_key, other.share_key);
    assert_ne!(person.share_key, service.share_key);
    assert_eq!((service.limit, service.who.user_id), (SERVICE_LIMIT, None));
}

#[tokio::test]
async fn the_authorization_header_is_looked_at_before_the_type() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let good = headers(&signed(0, &instance.claims()));
    let text = async |headers: &HeaderMap| setup.check(headers).await.unwrap_err().to_string();

    assert_eq!(text(&HeaderMap::new()).await, "No authorization header presented");

    for value in [
        "",
        "Bearer",
        "Bearer ",
        "invalid",
        "Basic dXNlcjpwYXNz",
        "Bearer t\u{f6}ken",
    ] {
        let mut headers = HeaderMap::new();
        set(&mut headers, "authorization", value);
        assert_eq!(text(&headers).await, "Invalid authorization header", "{value}");
    }
    let mut repeated = good.clone();
    repeated.append("authorization", HeaderValue::from_static("Bearer other"));
    assert_eq!(text(&repeated).await, "Invalid authorization header");
    let long = "x".repeat(16 * 1024 + 1);
    assert_eq!(text(&headers(&long)).await, "Invalid authorization header");

    let only_oidc = "Invalid authentication token type - only OIDC is supported";
    assert_eq!(text(&bearer("12345")).await, only_oidc);
    let mut other = good.clone();
    set(&mut other, "x-gitlab-authentication-type", "saml");
    assert_eq!(text(&other).await, only_oidc);

    let mut spelt = good;
    set(&mut spelt, "x-gitlab-authentication-type", "OIDC");
    let value = spelt["authorization"]
        .to_str()
        .unwrap()
        .replace("Bearer", "bearer");
    set(&mut spelt, "authorization", &value);
    assert!(setup.check(&spelt).await.is_ok());
}

#[tokio::test]
async fn times_count_with_leeway() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let claims = instance.claims();
    let mut cases = vec![
        ("exp", json!(NOW - 29), Ok(())),
        ("exp", json!(NOW - 30), Err(Forbidden::Expired)),
        ("exp", json!(NOW as f64 - 29.5), Ok(())),
        ("exp", json!(NOW as f64 - 30.5), Err(Forbidden::Expired)),
        ("exp", json!(-1), Err(Forbidden::Expired)),
        ("exp", json!(1e300), Ok(())),
        (
            "exp",
            json!((NOW + 60).to_string()),
            Err(Forbidden::MalformedToken),
        ),
        ("nbf", json!(NOW + 30), Ok(())),
        ("nbf", json!(NOW + 31), Err(Forbidden::NotYetValid)),
        ("nbf", json!("soon"), Err(Forbidden::MalformedToken)),
    ];
    cases.push(("nbf", Value::Null, Ok(())));
    for (name, value, expected) in cases {
        let checked = setup.check_claims(&with(&claims, name, value.clone())).await;
        assert_eq!(checked.map(drop), expected.map_err(forbidden), "{name} {value}");
    }
}

#[tokio::test]
async fn required_claims_are_required() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let claims = instance.claims();
    for name in ["aud", "exp", "sub"] {
        let missing = forbidden(Forbidden::MissingClaim);
        let checked = setup.check_claims(&without(&claims, name)).await;
        assert_eq!(checked.unwrap_err(), missing, "{name}");
        let checked = setup.check_claims(&with(&claims, name, Value::Null)).await;
        assert_eq!(checked.unwrap_err(), missing, "{name}");
    }
    assert!(setup.check_claims(&without(&claims, "nbf")).await.is_ok());
    assert!(setup.check_claims(&without(&claims, "jti")).await.is_ok());
}

#[tokio::test]
async fn the_audience_is_ours_in_either_form() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let claims = instance.claims();
    assert!(
        setup
            .check_claims(&with(&claims, "aud", json!(AUDIENCE)))
            .await
            .is_ok()
    );
    for audience in [
        json!("other"),
        json!(["other"]),
        json!([]),
        json!("gitlab-ai-gateway2"),
    ] {
        let checked = setup.check_claims(&with(&claims, "aud", audience)).await;
        assert_eq!(checked.unwrap_err(), forbidden(Forbidden::WrongAudience));
    }
    let checked = setup.check_claims(&with(&claims, "aud", json!(7))).await;
    assert_eq!(checked.unwrap_err(), forbidden(Forbidden::MalformedToken));
}

#[tokio::test]
async fn an_issuer_vouches_for_its_own_tokens_only() {
    let (instance, other) = (Instance::start().await, Instance::start().await);
    other.publish(&[jwk(1, "other")]);
    let setup = Setup::new(&[instance.issuer(), other.issuer()], &[], AuthConfig::default());
    let claims = instance.claims();

    let theirs = headers(&signed(1, &other.claims()));
    assert!(setup.check(&theirs).await.is_ok());
    let borrowed = headers(&signed(1, &claims));
    assert_eq!(
        setup.check(&borrowed).await.unwrap_err(),
        forbidden(Forbidden::BadSignature)
    );

    for iss in [json!("https://gitlab.example.com"), Value::Null] {
        let checked = setup.check_claims(&with(&claims, "iss", iss)).await;
        assert_eq!(checked.unwrap_err(), forbidden(Forbidden::UnknownIssuer));
    }
    let slash = with(&claims, "iss", json!(format!("{}/", instance.url)));
    assert!(setup.check_claims(&slash).await.is_ok());
}

#[tokio::test]
async fn only_rs256_is_accepted() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let claims = instance.claims();
    let public = jwk(0, "first");
    let modulus = URL_SAFE_NO_PAD.decode(public["n"].as_str().unwrap()).unwrap();

    let mut tokens = Vec::new();
    for algorithm in ["HS256", "RS384", "PS256", "ES256", "EdDSA"] {
        tokens.push((
            signed_under(0, &json!({"alg": algorithm}), &claims),
            Forbidden::UnsupportedAlgorithm,
        ));
    }
    for algorithm in ["HS256", "RS256"] {
        let message = unsigned(&json!({"alg": algorithm}), &claims);
        for secret in [modulus.as_slice(), KEYS[0].public_key().as_ref()] {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
            let why = match algorithm {
                "HS256" => Forbidden::UnsupportedAlgorithm,
                _ => Forbidden::BadSignature,
            };
            tokens.push((format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag)), why));
        }
    }
    for algorithm in ["none", "None", "NONE", ""] {
        let message = unsigned(&json!({"alg": algorithm}), &claims);
        tokens.push((format!("{message}."), Forbidden::MalformedToken));
    }
    let critical = json!({"alg": "RS256", "crit": ["b64"], "b64": false});
    tokens.push((signed_under(0, &critical, &claims), Forbidden::MalformedToken));
    for (token, why) in tokens {
        let error = setup.check(&headers(&token)).await.unwrap_err();
        assert_eq!(error, forbidden(why), "{token}");
        assert_eq!(error.to_string(), "Forbidden by auth provider");
    }
}

#[tokio::test]
async fn a_changed_token_is_refused() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let good = signed(0, &instance.claims());
    assert!(setup.check(&headers(&good)).await.is_ok());

    let (signed_part, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = signed_part.split_once('.').unwrap();
    let more = with(&instance.claims(), "scopes", json!(["everything"]));
    let more = URL_SAFE_NO_PAD.encode(more.to_string());
    let changed = [
        (format!("{header}.{more}.{signature}"), Forbidden::BadSignature),
        (format!("{signed_part}."), Forbidden::BadSignature),
        (format!("{good}.{signature}"), Forbidden::MalformedToken),
        (signed_part.to_owned(), Forbidden::MalformedToken),
        ("..".to_owned(), Forbidden::MalformedToken),
        ("junk".to_owned(), Forbidden::MalformedToken),
    ];
    for (token, why) in changed {
        let checked = setup.check(&headers(&token)).await;
        assert_eq!(checked.unwrap_err(), forbidden(why), "{token}");
    }
}

#[tokio::test]
async fn headers_that_do_not_fit_the_token_are_named_on_every_request() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let claims = with(&instance.claims(), "gitlab_instance_id", json!(INSTANCE));
    let good = headers(&signed(0, &claims));
    assert!(setup.check(&good).await.is_ok());

    for (name, text) in [
        ("x-gitlab-realm", "Header mismatch 'X-Gitlab-Realm'"),
        ("x-gitlab-instance-id", "Header mismatch 'X-Gitlab-Instance-Id'"),
    ] {
        let mut missing = good.clone();
        missing.remove(name);
        let mut other = good.clone();
        set(&mut other, name, "other");
        let mut repeated = good.clone();
        repeated.append(name, good[name].clone());
        for headers in [missing, other, repeated] {
            assert_eq!(setup.check(&headers).await.unwrap_err().to_string(), text);
        }
    }
    let mut long = good.clone();
    set(&mut long, "x-gitlab-global-user-id", &"u".repeat(256));
    let error = setup.check(&long).await.unwrap_err();
    assert_eq!(error.to_string(), "Header mismatch 'X-Gitlab-Global-User-Id'");
    set(&mut long, "x-gitlab-global-user-id", &"u".repeat(255));
    assert!(setup.check(&long).await.is_ok());

    let elsewhere = with(&claims, "sub", json!("other"));
    let error = setup.check_claims(&elsewhere).await.unwrap_err();
    assert_eq!(error, AuthError::HeaderMismatch("X-Gitlab-Instance-Id"));
    let mut no_realm = good;
    no_realm.remove("x-gitlab-realm");
    set(
        &mut no_realm,
        "authorization",
        &format!("Bearer {}", signed(0, &without(&claims, "gitlab_realm"))),
    );
    assert!(setup.check(&no_realm).await.is_ok());
}

#[tokio::test]
async fn a_token_without_scopes_opens_nothing_at_all() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    for claims in [
        without(&instance.claims(), "scopes"),
        with(&instance.claims(), "scopes", json!([])),
    ] {
        let caller = setup.check_claims(&claims).await.unwrap();
        let scopes = std::collections::HashSet::new();
        assert_eq!(
            *caller.grant,
            Grant::GitLab {
                scopes,
                openai: false,
                issuer: instance.url.clone(),
                realm: Some("self-managed".to_owned()),
            }
        );
    }
}

#[tokio::test]
async fn a_known_token_is_not_verified_again_until_it_expires() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let headers = headers(&signed(0, &instance.claims()));
    for _ in 0..3 {
        assert!(setup.check(&headers).await.is_ok());
    }
    let counted = (setup.auth.metrics.verified.get(), setup.auth.metrics.cached.get());
    assert_eq!(counted, (1, 2));

    setup.set_clock_ms((NOW + 3600 + 30) * 1000 - 1);
    assert!(setup.check(&headers).await.is_ok());
    setup.set_clock_ms((NOW + 3600 + 30) * 1000);
    let expired = forbidden(Forbidden::Expired);
    assert_eq!(setup.check(&headers).await.unwrap_err(), expired);
    assert_eq!(setup.auth.inner.verified.len(), 0);
}

#[tokio::test]
async fn a_known_token_falls_with_its_issuer() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let headers = headers(&signed(0, &instance.claims()));
    assert!(setup.check(&headers).await.is_ok());

    let mut changed = instance.issuer();
    changed.audience = "another".into();
    setup.configure(&[changed], &[]);
    let wrong = forbidden(Forbidden::WrongAudience);
    assert_eq!(setup.check(&headers).await.unwrap_err(), wrong);

    setup.configure(&[instance.issuer()], &[]);
    assert!(setup.check(&headers).await.is_ok());
    assert_eq!(instance.fetches(), 1, "a changed audience keeps the keys");

    setup.configure(&[], &[]);
    let unknown = forbidden(Forbidden::UnknownIssuer);
    assert_eq!(setup.check(&headers).await.unwrap_err(), unknown);
}
