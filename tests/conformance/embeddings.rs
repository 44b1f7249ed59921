//! Vectors of code, for GitLab's search over it.

use std::time::Duration;

use duo_system_tests::harness::Answer;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::administrator::Administrator;
use crate::bodies::{EMBEDDINGS, embeddings, metadata};
use crate::case::{Ask, Case, Change, bare, case, post, story};
use crate::crowd::{drain, fill};
use crate::everywhere::{MAX_BODY, padded};
use crate::trouble::{TOO_MANY, busy, failing, silent};

/// Where GitLab indexes.
const INDEX: &str = "/v1/embeddings/code_embeddings/index";
/// Where it searches.
const SEARCH: &str = "/v1/embeddings/code_embeddings/search";
/// A text of more bytes surely does not fit into the model's window.
pub(crate) const MOST_BYTES: usize = 65_536;
const FAILED: &str = "Inference failed";
/// What is said of more.
pub(crate) const TOO_LONG: &str =
    "the prompt is too long for the model's context window of 8192 tokens; send less text";

/// Two texts of code.
fn code(path: &str) -> Ask {
    post(path, embeddings().body(""))
}

/// Every case with a model server that is well.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in [EMBEDDINGS, INDEX, SEARCH] {
        cases.extend(answers(path));
        cases.extend(wrong(path));
    }
    for path in [INDEX, SEARCH] {
        cases.extend(doors(path));
    }
    cases.extend(models());
    cases.extend([beyond(), switched_off()]);
    cases
}

fn answers(path: &str) -> Vec<Case> {
    let one = |name: &str, ask: Ask| case(format!("{path}: {name}"), ask).good();
    let many = |count: usize| Value::from(vec!["x"; count]);
    let long = |text: &str| json!(["a", text]);
    vec![
        one("each text gets its vector", code(path))
            .says("/predictions/0/index", 0.into())
            .says("/predictions/1/index", 1.into())
            .says("/model/engine", "litellm_embedding".into())
            .says("/model/name", "embedding".into())
            .says("/model/identifier", "mistral".into())
            .check(|answer, _| {
                let body = answer.json();
                assert!(body["predictions"][0]["embedding"][0].is_number(), "{answer}");
                assert_eq!(body["predictions"].as_array().map(Vec::len), Some(2), "{answer}");
            }),
        one(
            "the model server is asked for the texts and nothing else",
            code(path),
        )
        .check(|_, cluster| {
            let asked = json!({"model": "sim", "input": ["def a", "def b"], "encoding_format": "float"});
            assert_eq!(cluster.last_body(), asked);
        }),
        one("model data may be missing", code(path).lacking("/model_metadata")),
        one(
            "null for model data is none",
            code(path).with("/model_metadata", Value::Null),
        ),
        one(
            "model data may be empty",
            code(path).with("/model_metadata", json!({})),
        ),
        one(
            "as many dimensions as asked for",
            code(path).with("/dimensions", 8.into()),
        )
        .asked("/dimensions", 8.into())
        .check(|answer, _| {
            let vector = &answer.json()["predictions"][0]["embedding"];
            assert_eq!(vector.as_array().map(Vec::len), Some(8), "{answer}");
        }),
        one(
            "one dimension is enough",
            code(path).with("/dimensions", 1.into()),
        ),
        one(
            "null for dimensions is none",
            code(path).with("/dimensions", Value::Null),
        )
        .asked("/dimensions", Value::Null),
        one(
            "what drops parameters is passed over",
            code(path).with("/litellm_drop_params", true.into()),
        )
        .asked("/litellm_drop_params", Value::Null),
        one(
            "what nobody knows is passed over",
            code(path).with("/nobody_knows_me", json!([])),
        )
        .asked("/nobody_knows_me", Value::Null),
        one("a stream is never one", code(path).with("/stream", true.into()))
            .header("content-type", "application/json"),
        one("an empty text is one", code(path).with("/contents", json!([""]))),
        one("2048 texts are read", code(path).with("/contents", many(2048))).check(|answer, _| {
            let predictions = answer.json()["predictions"].as_array().map(Vec::len);
            assert_eq!(predictions, Some(2048));
        }),
        one(
            "a text of as many bytes as may fit is read",
            code(path).with("/contents", long(&"x".repeat(MOST_BYTES))),
        ),
        one(
            "half of a surrogate pair is read",
            code(path).text(r#"{"contents": ["x\ud83d"]}"#),
        )
        .asked("/input", json!(["x\u{fffd}\u{fffd}\u{fffd}"])),
    ]
}

fn wrong(path: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = wrong_fields()
        .into_iter()
        .map(|(what, field, value, problem)| {
            let name = format!("{path}: {what}: told so in its place");
            let ask = code(path).with(&format!("/{field}"), value);
            match problem {
                // It is the whole that is too long, so it has no place.
                _ if problem == TOO_LONG => case(name, ask).detail(422, &format!("{field}: {problem}")),
                _ => case(name, ask).exactly(422, misplaced(field, problem)),
            }
        })
        .collect();
    cases.push(
        case(
            format!("{path}: missing texts: told so in their place"),
            code(path).lacking("/contents"),
        )
        .exactly(422, misplaced("contents", "is required")),
    );
    cases
}

/// What is wrong, the field, its value, and what is said of it.
fn wrong_fields() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    vec![
        ("no texts", "contents", json!([]), "is required"),
        ("null for texts", "contents", Value::Null, "is required"),
        (
            "one text that is no list",
            "contents",
            json!("x"),
            "has to be a list",
        ),
        (
            "an object of texts",
            "contents",
            json!({"0": "x"}),
            "has to be a list",
        ),
        (
            "a number among texts",
            "contents",
            json!(["x", 1]),
            "has to be a list of strings",
        ),
        (
            "null among texts",
            "contents",
            json!(["x", null]),
            "has to be a list of strings",
        ),
        (
            "2049 texts",
            "contents",
            vec!["x"; 2049].into(),
            "may have at most 2048 items",
        ),
        (
            "a text of a byte too many",
            "contents",
            json!(["a", "x".repeat(MOST_BYTES + 1)]),
            TOO_LONG,
        ),
        (
            "a text of too many bytes in fewer characters",
            "contents",
            json!(["ü".repeat(MOST_BYTES / 2 + 1)]),
            TOO_LONG,
        ),
        ("no dimensions", "dimensions", json!(0), "has to be 1 or more"),
        (
            "fewer dimensions than none",
            "dimensions",
            json!(-1),
            "has to be 1 or more",
        ),
        (
            "a text for dimensions",
            "dimensions",
            json!("8"),
            "has to be an integer",
        ),
        (
            "half a dimension",
            "dimensions",
            json!(1.5),
            "has to be an integer",
        ),
        (
            "true for dimensions",
            "dimensions",
            json!(true),
            "has to be an integer",
        ),
        (
            "more dimensions than a number holds",
            "dimensions",
            json!(18_446_744_073_709_551_615_u64),
            "has to be an integer",
        ),
        (
            "a text for model data",
            "model_metadata",
            json!("odd"),
            "has to be an object",
        ),
        (
            "a list for model data",
            "model_metadata",
            json!([1]),
            "has to be an object",
        ),
        (
            "a number for model data",
            "model_metadata",
            json!(7),
            "has to be an object",
        ),
    ]
}

