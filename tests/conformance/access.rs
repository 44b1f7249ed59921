//! Who is let in: tokens, headers and scopes, and what strangers are told.

use duo_system_tests::gitlab::{Signature, TokenSpec};
use http::Method;
use serde_json::{Value, json};

use crate::bodies::{
    AGENT, COMPLETIONS, DIRECT, V3, V4, chat, commit, completion, component_completion, each, embeddings,
    generation, old_generation, old_tool, xray,
};
use crate::case::{Ask, Case, bare, case, post};

const NO_HEADER: &str = "No authorization header presented";
const FORBIDDEN: &str = "Forbidden by auth provider";

/// Every case of access.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = strangers();
    cases.extend(bad_tokens());
    cases.extend(good_tokens());
    cases.extend(headers());
    cases.extend(scopes());
    cases
}

/// Without a token nobody learns which paths exist, but for the four that are open.
fn strangers() -> Vec<Case> {
    let mut cases = vec![
        case(
            "a probe of the host without a token is told 401",
            bare(Method::HEAD, "/").nobody(),
        )
        .status(401),
        case(
            "a path that does not exist is 401 without a token",
            bare(Method::GET, "/nope").nobody(),
        )
        .stranger(NO_HEADER),
        case(
            "a path that does not exist is 404 with a token",
            bare(Method::GET, "/nope"),
        )
        .detail(404, "Not Found"),
        case(
            "documentation of the API is behind a token",
            bare(Method::GET, "/docs").nobody(),
        )
        .stranger(NO_HEADER),
        case(
            "metrics are behind a token on this port",
            bare(Method::GET, "/metrics").nobody(),
        )
        .stranger(NO_HEADER),
        case("metrics are not on this port", bare(Method::GET, "/metrics")).detail(404, "Not Found"),
        case("another method is 405", bare(Method::GET, COMPLETIONS)).detail(405, "Method Not Allowed"),
        case(
            "another method is 401 without a token",
            bare(Method::GET, COMPLETIONS).nobody(),
        )
        .stranger(NO_HEADER),
        case(
            "a slash too much at the end is redirected away",
            post("/v2/code/completions/", json!({})),
        )
        .status(307)
        .header("location", COMPLETIONS),
    ];
    for (name, ask) in each() {
        cases.push(case(format!("{name}: 401 without a token"), ask.nobody()).stranger(NO_HEADER));
    }
    for path in [
        "/monitoring/healthz",
        "/monitoring/ready",
        "/v1/models/definitions",
    ] {
        let ask = bare(Method::GET, path).nobody();
        cases.push(case(format!("{path} is open to everybody"), ask).good());
    }
    cases
}

/// Tokens that no instance would present.
fn bad_tokens() -> Vec<Case> {
    let good = TokenSpec::default;
    let hour = time::Duration::HOUR;
    let specs = [
        ("has expired", good().ttl(-hour)),
        ("is not yet valid", good().not_before(hour).ttl(hour * 2)),
        (
            "is signed by HS256 with the public key",
            good().signature(Signature::Hs256),
        ),
        ("is signed by nobody", good().signature(Signature::None)),
        ("is signed by a stranger", good().signature(Signature::Stranger)),
        ("is for another service", good().audience(["someone-else"])),
        ("is for no service", good().audience(Vec::<String>::new())),
        ("names no service at all", good().claim("aud", Value::Null)),
        (
            "is of an unknown issuer",
            good().issuer("https://elsewhere.example"),
        ),
        ("never expires", good().claim("exp", Value::Null)),
        ("has no subject", good().claim("sub", Value::Null)),
    ];
    let mut cases: Vec<Case> = specs
        .into_iter()
        .map(|(what, spec)| {
            let ask = completion(COMPLETIONS).token(spec);
            case(format!("a token that {what} is refused"), ask).stranger(FORBIDDEN)
        })
        .collect();
    for (header, spec) in [
        ("X-Gitlab-Realm", good().realm(Some("saas"))),
        ("X-Gitlab-Instance-Id", good().subject("another-instance")),
        (
            "X-Gitlab-Instance-Id",
            good().claim("gitlab_instance_id", "another-instance".into()),
        ),
    ] {
        let ask = completion(COMPLETIONS).token(spec);
        let name = format!("a token whose claim is not what {header} says is refused");
        cases.push(case(name, ask).stranger(&format!("Header mismatch '{header}'")));
    }
    cases
}

