//! Every way to ask wrongly: the status, the shape of the answer, and nothing queued.

use duo_system_tests::harness::cluster::{agent, chat, completion, generation};
use duo_system_tests::harness::{Answer, Cluster};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v2/code/completions";
const V3: &str = "/v3/code/completions";
const V4: &str = "/v4/code/suggestions";
const AGENT: &str = "/v2/chat/agent";
const PROMPT: &str = "/v1/prompts/generate_commit_message";
const OPENAI_CHAT: &str = "/v1/chat/completions";
const OPENAI_TEXT: &str = "/v1/completions";
const GITLAB: [&str; 5] = [COMPLETIONS, V3, V4, AGENT, PROMPT];
const OPENAI: [&str; 2] = [OPENAI_CHAT, OPENAI_TEXT];
/// Stands for what a user wrote; no error may say it again.
const SECRET: &str = "users own words";

fn good(path: &str) -> Value {
    match path {
        COMPLETIONS => completion(SECRET, false),
        V3 | V4 => generation(SECRET, false),
        AGENT => agent(SECRET),
        PROMPT => json!({"inputs": {"diff": SECRET}}),
        OPENAI_CHAT => chat(SECRET, 5, false),
        _ => json!({"model": "mistral", "prompt": SECRET}),
    }
}

/// The good body with the value at a JSON pointer replaced, or taken out.
fn with(path: &str, pointer: &str, value: Option<Value>) -> Value {
    let mut body = good(path);
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = body.pointer_mut(parent).expect("the pointer's parent");
    match (parent, value) {
        (Value::Object(fields), Some(value)) => drop(fields.insert(name.to_owned(), value)),
        (Value::Object(fields), None) => drop(fields.remove(name)),
        (Value::Array(items), Some(value)) => items[name.parse::<usize>().expect("an index")] = value,
        (other, _) => panic!("{pointer} in {other}"),
    }
    body
}

async fn ask(cluster: &Cluster, path: &str, body: &Value) -> Answer {
    send(cluster, path, "application/json", body.to_string()).await
}

async fn send(cluster: &Cluster, path: &str, kind: &str, body: String) -> Answer {
    let call = cluster.call(Method::POST, path).text(kind, body);
    let call = match OPENAI.contains(&path) {
        true => call.token(&cluster.client_token),
        false => call.headers(cluster.rails_headers("alice")),
    };
    call.send().await
}

/// Status, shape, no word of the user's; and that nothing was queued.
async fn assert_refused(cluster: &Cluster, what: &str, answer: &Answer, status: StatusCode) {
    assert_eq!(answer.status, status, "{what}: {answer}");
    let body = answer.json();
    let said = match body.get("error") {
        Some(error) => error["message"].is_string() && error["type"].is_string(),
        None => body["detail"].is_string() || body["detail"].is_array(),
    };
    assert!(said, "{what}: {answer}");
    assert!(!answer.text().contains(SECRET), "{what}: {answer}");
    assert_eq!(
        cluster.sim.stats().requests.chat + cluster.sim.stats().requests.completions,
        0,
        "{what}"
    );
    assert_eq!(cluster.messages("DUO_LIVE").await, Ok(0), "{what}");
    assert_eq!(
        cluster.metric("duo_requests_admitted_total").await,
        Ok(0.0),
        "{what}"
    );
}

fn assert_openai(what: &str, answer: &Answer, code: &str) {
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error", "{what}: {answer}");
    assert_eq!(error["code"], code, "{what}: {answer}");
}

