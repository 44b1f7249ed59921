//! Vectors of anything, for OpenAI's clients.

use std::time::Duration;

use duo_system_tests::harness::{Answer, Cluster};
use http::Method;
use serde_json::{Value, json};

use crate::case::{Ask, Case, Change, bare, case, post};
use crate::embeddings::{MOST_BYTES, TOO_LONG, late};
use crate::everywhere::{MAX_BODY, padded};
use crate::trouble::{busy, failing, silent};

const OPENAI: &str = "/v1/embeddings";

/// Two texts of an OpenAI client's.
fn texts() -> Ask {
    post(OPENAI, json!({"model": "mistral", "input": ["a", "b"]})).client()
}

impl Case {
    /// An error object of OpenAI's.
    fn refused(self, status: u16, about: (&str, Option<&str>), message: &str) -> Self {
        let (code, param) = about;
        self.status(status)
            .says("/error/code", code.into())
            .says("/error/param", param.into())
            .says("/error/message", message.into())
    }
}

/// Every case with a model server that is well.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = answers();
    cases.extend(access());
    cases.extend(fields());
    cases.extend(bodies());
    cases
}

fn answers() -> Vec<Case> {
    let with = |input: Value| texts().with("/input", input);
    let one = |name: &str, ask: Ask| case(format!("{OPENAI}: {name}"), ask).good();
    let length = |count: usize| {
        move |answer: &Answer, _: &Cluster| {
            assert_eq!(
                answer.json()["data"].as_array().map(Vec::len),
                Some(count),
                "{answer}"
            );
        }
    };
    vec![
        one("each text gets its vector", texts())
            .header("content-type", "application/json")
            .says("/object", "list".into())
            .says("/data/0/index", 0.into())
            .says("/data/1/index", 1.into())
            .says("/data/1/object", "embedding".into())
            .check(length(2)),
        one("one text gets one", with("a".into())).check(length(1)),
        one("an empty text is one", with("".into())).check(length(1)),
        one("token ids get one", with(json!([7, 8]))).check(length(1)),
        one("lists of token ids get one each", with(json!([[7], [8, 9]]))).check(length(2)),
        one("4096 texts are read", with(vec!["x"; 4096].into())).check(length(4096)),
        one("the model server is told its own name of the model", texts()).asked("/model", "sim".into()),
        one(
            "base64 is what was asked for",
            texts().with("/encoding_format", "base64".into()),
        )
        .check(|answer, _| assert!(answer.json()["data"][0]["embedding"].is_string(), "{answer}")),
        one(
            "as many dimensions as asked for",
            texts().with("/dimensions", 8.into()),
        )
        .check(|answer, _| {
            let vector = &answer.json()["data"][0]["embedding"];
            assert_eq!(vector.as_array().map(Vec::len), Some(8), "{answer}");
        }),
        one(
            "what nobody knows reaches the model server",
            texts().with("/nobody_knows_me", json!({"a": 1})),
        )
        .asked("/nobody_knows_me", json!({"a": 1})),
        one(
            "no stream is what comes anyway",
            texts().with("/stream", false.into()),
        ),
        one(
            "another model may be named",
            texts().with("/model", "codegemma".into()),
        ),
        one(
            "its own feature may be named",
            texts().header("x-duo-feature", "openai_embedding"),
        ),
        one(
            "each of many texts has the window for itself",
            with(json!(["x".repeat(MOST_BYTES - 2), "y".repeat(MOST_BYTES - 2)])),
        ),
        one(
            "one text may fill the window",
            with("x".repeat(MOST_BYTES - 2).into()),
        ),
    ]
}

