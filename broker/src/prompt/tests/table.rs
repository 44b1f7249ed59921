//! Every prompt as GitLab asks for it, for every family that can be configured.

use minijinja::value::Serde;
use serde_json::{Value as Json, json};

use super::*;

/// The five of the product, then those that GitLab names and two that it does not.
pub(super) const FAMILIES: [&str; 19] = [
    "mistral_7b",
    "mixtral_8x7b",
    "mixtral_8x22b",
    "codegemma_7b",
    "codegemma_2b",
    "mistral",
    "mixtral",
    "codestral",
    "claude_3",
    "gpt",
    "llama3",
    "codegemma",
    "codellama",
    "deepseekcoder",
    "general",
    "gemini",
    "qwen",
    "starcoder",
    "gemma",
];

/// Prompt id, feature, scope, inputs.
type Asked = (&'static str, &'static str, &'static str, Json);

/// Prompt id, feature, scope, and the inputs that GitLab sends.
pub(super) fn asked() -> Vec<Asked> {
    let mut asked = shown_in_chat();
    asked.extend(summaries_and_messages());
    asked.extend(judgements());
    asked.extend(readers());
    asked.extend(asked_by_us());
    asked
}

fn shown_in_chat() -> Vec<Asked> {
    let code =
        json!({"file_content": "FILE", "input": "ASK", "language_info": "LANGUAGE", "selected_text": "CODE"});
    let with = |more: &[&str]| {
        let mut inputs = code.clone();
        for name in more {
            inputs[name] = name.to_uppercase().into();
        }
        inputs
    };
    vec![
        ("chat/explain_code", "code_explanation", "explain_code", with(&[])),
        (
            "chat/write_tests",
            "test_generation",
            "write_tests",
            with(&["libraries"]),
        ),
        (
            "chat/refactor_code",
            "refactor_code",
            "refactor_code",
            with(&["libraries", "file_content_reuse"]),
        ),
        (
            "chat/fix_code",
            "fix_code",
            "fix_code",
            with(&["libraries", "file_content_reuse"]),
        ),
        (
            "chat/explain_vulnerability",
            "vulnerability_explanation",
            "explain_vulnerability",
            json!({"identifiers": "CWE", "language_info": "LANGUAGE", "title": "TITLE",
                "vulnerability_description": "WHAT", "vulnerability_info": "WHERE"}),
        ),
        (
            "chat/summarize_comments",
            "discussion_summary",
            "summarize_comments",
            json!({"notes_content": "NOTES"}),
        ),
        (
            "chat/troubleshoot_job",
            "root_cause_analysis",
            "troubleshoot_job",
            json!({"language_info": "LANGUAGE", "selected_text": "LOG"}),
        ),
        (
            "chat/documentation_search",
            "duo_chat",
            "documentation_search",
            json!({"question": "ASK", "content_id": "CNT-IDX", "documents": [{"id": 7, "content": "DOCUMENT"}]}),
        ),
    ]
}

fn summaries_and_messages() -> Vec<Asked> {
    vec![
        (
            "generate_commit_message",
            "generate_commit_message",
            "generate_commit_message",
            json!({"diff": "DIFF"}),
        ),
        (
            "summarize_new_merge_request",
            "merge_request_summary",
            "summarize_new_merge_request",
            json!({"extracted_diff": "DIFF"}),
        ),
        (
            "summarize_review",
            "code_review_summary",
            "summarize_review",
            json!({"draft_notes_content": "NOTES"}),
        ),
        (
            "resolve_vulnerability",
            "vulnerability_resolution",
            "resolve_vulnerability",
            json!({"filename": "NAME", "identifiers": "CWE", "name": "TITLE", "source_code": "FILE",
                "vulnerability_description": "WHAT", "vulnerable_code": "CODE"}),
        ),
        (
            "review_merge_request",
            "review_merge_request",
            "review_merge_request",
            json!({"mr_title": "TITLE", "mr_description": "WHAT", "diff_lines": "DIFF", "full_file_intro": "INTRO",
                "full_content_section": "FILES", "custom_instructions_section": "WISHES", "current_date": "DATE"}),
        ),
    ]
}

fn judgements() -> Vec<Asked> {
    vec![
        (
            "glab_ask_git_command",
            "git_suggestions",
            "glab_ask_git_command",
            json!({"prompt": "ASK"}),
        ),
        (
            "generate_description",
            "issue_description_generation",
            "generate_issue_description",
            json!({"content": "NOTES", "template": "TEMPLATE"}),
        ),
        (
            "categorize_question",
            "categorize_question",
            "categorize_duo_chat_question",
            json!({"question": "ASK", "previous_answer": "BEFORE"}),
        ),
        (
            "measure_comment_temperature",
            "measure_comment_temperature",
            "measure_comment_temperature",
            json!({"content": "NOTES"}),
        ),
        (
            "model_configuration/check",
            "code_completion",
            "complete_code",
            json!({}),
        ),
        (
            "classify_code_review_mention_intent",
            "classify_code_review_mention_intent",
            "duo_agent_platform",
            json!({"message": "ASK"}),
        ),
        (
            "generate_session_title",
            "generate_session_title",
            "duo_agent_platform",
            json!({"context": "ASK", "definition": "WHAT"}),
        ),
        (
            "summarize_duo_workflow",
            "summarize_duo_workflow",
            "duo_agent_platform",
            json!({"logs": "LOG"}),
        ),
        (
            "fill_in_merge_request_template",
            "merge_request_template_population",
            "fill_in_merge_request_template",
            json!({"content": "NOTES", "template": "TEMPLATE", "diff": "DIFF"}),
        ),
    ]
}

fn readers() -> Vec<Asked> {
    let inputs = json!({"input": "ASK", "suggestions": "BEFORE"});
    [
        ("chat/issue_reader", "ask_issue"),
        ("chat/work_item_reader", "ask_work_item"),
        ("chat/epic_reader", "ask_epic"),
        ("chat/merge_request_reader", "ask_merge_request"),
        ("chat/commit_reader", "ask_commit"),
        ("chat/build_reader", "ask_build"),
    ]
    .into_iter()
    .map(|(id, scope)| (id, "duo_chat", scope, inputs.clone()))
    .collect()
}

/// Prompts that handlers of ours fill in.
fn asked_by_us() -> [Asked; 4] {
    [
        (
            "chat/agent_with_tools",
            "duo_chat",
            "duo_classic_chat",
            json!({
                "context": {"type": "issue", "title": "TITLE", "content": "PAGE"},
                "current_file": {"file_path": "PATH", "data": "FILE", "selected_code": true},
                "additional_context": [{"category": "file", "id": "ID", "content": "ATTACHED"}],
                "unavailable_resources": ["PIPELINES"],
            }),
        ),
        (
            "chat/agent",
            "duo_chat",
            "duo_classic_chat",
            json!({
                "tools": [{"name": "TOOL", "description": "WHAT", "example": "Thought: x"}],
                "context": {"type": "issue", "title": "TITLE", "content": "PAGE"},
                "current_file": {"file_path": "PATH", "data": "FILE", "selected_code": true},
                "additional_context": [{"category": "file", "id": "ID", "content": "ATTACHED"}],
                "unavailable_resources": ["PIPELINES"],
            }),
        ),
        (
            "code_suggestions/completions",
            "code_completion",
            "complete_code",
            json!({"prefix": "BEFORE", "suffix": "AFTER", "file_name": "a.rb", "language": "ruby",
                "context": [{"name": "b.rb", "content": "OTHER"}]}),
        ),
        (
            "code_suggestions/generations",
            "code_generation",
            "generate_code",
            json!({"language": "ruby", "file_name": "NAME", "prefix": "BEFORE", "suffix": "AFTER", "instruction": "TASK",
                "libraries": ["LIBRARY"], "related_files": ["OTHER"], "related_snippets": ["SNIPPET"],
                "examples": [{"example": "LIKE", "response": "SO"}]}),
        ),
    ]
}

/// Capitals of an input's texts: what a prompt has to hold of them.
fn words(inputs: &Json, found: &mut Vec<String>) {
    match inputs {
        Json::String(text) if text.bytes().all(|byte| byte.is_ascii_uppercase()) => found.push(text.clone()),
        Json::Array(items) => items.iter().for_each(|item| words(item, found)),
        Json::Object(members) => members.values().for_each(|member| words(member, found)),
        _ => {}
    }
}

#[test]
fn every_prompt_that_gitlab_asks_for_is_there_for_every_family() {
    let prompts = Prompts::builtin();
    let asked = asked();
    let mut built_in: Vec<&str> = builtin::all().map(|(id, _, _)| id).collect();
    built_in.dedup();
    assert!(
        built_in
            .iter()
            .all(|id| asked.iter().any(|(known, ..)| known == id)),
        "a template that this table does not know"
    );
    for (id, feature, scope, inputs) in &asked {
        let purpose = prompts
            .purpose(id)
            .unwrap_or_else(|| panic!("{id} has no template"));
        assert_eq!(
            (purpose.feature.as_str(), purpose.scope.as_str()),
            (*feature, *scope),
            "{id}"
        );
        for family in FAMILIES {
            let model = Model {
                max_output_tokens: 32_768,
                context_tokens: 32_768,
                ..model(family)
            };
            let rendered = prompts.render(Use {
                id,
                model: &model,
                inputs: Value::from(Serde(inputs)),
                messages: vec![Message::new(Role::User, "QUESTION")],
                stream: false,
            });
            let rendered = rendered.unwrap_or_else(|error| panic!("{id} for {family}: {error}"));
            let body: Json = serde_json::from_slice(&rendered.body).expect("JSON");
            check(id, family, inputs, &body);
        }
    }
}

fn check(id: &str, family: &str, inputs: &Json, body: &Json) {
    let text = body.to_string();
    let mut expected = Vec::new();
    words(inputs, &mut expected);
    if id.starts_with("chat/agent") {
        expected.push("QUESTION".to_owned());
    }
    for word in expected {
        assert!(
            text.contains(&word),
            "{id} for {family} does not say {word}: {text}"
        );
    }
    assert!(
        body["max_tokens"]
            .as_u64()
            .is_some_and(|most| (1..=8192).contains(&most)),
        "{id} {family}"
    );
    assert!(
        body["temperature"].as_f64().is_some_and(|heat| heat <= 0.2),
        "{id} {family}"
    );
    assert!(
        body["stop"].as_array().is_none_or(|stops| stops.len() <= 4),
        "{id} {family}"
    );
    let Some(messages) = body["messages"].as_array() else {
        assert_eq!(id, "code_suggestions/completions", "{family}");
        return;
    };
    let roles: Vec<&str> = messages
        .iter()
        .filter_map(|message| message["role"].as_str())
        .collect();
    let strict = ["mistral", "mixtral", "codestral", "codegemma", "gemma"];
    if strict.contains(&family.split('_').next().unwrap_or_default()) {
        assert_eq!(roles, ["user"], "{id} {family}");
    } else {
        assert!(
            ["system", "user"].ends_with(&roles) || roles == ["user"],
            "{id} {family}: {roles:?}"
        );
    }
}

#[test]
fn families_with_small_windows_leave_room_for_the_question() {
    for (id, ..) in asked() {
        let small = Model {
            max_output_tokens: 8192,
            ..model("codegemma_2b")
        };
        let room = Prompts::builtin().room(id, &small).expect("a prompt");
        assert!(room >= 3000, "{id} leaves {room} bytes");
    }
}
