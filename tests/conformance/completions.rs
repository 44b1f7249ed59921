//! Code completion: fields, limits, and both forms of the answer.

use serde_json::{Value, json};

use crate::bodies::{COMPLETIONS, DIRECT, completion, letters};
use crate::case::{Case, case};

/// Every case of completions.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = answers();
    for path in [COMPLETIONS, DIRECT] {
        cases.extend(limits(path));
    }
    cases.extend(fields());
    cases.extend(types());
    cases.extend(models());
    cases
}

fn answers() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in [COMPLETIONS, DIRECT] {
        cases.push(
            case(
                format!("{path}: a whole answer has every field that editors read"),
                completion(path),
            )
            .good()
            .says("/id", "id".into())
            .says("/object", "text_completion".into())
            .says("/experiments", json!([]))
            .says("/choices/0/index", 0.into())
            .says("/choices/0/finish_reason", "length".into())
            .says("/model/engine", "litellm".into())
            .says("/model/name", "codegemma".into())
            .says("/model/lang", "python".into())
            .says("/model/tokens_consumption_metadata/output_tokens", 16.into())
            .says(
                "/model/tokens_consumption_metadata/max_output_tokens_used",
                false.into(),
            )
            .says("/model/tokens_consumption_metadata/context_tokens_sent", 0.into())
            .says("/model/tokens_consumption_metadata/context_tokens_used", 0.into())
            .check(|answer, cluster| {
                let body = answer.json();
                assert!(body["created"].is_i64(), "{answer}");
                assert!(
                    body["model"]["tokens_consumption_metadata"]["input_tokens"].as_u64() > Some(0),
                    "{answer}"
                );
                assert_eq!(body["choices"].as_array().map(Vec::len), Some(1), "{answer}");
                assert_eq!(body["choices"][0]["text"], cluster.expected(16), "{answer}");
            }),
        );
        cases.push(
            case(
                format!("{path}: an empty answer is no choice, and never an empty text"),
                completion(path),
            )
            .sim(|sim| sim.tokens = 0)
            .good()
            .says("/choices", json!([]))
            .says("/model/tokens_consumption_metadata", Value::Null),
        );
        cases.push(
            case(
                format!("{path}: a stream is the bare text under the name of an event stream"),
                completion(path).with("/stream", true.into()),
            )
            .good()
            .header("content-type", "text/event-stream; charset=utf-8")
            .header("x-streaming-format", "")
            .check(|answer, cluster| assert_eq!(answer.text(), cluster.expected(16))),
        );
        cases.push(
            case(
                format!("{path}: a stream of nothing is an empty body"),
                completion(path).with("/stream", true.into()),
            )
            .sim(|sim| sim.tokens = 0)
            .good()
            .check(|answer, _| assert_eq!(answer.text(), "")),
        );
        let many = completion(path).with("/choices_count", 4.into());
        cases.push(
            case(
                format!("{path}: however many choices are asked for, one comes"),
                many,
            )
            .good()
            .check(|answer, _| {
                assert_eq!(
                    answer.json()["choices"].as_array().map(Vec::len),
                    Some(1),
                    "{answer}"
                );
            }),
        );
    }
    cases.push(
        case("a model's fences in a completion stay as they are, and its text goes to it as a prompt for the middle", completion(COMPLETIONS))
            .good()
            .asked("/prompt", "<|fim_prefix|>def add(a, b):\n    <|fim_suffix|>\n<|fim_middle|>".into()),
    );
    cases
}

