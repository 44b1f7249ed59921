//! Code generation: the endpoint of old, and the components of v3 and v4.

use serde_json::{Value, json};

use crate::bodies::{PAYLOAD, V3, V4, component_completion, generation, letters, metadata};
use crate::case::{Ask, Case, case};

/// Every case of generations.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in [V3, V4] {
        cases.extend(answers(path));
        cases.extend(limits(path));
        cases.extend(shapes(path));
        cases.extend(models(path));
    }
    cases.extend(streams());
    cases
}

fn answers(path: &'static str) -> Vec<Case> {
    vec![
        case(
            format!("{path}: a generation's answer has every field that editors read"),
            generation(path),
        )
        .good()
        .header("x-streaming-format", "")
        .says("/choices/0/index", 0.into())
        .says("/choices/0/finish_reason", "length".into())
        .says("/model/engine", "agent".into())
        .says("/model/lang", "python".into())
        .says("/metadata/model/engine", "agent".into())
        .says("/metadata/model/lang", "python".into())
        .says("/metadata/enabled_feature_flags", json!([]))
        .says("/metadata/region", Value::Null)
        .check(|answer, cluster| {
            let body = answer.json();
            assert!(body["metadata"]["timestamp"].is_i64(), "{answer}");
            assert!(body["model"]["name"].is_string(), "{answer}");
            assert_eq!(body["choices"][0]["text"], cluster.expected(16), "{answer}");
        }),
        case(
            format!("{path}: a completion's answer has the same form"),
            component_completion(path),
        )
        .good()
        .says("/choices/0/index", 0.into())
        .says("/choices/0/finish_reason", "length".into())
        .says("/model/lang", "rust".into())
        .asked(
            "/prompt",
            "<|fim_prefix|>fn main() {<|fim_suffix|>}<|fim_middle|>".into(),
        )
        .check(|answer, cluster| assert_eq!(answer.json()["choices"][0]["text"], cluster.expected(16))),
        case(
            format!("{path}: a generation of nothing is no choice"),
            generation(path),
        )
        .sim(|sim| sim.tokens = 0)
        .good()
        .says("/choices", json!([])),
        case(
            format!("{path}: a completion of nothing is no choice"),
            component_completion(path),
        )
        .sim(|sim| sim.tokens = 0)
        .good()
        .says("/choices", json!([])),
        case(
            format!("{path}: what the person asked for reaches the model"),
            generation(path),
        )
        .good()
        .check(|_, cluster| {
            let asked = cluster.last_body()["messages"].to_string();
            for part in ["add two numbers", "numpy", "app/main.py"] {
                assert!(asked.contains(part), "{part}: {asked}");
            }
        }),
    ]
}

/// A bound of a payload's field, by what kind of component has it.
fn limits(path: &'static str) -> Vec<Case> {
    let rows: Vec<(Ask, &str, usize)> = [
        ("file_name", 255),
        ("content_above_cursor", 100_000),
        ("content_below_cursor", 100_000),
        ("language_identifier", 255),
    ]
    .into_iter()
    .flat_map(|(field, most)| {
        [
            (generation(path), field, most),
            (component_completion(path), field, most),
        ]
    })
    .collect();
    let mut cases = Vec::new();
    for (ask, field, most) in rows {
        let kind = ask.body_text("/prompt_components/0/type");
        let with = |count| ask.clone().with(&format!("{PAYLOAD}/{field}"), letters(count));
        cases.push(
            case(
                format!("{path}: {field} of a {kind} may have {most} characters"),
                with(most),
            )
            .good(),
        );
        let name = format!(
            "{path}: {field} of a {kind} with {} characters is named",
            most + 1
        );
        cases.push(case(name, with(most + 1)).names(field));
    }
    let component = json!({"type": "code_context", "payload": {"type": "file", "name": "n", "content": "c"}});
    let first = component_completion(path).body("/prompt_components/0");
    for (count, fine) in [(1, true), (100, true), (101, false)] {
        let mut all = vec![first.clone()];
        all.resize(count, component.clone());
        let ask = component_completion(path).with("/prompt_components", all.into());
        cases.push(if fine {
            case(format!("{path}: {count} components are read"), ask).good()
        } else {
            case(format!("{path}: {count} components are too many"), ask).names("prompt_components")
        });
    }
    for (name, most) in [("name", 1024), ("content", 100_000)] {
        for (count, fine) in [(most, true), (most + 1, false)] {
            let mut context = component.clone();
            context["payload"][name] = letters(count);
            let ask = component_completion(path)
                .with("/prompt_components", json!([first.clone(), context]))
                .header("x-gitlab-language-server-version", "7.17.1");
            cases.push(if fine {
                case(
                    format!("{path}: a context's {name} may have {count} characters"),
                    ask,
                )
                .good()
            } else {
                case(
                    format!("{path}: a context's {name} of {count} characters is named"),
                    ask,
                )
                .names(name)
            });
        }
    }
    cases
}

