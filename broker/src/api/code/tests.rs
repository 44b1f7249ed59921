use serde_json::Value as JsonValue;

use super::*;
use crate::api::stream::chunk::Usage;

const BODY: &str = r#"{"prompt_version":2,"unknown":1,"current_file":{"file_name":" a.py ","language_identifier":"python",
    "content_above_cursor":"def f():","content_below_cursor":"","more":[]},"prompt":null,"model_identifier":"custom_openai/org/m"}"#;

fn parsed(body: &str) -> Result<(), String> {
    let fields = Fields::parse(body.as_bytes()).map_err(|error| error.to_string())?;
    parse(&fields).map(drop).map_err(|error| error.to_string())
}

#[test]
fn unknown_fields_are_ignored_and_a_missing_version_is_the_first() {
    assert_eq!(parsed(BODY), Ok(()));
    assert_eq!(parsed(&BODY.replace("\"prompt_version\":2,", "")), Ok(()));
    let fields = Fields::parse(BODY.as_bytes()).expect("an object");
    let completion = parse(&fields).expect("parses");
    assert_eq!(completion.file.name, "a.py");
    assert_eq!(completion.choice, ModelChoice::Hint("org/m".to_owned()));
}

#[test]
fn limits_are_kept_to_the_character() {
    let name = |length| BODY.replace(" a.py ", &"ü".repeat(length));
    assert_eq!(parsed(&name(255)), Ok(()));
    assert!(
        parsed(&name(256))
            .expect_err("too long")
            .starts_with("current_file.file_name: ")
    );
    let above = |length| BODY.replace("def f():", &"x".repeat(length));
    assert_eq!(parsed(&above(100_000)), Ok(()));
    assert!(
        parsed(&above(100_001))
            .expect_err("too long")
            .starts_with("current_file.content_above_cursor: ")
    );
    let item = r#"{"type":"file","name":"b","content":""}"#;
    let items = |count| {
        BODY.replace(
            "\"prompt\":null",
            &format!("\"context\":[{}]", vec![item; count].join(",")),
        )
    };
    assert_eq!(parsed(&items(100)), Ok(()));
    assert!(
        parsed(&items(101))
            .expect_err("too many")
            .starts_with("context: ")
    );
    for (from, to, path) in [
        (
            "\"prompt_version\":2",
            "\"prompt_version\":\"2\"",
            "prompt_version",
        ),
        ("\"current_file\"", "\"file\"", "current_file"),
        (
            "\"content_below_cursor\":\"\"",
            "\"x\":1",
            "current_file.content_below_cursor",
        ),
        (
            "\"content_below_cursor\":\"\"",
            "\"content_below_cursor\":3",
            "current_file.content_below_cursor",
        ),
    ] {
        let problem = parsed(&BODY.replace(from, to)).expect_err(path);
        assert!(problem.starts_with(&format!("{path}: ")), "{problem}");
    }
}

#[test]
fn a_model_is_named_by_identifier_or_family_and_never_by_address() {
    assert_eq!(hint(Some(""), None), ModelChoice::Assigned);
    assert_eq!(
        hint(Some(""), Some("mistral")),
        ModelChoice::Hint("mistral".to_owned())
    );
    assert_eq!(
        hint(Some("plain"), Some("mistral")),
        ModelChoice::Hint("plain".to_owned())
    );
    for malformed in [
        r#"{}"#,
        r#"{"model_metadata":7}"#,
        r#"{"model_metadata":{"name":[]}}"#,
    ] {
        let fields = Fields::parse(malformed.as_bytes()).expect("an object");
        assert_eq!(metadata_hint(&fields), ModelChoice::Assigned, "{malformed}");
    }
}

fn answer_of(text: &str) -> JsonValue {
    let whole = Whole {
        finish_reason: None,
        text: text.to_owned(),
        at_limit: false,
        usage: Usage {
            prompt_tokens: 120,
            completion_tokens: 18,
        },
    };
    let Json(shape) = completed(&whole, "codestral", "python", vec![String::new()]);
    let text = serde_json::to_string(&shape).expect("serialises");
    let keys = [
        "\"id\"",
        "\"model\"",
        "\"experiments\"",
        "\"object\"",
        "\"created\"",
        "\"choices\"",
        "\"metadata\"",
    ];
    assert!(keys.is_sorted_by_key(|key| text.find(key)), "{text}");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_completion_has_the_shape_that_editors_read() {
    let mut answer = answer_of("return a + b");
    answer["created"] = json!(0);
    assert_eq!(
        answer,
        json!({
            "id": "id",
            "model": {
                "engine": "litellm", "name": "codestral", "lang": "python",
                "tokens_consumption_metadata": {
                    "input_tokens": 120, "output_tokens": 18, "max_output_tokens_used": false,
                    "context_tokens_sent": 0, "context_tokens_used": 0
                },
                "region": null
            },
            "experiments": [],
            "object": "text_completion",
            "created": 0,
            "choices": [{"text": "return a + b", "index": 0, "finish_reason": "length"}],
            "metadata": {"enabled_feature_flags": [""]}
        })
    );
}

#[test]
fn nothing_to_suggest_is_an_empty_list() {
    let answer = answer_of("");
    assert_eq!(answer["choices"], json!([]));
    assert_eq!(answer["model"]["tokens_consumption_metadata"], JsonValue::Null);
}

#[test]
fn feature_flags_are_echoed_once_each() {
    let flags = |value: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        if let Some(value) = value {
            headers.insert(
                "x-gitlab-enabled-feature-flags",
                http::HeaderValue::from_static(value),
            );
        }
        enabled_feature_flags(&headers)
    };
    assert!(flags(None).is_empty());
    assert_eq!(flags(Some("")), [""]);
    assert_eq!(flags(Some("a,b,a")), ["a", "b"]);
}