#[tokio::test]
async fn what_is_no_json_is_told_so() {
    let cluster = Cluster::start().await;
    let broken = [r#"{"model": "mistral""#, "", "\"", "{'a': 1}", "\u{0}"];
    for path in GITLAB {
        for body in broken {
            let answer = send(&cluster, path, "application/json", body.to_owned()).await;
            assert_refused(&cluster, path, &answer, StatusCode::UNPROCESSABLE_ENTITY).await;
        }
        let body = good(path).to_string();
        let answer = send(&cluster, path, "text/plain", body).await;
        assert_refused(&cluster, path, &answer, StatusCode::UNPROCESSABLE_ENTITY).await;
    }
    for path in OPENAI {
        for body in broken {
            let answer = send(&cluster, path, "application/json", body.to_owned()).await;
            assert_refused(&cluster, path, &answer, StatusCode::BAD_REQUEST).await;
            assert_openai(path, &answer, "invalid_json");
        }
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_wrong_field_is_named() {
    let cluster = Cluster::start().await;
    let text = |length: usize| Some(Value::from("a".repeat(length)));
    let items = |count: usize| {
        Some(json!(vec![
            json!({"type": "file", "name": "n", "content": "c"});
            count
        ]))
    };
    let cells = [
        (COMPLETIONS, "/current_file", None, "current_file"),
        (COMPLETIONS, "/current_file", Some(json!("file")), "current_file"),
        (
            COMPLETIONS,
            "/current_file/file_name",
            None,
            "current_file.file_name",
        ),
        (
            COMPLETIONS,
            "/current_file/file_name",
            text(256),
            "current_file.file_name",
        ),
        (
            COMPLETIONS,
            "/current_file/content_above_cursor",
            text(100_001),
            "current_file.content_above_cursor",
        ),
        (
            COMPLETIONS,
            "/current_file/content_below_cursor",
            None,
            "current_file.content_below_cursor",
        ),
        (COMPLETIONS, "/prompt_version", Some(json!(9)), "prompt_version"),
        (COMPLETIONS, "/prompt_version", Some(json!("2")), "prompt_version"),
        (COMPLETIONS, "/stream", Some(json!("yes")), "stream"),
        (COMPLETIONS, "/context", items(101), "context"),
        (V3, "/prompt_components", None, "prompt_components"),
        (V3, "/prompt_components", Some(json!([])), "prompt_components"),
        (V4, "/prompt_components/0/type", Some(json!("poem")), "type"),
        (
            V4,
            "/prompt_components/0/payload/file_name",
            text(256),
            "file_name",
        ),
        (
            V4,
            "/prompt_components/0/payload/content_above_cursor",
            Some(json!(7)),
            "content_above_cursor",
        ),
        (AGENT, "/messages", None, "messages"),
        (AGENT, "/messages", Some(json!([])), "messages"),
        (AGENT, "/messages/0/role", Some(json!("robot")), "role"),
        (PROMPT, "/inputs", None, "inputs"),
        (PROMPT, "/inputs", Some(json!("diff")), "inputs"),
        (PROMPT, "/inputs/diff", None, "diff"),
    ];
    for (path, pointer, value, named) in cells {
        let answer = ask(&cluster, path, &with(path, pointer, value)).await;
        let what = format!("{path} {pointer}");
        assert_refused(&cluster, &what, &answer, StatusCode::UNPROCESSABLE_ENTITY).await;
        assert!(answer.text().contains(named), "{what}: {answer}");
    }
    let mut scratchpad = agent("x");
    scratchpad["messages"][0]["agent_scratchpad"] = json!([]);
    let answer = ask(&cluster, AGENT, &scratchpad).await;
    assert_refused(
        &cluster,
        "a scratchpad of a user",
        &answer,
        StatusCode::BAD_REQUEST,
    )
    .await;

    let cells = [
        (OPENAI_CHAT, "/model", None, "model"),
        (OPENAI_CHAT, "/model", Some(json!(7)), "model"),
        (OPENAI_CHAT, "/messages", None, "messages"),
        (OPENAI_CHAT, "/messages", Some(json!("hello")), "messages"),
        (OPENAI_CHAT, "/messages", Some(json!([])), "messages"),
        (OPENAI_CHAT, "/stream", Some(json!("yes")), "stream"),
        (OPENAI_TEXT, "/prompt", None, "prompt"),
        (OPENAI_TEXT, "/prompt", Some(json!({"a": 1})), "prompt"),
    ];
    for (path, pointer, value, named) in cells {
        let answer = ask(&cluster, path, &with(path, pointer, value)).await;
        let what = format!("{path} {pointer}");
        assert_refused(&cluster, &what, &answer, StatusCode::BAD_REQUEST).await;
        assert_openai(&what, &answer, "invalid_value");
        assert_eq!(answer.json()["error"]["param"], named, "{what}");
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_and_one_at_the_limit_is_not() {
    let cluster = Cluster::start().await;
    for path in GITLAB.into_iter().chain(OPENAI) {
        let body = format!("{}{}", good(path), " ".repeat(4 << 20));
        let answer = send(&cluster, path, "application/json", body).await;
        assert_refused(&cluster, path, &answer, StatusCode::PAYLOAD_TOO_LARGE).await;
    }
    for path in [COMPLETIONS, OPENAI_CHAT] {
        let body = good(path).to_string();
        let body = format!("{body}{}", " ".repeat((4 << 20) - body.len()));
        send(&cluster, path, "application/json", body).await.good();
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn what_is_unknown_is_not_found_and_what_is_inactive_is_forbidden() {
    let cluster = Cluster::start().await;
    let prompt = ask(&cluster, "/v1/prompts/no/such/prompt", &good(PROMPT)).await;
    assert_refused(&cluster, "prompt", &prompt, StatusCode::NOT_FOUND).await;
    let inactive = json!({"inputs": {"selected_text": "x"}});
    let inactive = ask(&cluster, "/v1/prompts/chat/troubleshoot_job", &inactive).await;
    assert_refused(&cluster, "inactive prompt", &inactive, StatusCode::FORBIDDEN).await;

    for path in OPENAI {
        let answer = ask(&cluster, path, &with(path, "/model", Some(json!("gpt-4")))).await;
        assert_refused(&cluster, path, &answer, StatusCode::NOT_FOUND).await;
        assert_openai(path, &answer, "model_not_found");
    }
    let wide = "openai_chat,code_completion,root_cause_analysis";
    let token = cluster.cli.token("wide", "client", &["--features", wide]).await;
    let ask_as = |feature: &str, model: &str| {
        let mut body = good(OPENAI_CHAT);
        body["model"] = model.into();
        let call = cluster.call(Method::POST, OPENAI_CHAT).token(&token);
        call.header("x-duo-feature", feature).json(&body).send()
    };
    duo_system_tests::harness::until(
        "the token is known",
        std::time::Duration::from_secs(5),
        async || {
            let answer = cluster.call(Method::GET, "/v1/models").token(&token).send().await;
            if answer.status == StatusCode::OK {
                Ok(())
            } else {
                Err(answer.to_string())
            }
        },
    )
    .await;
    for (feature, model, status) in [
        ("no_such_feature", "mistral", StatusCode::NOT_FOUND),
        ("Not A Feature", "mistral", StatusCode::NOT_FOUND),
        ("root_cause_analysis", "mistral", StatusCode::FORBIDDEN),
        ("code_completion", "mistral", StatusCode::FORBIDDEN),
    ] {
        let answer = ask_as(feature, model).await;
        assert_refused(&cluster, &format!("{feature} {model}"), &answer, status).await;
    }
    ask_as("code_completion", "codegemma").await.good();
    for (method, path, status) in [
        (Method::GET, COMPLETIONS, StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/v9/nothing", StatusCode::NOT_FOUND),
    ] {
        let answer = cluster
            .call(method, path)
            .headers(cluster.rails_headers("alice"))
            .send()
            .await;
        assert_eq!(answer.status, status, "{answer}");
        assert!(answer.json()["detail"].is_string());
    }
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_prompt_beyond_the_models_window_is_told_so_where_nothing_may_be_left_out() {
    let cluster = Cluster::start().await;
    let long = "word ".repeat(50_000);
    for (path, pointer) in [(OPENAI_CHAT, "/messages/0/content"), (OPENAI_TEXT, "/prompt")] {
        let answer = ask(&cluster, path, &with(path, pointer, Some(long.as_str().into()))).await;
        assert_refused(&cluster, path, &answer, StatusCode::BAD_REQUEST).await;
        assert_openai(path, &answer, "context_length_exceeded");
    }
    let path = "/v1/prompts/glab_ask_git_command";
    let answer = ask(&cluster, path, &json!({"inputs": {"prompt": long}})).await;
    assert_refused(&cluster, path, &answer, StatusCode::UNPROCESSABLE_ENTITY).await;
    // Of a change its beginning is read.
    let body = with(PROMPT, "/inputs/diff", Some(long.as_str().into()));
    ask(&cluster, PROMPT, &body).await.good();
    // Code around the cursor is cut to what fits.
    let above = "x = 1\n".repeat(100_000 / 6);
    let body = with(
        COMPLETIONS,
        "/current_file/content_above_cursor",
        Some(above.into()),
    );
    let answer = ask(&cluster, COMPLETIONS, &body).await.good();
    assert_eq!(answer.json()["choices"][0]["text"], cluster.expected(16));
    cluster.assert_clean().await;
}

#[tokio::test]
async fn unknown_fields_and_hints_of_models_change_nothing_for_gitlab() {
    let cluster = Cluster::start().await;
    for path in GITLAB {
        for metadata in [
            json!({"name": "gpt", "identifier": "", "endpoint": "http://127.0.0.1:1/v1"}),
            json!("odd"),
            json!(7),
        ] {
            let mut body = good(path);
            body["model_metadata"] = metadata;
            body["unheard_of"] = json!({"a": [1]});
            ask(&cluster, path, &body).await.good();
            assert!(cluster.last_body().get("unheard_of").is_none());
        }
    }
    let limits = with(
        COMPLETIONS,
        "/current_file/file_name",
        Some("f".repeat(255).into()),
    );
    ask(&cluster, COMPLETIONS, &limits).await.good();
    let above = Some(Value::from("a".repeat(100_000)));
    ask(
        &cluster,
        COMPLETIONS,
        &with(COMPLETIONS, "/current_file/content_above_cursor", above),
    )
    .await
    .good();
    let items = json!(vec![json!({"type": "file", "name": "n", "content": "c"}); 100]);
    ask(&cluster, COMPLETIONS, &with(COMPLETIONS, "/context", Some(items)))
        .await
        .good();
    send(
        &cluster,
        COMPLETIONS,
        " application/json",
        good(COMPLETIONS).to_string(),
    )
    .await
    .good();
    cluster.assert_clean().await;
}
