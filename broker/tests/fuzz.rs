//! What strangers send, whatever it is, is their fault and never ours: random bodies, headers, tokens, configuration
//! files and templates.
//!
//! Bodies go through the whole router: read, routed, rendered, sealed and published. A stand-in answers for NATS that
//! it keeps audit records and takes no request, so that a good body costs no more than a bad one. Their number, or the
//! first and last of them as `500000..1000000`, is in `DUO_TEST_FUZZ`; the usual one takes seconds. A number makes the
//! same body every time.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/servers.rs"]
#[expect(dead_code, reason = "the store's tests use the rest")]
mod servers;

#[path = "support/app.rs"]
mod app;

#[path = "support/mutate.rs"]
mod mutate;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use duo_broker::config_file;
use duo_broker::fleet::Fleet;
use duo_broker::prompt;
use duo_contract::name::{FeatureName, Lane, ModelName};
use duo_contract::presence::{BreakerState, Presence, ServedModel};
use duo_contract::snapshot::{ConfigSnapshot, Feature, Model, PromptOverride, Role};
use duo_contract::subject;
use futures_util::{StreamExt as _, stream};
use http::{Method, Request, StatusCode};
use mutate::{Dice, Mutator};
use proptest::prelude::*;
use serde_json::Value;
use tower::ServiceExt as _;

const CLIENT: &str = "duo_c_fuzz";
/// Bodies of the usual run.
const BODIES: u64 = 6_000;
/// Requests under way at once.
const AT_ONCE: usize = 32;
/// Every feature that a GitLab or OpenAI endpoint belongs to.
const FEATURES: [&str; 27] = [
    "duo_chat",
    "code_completion",
    "code_generation",
    "code_embeddings",
    "git_suggestions",
    "discussion_summary",
    "issue_description_generation",
    "test_generation",
    "merge_request_template_population",
    "merge_request_summary",
    "code_review_summary",
    "vulnerability_explanation",
    "vulnerability_resolution",
    "code_explanation",
    "root_cause_analysis",
    "categorize_question",
    "classify_code_review_mention_intent",
    "fix_code",
    "generate_commit_message",
    "generate_session_title",
    "measure_comment_temperature",
    "refactor_code",
    "review_merge_request",
    "summarize_duo_workflow",
    "openai_chat",
    "openai_completion",
    "openai_embedding",
];

/// How often each status came.
type Statuses = BTreeMap<u16, u64>;

fn model() -> ModelName {
    ModelName::parse("mistral").unwrap()
}

fn config() -> ConfigSnapshot {
    let feature = |name: &&str| Feature {
        name: FeatureName::parse(name).unwrap(),
        active: true,
        model: (!name.starts_with("openai_")).then(model),
        lane: Lane::Interactive,
        first_byte_within_ms: 50_000,
        end_within_ms: 60_000,
        bodies: Default::default(),
    };
    ConfigSnapshot {
        revision: 1,
        models: vec![Model {
            name: model(),
            family: "mistral_7b".into(),
            context_tokens: 8192,
            max_output_tokens: 4096,
        }],
        features: FEATURES.iter().map(feature).collect(),
        ..ConfigSnapshot::default()
    }
}

/// A worker that is said to be there.
fn fleet() -> Fleet {
    let fleet = Fleet::default();
    let served = ServedModel {
        model: model(),
        server: "local".into(),
        slots: 1000,
        in_flight: 0,
        breaker: BreakerState::Passing,
        tools: true,
    };
    let presence = Presence {
        worker: "w1".into(),
        version: "1".into(),
        started_at_ms: 1,
        draining: false,
        models: vec![served],
    };
    fleet.put(presence, 1);
    fleet
}

/// Answers every publish: audit records are kept, requests are not taken.
async fn stand_in_for_streams() {
    let client = async_nats::connect(servers::nats_url()).await.unwrap();
    let mut records = client.subscribe(subject::AUDIT_SUBJECTS).await.unwrap();
    let mut requests = client.subscribe(subject::LIVE_SUBJECTS).await.unwrap();
    client.flush().await.unwrap();
    tokio::spawn(async move {
        let kept = r#"{"stream":"DUO_AUDIT","seq":1}"#;
        let refused = r#"{"error":{"code":400,"err_code":10052,"description":"not in this test"}}"#;
        loop {
            let (message, answer) = tokio::select! {
                Some(message) = records.next() => (message, kept),
                Some(message) = requests.next() => (message, refused),
                else => return,
            };
            if let Some(reply) = message.reply {
                client.publish(reply, answer.into()).await.unwrap();
            }
        }
    });
}

async fn router() -> Router {
    let nats = servers::nats().await;
    stand_in_for_streams().await;
    let mut token = app::token(CLIENT, Role::Client);
    token.features = Some(
        FEATURES
            .iter()
            .map(|name| FeatureName::parse(name).unwrap())
            .collect(),
    );
    token.limit = 100_000;
    app::app(nats, vec![token], config(), fleet(), None)
}

