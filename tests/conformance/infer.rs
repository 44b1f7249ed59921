//! Models that are no language models: KServe's requests and answers, and errors in KServe's form.

mod fields;

use std::time::Duration;

use duo_system_tests::gitlab::TokenSpec;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::administrator::Administrator;
use crate::bodies::metadata;
use crate::case::{Ask, Case, Change, bare, case, post, story};
use crate::crowd::{drain, fill};
use crate::everywhere::{MAX_BODY, padded};
use crate::trouble::{busy, failing, silent};

/// Who would review.
const REVIEWERS: &str = "/v1/infer/suggested_reviewers";
/// What is to come.
const FORECAST: &str = "/v1/infer/value_stream_forecasting";

const NO_TOKEN: &str = r#"no API token given; send it as "Authorization: Bearer <token>""#;
const BAD_TOKEN: &str = "invalid API token; an administrator can make one with duo-broker token create";

/// Four numbers to look at.
fn inference(path: &str) -> Ask {
    post(path, json!({"id": "mr-7", "inputs": [tensor()]}))
}

fn tensor() -> Value {
    json!({"name": "changes", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4]]})
}

impl Case {
    /// A refusal in the shape `{"error": text}`.
    fn error(self, status: u16, text: &str) -> Self {
        self.exactly(status, json!({ "error": text }))
    }

    /// The same after attempts, which are counted behind the text.
    fn given_up(self, status: u16, text: &str) -> Self {
        let text = text.to_owned();
        self.status(status).check(move |answer, _| {
            let said = answer.json()["error"].as_str().unwrap_or_default().to_owned();
            assert!(said.starts_with(&text), "{text}: {answer}");
        })
    }
}

/// Every case with a model server that is well.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = answers();
    cases.extend(access());
    cases.extend(paths());
    cases.extend(bodies());
    cases.extend(fields::cases());
    cases.extend([beyond(), switched_off()]);
    cases
}

fn answers() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in [REVIEWERS, FORECAST] {
        cases.push(
            case(
                format!("{path}: the model server's answer comes as it is"),
                inference(path),
            )
            .good()
            .header("content-type", "application/json")
            .says("/model_name", "sim".into())
            .says("/id", "mr-7".into())
            .says("/outputs/0/name", "changes_scores".into())
            .says("/outputs/0/shape", json!([4])),
        );
        cases.push(
            case(
                format!("{path}: the request reaches the model server byte for byte"),
                inference(path).text(ODD),
            )
            .good()
            .check(|_, cluster| {
                let last = cluster.sim.last_request().expect("a request");
                assert_eq!(last.path, "/v2/models/sim/infer");
                assert_eq!(last.body, ODD.as_bytes());
            }),
        );
    }
    cases.extend([
        case(
            "inference: a mark in front of the body goes, and nothing else",
            inference(REVIEWERS).text(format!("\u{feff}{ODD}")),
        )
        .good()
        .check(|_, cluster| {
            assert_eq!(
                cluster.sim.last_request().expect("a request").body,
                ODD.as_bytes()
            );
        }),
        case(
            "inference: what nobody knows reaches the model server",
            inference(REVIEWERS).with("/nobody_knows_me", json!([1, null])),
        )
        .good()
        .asked("/nobody_knows_me", json!([1, null])),
        case(
            "inference: an address in the body is never called",
            inference(REVIEWERS).with("/model_metadata", metadata("martian", "custom_openai/martian")),
        )
        .good(),
        case(
            "inference: a stream is never one",
            inference(REVIEWERS).with("/stream", true.into()),
        )
        .good()
        .header("content-type", "application/json"),
        case(
            "inference: a mistake that the model server finds comes in its own words",
            inference(REVIEWERS).with("/inputs/0/shape", json!([3])),
        )
        .error(
            400,
            "unexpected number of elements for input 'changes': 4, expecting 3",
        )
        .header("x-duo-reason", "invalid_request"),
        case(
            "inference: the request's id comes back",
            inference(REVIEWERS).header("x-request-id", "reviews 7"),
        )
        .good()
        .header("x-request-id", "reviews 7")
        .check(|answer, _| assert!(answer.header("x-process-time").parse::<f64>().is_ok(), "{answer}")),
    ]);
    cases
}

/// Blanks, order and a member of a client's own.
const ODD: &str =
    r#"{ "own": 1.50,  "inputs": [{"data": [1, 2], "shape": [2], "datatype": "FP32", "name": "x"}] }"#;