fn access() -> Vec<Case> {
    let told = |what: &str| format!("{OPENAI}: {what}");
    let not_allowed = |feature: &str| {
        format!(
            "this token may not use the feature {feature}; an administrator can make a client token that may, with \
             duo-broker token create"
        )
    };
    let gitlab = post(OPENAI, texts().body(""));
    vec![
        case(told("401 without a token"), texts().nobody())
            .refused(
                401,
                ("invalid_api_key", None),
                r#"no API token given; send it as "Authorization: Bearer <token>""#,
            )
            .header("www-authenticate", "Bearer"),
        case(
            told("a token that nobody made is refused"),
            texts().nobody().header("authorization", "Bearer duo_c_nobody"),
        )
        .refused(
            401,
            ("invalid_api_key", None),
            "invalid API token; an administrator can make one with duo-broker token create",
        ),
        case(told("it is closed to GitLab's tokens"), gitlab).refused(
            403,
            ("permission_denied", None),
            &not_allowed("openai_embedding"),
        ),
        case(
            told("a feature that the token does not name is refused"),
            texts().header("x-duo-feature", "code_embeddings"),
        )
        .refused(
            403,
            ("feature_not_allowed", None),
            &not_allowed("code_embeddings"),
        ),
        case(
            told("a feature that does not exist is not found"),
            texts().header("x-duo-feature", "nope"),
        )
        .refused(404, ("unknown_feature", None), "feature nope does not exist"),
        case(
            told("a feature's name that cannot be one is not found"),
            texts().header("x-duo-feature", "no/feature"),
        )
        .refused(
            404,
            ("unknown_feature", None),
            "the feature that x-duo-feature names does not exist",
        ),
        case(
            told("a model that does not exist is not found"),
            texts().with("/model", "nope".into()),
        )
        .refused(
            404,
            ("model_not_found", Some("model")),
            "that model does not exist; GET /v1/models lists the models you may name",
        ),
        case(
            told("a model that no worker serves is 503"),
            texts().with("/model", "nobody".into()),
        )
        .refused(
            503,
            ("no_worker", None),
            "no worker serves model nobody at present",
        )
        .header("x-duo-reason", "no_worker"),
        case(told("GET is 405"), bare(Method::GET, OPENAI)).refused(
            405,
            ("method_not_allowed", None),
            "Method Not Allowed",
        ),
        case(
            told("a path below it is not found"),
            post("/v1/embeddings/nope", json!({})),
        )
        .detail(404, "Not Found"),
    ]
}

