//! Every prompt of GitLab's is answered in the form that GitLab reads, whatever the model wraps its answer in, and its
//! record says which prompt it was.

use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::wait::{PATIENCE, until};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::Row as _;

/// Every feature with a prompt of its own that the usual configuration does not name.
const FEATURES: [&str; 14] = [
    "categorize_question",
    "classify_code_review_mention_intent",
    "code_review_summary",
    "discussion_summary",
    "fix_code",
    "generate_session_title",
    "issue_description_generation",
    "measure_comment_temperature",
    "merge_request_template_population",
    "refactor_code",
    "review_merge_request",
    "summarize_duo_workflow",
    "vulnerability_explanation",
    "vulnerability_resolution",
];

async fn cluster() -> Cluster {
    Cluster::builder()
        .configure(|config| {
            for feature in FEATURES.into_iter().chain(["root_cause_analysis"]) {
                // The one pair with that family that the product does not support.
                let model = match feature {
                    "vulnerability_explanation" => "codegemma",
                    _ => "mistral",
                };
                config["features"][feature] = json!({"model": model, "acknowledge": "system tests"});
            }
        })
        .start()
        .await
}

/// One prompt as Rails asks for it.
struct Case {
    id: &'static str,
    inputs: Value,
    /// What the model says.
    said: &'static str,
    /// What GitLab is to get.
    read: &'static str,
}

const REVIEW: &str =
    "<review>\n<comment file=\"a.rb\" old_line=\"\" new_line=\"3\">\nIt leaks.\n</comment>\n</review>";
const FIXED: &str = "<fixed_code>\n<old_code>\na\n</old_code>\n<new_code>\nb\n</new_code>\n</fixed_code>";
const IDENTIFIED: &str = r#"{"ResourceIdentifierType":"iid","ResourceIdentifier":"42"}"#;
const FENCED_IDENTIFIER: &str =
    "```json\n{\"ResourceIdentifierType\": \"iid\", \"ResourceIdentifier\": 42}\n```";

fn case(id: &'static str, inputs: Value, said: &'static str, read: &'static str) -> Case {
    Case {
        id,
        inputs,
        said,
        read,
    }
}

/// Prompts that people see as they are written.
fn shown() -> Vec<Case> {
    let code = json!({"file_content": "x", "input": "do it", "language_info": "Ruby", "selected_text": "y"});
    let mut more = code.clone();
    more["libraries"] = "rspec".into();
    let mut most = more.clone();
    most["file_content_reuse"] = "reuse".into();
    let vulnerability = json!({
        "identifiers": "CWE-89", "language_info": "Ruby", "title": "SQL", "vulnerability_description": "bad",
        "vulnerability_info": "line 3",
    });
    let documents = json!({
        "question": "How?", "content_id": "CNT-IDX",
        "documents": [{"id": 7, "content": "Press it."}, {"id": "12", "content": "Or not."}],
    });
    let reader = json!({"input": "What is #42?", "suggestions": ""});
    let mut cases = vec![
        case(
            "chat/explain_code",
            code,
            "```markdown\nIt adds.\n```",
            "It adds.\n",
        ),
        case("chat/write_tests", more, "```ruby\nit\n```", "```ruby\nit\n```"),
        case(
            "chat/refactor_code",
            most.clone(),
            "<think>\nhm\n</think>\n\nDone.",
            "Done.",
        ),
        case("chat/fix_code", most, "Fixed.", "Fixed."),
        case(
            "chat/explain_vulnerability",
            vulnerability,
            "```md\nBad.\n```\n",
            "Bad.\n",
        ),
        case(
            "chat/summarize_comments",
            json!({"notes_content": "n"}),
            "They agree.",
            "They agree.",
        ),
        case(
            "chat/troubleshoot_job",
            json!({"language_info": "", "selected_text": "log"}),
            "## Root cause\nx",
            "## Root cause\nx",
        ),
        case(
            "chat/documentation_search",
            documents,
            "Press it.\n\n**ATTRS:** CNT-IDX-7, CNT-IDX-99",
            "Press it.\n\nATTRS: CNT-IDX-7",
        ),
    ];
    for id in [
        "chat/issue_reader",
        "chat/work_item_reader",
        "chat/epic_reader",
        "chat/merge_request_reader",
        "chat/commit_reader",
        "chat/build_reader",
    ] {
        cases.push(case(id, reader.clone(), FENCED_IDENTIFIER, IDENTIFIED));
    }
    cases
}