fn access() -> Vec<Case> {
    let expired = TokenSpec::default().ttl(-time::Duration::HOUR);
    let ask = || inference(REVIEWERS);
    let mut cases = vec![
        case("inference: 401 without a token", ask().nobody())
            .error(401, NO_TOKEN)
            .header("www-authenticate", "Bearer"),
        case(
            "inference: 401 without a token for what does not exist",
            inference("/v1/infer/nope").nobody(),
        )
        .error(401, NO_TOKEN),
        case("inference: an expired token is refused", ask().token(expired))
            .error(401, "Forbidden by auth provider"),
        case(
            "inference: a token without its type is taken for an API token",
            ask().headless("x-gitlab-authentication-type"),
        )
        .error(401, BAD_TOKEN),
        case(
            "inference: an API token that nobody made is refused",
            ask().nobody().header("authorization", "Bearer duo_c_nobody"),
        )
        .error(401, BAD_TOKEN),
        case(
            "inference: the realm has to be the token's",
            ask().header("x-gitlab-realm", "saas"),
        )
        .error(401, "Header mismatch 'X-Gitlab-Realm'"),
    ];
    for (path, scope, other) in [
        (REVIEWERS, "suggested_reviewers", "value_stream_forecasting"),
        (FORECAST, "value_stream_forecasting", "suggested_reviewers"),
    ] {
        let text = format!("Unauthorized to access {scope}");
        let with = |scopes: &[&str]| inference(path).scopes(scopes);
        cases.extend([
            case(
                format!("{path}: the scope {scope} alone opens it"),
                with(&[scope]),
            )
            .good(),
            case(
                format!("{path}: {other} instead of {scope} is refused in its words"),
                with(&[other]),
            )
            .error(403, &text),
            case(
                format!("{path}: no scope is refused instead of {scope}"),
                with(&[]),
            )
            .error(403, &text),
            case(
                format!("{path}: an API token that does not name {scope} is refused"),
                inference(path).client(),
            )
            .error(403, &text),
            case(
                format!("{path}: who may not come in has no say about the body"),
                with(&[]).text("{"),
            )
            .error(403, &text),
        ]);
    }
    cases
}

fn paths() -> Vec<Case> {
    let unknown = "no such feature; there are suggested_reviewers and value_stream_forecasting";
    let mut cases = Vec::new();
    for name in [
        "nope",
        "duo_chat",
        "Suggested_Reviewers",
        "suggested_reviewers%20",
    ] {
        let ask = inference(&format!("/v1/infer/{name}"));
        cases.push(
            case(
                format!("/v1/infer/{name} is not found, and told of those that are"),
                ask,
            )
            .error(404, unknown),
        );
    }
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE] {
        let name = format!("{method} is no way to ask for an inference");
        let one = case(name, bare(method.clone(), REVIEWERS)).status(405);
        cases.push(match method {
            Method::HEAD => one,
            _ => one.error(405, "Method Not Allowed"),
        });
    }
    cases.extend([
        case(
            "inference: a path too long is not found",
            inference("/v1/infer/suggested_reviewers/more"),
        )
        .error(404, "Not Found"),
        case(
            "inference: a slash too much at the end is redirected away",
            inference("/v1/infer/suggested_reviewers/"),
        )
        .status(307)
        .header("location", REVIEWERS),
        case(
            "inference: slashes may be written as %2F",
            inference("/v1%2Finfer%2fsuggested_reviewers"),
        )
        .good(),
    ]);
    cases
}

fn bodies() -> Vec<Case> {
    let ask = || inference(REVIEWERS);
    let no_json = "the body is not valid JSON";
    let no_object = "the body has to be an object";
    let no_type = "the content type has to be application/json";
    let rows = [
        ("broken JSON", ask().text("{\"inputs\": "), 400, no_json),
        ("an empty body", ask().text(""), 400, no_json),
        ("two bodies in one", ask().text("{} {}"), 400, no_json),
        ("a list", ask().text("[]"), 400, no_object),
        ("a number", ask().text("7"), 400, no_object),
        ("null", ask().text("null"), 400, no_object),
        ("a body without a type", ask().typed(None), 400, no_type),
        ("text", ask().typed(Some("text/plain")), 400, no_type),
        (
            "binary tensors",
            ask().typed(Some("application/octet-stream")),
            400,
            no_type,
        ),
        (
            "a compressed body",
            ask().header("content-encoding", "gzip"),
            415,
            "the body has to come as it is, without Content-Encoding",
        ),
    ];
    let mut cases: Vec<Case> = rows
        .into_iter()
        .map(|(what, ask, status, text)| {
            case(format!("inference: {what} is told so"), ask).error(status, text)
        })
        .collect();
    for kind in [
        "application/json; charset=utf-8",
        " application/json",
        "Application/JSON",
        "application/vnd.kserve+json",
    ] {
        cases.push(
            case(
                format!("inference: the type {kind:?} is read"),
                ask().typed(Some(kind)),
            )
            .good(),
        );
    }
    cases.push(
        case(
            "inference: a body that says that it is as it is is read",
            ask().header("content-encoding", "identity"),
        )
        .good(),
    );
    for size in [600_000, 2 << 20, MAX_BODY] {
        let body = padded(&ask(), size);
        cases.push(case(format!("inference: {size} bytes are read"), ask().text(body)).good());
    }
    let large = padded(&ask(), MAX_BODY + 1);
    cases.push(
        case("inference: one byte more is 413", ask().text(large))
            .error(413, &format!("the body may have at most {MAX_BODY} bytes")),
    );
    cases
}

