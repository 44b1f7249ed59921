//! Who is let in, and what the others are told.

use std::time::Duration;

use duo_system_tests::gitlab::{Signature, TokenSpec};
use duo_system_tests::harness::cluster::{agent, chat, completion, generation};
use duo_system_tests::harness::{Answer, Cluster, until};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const FORBIDDEN: &str = "Forbidden by auth provider";
const COMPLETIONS: &str = "/v2/code/completions";

fn assert_stranger(what: &str, answer: &Answer, text: &str) {
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}: {answer}");
    assert_eq!(answer.json(), json!({ "error": text }), "{what}");
}

/// Nothing reached the queue or the model server.
async fn assert_untouched(cluster: &Cluster) {
    assert_eq!(cluster.sim.stats().started, 0);
    assert_eq!(cluster.messages("DUO_LIVE").await, Ok(0));
    assert_eq!(cluster.metric("duo_requests_admitted_total").await, Ok(0.0));
}

#[tokio::test]
async fn gitlab_tokens_that_are_not_good_are_refused_with_the_contracts_words() {
    let cluster = Cluster::start().await;
    let good = TokenSpec::default;
    let hour = time::Duration::HOUR;
    let specs = [
        ("expired", good().ttl(-hour)),
        ("not yet valid", good().not_before(hour).ttl(hour * 2)),
        ("HS256", good().signature(Signature::Hs256)),
        ("none", good().signature(Signature::None)),
        ("a stranger's key", good().signature(Signature::Stranger)),
        ("another audience", good().audience(["someone-else"])),
        ("no audience", good().audience(Vec::<String>::new())),
        ("another issuer", good().issuer("https://elsewhere.example")),
        ("no expiry", good().claim("exp", Value::Null)),
    ];
    for (what, spec) in specs {
        let headers = cluster.rails_headers_with(&spec, "alice");
        let call = cluster
            .call(Method::POST, COMPLETIONS)
            .headers(headers)
            .json(&completion("x", false));
        assert_stranger(what, &call.send().await, FORBIDDEN);
    }
    let mismatches = [
        ("X-Gitlab-Realm", good().realm(Some("saas"))),
        ("X-Gitlab-Instance-Id", good().subject("another-instance")),
    ];
    for (header, spec) in mismatches {
        let headers = cluster.rails_headers_with(&spec, "alice");
        let call = cluster
            .call(Method::POST, COMPLETIONS)
            .headers(headers)
            .json(&completion("x", false));
        assert_stranger(header, &call.send().await, &format!("Header mismatch '{header}'"));
    }
    for (header, value) in [("x-gitlab-realm", "saas"), ("x-gitlab-instance-id", "another")] {
        let mut headers = cluster.rails_headers("alice");
        headers.retain(|(name, _)| *name != header);
        headers.push((header, value.to_owned()));
        let call = cluster
            .call(Method::POST, COMPLETIONS)
            .headers(headers)
            .json(&completion("x", false));
        let answer = call.send().await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{header}: {answer}");
        let text = answer.json()["error"].as_str().unwrap_or_default().to_lowercase();
        assert_eq!(text, format!("header mismatch '{header}'"));
    }
    assert_untouched(&cluster).await;
    cluster
        .rails(COMPLETIONS, "alice", &completion("x", false))
        .send()
        .await
        .good();
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_missing_or_odd_authorization_is_refused_before_the_path_is_looked_at() {
    let cluster = Cluster::start().await;
    for path in ["/", "/nope", COMPLETIONS, "/v2/chat/agent", "/v1/prompts/nope"] {
        let answer = cluster.call(Method::POST, path).json(&json!({})).send().await;
        assert_stranger(path, &answer, "No authorization header presented");
    }
    let head = cluster.call(Method::HEAD, "/").send().await;
    assert_eq!(head.status, StatusCode::UNAUTHORIZED);
    let mut headers = cluster.rails_headers("alice");
    let nope = cluster
        .call(Method::GET, "/nope")
        .headers(headers.clone())
        .send()
        .await;
    assert_eq!(
        (nope.status, nope.json()),
        (StatusCode::NOT_FOUND, json!({"detail": "Not Found"}))
    );

    headers.retain(|(name, _)| *name != "x-gitlab-authentication-type");
    let typeless = cluster
        .call(Method::POST, COMPLETIONS)
        .headers(headers.clone())
        .json(&completion("x", false));
    let text = "Invalid authentication token type - only OIDC is supported";
    assert_stranger("no type", &typeless.send().await, text);
    headers.retain(|(name, _)| *name != "authorization");
    headers.push(("x-gitlab-authentication-type", "oidc".to_owned()));
    headers.push(("authorization", "Basic YTpi".to_owned()));
    let basic = cluster
        .call(Method::POST, COMPLETIONS)
        .headers(headers)
        .json(&completion("x", false));
    assert_stranger("Basic", &basic.send().await, "Invalid authorization header");

    for token in ["", "duo_unknown"] {
        let call = cluster
            .call(Method::POST, "/v1/chat/completions")
            .json(&chat("x", 1, false));
        let call = if token.is_empty() { call } else { call.token(token) };
        let answer = call.send().await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer}");
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("invalid_api_key"), &json!("invalid_request_error"))
        );
    }
    assert_untouched(&cluster).await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_missing_scope_is_refused_with_the_endpoints_words() {
    let cluster = Cluster::start().await;
    let cells = [
        (
            COMPLETIONS,
            "generate_code",
            completion("x", false),
            "Unauthorized to access code completions",
        ),
        (
            "/v2/completions",
            "duo_chat",
            completion("x", false),
            "Unauthorized to access code completions",
        ),
        (
            "/v3/code/completions",
            "duo_chat",
            generation("x", false),
            "Unauthorized to access code suggestions",
        ),
        (
            "/v4/code/suggestions",
            "complete_code",
            generation("x", true),
            "Unauthorized to access code suggestions",
        ),
        (
            "/v2/chat/agent",
            "complete_code",
            agent("x"),
            "Unauthorized to access duo chat",
        ),
        (
            "/v1/prompts/chat/explain_code",
            "complete_code",
            json!({"inputs": {"input": "x", "selected_text": "y"}}),
            "Unauthorized to access 'chat/explain_code'",
        ),
    ];
    for (path, scope, body, text) in cells {
        let headers = cluster.rails_headers_with(&TokenSpec::default().scopes([scope]), "alice");
        let answer = cluster
            .call(Method::POST, path)
            .headers(headers)
            .json(&body)
            .send()
            .await;
        assert_eq!(
            (answer.status, answer.json()),
            (StatusCode::FORBIDDEN, json!({ "detail": text })),
            "{path}"
        );
    }
    let mut with_file = agent("x");
    with_file["messages"][0]["additional_context"] = json!([{"category": "file", "id": "1", "content": "y"}]);
    let headers = cluster.rails_headers_with(&TokenSpec::default().scopes(["duo_chat"]), "alice");
    let answer = cluster
        .call(Method::POST, "/v2/chat/agent")
        .headers(headers)
        .json(&with_file)
        .send()
        .await;
    let text = "Unauthorized to access include_file_context";
    assert_eq!(
        (answer.status, answer.json()),
        (StatusCode::FORBIDDEN, json!({ "detail": text }))
    );

    let rails = cluster
        .rails("/v1/chat/completions", "alice", &chat("x", 1, false))
        .send()
        .await;
    assert_eq!(
        rails.status,
        StatusCode::FORBIDDEN,
        "a GitLab token on an OpenAI endpoint: {rails}"
    );
    let auditor = cluster
        .call(Method::POST, "/v1/chat/completions")
        .token(&cluster.auditor_token);
    assert_eq!(
        auditor.json(&chat("x", 1, false)).send().await.status,
        StatusCode::FORBIDDEN
    );
    assert_untouched(&cluster).await;
    cluster.assert_clean().await;
}