fn shapes(path: &'static str) -> Vec<Case> {
    let at = |field: &str| format!("{PAYLOAD}/{field}");
    let context = json!({"type": "code_context", "payload": {"type": "snippet", "name": "lib.rs", "content": "fn help() {}"}});
    let with_context = |version: &str| {
        let first = component_completion(path).body("/prompt_components/0");
        component_completion(path)
            .with("/prompt_components", json!([first, context.clone()]))
            .header("x-gitlab-language-server-version", version)
    };
    let holds = |wanted: bool| {
        move |_: &duo_system_tests::harness::Answer, cluster: &duo_system_tests::harness::Cluster| {
            let prompt = cluster.last_body()["prompt"].to_string();
            assert_eq!(prompt.contains("fn help() {}"), wanted, "{prompt}");
        }
    };
    let mut cases = vec![
        case(
            format!("{path}: without components it is told so"),
            generation(path).lacking("/prompt_components"),
        )
        .names("prompt_components"),
        case(
            format!("{path}: an empty list of components is told so"),
            generation(path).with("/prompt_components", json!([])),
        )
        .names("prompt_components"),
        case(
            format!("{path}: components that are no list are told so"),
            generation(path).with("/prompt_components", json!({})),
        )
        .names("prompt_components"),
        case(
            format!("{path}: a component without a payload is told so"),
            generation(path).lacking(PAYLOAD),
        )
        .names("prompt_components.0.payload"),
        case(
            format!("{path}: an unknown kind of component is told so"),
            generation(path).with("/prompt_components/0/type", "poem".into()),
        )
        .names("prompt_components.0.type"),
        case(
            format!("{path}: a component needs no metadata"),
            generation(path).lacking("/prompt_components/0/metadata"),
        )
        .good(),
        case(
            format!("{path}: a stream that is neither true nor false is told so"),
            generation(path).with(&at("stream"), "no".into()),
        )
        .names("stream"),
        case(
            format!("{path}: an editor since 7.17.1 means its context"),
            with_context("7.17.1"),
        )
        .good()
        .check(holds(true)),
        case(
            format!("{path}: an older editor's context stays out of the prompt"),
            with_context("7.17.0"),
        )
        .good()
        .check(holds(false)),
    ];
    cases.extend(leniency(path));
    cases
}

/// What may be missing, and what may come along.
fn leniency(path: &'static str) -> Vec<Case> {
    let at = |field: &str| format!("{PAYLOAD}/{field}");
    let mut cases = Vec::new();
    for version in ["^1.0.0", "1.2.0", "2.0.0", "^9", "nonsense", ""] {
        let ask = generation(path).with(&at("prompt_version"), version.into());
        cases.push(
            case(
                format!("{path}: any version of a prompt is accepted, also {version:?}"),
                ask,
            )
            .good(),
        );
    }
    for field in ["file_name", "content_above_cursor", "content_below_cursor"] {
        cases.push(
            case(
                format!("{path}: a generation without {field} is told so"),
                generation(path).lacking(&at(field)),
            )
            .names(field),
        );
    }
    for field in [
        "language_identifier",
        "prompt_version",
        "prompt_enhancer",
        "stream",
        "prompt_id",
    ] {
        cases.push(
            case(
                format!("{path}: a generation may leave out {field}"),
                generation(path).lacking(&at(field)),
            )
            .good(),
        );
    }
    for (field, value) in [
        ("nobody_knows_me", json!([1])),
        ("role_arn", json!("x")),
        ("choices_count", json!(4)),
        ("model_name", json!("x")),
    ] {
        cases.push(
            case(
                format!("{path}: a payload may bring {field}"),
                generation(path).with(&at(field), value),
            )
            .good(),
        );
    }
    for field in ["current_file", "intent", "stream", "nobody_knows_me"] {
        let ask = generation(path).with(&format!("/{field}"), json!({"any": "thing"}));
        cases.push(
            case(
                format!("{path}: what an editor has forwarded as {field} is passed over"),
                ask,
            )
            .good(),
        );
    }
    for (count, fine) in [(400_000, true), (400_001, false)] {
        let ask = generation(path)
            .lacking(&at("prompt_id"))
            .with(&at("prompt"), letters(count));
        cases.push(if fine {
            // Accepted as a field; the model's window may still be too small for it.
            case(
                format!("{path}: a prompt of {count} characters is not too long by itself"),
                ask,
            )
            .check(|answer, _| assert!(!answer.text().contains("at most"), "{answer}"))
        } else {
            case(format!("{path}: a prompt of {count} characters is named"), ask).names("prompt")
        });
    }
    cases
}