/// Each bound of a field: at it and one over.
fn limits(path: &'static str) -> Vec<Case> {
    let item = json!({"type": "file", "name": "n", "content": "c"});
    let items = |count: usize| Value::from(vec![item.clone(); count]);
    let rows: Vec<(&str, &str, usize, &str)> = vec![
        ("/project_path", "project_path", 255, "a project's path"),
        (
            "/current_file/file_name",
            "current_file.file_name",
            255,
            "a file's name",
        ),
        (
            "/current_file/language_identifier",
            "current_file.language_identifier",
            255,
            "a language",
        ),
        (
            "/current_file/content_above_cursor",
            "current_file.content_above_cursor",
            100_000,
            "code above the cursor",
        ),
        (
            "/current_file/content_below_cursor",
            "current_file.content_below_cursor",
            100_000,
            "code below the cursor",
        ),
    ];
    let mut cases = Vec::new();
    for (pointer, field, most, what) in rows {
        let ask = |count| completion(path).with(pointer, letters(count));
        cases.push(case(format!("{path}: {what} may have {most} characters"), ask(most)).good());
        cases.push(
            case(
                format!("{path}: {what} of {} characters is named", most + 1),
                ask(most + 1),
            )
            .names(field),
        );
    }
    for (count, what) in [(0, "no context"), (100, "a hundred context items")] {
        let ask = completion(path).with("/context", items(count));
        cases.push(case(format!("{path}: {what} is fine"), ask).good());
    }
    let ask = completion(path).with("/context", items(101));
    cases.push(case(format!("{path}: 101 context items are too many"), ask).names("context"));
    for (name, most) in [("type", 1024), ("name", 1024), ("content", 500_000)] {
        let with = |count| {
            let mut one = item.clone();
            one[name] = letters(count);
            completion(path).with("/context", json!([one]))
        };
        cases.push(
            case(
                format!("{path}: a context item's {name} may have {most} characters"),
                with(most),
            )
            .good(),
        );
        let name_of_case = format!(
            "{path}: a context item's {name} of {} characters is named",
            most + 1
        );
        cases.push(case(name_of_case, with(most + 1)).names(&format!("context.0.{name}")));
    }
    cases
}

/// Fields that may be missing, and those that may not.
fn fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for field in [
        "current_file",
        "current_file/file_name",
        "current_file/content_above_cursor",
        "current_file/content_below_cursor",
    ] {
        let ask = completion(COMPLETIONS).lacking(&format!("/{field}"));
        cases.push(
            case(format!("a completion without {field} is told so"), ask).names(&field.replace('/', ".")),
        );
    }
    for field in [
        "project_path",
        "project_id",
        "model_provider",
        "model_name",
        "prompt",
        "stream",
        "choices_count",
        "intent",
        "current_file/language_identifier",
        "prompt_version",
    ] {
        let ask = completion(COMPLETIONS).lacking(&format!("/{field}"));
        cases.push(case(format!("a completion may leave out {field}"), ask).good());
    }
    for field in [
        "project_path",
        "project_id",
        "model_provider",
        "model_name",
        "prompt",
        "stream",
        "choices_count",
        "context",
        "telemetry",
    ] {
        let ask = completion(COMPLETIONS).with(&format!("/{field}"), Value::Null);
        cases.push(case(format!("a completion's {field} may be null"), ask).good());
    }
    for version in [1, 2, 3] {
        let ask = completion(COMPLETIONS).with("/prompt_version", version.into());
        cases.push(case(format!("a body of version {version} is a completion"), ask).good());
    }
    for (field, value) in [
        ("prompt", json!([{"role": "user", "content": "x"}])),
        ("prompt", json!("any text")),
        (
            "telemetry",
            json!([{"requests": 1, "accepts": 1, "errors": 0, "lang": "python"}]),
        ),
        ("prompt_id", json!("code_suggestions/completions")),
        ("role_arn", json!("arn:aws")),
        ("project_id", json!(-1)),
        ("choices_count", json!(0)),
        ("generation_type", json!("empty_function")),
        ("user_instruction", json!("faster")),
        ("nobody_knows_me", json!({"deep": [1, null]})),
    ] {
        let ask = completion(COMPLETIONS).with(&format!("/{field}"), value);
        cases.push(case(format!("a completion may bring {field}"), ask).good());
    }
    for below in ["", "\n"] {
        let ask = completion(COMPLETIONS).with("/current_file/content_below_cursor", below.into());
        cases.push(case(format!("what is below the cursor may be {below:?}"), ask).good());
    }
    for (name, lang) in [
        ("Makefile", ""),
        ("a.unheard", ""),
        ("a.RB", "ruby"),
        ("a.rs", "rust"),
    ] {
        let ask = completion(COMPLETIONS)
            .with("/current_file/file_name", name.into())
            .lacking("/current_file/language_identifier");
        cases.push(
            case(format!("the language of {name} is {lang:?}"), ask)
                .good()
                .says("/model/lang", lang.into()),
        );
    }
    cases
}