async fn status_becomes(cluster: &Cluster, token: &str, wanted: StatusCode) {
    until(
        &format!("the token gets {wanted}"),
        Duration::from_secs(1),
        async || {
            let answer = cluster.call(Method::GET, "/v1/models").token(token).send().await;
            if answer.status == wanted {
                Ok(())
            } else {
                Err(answer.to_string())
            }
        },
    )
    .await;
}

#[tokio::test]
async fn api_tokens_open_and_close_within_a_second() {
    let cluster = Cluster::start().await;
    let token = cluster.cli.token("short-lived", "client", &[]).await;
    status_becomes(&cluster, &token, StatusCode::OK).await;
    cluster.cli.succeed(&["token", "revoke", "short-lived"]).await;
    status_becomes(&cluster, &token, StatusCode::UNAUTHORIZED).await;
    let listed = cluster.cli.succeed(&["token", "list"]).await;
    assert!(
        listed.contains("system-client") && !listed.contains(&cluster.client_token),
        "{listed}"
    );

    let token = cluster
        .cli
        .token("expiring", "client", &["--expires", "2s"])
        .await;
    status_becomes(&cluster, &token, StatusCode::OK).await;
    until("the token expires", Duration::from_secs(4), async || {
        let answer = cluster.call(Method::GET, "/v1/models").token(&token).send().await;
        if answer.status == StatusCode::UNAUTHORIZED {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    })
    .await;
    cluster.assert_clean().await;
}

#[tokio::test]
async fn an_api_token_opens_only_its_features_and_models() {
    let cluster = Cluster::start().await;
    let token = cluster
        .cli
        .token(
            "narrow",
            "client",
            &["--features", "openai_chat", "--models", "codegemma"],
        )
        .await;
    status_becomes(&cluster, &token, StatusCode::OK).await;
    let ask = |path: &str, body: &Value| cluster.call(Method::POST, path).token(&token).json(body).send();
    let mut body = chat("x", 3, false);
    let other_model = ask("/v1/chat/completions", &body).await;
    assert_eq!(other_model.status, StatusCode::FORBIDDEN, "{other_model}");
    let other_feature = ask("/v1/completions", &json!({"model": "codegemma", "prompt": "x"})).await;
    assert_eq!(other_feature.status, StatusCode::FORBIDDEN, "{other_feature}");
    let gitlab = ask(COMPLETIONS, &completion("x", false)).await;
    assert_eq!(gitlab.status, StatusCode::FORBIDDEN, "{gitlab}");
    assert_untouched(&cluster).await;
    body["model"] = "codegemma".into();
    ask("/v1/chat/completions", &body).await.good();
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_gitlab_that_rotates_its_keys_or_goes_away_is_followed() {
    let cluster = Cluster::start().await;
    let old = cluster.rails_headers("alice");
    let ask = |headers: &[(&'static str, String)]| {
        cluster
            .call(Method::POST, COMPLETIONS)
            .headers(headers.to_vec())
            .json(&completion("x", false))
            .send()
    };
    ask(&old).await.good();
    cluster.gitlab.rotate_keys().expect("a key");
    let new = cluster.rails_headers("alice");
    ask(&new).await.good();
    cluster.gitlab.stop().await;
    ask(&new).await.good();
    cluster.assert_clean().await;
}