/// A complaint about a field, in the form that GitLab reads.
fn misplaced(field: &str, problem: &str) -> Value {
    let text = format!("{field}: {problem}");
    json!({"detail": [{"loc": ["body", field], "msg": text, "type": "value_error"}]})
}

/// What holds for every endpoint, where [`crate::bodies::each`] has only one of three.
fn doors(path: &'static str) -> Vec<Case> {
    let scope = "generate_embeddings_codebase";
    let refusal = "Unauthorized to generate embeddings";
    let told = |what: &str| format!("{path}: {what}");
    let mut cases = vec![
        case(told("401 without a token"), code(path).nobody()).stranger("No authorization header presented"),
        case(told("the scope alone opens it"), code(path).scopes(&[scope])).good(),
        case(
            told("another scope is refused in the endpoint's words"),
            code(path).scopes(&["complete_code"]),
        )
        .detail(403, refusal),
        case(told("no scope is refused too"), code(path).scopes(&[])).detail(403, refusal),
        case(
            told("an OpenAI client's token does not open it"),
            code(path).client(),
        )
        .detail(403, refusal),
        case(told("GET is 405"), bare(Method::GET, path)).detail(405, "Method Not Allowed"),
        case(told("broken JSON is told so"), code(path).text("{\"a\": "))
            .detail(422, "the body is not valid JSON"),
        case(told("a body that is no object is told so"), code(path).text("[]")).names("object"),
        case(told("a body without a type is told so"), code(path).typed(None))
            .detail(422, "the content type has to be application/json"),
        case(
            told("a compressed body is told so"),
            code(path).header("content-encoding", "gzip"),
        )
        .detail(415, "the body has to come as it is, without Content-Encoding"),
        case(
            told("one byte too many is 413"),
            code(path).text(padded(&code(path), MAX_BODY + 1)),
        )
        .detail(413, &format!("the body may have at most {MAX_BODY} bytes")),
        case(
            told("slashes may be written as %2F"),
            code(&path.replace("s/", "s%2F")),
        )
        .good(),
        case(
            told("a slash too much at the end is redirected away"),
            code(&format!("{path}/")),
        )
        .status(307)
        .header("location", path),
    ];
    for size in [600_000, 2 << 20, MAX_BODY] {
        let ask = code(path).text(padded(&code(path), size));
        cases.push(case(told(&format!("{size} bytes are read")), ask).good());
    }
    cases
}