/// More at once than a person may have.
fn beyond() -> Case {
    story(
        "inference: beyond a person's share it is 429 with a time to come again",
        |cluster| async move {
            let running = fill(&cluster, &inference(REVIEWERS)).await;
            let refused = inference(REVIEWERS).send(&cluster).await;
            assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused}");
            let text = "you have as many requests under way as you may; wait for one to end";
            assert_eq!(refused.json(), json!({ "error": text }));
            let seconds = refused.header("retry-after").parse::<u64>();
            assert!(seconds.is_ok_and(|seconds| seconds > 0), "{refused}");
            drain(&cluster, running).await;
        },
    )
    .sim(|sim| sim.ttft_ms = 60_000)
}

/// An administrator switches a feature off, gives it a model that nobody serves, and takes both back.
fn switched_off() -> Case {
    story(
        "inference: a feature that is inactive is 403, one whose model nobody serves is 503",
        |cluster| async move {
            let administrator = Administrator::new(&cluster, "inference").await;
            let (feature, ask) = ("value_stream_forecasting", inference(FORECAST));
            administrator.switch_off(feature, &ask).await;
            let off = ask.send(&cluster).await;
            let text =
                format!("feature {feature} is switched off; an administrator can assign a model to it");
            assert_eq!(off.json(), json!({ "error": text }));
            assert_eq!(off.header("x-duo-reason"), "feature_inactive");
            inference(REVIEWERS).send(&cluster).await.good();

            let unavailable = StatusCode::SERVICE_UNAVAILABLE;
            administrator.assign(feature, "nobody", &ask, unavailable).await;
            let away = ask.send(&cluster).await;
            assert_eq!(
                away.json(),
                json!({"error": "no worker serves model nobody at present"})
            );
            assert_eq!(away.header("x-duo-reason"), "no_worker");
            administrator
                .assign(feature, "mistral", &ask, StatusCode::OK)
                .await;
        },
    )
}

/// Every case with a model server that is not well.
pub(crate) fn troubles() -> Vec<Case> {
    let own = "simulated failure";
    let rows: [(u16, u16, &str, &str, Change); 9] = [
        (400, 400, own, "invalid_request", failing::<400>),
        (413, 413, own, "invalid_request", failing::<413>),
        (422, 422, own, "invalid_request", failing::<422>),
        (
            401,
            503,
            "the model server refused the worker's key",
            "model_unavailable",
            failing::<401>,
        ),
        (
            404,
            503,
            "the model server does not know the model",
            "model_unavailable",
            failing::<404>,
        ),
        (
            429,
            429,
            "the model server has too much to do",
            "overloaded",
            busy,
        ),
        (
            500,
            502,
            "the model server failed",
            "model_server_fault",
            failing::<500>,
        ),
        (
            501,
            502,
            "the model server failed",
            "model_server_fault",
            failing::<501>,
        ),
        (
            503,
            503,
            "the model server is not available",
            "model_unavailable",
            failing::<503>,
        ),
    ];
    let mut cases: Vec<Case> = rows
        .into_iter()
        .map(|(theirs, ours, text, reason, sim)| {
            let name = format!("inference: {theirs} of the model server is {ours} with its reason");
            let retry = if theirs == 429 { "7" } else { "" };
            case(name, inference(REVIEWERS))
                .sim(sim)
                .given_up(ours, text)
                .header("x-duo-reason", reason)
                .header("retry-after", retry)
        })
        .collect();
    let broken: [(&str, &str, Change); 3] = [
        (
            "hangs up at once",
            "the model server broke off before it answered",
            |sim| sim.reset_rate = 1.0,
        ),
        (
            "drops the connection",
            "the model server broke off before it answered",
            |sim| sim.cut_rate = 1.0,
        ),
        (
            "answers without outputs",
            "the model server's answer holds no outputs",
            |sim| sim.malformed_rate = 1.0,
        ),
    ];
    for (what, text, sim) in broken {
        let name = format!("inference: a model server that {what} is 502");
        cases.push(
            case(name, inference(REVIEWERS))
                .sim(sim)
                .given_up(502, text)
                .header("x-duo-reason", "model_server_fault"),
        );
    }
    cases.push(silent(
        "an inference is 503 within its time",
        Duration::from_secs(5),
        inference(REVIEWERS),
        |answer| {
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
            assert_eq!(answer.header("x-duo-reason"), "first_byte_deadline", "{answer}");
            assert!(answer.json()["error"].is_string(), "{answer}");
        },
    ));
    cases
}
