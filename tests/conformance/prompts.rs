//! GitLab's prompts by id, each under every spelling of its path, whole and streamed.

use duo_system_tests::sim::Settings;
use serde_json::{Value, json};

use crate::bodies::{COMMIT, commit, metadata};
use crate::case::{Case, case, post};

/// A prompt: its id, the scope that opens it, the inputs that it cannot do without, and further ones that Rails sends.
type Row = (
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const ROWS: [Row; 28] = [
    (
        "chat/explain_code",
        "explain_code",
        &["input", "selected_text"],
        &["file_content", "language_info"],
    ),
    (
        "chat/write_tests",
        "write_tests",
        &["input", "selected_text"],
        &["file_content", "language_info", "libraries"],
    ),
    (
        "chat/refactor_code",
        "refactor_code",
        &["input", "selected_text"],
        &["file_content", "language_info", "libraries", "file_content_reuse"],
    ),
    (
        "chat/fix_code",
        "fix_code",
        &["input", "selected_text"],
        &["file_content", "language_info", "libraries", "file_content_reuse"],
    ),
    (
        "chat/explain_vulnerability",
        "explain_vulnerability",
        &["title", "vulnerability_info"],
        &["identifiers", "language_info", "vulnerability_description"],
    ),
    (
        "chat/summarize_comments",
        "summarize_comments",
        &["notes_content"],
        &[],
    ),
    (
        "chat/troubleshoot_job",
        "troubleshoot_job",
        &["selected_text"],
        &["language_info"],
    ),
    ("chat/issue_reader", "ask_issue", &["input"], &["suggestions"]),
    (
        "chat/work_item_reader",
        "ask_work_item",
        &["input"],
        &["suggestions"],
    ),
    ("chat/epic_reader", "ask_epic", &["input"], &["suggestions"]),
    (
        "chat/merge_request_reader",
        "ask_merge_request",
        &["input"],
        &["suggestions"],
    ),
    ("chat/commit_reader", "ask_commit", &["input"], &["suggestions"]),
    ("chat/build_reader", "ask_build", &["input"], &["suggestions"]),
    (
        "chat/documentation_search",
        "documentation_search",
        &["question", "documents", "content_id"],
        &[],
    ),
    (
        "generate_commit_message",
        "generate_commit_message",
        &["diff"],
        &[],
    ),
    (
        "summarize_new_merge_request",
        "summarize_new_merge_request",
        &["extracted_diff"],
        &[],
    ),
    (
        "summarize_review",
        "summarize_review",
        &["draft_notes_content"],
        &[],
    ),
    (
        "resolve_vulnerability",
        "resolve_vulnerability",
        &["filename", "name", "source_code"],
        &["identifiers", "vulnerability_description", "vulnerable_code"],
    ),
    (
        "review_merge_request",
        "review_merge_request",
        &["mr_title", "mr_description", "diff_lines"],
        &[
            "full_file_intro",
            "full_content_section",
            "custom_instructions_section",
            "current_date",
        ],
    ),
    ("glab_ask_git_command", "glab_ask_git_command", &["prompt"], &[]),
    (
        "generate_description",
        "generate_issue_description",
        &["content"],
        &["template"],
    ),
    (
        "categorize_question",
        "categorize_duo_chat_question",
        &["question"],
        &["previous_answer"],
    ),
    (
        "measure_comment_temperature",
        "measure_comment_temperature",
        &["content"],
        &[],
    ),
    ("model_configuration/check", "complete_code", &[], &[]),
    (
        "fill_in_merge_request_template",
        "fill_in_merge_request_template",
        &["content", "template"],
        &[],
    ),
    (
        "classify_code_review_mention_intent",
        "duo_agent_platform",
        &["message"],
        &[],
    ),
    (
        "generate_session_title",
        "duo_agent_platform",
        &["context"],
        &["definition"],
    ),
    ("summarize_duo_workflow", "duo_agent_platform", &["logs"], &[]),
];

/// Every case of prompts.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = ROWS.iter().flat_map(row).collect();
    cases.extend(forms());
    cases.extend(fields());
    cases
}

fn input(name: &str) -> Value {
    match name {
        "documents" => json!([{"id": "a1", "content": "Protect a branch in its settings."}]),
        "content_id" => "CNT-IDX".into(),
        name => format!("some text for {name}").into(),
    }
}

fn inputs(names: &[&[&str]]) -> Value {
    let names = names.iter().flat_map(|names| names.iter());
    let inputs = names.map(|name| ((*name).to_owned(), input(name)));
    Value::Object(inputs.collect())
}