fn models(path: &'static str) -> Vec<Case> {
    let with = |value: Value| generation(path).with("/model_metadata", value);
    let mut cases: Vec<Case> = [
        ("missing", Value::Null),
        ("a text", json!("odd")),
        ("a number", json!(7)),
        ("a list", json!([1])),
        ("without a name", json!({"provider": "openai"})),
        (
            "of an unknown family",
            metadata("martian", "custom_openai/martian"),
        ),
        ("with an empty identifier", metadata("general", "")),
        (
            "of a managed model",
            json!({"provider": "gitlab", "feature_setting": "code_generations"}),
        ),
        (
            "with an endpoint that is no URL",
            json!({"provider": "openai", "name": "general", "endpoint": 7}),
        ),
    ]
    .into_iter()
    .map(|(what, value)| {
        case(
            format!("{path}: model data that is {what} is overlooked"),
            with(value),
        )
        .good()
    })
    .collect();
    let picked = with(metadata("codegemma", "custom_openai/codegemma"));
    // Both models are one simulated server's; what tells them apart is how the prompt is written.
    cases.push(
        case(
            format!("{path}: model data picks a model that is configured"),
            picked,
        )
        .good(),
    );
    cases
}

fn streams() -> Vec<Case> {
    let streamed = |ask: Ask| ask.with(&format!("{PAYLOAD}/stream"), true.into());
    let raw = |name: &str, ask: Ask| {
        case(name, streamed(ask))
            .good()
            .header("content-type", "text/event-stream; charset=utf-8")
            .header("x-streaming-format", "")
            .check(|answer, cluster| assert_eq!(answer.text(), cluster.expected(16)))
    };
    let mut cases = vec![
        raw("v3 streams a generation as bare text", generation(V3)),
        raw("v3 streams a completion as bare text", component_completion(V3)),
    ];
    for (what, ask) in [
        ("generation", generation(V4)),
        ("completion", component_completion(V4)),
    ] {
        cases.push(
            case(
                format!("v4 streams a {what} as events of one exact form"),
                streamed(ask.clone()),
            )
            .good()
            .header("x-streaming-format", "sse")
            .header("cache-control", "no-store")
            .header("x-accel-buffering", "no")
            .check(|answer, cluster| {
                assert!(
                    answer.header("content-type").starts_with("text/event-stream"),
                    "{answer}"
                );
                assert_eq!(events(&answer.text()), cluster.expected(16));
            }),
        );
        cases.push(
            case(
                format!("v4 streams a {what} of nothing with its first and last event"),
                streamed(ask),
            )
            .sim(|sim| sim.tokens = 0)
            .good()
            .check(|answer, _| assert_eq!(events(&answer.text()), "")),
        );
    }
    cases
}

/// The text of a v4 stream, every byte of which is checked.
fn events(stream: &str) -> String {
    assert_eq!(
        stream.matches('\n').count(),
        stream.matches("\r\n").count(),
        "line ends: {stream:?}"
    );
    let mut said = String::new();
    let events: Vec<&str> = stream.split_terminator("\r\n\r\n").collect();
    let (first, rest) = events.split_first().expect("a first event");
    let (last, chunks) = rest.split_last().expect("a last event");
    let start = first
        .strip_prefix("event: stream_start\r\ndata: ")
        .expect("the start comes first");
    assert!(start.contains("\": "), "a blank behind each colon: {start}");
    let start: Value = serde_json::from_str(start).expect("JSON");
    assert!(start["metadata"]["model"]["engine"].is_string(), "{start}");
    assert!(start["metadata"]["model"]["name"].is_string(), "{start}");
    assert!(start["metadata"]["timestamp"].is_i64(), "{start}");
    assert!(start["metadata"]["region"].is_string(), "{start}");
    assert!(start["metadata"]["enabled_feature_flags"].is_array(), "{start}");
    for chunk in chunks {
        let data = chunk
            .strip_prefix("event: content_chunk\r\ndata: ")
            .expect("a chunk");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(data["choices"][0]["index"], json!(0), "{data}");
        said += data["choices"][0]["delta"]["content"].as_str().expect("text");
    }
    assert_eq!(*last, "event: stream_end\r\ndata: null");
    assert!(stream.ends_with("\r\n\r\n"), "{stream:?}");
    said
}
