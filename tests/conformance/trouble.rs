//! When a model server fails, breaks off or is silent: what each kind of client gets, and when.

use std::time::Duration;

use duo_system_tests::harness::{Answer, Cluster};
use duo_system_tests::rails::events::{Event, parse};
use duo_system_tests::sim::Settings;
use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::Instant;

use crate::bodies::{
    COMPLETIONS, PAYLOAD, TOKEN, V3, V4, chat, commit, completion, generation, old_generation, old_tool,
};
use crate::case::{Ask, Case, Change, bare, case, post, story};

/// How long features other than completion wait for a first byte in these cases.
pub(crate) const FIRST_BYTE: &str = "2s";
/// What whoever is refused for want of room reads.
pub(crate) const TOO_MANY: &str = "Too many requests. Please try again later.";
const FAILED: &str = "Inference failed";
/// Milliseconds between the pieces of a stream that breaks, so that the first is with the client before.
const PACE: u64 = 50;

/// Every case of these.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(
            "without a signing key GitLab is told that no token can be made",
            bare(Method::POST, TOKEN),
        )
        .detail(500, "Failed to generate JWT"),
        case("without a signing key completions go on", completion(COMPLETIONS)).good(),
        case(
            "without a signing key no keys are published",
            bare(Method::GET, "/.well-known/jwks.json").nobody(),
        )
        .exactly(200, json!({"keys": []})),
        case(
            "an inactive feature's prompt is 403",
            post(
                "/v1/prompts/chat%2Ftroubleshoot_job",
                json!({"inputs": {"selected_text": "x"}}),
            ),
        )
        .status(403),
        case(
            "an inactive feature's tool of old is 403",
            post("/v1/chat/troubleshoot_job", old_tool().body("")),
        )
        .status(403),
    ];
    cases.extend(refusals());
    cases.extend(faults());
    cases.extend(breaks());
    cases.extend(silence());
    cases.extend(crate::infer::troubles());
    cases.extend(crate::embeddings::troubles());
    cases.extend(crate::openai_embeddings::troubles());
    cases.extend(crate::crowd::cases());
    cases
}