/// Prompts whose answers a program reads, or that go into a field.
fn read() -> Vec<Case> {
    let vulnerability = json!({
        "filename": "a.rb", "identifiers": "CWE-89", "name": "SQL", "source_code": "a",
        "vulnerability_description": "bad", "vulnerable_code": "a",
    });
    let merge_request = json!({
        "mr_title": "t", "mr_description": "", "diff_lines": "<file_diff filename=\"a.rb\"></file_diff>",
        "full_file_intro": "", "full_content_section": "", "custom_instructions_section": "",
    });
    vec![
        case(
            "generate_commit_message",
            json!({"diff": "+a"}),
            "Here is the commit message:\n```\nAdd a\n```",
            "Add a\n",
        ),
        case(
            "summarize_new_merge_request",
            json!({"extracted_diff": "+a"}),
            "```\nIt adds.\n```",
            "It adds.\n",
        ),
        case(
            "summarize_review",
            json!({"draft_notes_content": "n"}),
            "Summary:\nFine.",
            "Fine.",
        ),
        case(
            "resolve_vulnerability",
            vulnerability,
            "```xml\n<fixed_code><old_code>\n```rb\na\n```\n</old_code>\n<new_code>\nb\n</new_code></fixed_code>\n```",
            FIXED,
        ),
        case(
            "review_merge_request",
            merge_request,
            "I found this:\n<review><comment file='a.rb' new_line='3'>It leaks.</comment></review>",
            REVIEW,
        ),
        case(
            "glab_ask_git_command",
            json!({"prompt": "undo?"}),
            "Run:\n$ git reset HEAD~1",
            "Run:\n```\ngit reset HEAD~1\n```",
        ),
        case(
            "generate_description",
            json!({"content": "c", "template": "## What"}),
            "Sure, here is the description:\n\n## What\nc",
            "## What\nc",
        ),
        case(
            "categorize_question",
            json!({"question": "q", "previous_answer": "a"}),
            "```\n{\"category\": \"Status\", \"detailed_category\": \"State\"}\n```",
            r#"{"category":"Status","detailed_category":"State","labels":[],"language":""}"#,
        ),
        case(
            "measure_comment_temperature",
            json!({"content": "c"}),
            "{\"rating\": 2, \"issues\": [\"x\"]}",
            "<temperature_rating>{\"rating\":2,\"issues\":[\"x\"]}</temperature_rating>",
        ),
        case("model_configuration/check", json!({}), "ready", "ready"),
        case(
            "classify_code_review_mention_intent",
            json!({"message": "m"}),
            "Answer: code_review_request",
            "code_review_request",
        ),
        case(
            "generate_session_title",
            json!({"context": "c", "definition": "d"}),
            "Title: \"Fix it\"\n",
            "Fix it",
        ),
        case(
            "summarize_duo_workflow",
            json!({"logs": "l"}),
            "It went well.",
            "It went well.",
        ),
        case(
            "fill_in_merge_request_template",
            json!({"content": "c", "template": "## What", "diff": "+a"}),
            "```markdown\n## What\na\n```",
            "## What\na\n",
        ),
    ]
}

#[tokio::test]
async fn every_prompt_is_answered_in_the_form_that_gitlab_reads() {
    let cluster = cluster().await;
    let cases: Vec<Case> = shown().into_iter().chain(read()).collect();
    for Case {
        id,
        inputs,
        said,
        read,
    } in &cases
    {
        cluster.sim.set(|sim| sim.say = Some((*said).to_owned()));
        let mut body = json!({
            "inputs": inputs, "prompt_version": "^1.0.0",
            "model_metadata": {"provider": "openai", "name": "mistral", "identifier": "custom_openai/mistral"},
        });
        // A slash as Rails writes it.
        let path = format!("/v1/prompts/{}", id.replace('/', "%2F"));
        let answer = cluster.rails(&path, "alice", &body).send().await.good();
        assert_eq!(answer.json(), json!(read), "{id}");
        let object = cluster
            .rails(&format!("/v2/prompts/{id}"), "alice", &body)
            .send()
            .await
            .good();
        assert_eq!(object.json()["content"], json!(read), "{id}");
        body["stream"] = true.into();
        let correlation = format!("stream-{}", id.replace('/', "-"));
        let call = cluster.rails(&path, "alice", &body);
        let stream = call.header("x-request-id", &correlation).send().await.good();
        assert_eq!(stream.text(), *read, "{id} as a stream");
        assert_eq!(prompt_of(&cluster, &correlation).await.0, *id);
    }
    cluster.assert_clean().await;
}