/// What differs from token to token without harm.
fn good_tokens() -> Vec<Case> {
    let good = TokenSpec::default;
    let specs = [
        (
            "for several services",
            good().audience(["gitlab-ai-gateway", "another"]),
        ),
        ("without a key id", good().kid("")),
        ("with a key id that nobody published", good().kid("another")),
        ("without a realm", good().realm(None)),
        ("with the instance's id in a claim that does not differ", good()),
        (
            "with claims that nobody knows",
            good().claim("duo_seat_count", json!(7)),
        ),
        (
            "a few seconds early",
            good().not_before(time::Duration::seconds(5)),
        ),
        ("a few seconds late", good().ttl(time::Duration::seconds(-5))),
    ];
    let tokens = specs.into_iter().map(|(what, spec)| {
        case(
            format!("a token {what} passes"),
            completion(COMPLETIONS).token(spec),
        )
        .good()
    });
    tokens.collect()
}

fn headers() -> Vec<Case> {
    let api_token = completion(COMPLETIONS).client();
    let mut cases = gitlab_headers();
    cases.push(
        case(
            "an OpenAI client's token opens no endpoint of GitLab's",
            api_token,
        )
        .detail(403, "Unauthorized to access code completions"),
    );
    cases
}

fn gitlab_headers() -> Vec<Case> {
    let oidc = "Invalid authentication token type - only OIDC is supported";
    let kind = "x-gitlab-authentication-type";
    let ask = || completion(COMPLETIONS);
    vec![
        case("a token without its type is refused", ask().headless(kind)).stranger(oidc),
        case("a token of another type is refused", ask().header(kind, "basic")).stranger(oidc),
        case("the type may be in capitals", ask().header(kind, "OIDC")).good(),
        case(
            "a header without Bearer is refused",
            ask().header("authorization", "Basic YTpi"),
        )
        .stranger("Invalid authorization header"),
        case("a bare word is no token", ask().header("authorization", "token"))
            .stranger("Invalid authorization header"),
        case(
            "what is no token is refused",
            ask().header("authorization", "Bearer not.a.token"),
        )
        .stranger(FORBIDDEN),
        case("the realm has to be told", ask().headless("x-gitlab-realm"))
            .stranger("Header mismatch 'X-Gitlab-Realm'"),
        case(
            "the realm has to be the token's",
            ask().header("x-gitlab-realm", "saas"),
        )
        .stranger("Header mismatch 'X-Gitlab-Realm'"),
        case(
            "the instance has to be told",
            ask().headless("x-gitlab-instance-id"),
        )
        .stranger("Header mismatch 'X-Gitlab-Instance-Id'"),
        case(
            "the instance has to be the token's",
            ask().header("x-gitlab-instance-id", "another"),
        )
        .stranger("Header mismatch 'X-Gitlab-Instance-Id'"),
        case(
            "a system's call has no person",
            ask().headless("x-gitlab-global-user-id"),
        )
        .good(),
        case(
            "nobody asks for a host name, version or seat count",
            ask().headless("x-gitlab-version").headless("x-gitlab-host-name"),
        )
        .good(),
        case(
            "the request's id comes back",
            ask().header("x-request-id", "any text, it's fine"),
        )
        .good()
        .header("x-request-id", "any text, it's fine"),
        case("a request without an id gets one", ask())
            .good()
            .check(|answer, _| {
                assert!(!answer.header("x-request-id").is_empty(), "{answer}");
            }),
        case("the time it took is told in seconds", ask())
            .good()
            .check(|answer, _| {
                assert!(answer.header("x-process-time").parse::<f64>().is_ok(), "{answer}");
            }),
        case(
            "refusals have the id and the time too",
            ask().nobody().header("x-request-id", "refused"),
        )
        .header("x-request-id", "refused")
        .check(|answer, _| assert!(answer.header("x-process-time").parse::<f64>().is_ok(), "{answer}")),
        case("no header of feature flags is an empty list", ask())
            .good()
            .says("/metadata/enabled_feature_flags", json!([])),
        case(
            "an empty header of feature flags, which Rails sends, is one empty flag",
            ask().header("x-gitlab-enabled-feature-flags", ""),
        )
        .good()
        .says("/metadata/enabled_feature_flags", json!([""])),
        case(
            "feature flags come back, each once",
            ask().header("x-gitlab-enabled-feature-flags", "a,b,a"),
        )
        .good()
        .says("/metadata/enabled_feature_flags", json!(["a", "b"])),
    ]
}