/// After a failure the worker trusts its model server again once an answer has come.
pub(crate) async fn settle(cluster: &Cluster) {
    let body = json!({"model": "mistral", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
    cluster.openai("/v1/chat/completions", &body).send().await.good();
    let body = json!({"model": "codegemma", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
    cluster.openai("/v1/chat/completions", &body).send().await.good();
}

/// The same as a stream.
pub(crate) fn streamed(ask: Ask) -> Ask {
    ask.with("/stream", true.into())
}

/// A generation by components as a stream.
pub(crate) fn streamed_parts(path: &str) -> Ask {
    generation(path).with(&format!("{PAYLOAD}/stream"), true.into())
}

/// A model server that answers everything with this status.
pub(crate) fn failing<const STATUS: u16>(sim: &mut Settings) {
    (sim.fail_rate, sim.fail_status) = (1.0, STATUS);
}

/// A model server that has too much to do for seven seconds.
pub(crate) fn busy(sim: &mut Settings) {
    (sim.fail_rate, sim.fail_status, sim.retry_after) = (1.0, 429, Some(7));
}

/// The model server takes the request for the client's mistake.
fn refusals() -> Vec<Case> {
    let sim = failing::<400>;
    vec![
        case(
            "a request that the model server calls bad is 421 with its code on a prompt",
            commit(),
        )
        .sim(sim)
        .detail(421, "400: Bad Request"),
        case(
            "a request that the model server calls bad is 422 on code",
            generation(V3),
        )
        .sim(sim)
        .status(422),
        case(
            "a request that the model server calls bad is 422 on a completion",
            completion(COMPLETIONS),
        )
        .sim(sim)
        .status(422),
        case(
            "a request that the model server calls bad is an event in chat",
            chat(),
        )
        .sim(sim)
        .good()
        .check(one_error(false)),
    ]
}

/// A chat that failed: one event, whole, after which nothing comes.
fn one_error(may_retry: bool) -> impl FnOnce(&Answer, &Cluster) {
    move |answer, _| {
        let events = parse(&answer.text());
        let [Event::Error { message, retryable }] = events.as_slice() else {
            panic!("{answer}")
        };
        assert!(!message.is_empty(), "{answer}");
        assert_eq!(*retryable, may_retry, "{answer}");
    }
}

/// The model server answers with an error status.
fn faults() -> Vec<Case> {
    let rows: [(u16, &str, Change); 4] = [
        (404, "404: Not Found", failing::<404>),
        (429, "429: Too Many Requests", busy),
        (500, "500: Internal Server Error", failing::<500>),
        (503, "503: Service Unavailable", failing::<503>),
    ];
    let mut cases = Vec::new();
    for (status, phrase, sim) in rows {
        let told = |what: &str| format!("{status} of the model server {what}");
        let check = post("/v1/prompts/model_configuration%2Fcheck", json!({"inputs": {}}));
        cases.push(
            case(told("is 421 with its name on a prompt"), commit())
                .sim(sim)
                .detail(421, phrase),
        );
        cases.push(
            case(told("is 421 with its name on the model test"), check)
                .sim(sim)
                .detail(421, phrase),
        );
        cases.push(
            case(
                told("is 421 with its name on a v2 prompt"),
                post("/v2/prompts/generate_commit_message", commit().body("")),
            )
            .sim(sim)
            .detail(421, phrase),
        );
        let (code, text) = if status == 429 { (429, TOO_MANY) } else { (503, "") };
        for (what, ask) in [
            ("a v3 generation", generation(V3)),
            ("a v4 generation", generation(V4)),
            ("a v4 stream", streamed_parts(V4)),
            ("an old generation", old_generation()),
            ("a prompt's stream", streamed(commit())),
            ("a tool of old", old_tool()),
        ] {
            let mut one = case(told(&format!("is {code} on {what}, before any other byte")), ask)
                .sim(sim)
                .status(code);
            if !text.is_empty() {
                one = one.detail(code, text).header("retry-after", "7");
            }
            if status == 500 {
                one = one.detail(503, FAILED);
            }
            cases.push(one);
        }
        let gentle = case(told("on a completion"), completion(COMPLETIONS)).sim(sim);
        cases.push(match status {
            500 => gentle.detail(503, FAILED),
            _ => gentle.good().says("/choices", json!([])),
        });
        cases.push(
            case(
                told("is an event in chat, which may not be repeated at once"),
                chat(),
            )
            .sim(sim)
            .good()
            .check(one_error(false)),
        );
    }
    let soon: Change = |sim| (sim.fail_rate, sim.fail_status, sim.retry_after) = (1.0, 429, Some(2));
    cases.push(
        case(
            "a chat may be repeated when there will be room within seconds",
            chat(),
        )
        .sim(soon)
        .good()
        .check(one_error(true)),
    );
    cases
}

/// A stream that is cut within its body; where the failure overtakes the first piece, before any byte has left, or told.
fn cut_off(name: String, ask: Ask, check: fn(&str)) -> Case {
    story(name, move |cluster| async move {
        let Ok(opened) = ask.call(&cluster).try_open().await else {
            return;
        };
        let answer = opened.rest().await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            return assert_eq!(answer.json(), json!({"detail": FAILED}));
        }
        assert_eq!(answer.status, StatusCode::OK, "{answer}");
        assert!(answer.broken.is_some(), "it looks whole: {answer}");
        check(&answer.text());
    })
}

/// The model server breaks off in mid-stream.
fn breaks() -> Vec<Case> {
    let rows: [(&str, Change); 4] = [
        ("drops the connection", |sim| {
            (sim.cut_rate, sim.fault_after, sim.pace_ms) = (1.0, Some(3), PACE)
        }),
        ("says that it aborts", |sim| {
            (sim.abort_rate, sim.fault_after, sim.pace_ms) = (1.0, Some(3), PACE)
        }),
        ("sends an error in between", |sim| {
            (sim.error_mid_rate, sim.fault_after, sim.pace_ms) = (1.0, Some(3), PACE)
        }),
        ("sends what nobody can read", |sim| {
            (sim.malformed_rate, sim.fault_after, sim.pace_ms) = (1.0, Some(3), PACE)
        }),
    ];
    let mut cases = Vec::new();
    for (what, sim) in rows {
        let told = |ending: &str| format!("a model server that {what} in mid-stream: {ending}");
        for (which, ask) in [
            ("a completion is cut", streamed(completion(COMPLETIONS))),
            ("an old generation is cut", streamed(old_generation())),
            ("a v3 generation is cut", streamed_parts(V3)),
            ("a prompt is cut", streamed(commit())),
            ("a tool of old is cut", streamed(old_tool())),
        ] {
            cases.push(cut_off(told(which), ask, |_| {}).sim(sim));
        }
        let events = told("a v4 generation is cut and has no last event");
        let whole = |text: &str| assert!(!text.contains("stream_end"), "{text}");
        cases.push(cut_off(events, streamed_parts(V4), whole).sim(sim));
        let lines = streamed(post("/v2/prompts/generate_commit_message", commit().body("")));
        let whole = |text: &str| assert!(!text.contains("usage"), "{text}");
        cases.push(cut_off(told("a v2 prompt is cut and has no usage"), lines, whole).sim(sim));
        cases.push(
            case(told("a chat gets an error event and no end"), chat())
                .sim(sim)
                .good()
                .check(|answer, _| {
                    let events = parse(&answer.text());
                    assert!(
                        matches!(events.last(), Some(Event::Error { retryable: false, .. })),
                        "{answer}"
                    );
                    assert!(!answer.text().contains("\"stop\""), "{answer}");
                }),
        );
    }
    cases
}

/// A request that ends by its deadline, and how.
pub(crate) fn silent(name: &'static str, within: Duration, ask: Ask, check: fn(&Answer)) -> Case {
    story(
        format!("a silent model server: {name}"),
        move |cluster| async move {
            let asked = Instant::now();
            let answer = ask.send(&cluster).await;
            assert!(asked.elapsed() < within, "after {:?}: {answer}", asked.elapsed());
            check(&answer);
        },
    )
    .sim(|sim| sim.ttft_ms = 60_000)
}

/// The model server is silent.
fn silence() -> Vec<Case> {
    let (three, five) = (Duration::from_secs(3), Duration::from_secs(5));
    let check = || post("/v1/prompts/model_configuration%2Fcheck", json!({"inputs": {}}));
    let nothing = |answer: &Answer| {
        assert_eq!(answer.status, StatusCode::OK, "{answer}");
        assert_eq!(answer.json()["choices"], json!([]), "{answer}");
    };
    let timeout = |answer: &Answer| {
        assert_eq!(answer.status.as_u16(), 421, "{answer}");
        assert_eq!(answer.json(), json!({"detail": "408: Request Timeout"}));
    };
    let unavailable = |answer: &Answer| assert_eq!(answer.status.as_u16(), 503, "{answer}");
    vec![
        silent(
            "a completion suggests nothing within the health check's 3 s",
            three,
            completion(COMPLETIONS),
            nothing,
        ),
        silent(
            "a streamed completion is empty within 3 s",
            three,
            streamed(completion(COMPLETIONS)),
            |answer| {
                assert_eq!((answer.status, answer.text()), (StatusCode::OK, String::new()));
            },
        ),
        silent(
            "the model test tells the reason within its 3 s",
            three,
            check(),
            timeout,
        ),
        silent(
            "a prompt tells the reason within its time",
            five,
            commit(),
            timeout,
        ),
        silent(
            "a generation is 503 within its time",
            five,
            generation(V3),
            unavailable,
        ),
        silent(
            "a streamed generation is 503 within its time, with no byte of a stream",
            five,
            streamed_parts(V4),
            |answer| {
                assert_eq!(answer.status.as_u16(), 503, "{answer}");
                assert!(!answer.text().contains("stream_start"), "{answer}");
            },
        ),
        silent("a chat is told within its time", five, chat(), |answer| {
            assert!(
                matches!(parse(&answer.text()).as_slice(), [Event::Error { .. }]),
                "{answer}"
            );
        }),
    ]
}