fn row((id, scope, required, optional): &Row) -> Vec<Case> {
    let (id, scope, required, optional) = (*id, *scope, *required, *optional);
    let body = json!({"inputs": inputs(&[required, optional]), "prompt_version": "^1.0.0"});
    let path = format!("/v1/prompts/{id}");
    let mut cases = vec![
        case(
            format!("{id}: answered as a bare text in JSON"),
            post(&path, body.clone()),
        )
        .good()
        .check(|answer, _| {
            assert!(answer.json().is_string(), "{answer}");
        }),
        case(
            format!("{id}: v2 wraps the text and tells the usage by family"),
            post(format!("/v2/prompts/{id}"), body.clone()),
        )
        .good()
        .check(|answer, _| {
            let body = answer.json();
            assert!(body["content"].is_string(), "{answer}");
            let usage = body["usage"].as_object().expect("usage");
            assert!(
                usage
                    .values()
                    .all(|usage| usage["input_tokens"].is_u64() && usage["output_tokens"].is_u64()),
                "{answer}"
            );
            assert_eq!(usage.len(), 1, "{answer}");
        }),
        case(
            format!("{id}: streamed as bare text"),
            post(&path, body.clone()).with("/stream", true.into()),
        )
        .good()
        .header("content-type", "text/event-stream; charset=utf-8")
        .check(|answer, _| assert!(!answer.text().starts_with("data:"), "{answer}")),
        case(
            format!("{id}: its scope {scope} is enough"),
            post(&path, body.clone()).scopes(&[scope]),
        )
        .good(),
        case(
            format!("{id}: without its scope it is refused by name"),
            post(&path, body.clone()).scopes(&["nothing"]),
        )
        .exactly(403, json!({"detail": refusal(id)})),
        case(
            format!("{id}: an input that nobody knows is passed over"),
            post(&path, body.clone()).with("/inputs/nobody_knows_me", json!([1])),
        )
        .good(),
    ];
    if id.contains('/') {
        for slash in ["%2F", "%2f"] {
            let path = format!("/v1/prompts/{}", id.replace('/', slash));
            cases.push(
                case(
                    format!("{id}: its slash may be written {slash}, as Rails does"),
                    post(path, body.clone()),
                )
                .good(),
            );
        }
    }
    for name in required {
        let ask = post(&path, body.clone()).lacking(&format!("/inputs/{name}"));
        cases.push(case(format!("{id}: without {name} it is told so"), ask).names(name));
    }
    for name in optional {
        let ask = post(&path, body.clone()).lacking(&format!("/inputs/{name}"));
        cases.push(case(format!("{id}: {name} may be left out"), ask).good());
    }
    let Some(say) = in_form(id) else {
        return cases;
    };
    let mut cases: Vec<Case> = cases.into_iter().map(|case| case.sim(say)).collect();
    cases.push(
        case(
            format!("{id}: words from which nothing can be read are no answer"),
            post(&path, body.clone()),
        )
        .detail(421, "500: Internal Server Error")
        .header("x-duo-reason", "unusable_answer"),
    );
    cases.push(
        case(
            format!("{id}: nor are they as a stream"),
            post(&path, body).with("/stream", true.into()),
        )
        .status(503)
        .header("x-duo-reason", "unusable_answer"),
    );
    cases
}

/// The model's answer to a prompt of which GitLab would take other words for a result.
fn in_form(id: &str) -> Option<fn(&mut Settings)> {
    fn review(sim: &mut Settings) {
        let text = "<review>\n<comment file=\"a.rb\" old_line=\"\" new_line=\"3\">\nIt leaks.\n</comment>\n</review>";
        sim.say = Some(text.to_owned());
    }
    fn fixed(sim: &mut Settings) {
        let text = "<fixed_code>\n<old_code>\na\n</old_code>\n<new_code>\nb\n</new_code>\n</fixed_code>";
        sim.say = Some(text.to_owned());
    }
    match id {
        "review_merge_request" => Some(review),
        "resolve_vulnerability" => Some(fixed),
        _ => None,
    }
}

/// The model test shows administrators what a list says.
fn refusal(id: &str) -> Value {
    let text = format!("Unauthorized to access '{id}'");
    match id {
        "model_configuration/check" => json!([{ "msg": text }]),
        _ => text.into(),
    }
}

