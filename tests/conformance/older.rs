//! Chat tools of old, package files, tokens for IDEs, models, and health.

use http::Method;
use serde_json::{Value, json};

use crate::bodies::{DIRECT, EXPLAIN, PAYLOAD, TOKEN, XRAY, completion, letters, old_tool, xray};
use crate::case::{Case, bare, case, post, story};

/// Every case of these.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = old_tools();
    cases.extend(package_files());
    cases.extend(tokens());
    cases.extend(health());
    cases
}

fn old_tools() -> Vec<Case> {
    let at = |name: &str| format!("{PAYLOAD}/{name}");
    let messages = json!([{"role": "user", "content": "Explain: x = 1"}]);
    let mut cases = vec![
        case(
            "a tool of old answers with its text and what answered",
            old_tool(),
        )
        .good()
        .says("/metadata/provider", "litellm".into())
        .says("/metadata/model", "mistral".into())
        .check(|answer, cluster| {
            assert_eq!(answer.json()["response"], cluster.expected(16), "{answer}");
            assert!(answer.json()["metadata"]["timestamp"].is_i64(), "{answer}");
        })
        .asked("/messages", messages.clone())
        .asked("/max_tokens", 2048.into())
        .asked("/temperature", json!(0.2)),
        case(
            "a tool of old streams the bare text",
            old_tool().with("/stream", true.into()),
        )
        .good()
        .header("content-type", "text/event-stream; charset=utf-8")
        .check(|answer, cluster| assert_eq!(answer.text(), cluster.expected(16))),
        case(
            "a tool of old takes messages",
            old_tool().with(&at("content"), messages.clone()),
        )
        .good()
        .asked("/messages", messages),
        case(
            "a tool of old that nobody knows is not found",
            post("/v1/chat/sing", old_tool().body("")),
        )
        .detail(404, "Not Found"),
        case(
            "a tool of old needs a component",
            old_tool().with("/prompt_components", json!([])),
        )
        .names("prompt_components"),
        case(
            "a tool of old takes one component",
            old_tool().with("/prompt_components", json!([{}, {}])),
        )
        .names("prompt_components"),
        case("a tool of old needs content", old_tool().lacking(&at("content"))).names("content"),
        case(
            "a tool of old may leave out who provides",
            old_tool().lacking(&at("provider")),
        )
        .good(),
        case(
            "a tool of old may bring what nobody knows",
            old_tool().with(&at("nobody_knows_me"), json!(1)),
        )
        .good(),
        case(
            "a tool of old ignores an endpoint",
            old_tool().with(&at("model_endpoint"), "http://127.0.0.1:9".into()),
        )
        .good(),
    ];
    for name in [
        "explain_code",
        "write_tests",
        "refactor_code",
        "explain_vulnerability",
        "summarize_comments",
        "troubleshoot_job",
        "agent",
    ] {
        cases.push(
            case(
                format!("the tool of old {name} is there"),
                post(format!("/v1/chat/{name}"), old_tool().body("")),
            )
            .good(),
        );
    }
    cases.extend(old_limits());
    cases
}

fn old_limits() -> Vec<Case> {
    let at = |name: &str| format!("{PAYLOAD}/{name}");
    let mut cases = Vec::new();
    for (field, fine, wrong) in [
        (
            "temperature",
            vec![json!(0), json!(0.5), json!(1)],
            vec![json!(1.1), json!(-0.1), json!("hot")],
        ),
        (
            "max_tokens_to_sample",
            vec![json!(1), json!(8192)],
            vec![json!(0), json!(8193), json!("many")],
        ),
        (
            "stop_sequences",
            vec![json!(["a"]), Value::from(vec!["x"; 10]), json!([letters(225)])],
            vec![
                Value::from(vec!["x"; 11]),
                json!([letters(226)]),
                json!("a"),
                json!([1]),
            ],
        ),
    ] {
        let short = |value: &Value| value.to_string().chars().take(40).collect::<String>();
        for value in fine {
            let name = format!("{EXPLAIN}: {field} may be {}", short(&value));
            // A window of 8192 has no room for as many tokens beside a prompt: the model server says so, not we.
            let ask = old_tool().with(&at("params"), json!({ field: value }));
            cases.push(
                case(name, ask).check(|answer, _| assert!(!answer.text().contains("has to"), "{answer}")),
            );
        }
        for value in wrong {
            let name = format!("{EXPLAIN}: {field} may not be {}", short(&value));
            cases.push(case(name, old_tool().with(&at("params"), json!({ field: value }))).names(field));
        }
    }
    cases
}