/// Model data picks among the models that are configured.
fn models() -> Vec<Case> {
    let mut cases = Vec::new();
    for identifier in ["custom_openai/any", "hosted_vllm/any", "openai/any", "any", ""] {
        let ask = embeddings().with("/model_metadata", metadata("embedding", identifier));
        cases.push(
            case(format!("vectors: the identifier {identifier:?} is accepted"), ask)
                .good()
                .says("/model/identifier", "mistral".into()),
        );
    }
    let picks = |identifier: &str| embeddings().with("/model_metadata", metadata("embedding", identifier));
    cases.extend([
        case(
            "vectors: the identifier of a configured model picks it",
            picks("custom_openai/codegemma"),
        )
        .good()
        .says("/model/identifier", "codegemma".into()),
        case(
            "vectors: an identifier that is no text is overlooked",
            embeddings().with("/model_metadata/identifier", json!([7])),
        )
        .good()
        .says("/model/identifier", "mistral".into()),
        case(
            "vectors: a model that no worker serves is 503",
            picks("custom_openai/nobody"),
        )
        .detail(503, "no worker serves model nobody at present")
        .header("x-duo-reason", "no_worker"),
    ]);
    cases
}

/// More at once than a person may have.
fn beyond() -> Case {
    story(
        "vectors: beyond a person's share each path is 429 with a time to come again",
        |cluster| async move {
            let running = fill(&cluster, &code(EMBEDDINGS)).await;
            for path in [EMBEDDINGS, INDEX, SEARCH] {
                let refused = code(path).send(&cluster).await;
                assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{path}: {refused}");
                assert_eq!(refused.json(), json!({"detail": TOO_MANY}), "{path}");
                let seconds = refused.header("retry-after").parse::<u64>();
                assert!(seconds.is_ok_and(|seconds| seconds > 0), "{refused}");
            }
            drain(&cluster, running).await;
        },
    )
    .sim(|sim| sim.ttft_ms = 60_000)
}

/// An administrator switches a feature off and on again.
fn switched_off() -> Case {
    story(
        "vectors: a feature that is inactive is 403 on every path",
        |cluster| async move {
            let administrator = Administrator::new(&cluster, "vectors").await;
            let feature = "code_embeddings";
            administrator.switch_off(feature, &code(EMBEDDINGS)).await;
            let text =
                format!("feature {feature} is switched off; an administrator can assign a model to it");
            for path in [EMBEDDINGS, INDEX, SEARCH] {
                let off = code(path).send(&cluster).await;
                assert_eq!(off.status, StatusCode::FORBIDDEN, "{path}: {off}");
                assert_eq!(off.json(), json!({ "detail": text }), "{path}");
                assert_eq!(off.header("x-duo-reason"), "feature_inactive", "{path}");
            }
            let on = StatusCode::OK;
            administrator
                .assign(feature, "mistral", &code(EMBEDDINGS), on)
                .await;
        },
    )
}

/// Every case with a model server that is not well.
pub(crate) fn troubles() -> Vec<Case> {
    let rows: [(u16, u16, &str, Change); 5] = [
        (400, 422, "the model server refused the request", failing::<400>),
        (
            404,
            503,
            "the model server does not know the model",
            failing::<404>,
        ),
        (429, 429, TOO_MANY, busy),
        (500, 503, FAILED, failing::<500>),
        (503, 503, "the model server is not available", failing::<503>),
    ];
    let mut cases = Vec::new();
    for (theirs, ours, text, sim) in rows {
        let retry = if theirs == 429 { "7" } else { "" };
        for path in [EMBEDDINGS, INDEX, SEARCH] {
            let name = format!("{path}: {theirs} of the model server is {ours}");
            cases.push(
                case(name, code(path))
                    .sim(sim)
                    .status(ours)
                    .check(move |answer, _| {
                        let said = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
                        // Behind it the attempts are counted, where there were any worth it.
                        assert!(said.starts_with(text), "{text}: {answer}");
                    })
                    .header("retry-after", retry),
            );
        }
    }
    let broken: [(&str, Change); 3] = [
        ("hangs up at once", |sim| sim.reset_rate = 1.0),
        ("drops the connection", |sim| sim.cut_rate = 1.0),
        ("answers without vectors", |sim| sim.malformed_rate = 1.0),
    ];
    for (what, sim) in broken {
        cases.push(
            case(
                format!("{EMBEDDINGS}: a model server that {what} is 503"),
                code(EMBEDDINGS),
            )
            .sim(sim)
            .detail(503, FAILED)
            .header("x-duo-reason", "model_server_fault"),
        );
    }
    let name = "vectors of code are 503 within their time";
    cases.push(silent(name, Duration::from_secs(5), code(EMBEDDINGS), late));
    cases
}

/// No byte in time.
pub(crate) fn late(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    assert_eq!(answer.header("x-duo-reason"), "first_byte_deadline", "{answer}");
}
