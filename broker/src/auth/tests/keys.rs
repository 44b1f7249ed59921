//! Signing keys: fetched, shared, rotated, kept.

use futures_util::future::join_all;

use super::*;

fn token_under(kid: Option<&str>, key: usize, claims: &Value) -> HeaderMap {
    let mut header = json!({"alg": "RS256"});
    if let Some(kid) = kid {
        header["kid"] = json!(kid);
    }
    headers(&signed_under(key, &header, claims))
}

async fn check_many(setup: &Setup, headers: &[HeaderMap]) -> Vec<Result<(), AuthError>> {
    let checks = headers
        .iter()
        .map(async |headers| setup.check(headers).await.map(drop));
    join_all(checks).await
}

/// Tokens that differ, so that none is known.
fn tokens(count: usize, key: usize, instance: &Instance) -> Vec<HeaderMap> {
    let token = |number: usize| {
        let mut claims = instance.claims();
        claims["jti"] = json!(number.to_string());
        headers(&signed(key, &claims))
    };
    (0..count).map(token).collect()
}

#[tokio::test]
async fn a_token_needs_no_key_id() {
    let instance = Instance::start().await;
    instance.publish(&[jwk(0, "first"), jwk(1, "second")]);
    let setup = Setup::of(&instance);
    for kid in [None, Some("first"), Some("second"), Some("unknown")] {
        for key in [0, 1] {
            let headers = token_under(kid, key, &instance.claims());
            assert!(setup.check(&headers).await.is_ok(), "{kid:?} {key}");
        }
    }
    assert_eq!(instance.fetches(), 1);
}

#[tokio::test]
async fn keys_that_cannot_verify_are_passed_over() {
    let instance = Instance::start().await;
    let mut encryption = jwk(1, "encryption");
    encryption["use"] = json!("enc");
    let mut other = jwk(2, "other");
    other["alg"] = json!("RS512");
    let curve = json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"});
    let weak = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([255; 128]), "e": "AQAB"});
    let odd = json!({"kty": 7});
    let mut bare = jwk(0, "bare");
    bare.as_object_mut()
        .unwrap()
        .retain(|name, _| ["kty", "n", "e"].contains(&name.as_str()));
    instance.publish(&[encryption, other, curve, weak, odd, bare]);

    let keys = fetch_keys(&reqwest::Client::new(), &instance.url).await.unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!((keys[0].kid(), keys[0].bits()), (None, 2048));
    assert!(
        Setup::of(&instance)
            .check_claims(&instance.claims())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn rotated_keys_are_fetched_once() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let old = token_under(Some("first"), 0, &instance.claims());
    assert!(setup.check(&old).await.is_ok());

    instance.publish(&[jwk(1, "second")]);
    let new = token_under(Some("second"), 1, &instance.claims());
    let many = vec![new; 20];
    assert!(check_many(&setup, &many).await.iter().all(Result::is_ok));
    assert_eq!(instance.fetches(), 2);

    let withdrawn = forbidden(Forbidden::BadSignature);
    assert_eq!(
        setup.check(&old).await.unwrap_err(),
        withdrawn,
        "known, but its key is gone"
    );
    assert_eq!(instance.fetches(), 2);
}

#[tokio::test]
async fn a_flood_of_bad_tokens_provokes_one_fetch() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    assert!(setup.check_claims(&instance.claims()).await.is_ok());

    let bad = tokens(100, 2, &instance);
    for _ in 0..2 {
        let checked = check_many(&setup, &bad).await;
        assert_eq!(checked, vec![Err(forbidden(Forbidden::BadSignature)); 100]);
        assert_eq!(instance.fetches(), 2);
    }
    assert_eq!(setup.auth.metrics.verified.get(), 1);
}

#[tokio::test]
async fn another_fetch_may_be_provoked_later() {
    let instance = Instance::start().await;
    let config = AuthConfig {
        unknown_key_refresh: Duration::ZERO,
        ..AuthConfig::default()
    };
    let setup = Setup::new(&[instance.issuer()], &[], config);
    for bad in tokens(3, 2, &instance) {
        assert!(setup.check(&bad).await.is_err());
    }
    assert_eq!(instance.fetches(), 3);
}

#[tokio::test]
async fn keys_outlive_their_instance() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let (good, bad) = (tokens(3, 0, &instance), tokens(1, 2, &instance));
    assert!(setup.check(&good[0]).await.is_ok());
    instance.stop().await;

    assert!(setup.check(&good[1]).await.is_ok());
    assert_eq!(
        setup.check(&bad[0]).await.unwrap_err(),
        forbidden(Forbidden::BadSignature)
    );
    assert!(
        setup.check(&good[2]).await.is_ok(),
        "the failed fetch took nothing away"
    );
    assert!(setup.auth.keys_loaded());
}

#[tokio::test]
async fn tokens_of_an_instance_that_was_never_there_are_refused() {
    let instance = Instance::start().await;
    let setup = Setup::of(&instance);
    let tokens = tokens(2, 0, &instance);
    instance.stop().await;
    for token in tokens {
        let error = setup.check(&token).await.unwrap_err();
        assert_eq!(error, forbidden(Forbidden::KeysUnavailable));
    }
    assert!(!setup.auth.keys_loaded());
}