fn forms() -> Vec<Case> {
    let v2 = || {
        post(
            "/v2/prompts/generate_commit_message",
            json!({"inputs": {"diff": "+ one line"}}),
        )
    };
    vec![
        case("a commit message is the model's text", commit())
            .good()
            .check(|answer, cluster| {
                assert_eq!(answer.json(), Value::from(cluster.expected(16)));
            }),
        case(
            "a streamed commit message is the model's text",
            commit().with("/stream", true.into()),
        )
        .good()
        .check(|answer, cluster| {
            assert_eq!(answer.text(), cluster.expected(16));
        }),
        case(
            "a streamed v2 prompt is an object a line, with the usage by model in the last alone",
            v2().with("/stream", true.into()),
        )
        .good()
        .header("content-type", "text/event-stream; charset=utf-8")
        .check(|answer, cluster| {
            let text = answer.text();
            assert!(text.ends_with('\n'), "{text}");
            let lines: Vec<Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).expect("JSON a line"))
                .collect();
            let said: String = lines
                .iter()
                .map(|line| line["content"].as_str().expect("content"))
                .collect();
            assert_eq!(said, cluster.expected(16));
            let (last, others) = lines.split_last().expect("a line");
            assert_eq!(last["usage"]["mistral"]["output_tokens"], 16, "{last}");
            assert!(others.iter().all(|line| line.get("usage").is_none()), "{text}");
        }),
        case("an empty answer is an empty text", commit())
            .sim(|sim| sim.tokens = 0)
            .good()
            .check(|answer, _| {
                assert_eq!(answer.json(), json!(""));
            }),
        case(
            "the model test asks for at most 16 tokens",
            post("/v1/prompts/model_configuration%2Fcheck", json!({"inputs": {}})),
        )
        .good()
        .asked("/max_tokens", 16.into()),
    ]
}

fn fields() -> Vec<Case> {
    let mut cases = vec![
        case(
            "an unknown prompt is not found, without a word of the server's files",
            post("/v1/prompts/nobody/knows", json!({"inputs": {}})),
        )
        .detail(404, "Prompt 'nobody/knows' not found"),
        case(
            "an unknown v2 prompt is not found",
            post("/v2/prompts/nobody%2Fknows", json!({"inputs": {}})),
        )
        .detail(404, "Prompt 'nobody/knows' not found"),
        case("a prompt without inputs is told so", commit().lacking("/inputs")).names("inputs"),
        case(
            "inputs that are no object are told so",
            commit().with("/inputs", json!(["x"])),
        )
        .names("inputs"),
        case(
            "an input that is null counts as missing",
            commit().with("/inputs/diff", Value::Null),
        )
        .names("diff"),
        case(
            "an empty text is an input",
            commit().with("/inputs/diff", "".into()),
        )
        .good(),
        case(
            "a version that is no text is told so",
            commit().with("/prompt_version", json!(1)),
        )
        .names("prompt_version"),
        case("a prompt needs no version", commit().lacking("/prompt_version")).good(),
        case(
            "a prompt's version may be null",
            commit().with("/prompt_version", Value::Null),
        )
        .good(),
        case(
            "a prompt may bring what nobody knows",
            commit().with("/nobody_knows_me", json!({"a": []})),
        )
        .good(),
        case(
            "a stream that is neither true nor false is told so",
            commit().with("/stream", json!(1)),
        )
        .names("stream"),
        case(
            "agents' old path is gone",
            post("/v1/agents/chat", json!({"inputs": {}})),
        )
        .detail(404, "Not Found"),
    ];
    for version in ["^1.0.0", "^2.0.0", "^2.0.1", "1.2.0", "9.9.9-dev"] {
        let ask = commit().with("/prompt_version", version.into());
        cases.push(case(format!("{COMMIT}: the version {version} is accepted"), ask).good());
    }
    for (what, value) in [
        ("null", Value::Null),
        ("a text", json!("odd")),
        (
            "of an unknown family",
            metadata("martian", "custom_openai/martian"),
        ),
        ("with an empty identifier", metadata("general", "")),
        (
            "of a managed model",
            json!({"provider": "gitlab", "feature_setting": "generate_commit_message"}),
        ),
        (
            "of another vendor",
            json!({"provider": "amazon_q", "name": "amazon_q", "role_arn": "arn"}),
        ),
    ] {
        let ask = commit().with("/model_metadata", value);
        cases.push(case(format!("{COMMIT}: model data that is {what} is overlooked"), ask).good());
    }
    cases
}