fn fields() -> Vec<Case> {
    let rows: Vec<(&str, Value, &str)> = vec![
        ("/model", Value::Null, "is required"),
        ("/model", json!(7), "has to be a string"),
        (
            "/model",
            "m".repeat(129).into(),
            "may have at most 128 characters",
        ),
        ("/input", Value::Null, "is required"),
        ("/input", json!([]), "may not be empty"),
        ("/input", json!(7), "has to be a string or a list"),
        ("/input", json!({}), "has to be a string or a list"),
        ("/input", json!(true), "has to be a string or a list"),
        ("/stream", json!(true), "embeddings come whole"),
        ("/stream", json!("no"), "has to be true or false"),
    ];
    let mut cases: Vec<Case> = rows
        .into_iter()
        .map(|(pointer, value, problem)| {
            let field = &pointer[1..];
            let short: String = value.to_string().chars().take(20).collect();
            case(
                format!("{OPENAI}: {short} for {field} is told so"),
                texts().with(pointer, value),
            )
            .refused(
                400,
                ("invalid_value", Some(field)),
                &format!("{field}: {problem}"),
            )
        })
        .collect();
    for field in ["model", "input"] {
        let name = format!("{OPENAI}: without {field} it is told so");
        let ask = texts().lacking(&format!("/{field}"));
        let message = format!("{field}: is required");
        cases.push(case(name, ask).refused(400, ("invalid_value", Some(field)), &message));
    }
    for (field, twice) in [
        (
            "model",
            r#"{"model": "mistral", "input": "a", "model": "codegemma"}"#,
        ),
        ("input", r#"{"model": "mistral", "input": "a", "input": "b"}"#),
    ] {
        let name = format!("{OPENAI}: {field} twice is told so");
        let message = format!("{field}: may be given once");
        cases.push(case(name, texts().text(twice)).refused(400, ("invalid_value", Some(field)), &message));
    }
    let long = format!("input: {TOO_LONG}");
    let letters = "x".repeat(MOST_BYTES - 1);
    for (what, input) in [
        ("a text", Value::from(letters.clone())),
        ("one text of two", json!(["a", letters])),
    ] {
        let name = format!("{OPENAI}: {what} that surely does not fit is told so");
        let about = ("context_length_exceeded", Some("input"));
        cases.push(case(name, texts().with("/input", input)).refused(400, about, &long));
    }
    cases.push(
        case(
            format!("{OPENAI}: what the model server cannot read comes back in its own words"),
            texts().with("/input", json!([["a"]])),
        )
        .status(400)
        .says("/error/type", "Bad Request".into())
        .says("/error/param", "body.input".into()),
    );
    cases
}

fn bodies() -> Vec<Case> {
    let told = |what: &str| format!("{OPENAI}: {what}");
    let no_json = "the body is not valid JSON";
    let mut cases = vec![
        case(told("broken JSON is told so"), texts().text("{\"model\": ")).refused(
            400,
            ("invalid_json", None),
            no_json,
        ),
        case(told("an empty body is told so"), texts().text("")).refused(
            400,
            ("invalid_json", None),
            no_json,
        ),
        case(told("a body that is no object is told so"), texts().text("[]")).refused(
            400,
            ("invalid_value", None),
            "the body has to be an object",
        ),
        case(
            told("a compressed body is told so"),
            texts().header("content-encoding", "gzip"),
        )
        .refused(
            415,
            ("content_encoding", None),
            "the body has to come as it is, without Content-Encoding",
        ),
        case(
            told("a body of any type is read"),
            texts().typed(Some("text/plain")),
        )
        .good(),
        case(told("a body without a type is read"), texts().typed(None)).good(),
        case(
            told("one byte too many is 413"),
            texts().text(padded(&texts(), MAX_BODY + 1)),
        )
        .refused(
            413,
            ("body_too_large", None),
            &format!("the body may have at most {MAX_BODY} bytes"),
        ),
    ];
    for size in [600_000, 2 << 20, MAX_BODY] {
        let ask = texts().text(padded(&texts(), size));
        cases.push(case(told(&format!("{size} bytes are read")), ask).good());
    }
    cases
}

/// Every case with a model server that is not well.
pub(crate) fn troubles() -> Vec<Case> {
    let rows: [(u16, u16, &str, Change); 4] = [
        (404, 503, "model_unavailable", failing::<404>),
        (429, 429, "rate_limit_exceeded", busy),
        (500, 502, "model_server_fault", failing::<500>),
        (503, 503, "model_unavailable", failing::<503>),
    ];
    let mut cases = vec![
        case(
            format!("{OPENAI}: 400 of the model server is 400 in its own words"),
            texts(),
        )
        .sim(failing::<400>)
        .status(400)
        .says("/error/message", "simulated failure".into()),
        case(
            format!("{OPENAI}: a feature that is inactive is refused"),
            texts().header("x-duo-feature", "openai_completion"),
        )
        .refused(
            403,
            ("feature_inactive", None),
            "feature openai_completion is switched off; an administrator can assign a model to it",
        ),
    ];
    for (theirs, ours, code, sim) in rows {
        let retry = if theirs == 429 { "7" } else { "" };
        let name = format!("{OPENAI}: {theirs} of the model server is {ours}");
        cases.push(
            case(name, texts())
                .sim(sim)
                .status(ours)
                .says("/error/code", code.into())
                .header("retry-after", retry),
        );
    }
    let broken: [(&str, Change); 3] = [
        ("hangs up at once", |sim| sim.reset_rate = 1.0),
        ("drops the connection", |sim| sim.cut_rate = 1.0),
        ("answers without vectors", |sim| sim.malformed_rate = 1.0),
    ];
    for (what, sim) in broken {
        cases.push(
            case(format!("{OPENAI}: a model server that {what} is 502"), texts())
                .sim(sim)
                .status(502)
                .says("/error/code", "model_server_fault".into()),
        );
    }
    let name = "vectors of an OpenAI client are 503 within their time";
    cases.push(silent(name, Duration::from_secs(5), texts(), late));
    cases
}