#[tokio::test]
async fn an_instance_that_hangs_is_waited_for_once() {
    let instance = Instance::start().await;
    instance.hang();
    let config = AuthConfig {
        fetch_timeout: Duration::from_millis(200),
        ..AuthConfig::default()
    };
    let setup = Setup::new(&[instance.issuer()], &[], config);
    let tokens = tokens(50, 0, &instance);
    for _ in 0..2 {
        let checked = check_many(&setup, &tokens).await;
        assert_eq!(checked, vec![Err(forbidden(Forbidden::KeysUnavailable)); 50]);
        assert_eq!(instance.fetches(), 1);
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_no_fetch_away() {
    let instance = Instance::start().await;
    instance.hang();
    let setup = Setup::of(&instance);
    let mut discoveries = instance.discoveries.subscribe();
    let tokens = tokens(2, 0, &instance);
    tokio::select! {
        biased;
        _ = setup.check(&tokens[0]) => panic!("the instance hangs"),
        begun = discoveries.wait_for(|count| *count == 1) => drop(begun.unwrap()),
    }
    instance.publish(&[jwk(0, "first")]);
    assert!(setup.check(&tokens[1]).await.is_ok());
    assert_eq!(instance.fetches(), 1);
}

#[tokio::test]
async fn the_background_fetches_ahead_of_tokens_and_follows_the_issuers() {
    let (first, second) = (Instance::start().await, Instance::start().await);
    let setup = Setup::of(&first);
    let shutdown = Shutdown::new();
    let running = tokio::spawn(setup.auth.clone().run(shutdown.clone()));

    let begun = |instance: &Instance| {
        let mut discoveries = instance.discoveries.subscribe();
        async move { drop(discoveries.wait_for(|count| *count == 1).await.unwrap()) }
    };
    begun(&first).await;
    assert!(setup.check_claims(&first.claims()).await.is_ok());
    setup.configure(&[first.issuer(), second.issuer()], &[]);
    begun(&second).await;
    assert!(setup.check_claims(&second.claims()).await.is_ok());
    assert_eq!((first.fetches(), second.fetches()), (1, 1));

    assert!(setup.auth.keys_loaded());
    let status = setup.auth.issuer_keys();
    assert_eq!((status[0].keys, status[0].stale), (1, false));
    shutdown.begin();
    running.await.unwrap();
}

#[tokio::test]
async fn the_background_refreshes_and_retries() {
    let instance = Instance::start().await;
    instance.answer([]);
    let config = AuthConfig {
        keys_refresh: Duration::from_millis(1),
        ..AuthConfig::default()
    };
    let setup = Setup::new(&[instance.issuer()], &[], config);
    let running = tokio::spawn(setup.auth.clone().run(Shutdown::new()));
    let mut discoveries = instance.discoveries.subscribe();
    discoveries.wait_for(|count| *count >= 2).await.unwrap();
    instance.publish(&[jwk(0, "first")]);
    let seen = instance.fetches();
    discoveries.wait_for(|count| *count >= seen + 3).await.unwrap();
    assert!(setup.auth.keys_loaded());
    assert!(setup.check_claims(&instance.claims()).await.is_ok());
    running.abort();
}

#[tokio::test]
async fn a_failed_fetch_says_what_is_wrong() {
    let instance = Instance::start().await;
    let url = instance.url.clone();
    let client = reqwest::Client::new();
    let text = async || fetch_keys(&client, &url).await.unwrap_err().to_string();
    let discovery = "/.well-known/openid-configuration";
    let told = |issuer: &str, keys: &str| {
        let document = json!({"issuer": issuer, "jwks_uri": keys}).to_string();
        (discovery, (StatusCode::OK, document))
    };

    instance.answer([]);
    assert_eq!(text().await, format!("{url}{discovery} answered 404"));
    instance.answer([(discovery, (StatusCode::OK, "<html>".into()))]);
    assert!(text().await.starts_with(&format!(
        "the answer of {url}{discovery} is not a discovery document: "
    )));
    instance.answer([told("https://gitlab.example.com", "")]);
    assert_eq!(
        text().await,
        format!(
            "{url} calls itself https://gitlab.example.com: configure that URL, its tokens carry it as iss"
        )
    );
    instance.answer([told(&url, "file:///etc/keys")]);
    assert_eq!(text().await, "\"file:///etc/keys\" is not an http or https URL");
    let keys = format!("{url}/keys");
    instance.answer([
        told(&url, &keys),
        ("/keys", (StatusCode::OK, " ".repeat(1024 * 1024 + 1))),
    ]);
    assert_eq!(
        text().await,
        format!("the answer of {keys} is larger than 1048576 bytes")
    );
    instance.publish(&[]);
    assert_eq!(
        text().await,
        format!("{keys} holds no RSA signing key of 2048 to 8192 bits")
    );
    let error = fetch_keys(&client, "gitlab.example.com").await.unwrap_err();
    assert_eq!(error.reason(), "not_a_url");
    instance.stop().await;
    assert!(
        text()
            .await
            .starts_with(&format!("cannot reach {url}{discovery}: "))
    );
}