async fn ask(app: Router, path: String, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("authorization", format!("Bearer {CLIENT}"))
        .header("content-type", "application/json")
        .header("x-gitlab-language-server-version", "7.17.1")
        .body(Body::from(body))
        .unwrap();
    let response = app.oneshot(request).await.unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 8 << 20).await.unwrap();
    (status, body.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_is_answered_by_500_or_a_panic() {
    let app = router().await;
    let seeds = mutate::seeds();
    for (path, body) in &seeds {
        let (status, answer) = ask(app.clone(), path.clone(), body.to_string().into()).await;
        let answer = String::from_utf8_lossy(&answer);
        let refused = answer.contains("queue") || answer.contains("\"choices\":[]") || answer.contains("503");
        assert!(
            refused,
            "not even the good body gets to the queue: {path} {status} {answer}"
        );
    }
    let (began, numbers) = (Instant::now(), bodies());
    let count = numbers.end - numbers.start;
    let mutator = Arc::new(Mutator::new(seeds));
    let asked = numbers.map(|number| {
        let (app, mutator) = (app.clone(), Arc::clone(&mutator));
        tokio::spawn(async move {
            let (path, body) = mutator.request(&mut Dice::new(number));
            let shown = body.iter().take(2000).copied().collect::<Vec<u8>>();
            let (status, answer) = ask(app, path.clone(), body).await;
            let told = String::from_utf8_lossy(&answer).into_owned();
            assert_ne!(
                status,
                StatusCode::INTERNAL_SERVER_ERROR,
                "body {number}, {path}: {told}\n{}",
                String::from_utf8_lossy(&shown)
            );
            status.as_u16()
        })
    });
    let mut statuses = Statuses::new();
    let mut answers = stream::iter(asked).buffer_unordered(AT_ONCE);
    while let Some(status) = answers.next().await {
        *statuses.entry(status.unwrap()).or_default() += 1;
    }
    let text = format!("{count} bodies in {:.1?}: {statuses:?}\n", began.elapsed());
    let _shown = std::io::stderr().write_all(text.as_bytes());
    for status in [422, 404] {
        assert!(
            statuses.contains_key(&status),
            "the mutations are too tame or too wild: {text}"
        );
    }
    let passed: u64 = [200, 421, 503]
        .iter()
        .filter_map(|status| statuses.get(status))
        .sum();
    assert!(passed * 20 > count, "hardly a body gets through: {text}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests have settings of their own, which the programs do not know"
)]
fn bodies() -> Range<u64> {
    let Ok(asked) = std::env::var("DUO_TEST_FUZZ") else {
        return 0..BODIES;
    };
    let number = |text: &str| {
        text.parse()
            .expect("DUO_TEST_FUZZ is a number, or two with .. between")
    };
    match asked.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&asked),
    }
}

/// Something between the letters of a configuration file.
fn yaml() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "models:",
        "- ",
        "  ",
        "\n",
        "name: ",
        "mistral",
        "family: ",
        "features:",
        "code_completion: ",
        "{",
        "}",
        "[",
        "]",
        "inactive",
        "model: ",
        "context_tokens: ",
        "8192",
        "-1",
        "1e400",
        "\"",
        "'",
        "&a ",
        "*a ",
        "!!binary ",
        "|\n",
        ">\n",
        "? ",
        "issuers:",
        "url: ",
        "https://x",
        "prompts:",
        "id: ",
        "text: ",
        "support_levels:",
        "level: ",
        "supported",
        "first_byte_within: ",
        "3s",
        "99999999999999999999s",
        "null",
        "~",
        "true",
        "\t",
        "# x\n",
        "---\n",
        "...\n",
        "%YAML 9\n",
        "\u{0}",
        "\u{feff}",
        "é",
        "<<: ",
    ]);
    let line = prop::collection::vec(words, 0..40).prop_map(|words| words.concat());
    prop_oneof![3 => line, 1 => "\\PC{0,120}"]
}