/// Values of another type, each named.
fn types() -> Vec<Case> {
    let rows = [
        ("/prompt_version", json!("2"), "prompt_version"),
        ("/prompt_version", json!(4), "prompt_version"),
        ("/prompt_version", json!(0), "prompt_version"),
        ("/stream", json!("yes"), "stream"),
        ("/choices_count", json!("one"), "choices_count"),
        ("/project_id", json!("seven"), "project_id"),
        ("/project_path", json!(7), "project_path"),
        ("/current_file", json!("a.rb"), "current_file"),
        ("/current_file/file_name", json!(7), "current_file.file_name"),
        (
            "/current_file/content_above_cursor",
            json!([]),
            "current_file.content_above_cursor",
        ),
        (
            "/current_file/content_below_cursor",
            Value::Null,
            "current_file.content_below_cursor",
        ),
        ("/context", json!({"type": "file"}), "context"),
        ("/context", json!(["file"]), "context.0"),
        (
            "/context",
            json!([{"type": "file", "name": "n"}]),
            "context.0.content",
        ),
        ("/model_name", json!(7), "model_name"),
        ("/model_identifier", json!([]), "model_identifier"),
    ];
    let wrong = rows.into_iter().map(|(pointer, value, field)| {
        let ask = completion(COMPLETIONS).with(pointer, value.clone());
        case(format!("{field} that is {value} is named"), ask).names(field)
    });
    let mut cases: Vec<Case> = wrong.collect();
    for text in ["", "{", "\"", "[1,", "nonsense", "{\"a\":\u{0}1}"] {
        let ask = completion(COMPLETIONS).text(text);
        cases.push(case(format!("{text:?} is told to be no JSON"), ask).status(422));
    }
    for text in ["[]", "7", "null", "\"text\""] {
        let ask = completion(COMPLETIONS).text(text);
        cases.push(case(format!("{text} is told to be no object"), ask).names("object"));
    }
    for kind in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let ask = completion(COMPLETIONS).typed(kind);
        cases.push(case(format!("a body called {kind:?} is refused"), ask).status(422));
    }
    for kind in [
        " application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
    ] {
        let ask = completion(COMPLETIONS).typed(Some(kind));
        cases.push(case(format!("a body called {kind:?} is read"), ask).good());
    }
    cases
}

/// What a request says of models only ever picks among those that are configured.
fn models() -> Vec<Case> {
    let hints = [
        (
            "a family that this gateway does not have",
            json!({"model_name": "general"}),
        ),
        ("a family that nobody knows", json!({"model_name": "martian"})),
        ("a family that may not complete", json!({"model_name": "mistral"})),
        (
            "an identifier that is empty",
            json!({"model_identifier": "", "model_name": ""}),
        ),
        (
            "an identifier of another provider",
            json!({"model_identifier": "bedrock/eu.some-model"}),
        ),
        (
            "the configured model by identifier",
            json!({"model_identifier": "custom_openai/codegemma"}),
        ),
        (
            "an endpoint where nobody listens",
            json!({"model_endpoint": "http://127.0.0.1:9/v1", "model_api_key": "k"}),
        ),
        (
            "an endpoint that is null",
            json!({"model_endpoint": null, "model_api_key": null}),
        ),
    ];
    hints
        .into_iter()
        .map(|(what, hint)| {
            let mut ask = completion(COMPLETIONS).with("/model_provider", "litellm".into());
            for (name, value) in hint.as_object().expect("fields") {
                ask = ask.with(&format!("/{name}"), value.clone());
            }
            case(format!("{what} is answered by the model that is configured"), ask)
                .good()
                .says("/model/name", "codegemma".into())
        })
        .collect()
}