fn package_files() -> Vec<Case> {
    let at = |name: &str| format!("{PAYLOAD}/{name}");
    vec![
        case("what a package file says comes as a text", xray())
            .good()
            .check(|answer, cluster| {
                assert_eq!(answer.json(), json!({"response": cluster.expected(16)}));
            }),
        case(
            "package files: any model is taken for the configured one",
            xray().with(&at("model"), "claude-3".into()),
        )
        .good(),
        case(
            "package files: no component is told so",
            xray().with("/prompt_components", json!([])),
        )
        .names("prompt_components"),
        case(
            "package files: two components are told so",
            xray().with("/prompt_components", json!([{}, {}])),
        )
        .names("prompt_components"),
        case(
            "package files: another type is told so",
            xray().with("/prompt_components/0/type", "poem".into()),
        )
        .names("type"),
        case(
            "package files: a missing prompt is told so",
            xray().lacking(&at("prompt")),
        )
        .names("prompt"),
        case(
            "package files: a prompt over 400 000 characters is told so",
            xray().with(&at("prompt"), letters(400_001)),
        )
        .names("prompt"),
        case(
            "package files: metadata may come along",
            xray().with("/prompt_components/0/metadata", json!({"scannerVersion": "1"})),
        )
        .good(),
        case(
            format!("{XRAY}: what nobody knows may come along"),
            xray().with("/nobody_knows_me", json!(1)),
        )
        .good(),
    ]
}

/// With a key that signs: the token for an IDE and what it opens.
fn tokens() -> Vec<Case> {
    vec![
        case(
            "GitLab fetches a token for an IDE, without a body",
            bare(Method::POST, TOKEN),
        )
        .good()
        .check(|answer, _| {
            let body = answer.json();
            let parts = body["token"].as_str().map(|token| token.split('.').count());
            assert_eq!(parts, Some(3), "{answer}");
            let expires = body["expires_at"].as_i64().unwrap_or_default();
            let left = expires - time::OffsetDateTime::now_utc().unix_timestamp();
            assert!((3500..=3700).contains(&left), "{left} s");
        }),
        case(
            "a token needs one of the scopes that it gives",
            bare(Method::POST, TOKEN).scopes(&["duo_chat"]),
        )
        .detail(403, "Unauthorized to create user access token"),
        case(
            "a token is a person's",
            bare(Method::POST, TOKEN).headless("x-gitlab-global-user-id"),
        )
        .detail(403, "Unauthorized to create user access token"),
        story(
            "a direct token opens the direct path for its person alone, and no other path",
            |cluster| async move {
                let given = bare(Method::POST, TOKEN).send(&cluster).await.good().json();
                let bearer = format!("Bearer {}", given["token"].as_str().expect("a token"));
                let with = |ask: crate::case::Ask| ask.header("authorization", &bearer);
                let direct = completion(DIRECT)
                    .lacking("/model_name")
                    .lacking("/model_provider");
                let direct = direct.lacking("/prompt").with("/prompt_version", 1.into());
                with(direct.clone()).send(&cluster).await.good();
                with(direct.clone().with("/stream", true.into()))
                    .send(&cluster)
                    .await
                    .good();
                let other = with(direct)
                    .header("x-gitlab-global-user-id", "bob")
                    .send(&cluster)
                    .await;
                assert_eq!(
                    other.json(),
                    json!({"error": "Header mismatch 'X-Gitlab-Global-User-Id'"})
                );
                let again = with(bare(Method::POST, TOKEN)).send(&cluster).await;
                assert_eq!(
                    again.json(),
                    json!({"detail": "Unauthorized to create user access token"})
                );
                for (name, ask) in crate::bodies::each() {
                    if ask.path() != DIRECT {
                        assert_eq!(with(ask).send(&cluster).await.status, 403, "{name}");
                    }
                }
            },
        ),
        case(
            "keys that verify direct tokens are there for everybody",
            bare(Method::GET, "/.well-known/jwks.json").nobody(),
        )
        .good()
        .says("/keys/0/kty", "RSA".into())
        .says("/keys/0/alg", "RS256".into())
        .says("/keys/0/use", "sig".into()),
    ]
}

fn health() -> Vec<Case> {
    let mut cases = vec![
        case(
            "health is an empty object",
            bare(Method::GET, "/monitoring/healthz").nobody(),
        )
        .exactly(200, json!({})),
        case(
            "readiness is 200 when work is welcome",
            bare(Method::GET, "/monitoring/ready").nobody(),
        )
        .good(),
        case(
            "the vendor proxy is not there",
            post("/v1/proxy/anthropic/v1/messages", json!({})),
        )
        .detail(404, "Not Found"),
        case(
            "a vendor's product is not there",
            post("/v1/amazon_q/oauth/application", json!({})),
        )
        .detail(404, "Not Found"),
    ];
    for method in [Method::HEAD, Method::POST] {
        let name = format!("{method} is no way to ask for health");
        cases.push(case(name, bare(method, "/monitoring/healthz").nobody()).status(405));
    }
    for path in [
        "/v1/models/definitions",
        "/v1/models%2Fdefinitions",
        "/v1%2Fmodels%2fdefinitions",
    ] {
        let ask = bare(Method::GET, path).nobody();
        cases.push(
            case(format!("{path}: no models are GitLab's"), ask)
                .exactly(200, json!({"models": [], "unit_primitives": []})),
        );
    }
    cases
}
