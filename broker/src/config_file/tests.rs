use std::path::Path;

use super::*;

fn problems(text: &str) -> Vec<String> {
    let accept = |_: &PromptOverride| Ok(());
    match parse(text, Some(Path::new(".")), &accept) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_file_that_says_everything_has_no_problem() {
    let text = r#"
models:
  - {name: mistral, family: mistral_7b, context_tokens: 32768, max_output_tokens: 4096}
features:
  code_completion: {model: mistral, lane: keystroke, first_byte_within: 2s, end_within: 2500ms, bodies: digest}
  duo_chat: {model: mistral, acknowledge: "evaluated locally"}
  suggested_reviewers: inactive
  openai_chat: active
issuers:
  - {url: "http://127.0.0.1:9000", audience: gitlab-ai-gateway, openai: false}
support_levels:
  - {feature: duo_chat, family: codegemma_7b, level: supported, reason: "a week of trials"}
prompts:
  - id: chat/agent
    family: base
    text: |
      one
      two
"#;
    assert_eq!(problems(text), Vec::<String>::new());
    assert_eq!(problems(""), Vec::<String>::new());
}

#[test]
fn every_problem_is_listed_with_its_place() {
    let text = r#"models:
  - {name: "", family: mistral_7b, context_tokens: -1, max_output_tokens: 10}
  - {name: b, family: f, context_tokens: 10, max_output_tokens: 20, extra: 1}
  - {name: c, family: f, context_tokens: 10}
features:
  Duo: inactive
  duo_chat: {model: 7, lane: background, end_within: 5}
  code_completion: off
issuers:
support_levels:
  - {feature: duo_chat, family: x, level: good, reason: ""}
prompts:
  - {id: a, family: base, file: no-such-file.md}
surprise: 1
"#;
    let expected = [
        "line 2, column 12: models[0].name: a name may not be empty",
        "line 2, column 52: models[0].context_tokens: expected a whole number of tokens above zero, found -1",
        "line 3, column 65: models[1].max_output_tokens: an answer of 20 tokens does not fit into a window of 10",
        "line 3, column 69: models[1].extra: unknown key; known are name, family, context_tokens, max_output_tokens",
        "line 4, column 5: models[2].max_output_tokens: is missing",
        "line 6, column 3: features.Duo: a feature id has lower-case letters, digits, '-' and '_' only, not 'D'",
        "line 7, column 21: features.duo_chat.model: expected a text; put it in quotes, found 7",
        "line 7, column 30: features.duo_chat.lane: a live request is never background: use keystroke or interactive",
        "line 7, column 54: features.duo_chat.end_within: expected a span of time such as 2500ms, 50s or 10m, found 5",
        "line 8, column 20: features.code_completion: expected `inactive`, `active` or a mapping such as {model: NAME}, found a yes or no",
        "line 11, column 43: support_levels[0].level: unknown level \"good\": supported, to_be_evaluated or not_supported",
        "line 11, column 57: support_levels[0].reason: must not be empty",
        "line 13, column 33: prompts[0].file: cannot read no-such-file.md: No such file or directory (os error 2)",
        "line 14, column 1: surprise: unknown key; known are models, features, issuers, support_levels, prompts",
        "line 9, column 8: issuers: expected a list; an empty one is written [], found nothing",
    ];
    let found = problems(text);
    for line in expected {
        assert!(
            found.iter().any(|problem| problem == line),
            "missing: {line}\nfound: {found:#?}"
        );
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn a_text_that_is_no_yaml_has_one_problem_with_its_place() {
    let found = problems("models: [\n  {name: a\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("line "), "{found:?}");
}

#[test]
fn an_instance_is_named_by_a_base_url_without_a_secret() {
    for url in [
        "https://:secret@gitlab",
        "https://user@gitlab",
        "https://gitlab?a",
        "https://gitlab#a",
    ] {
        let found = problems(&format!("issuers: [{{url: '{url}', audience: a}}]"));
        assert_eq!(found.len(), 1, "{url}: {found:?}");
        assert!(found[0].contains("is no base URL"), "{found:?}");
        assert!(!found[0].contains("secret"), "{found:?}");
    }
}