/// A template's front matter, most of it right.
fn template() -> impl Strategy<Value = String> {
    let good = "---\nversion: 1.0.0\nfeature: generate_commit_message\nscope: generate_commit_message\nkind: chat\n\
                temperature: 0.2\nmax_tokens: 64\nstop: []\ninputs: [diff]\noptional: []\n---\n[[system]]\nBe brief.\n[[user]]\n{{ diff }}\n";
    let pieces = prop::sample::select(vec![
        "---\n",
        "version: x\n",
        "stop: [a",
        "inputs: {}\n",
        "max_tokens: -1\n",
        "max_tokens: 99999999999999999999\n",
        "temperature: .nan\n",
        "[[user]]\n",
        "[[messages]]\n",
        "[[assistant]]\n",
        "{{ ",
        " }}",
        "{% for x in diff %}",
        "{% endfor %}",
        "{% if",
        "{{ diff|nope }}",
        "{{ range(99999999) }}",
        "{% include 'x' %}",
        "{# ",
        "\u{0}",
        "é",
        "\r\n",
    ]);
    let change = (any::<prop::sample::Index>(), pieces, any::<bool>());
    prop::collection::vec(change, 0..5).prop_map(move |changes| {
        let mut text = good.to_owned();
        for (at, piece, cut) in changes {
            let at = text.floor_char_boundary(at.index(text.len().max(1)));
            if cut {
                text.truncate(at);
            }
            text.insert_str(at.min(text.len()), piece);
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_configuration_file_is_read_or_its_mistakes_are_named(text in yaml()) {
        let folder = std::env::temp_dir();
        if let Err(problems) = config_file::parse(&text, Some(&folder), &prompt::check) {
            prop_assert!(!problems.is_empty());
            prop_assert!(problems.iter().all(|problem| !problem.message.is_empty()));
        }
    }

    #[test]
    fn a_template_is_taken_or_its_mistake_is_named(text in template()) {
        let replacement = PromptOverride { id: "generate_commit_message".into(), family: "base".into(), text };
        if let Err(problem) = prompt::check(&replacement) {
            prop_assert!(!problem.is_empty());
            return Ok(());
        }
        // What is taken can be used: rendered, or told to be broken.
        let prompts = prompt::Prompts::builtin();
        prompts.apply(&[replacement]);
        let model = config().models.remove(0);
        let inputs = minijinja::context! { diff => "+ x" };
        let rendered = prompts.render(prompt::Use { id: "generate_commit_message", model: &model, inputs, messages: Vec::new(), stream: false });
        if let Ok(rendered) = rendered {
            prop_assert!(serde_json::from_slice::<Value>(&rendered.body).is_ok());
        }
    }
}

/// Headers of an odd caller: some that GitLab sends, with values of any kind.
fn headers() -> impl Strategy<Value = Vec<(&'static str, Vec<u8>)>> {
    let names = prop::sample::select(vec![
        "authorization",
        "x-gitlab-authentication-type",
        "x-gitlab-instance-id",
        "x-gitlab-realm",
        "x-gitlab-global-user-id",
        "x-gitlab-version",
        "x-gitlab-client-type",
        "user-agent",
        "x-request-id",
        "traceparent",
        "x-gitlab-enabled-feature-flags",
    ]);
    let odd = prop::sample::select(vec![
        "oidc",
        "Bearer ",
        "Bearer a.b.c",
        "bearer duo_x",
        "Basic YTpi",
        "Bearer eyJhbGciOiJub25lIn0.e30.",
        "Bearer eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOjF9.AA",
        "Bearer eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJnaXRsYWItYWktZ2F0ZXdheSIsInN1YiI6IngifQ.AA",
        "Bearer ....",
        "Bearer é",
        "self-managed",
        "",
    ]);
    let token = (
        "[A-Za-z0-9_-]{0,40}",
        "[A-Za-z0-9_-]{0,80}",
        "[A-Za-z0-9_-]{0,40}",
    )
        .prop_map(|(a, b, c)| format!("Bearer {a}.{b}.{c}"));
    let claims = prop::sample::select(vec![
        r#"{"iss":"gitlab-ai-gateway","aud":"gitlab-ai-gateway","exp":1e300}"#,
        r#"{"iss":["a"],"exp":-1,"sub":7}"#,
        r#"{"exp":18446744073709551615,"aud":[[]]}"#,
        "[]",
        "null",
        r#"{"scopes":"complete_code","aud":{},"exp":"soon"}"#,
        "{\"iss\":\"\u{0}\"}",
    ]);
    let algorithms = prop::sample::select(vec![
        r#"{"alg":"RS256"}"#,
        r#"{"alg":"RS256","kid":7}"#,
        r#"{"alg":"none"}"#,
        r#"{"alg":[]}"#,
        "{}",
        "\"x\"",
    ]);
    let encoded = (algorithms, claims, prop::collection::vec(any::<u8>(), 0..300)).prop_map(
        |(head, claims, signature)| {
            use base64::Engine as _;
            let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
            format!(
                "Bearer {}.{}.{}",
                encode(head.as_bytes()),
                encode(claims.as_bytes()),
                encode(&signature)
            )
        },
    );
    let value = prop_oneof![
        odd.prop_map(|text| text.as_bytes().to_vec()),
        token.prop_map(String::into_bytes),
        encoded.prop_map(String::into_bytes),
        prop::collection::vec(0x20_u8..0xff, 0..60),
    ];
    prop::collection::vec((names, value), 0..8)
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_headers_are_a_strangers() {
    let app = router().await;
    let handle = tokio::runtime::Handle::current();
    let told = tokio::task::spawn_blocking(move || {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(2000));
        runner.run(&headers(), |headers| {
            let mut request = Request::builder().method(Method::POST).uri("/v2/completions");
            for (name, value) in headers {
                let Ok(value) = http::HeaderValue::from_bytes(&value) else {
                    continue;
                };
                request = request.header(name, value);
            }
            let response = handle
                .block_on(app.clone().oneshot(request.body(Body::empty()).unwrap()))
                .unwrap();
            prop_assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            Ok(())
        })
    });
    told.await.unwrap().unwrap();
}