/// Id and version of the prompt in a request's terminal record.
async fn prompt_of(cluster: &Cluster, correlation_id: &str) -> (String, String) {
    cluster.end_of(correlation_id).await;
    let sql =
        "SELECT prompt_id, prompt_version FROM audit_events WHERE kind = 'ended' AND correlation_id = $1";
    until("the record is there", PATIENCE, async || {
        let row = sqlx::query(sql)
            .bind(correlation_id)
            .fetch_one(cluster.database.pool());
        let row = row.await.map_err(|error| error.to_string())?;
        let text = |column| {
            row.get::<Option<String>, _>(column)
                .ok_or("no prompt in the record")
        };
        Ok((text(0)?, text(1)?))
    })
    .await
}

#[tokio::test]
async fn an_answer_that_would_make_gitlab_claim_something_false_fails_with_the_reason() {
    let cluster = cluster().await;
    for case in read() {
        if !["review_merge_request", "resolve_vulnerability"].contains(&case.id) {
            continue;
        }
        cluster
            .sim
            .set(|sim| sim.say = Some("Looks good to me.".to_owned()));
        let mut body = json!({"inputs": case.inputs});
        let path = format!("/v1/prompts/{}", case.id);
        let answer = cluster.rails(&path, "alice", &body).send().await;
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST, "{answer}");
        body["stream"] = true.into();
        // Nothing was said yet, so the failure has a status.
        let answer = cluster.rails(&path, "alice", &body).send().await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
        assert_eq!(answer.header("x-duo-reason"), "unusable_answer", "{answer}");
    }
    cluster.assert_clean().await;
    let failed = "SELECT count(*) FROM audit_events WHERE outcome = 'failed' AND reason = 'unusable_answer' \
                  AND worker IS NOT NULL AND output_tokens > 0";
    let asked = "SELECT count(*) FROM audit_events WHERE kind = 'admitted'";
    let asked = cluster.database.count(asked).await;
    assert!(asked.as_ref().is_ok_and(|count| *count > 0), "{asked:?}");
    assert_eq!(
        cluster.database.count(failed).await,
        asked,
        "what came is on record, and that it was of no use"
    );
}

#[tokio::test]
async fn generated_code_comes_without_what_models_say_about_it() {
    let cluster = cluster().await;
    cluster.sim.set(|sim| {
        sim.say = Some("Here is the code:\n```python\nx = 1\n```\nIt sets x.".to_owned());
    });
    let payload = |stream: bool| {
        json!({"prompt_components": [{"type": "code_editor_generation", "payload": {
            "file_name": "a.py", "content_above_cursor": "# set x\n", "content_below_cursor": "",
            "language_identifier": "Python", "prompt_id": "code_suggestions/generations",
            "prompt_version": "^1.0.0", "stream": stream,
        }}]})
    };
    for path in ["/v3/code/completions", "/v4/code/suggestions"] {
        let answer = cluster
            .rails(path, "alice", &payload(false))
            .send()
            .await
            .good()
            .json();
        assert_eq!(answer["choices"][0]["text"], "x = 1\n", "{answer}");
    }
    let answer = cluster
        .rails("/v3/code/completions", "alice", &payload(true))
        .header("x-request-id", "generation")
        .send()
        .await
        .good();
    assert_eq!(answer.text(), "x = 1\n");
    assert_eq!(
        prompt_of(&cluster, "generation").await.0,
        "code_suggestions/generations"
    );
    cluster.assert_clean().await;
}