/// Each endpoint's scope, and its words without it.
fn scopes() -> Vec<Case> {
    let completions = "Unauthorized to access code completions";
    let suggestions = "Unauthorized to access code suggestions";
    let rows: Vec<(Ask, &str, &str, &str)> = vec![
        (
            completion(COMPLETIONS),
            "complete_code",
            "generate_code",
            completions,
        ),
        (completion(DIRECT), "complete_code", "generate_code", completions),
        (
            old_generation(),
            "generate_code",
            "complete_code",
            "Unauthorized to access code generations",
        ),
        (generation(V3), "generate_code", "complete_code", suggestions),
        (generation(V4), "generate_code", "complete_code", suggestions),
        (
            component_completion(V3),
            "complete_code",
            "generate_code",
            suggestions,
        ),
        (
            component_completion(V4),
            "complete_code",
            "generate_code",
            suggestions,
        ),
        (
            chat(),
            "duo_classic_chat",
            "complete_code",
            "Unauthorized to access duo chat",
        ),
        (
            chat(),
            "duo_chat",
            "explain_code",
            "Unauthorized to access duo chat",
        ),
        (
            commit(),
            "generate_commit_message",
            "duo_chat",
            "Unauthorized to access 'generate_commit_message'",
        ),
        (
            old_tool(),
            "explain_code",
            "duo_chat",
            "Unauthorized to access explain_code",
        ),
        (
            xray(),
            "generate_code",
            "complete_code",
            "Unauthorized to access X Ray",
        ),
        (
            embeddings(),
            "generate_embeddings_codebase",
            "complete_code",
            "Unauthorized to generate embeddings",
        ),
    ];
    let mut cases = Vec::new();
    for (ask, scope, other, text) in rows {
        let path = ask.path().to_owned();
        let name = format!("{path}: the scope {scope} alone opens it");
        cases.push(case(name, ask.clone().scopes(&[scope])).good());
        let name = format!("{path}: {other} instead of {scope} is refused in the endpoint's words");
        cases.push(case(name, ask.clone().scopes(&[other])).detail(403, text));
        let name = format!("{path}: no scope is refused instead of {scope}");
        cases.push(case(name, ask.scopes(&[])).detail(403, text));
    }
    for category in [
        "file",
        "snippet",
        "merge_request",
        "issue",
        "dependency",
        "local_git",
        "terminal",
        "repository",
        "directory",
        "user_rule",
        "agent_user_environment",
    ] {
        let item = json!([{"category": category, "id": "1", "content": "y", "metadata": {"a": 1}}]);
        let ask = chat().with("/messages/0/additional_context", item);
        let scope = format!("include_{category}_context");
        let with = ask.clone().scopes(&["duo_chat", &scope]);
        cases.push(case(format!("{AGENT}: {scope} opens its attachments"), with).good());
        let name = format!("{AGENT}: attachments without {scope} are refused by name");
        let text = format!("Unauthorized to access {scope}");
        cases.push(case(name, ask.scopes(&["duo_chat"])).detail(403, &text));
    }
    cases
}
