//! The turns of Duo Chat: tools by scope and GitLab version, called in text or as data, and what goes wrong as events.

use duo_system_tests::gitlab::TokenSpec;
use duo_system_tests::harness::Cluster;
use duo_system_tests::harness::client::Answer;
use http::Method;
use serde_json::{Value, json};

const PATH: &str = "/v2/chat/agent";

fn turn(question: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}], "unavailable_resources": ["Pipelines"]})
}

/// The next turn, as GitLab asks for it after it has run a tool.
fn after(question: &str, action: &Value, observation: &str) -> Value {
    let mut body = turn(question);
    let step = json!({"action": action, "observation": observation});
    let scratchpad = json!({"role": "assistant", "content": null, "agent_scratchpad": [step]});
    body["messages"]
        .as_array_mut()
        .expect("messages")
        .push(scratchpad);
    body
}

/// Events as GitLab finds them: an object a line, each line ended.
fn events(answer: &Answer) -> Vec<Value> {
    let text = answer.text();
    assert!(text.ends_with("}\n"), "{answer}");
    let event = |line: &str| serde_json::from_str(line).expect("an object a line");
    text.lines().map(event).collect()
}

fn said(events: &[Value]) -> String {
    let deltas = events
        .iter()
        .filter(|event| event["type"] == "final_answer_delta");
    deltas
        .filter_map(|event| event["data"]["text"].as_str())
        .collect()
}

#[tokio::test]
async fn a_model_that_calls_tools_by_itself_is_given_them_as_data() {
    let cluster = Cluster::builder().calls_tools().start().await;
    cluster.slots_known().await;
    let question = "Who wrote #1? use-tool";
    let answer = cluster.rails(PATH, "alice", &turn(question)).send().await.good();
    let sent = cluster.last_body();
    let names: Vec<&str> = sent["tools"]
        .as_array()
        .expect("tools")
        .iter()
        .filter_map(|tool| tool["function"]["name"].as_str())
        .collect();
    assert_eq!(names.len(), 7, "{names:?}");
    assert_eq!(sent["tool_choice"], "auto");
    assert!(!sent["messages"].to_string().contains("Action Input"), "{sent}");
    let first = events(&answer);
    assert_eq!(first[0]["type"], "action", "{answer}");
    let action = &first[0]["data"];
    assert_eq!(action["tool"], "issue_reader");
    assert!(
        action["tool_input"]
            .as_str()
            .is_some_and(|input| !input.is_empty()),
        "{answer}"
    );

    // The next turn has the call and its result as data, after the same beginning.
    let body = after(question, action, "Alex wrote it.");
    let answer = cluster.rails(PATH, "alice", &body).send().await.good();
    let next = cluster.last_body();
    let (before, messages) = (sent["messages"].as_array(), next["messages"].as_array());
    let (before, messages) = (before.expect("messages"), messages.expect("messages"));
    assert!(messages.starts_with(before));
    let [call, result] = &messages[before.len()..] else {
        panic!("a call and a result: {next}");
    };
    assert_eq!(call["tool_calls"][0]["function"]["name"], "issue_reader");
    assert_eq!(
        (&result["role"], &result["content"]),
        (&json!("tool"), &json!("Alex wrote it."))
    );
    assert_eq!(result["tool_call_id"], call["tool_calls"][0]["id"]);
    let last = events(&answer);
    assert_eq!(said(&last).split_whitespace().count(), 16, "{answer}");
    assert!(
        last.iter().any(|event| event["data"]["finish_reason"] == "stop"),
        "{answer}"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_model_that_does_not_is_asked_to_write_its_calls() {
    let cluster = Cluster::start().await;
    cluster.sim.set(|sim| {
        let call = "<think>\nhm\n</think>\nThought: I need it.\nAction: issue_reader\nAction Input: #1\nObservation: no";
        sim.say = Some(call.to_owned());
    });
    let answer = cluster
        .rails(PATH, "alice", &turn("Who wrote #1?"))
        .send()
        .await
        .good();
    let sent = cluster.last_body();
    assert!(
        sent.get("tools").is_none() && sent["stop"] == json!(["Observation:"]),
        "{sent}"
    );
    let events = events(&answer);
    let action = json!({"tool": "issue_reader", "tool_input": "#1", "thought": "I need it."});
    assert_eq!(events[0], json!({"type": "action", "data": action}));
    let body = after("Who wrote #1?", &action, "Alex wrote it.");
    cluster
        .sim
        .set(|sim| sim.say = Some("Thought: I know.\nFinal Answer: Alex.".to_owned()));
    let answer = cluster.rails(PATH, "alice", &body).send().await.good();
    let messages = cluster.last_body()["messages"].clone();
    let expected = json!([
        {"role": "assistant", "content": "Thought: I need it.\nAction: issue_reader\nAction Input: #1"},
        {"role": "user", "content": "Observation: Alex wrote it."},
    ]);
    assert!(
        messages
            .as_array()
            .expect("messages")
            .ends_with(expected.as_array().expect("two")),
        "{messages}"
    );
    assert_eq!(said(&self::events(&answer)), "Alex.");
    cluster.assert_clean().await;
}

#[tokio::test]
async fn tools_are_offered_by_scope_and_version() {
    let cluster = Cluster::start().await;
    let offered = async |scopes: &[&str], version: &str| {
        let spec = TokenSpec::default().scopes(scopes.iter().copied());
        let headers = cluster.rails_headers_with(&spec, "alice");
        let headers = headers
            .into_iter()
            .filter(|(name, _)| !name.eq_ignore_ascii_case("x-gitlab-version"));
        let call = cluster
            .call(Method::POST, PATH)
            .headers(headers)
            .header("x-gitlab-version", version);
        call.json(&turn("hello")).send().await.good();
        let sent = cluster.last_body().to_string();
        [
            "issue_reader",
            "commit_reader",
            "build_reader",
            "merge_request_reader",
            "gitlab_documentation",
        ]
        .into_iter()
        .filter(|tool| sent.contains(&format!("tool name=\\\"{tool}\\\"")))
        .collect::<Vec<_>>()
    };
    let all = [
        "duo_chat",
        "ask_issue",
        "ask_commit",
        "ask_build",
        "ask_merge_request",
        "documentation_search",
    ];
    assert_eq!(
        offered(&all, "18.9.0").await,
        [
            "issue_reader",
            "commit_reader",
            "build_reader",
            "merge_request_reader",
            "gitlab_documentation"
        ]
    );
    assert_eq!(
        offered(&all, "17.4.9").await,
        ["issue_reader", "gitlab_documentation"]
    );
    assert_eq!(
        offered(&["duo_classic_chat", "ask_commit"], "18.9.0").await,
        ["commit_reader"]
    );
    assert!(offered(&["duo_classic_chat"], "18.9.0").await.is_empty());
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_failure_is_an_event_that_says_whether_to_repeat_the_turn() {
    let cluster = Cluster::start().await;
    // A model that thinks and never answers.
    cluster
        .sim
        .set(|sim| sim.say = Some("<think>on and on".to_owned()));
    let answer = cluster.rails(PATH, "alice", &turn("hello")).send().await.good();
    let found = events(&answer);
    assert_eq!(
        (&found[0]["type"], &found[0]["data"]["retryable"]),
        (&json!("error"), &json!(false))
    );
    // A call of a tool that was not offered.
    cluster
        .sim
        .set(|sim| sim.say = Some("Thought: t\nAction: shell\nAction Input: ls".to_owned()));
    let answer = cluster.rails(PATH, "alice", &turn("hello")).send().await.good();
    let found = events(&answer);
    assert_eq!(
        found[0]["data"],
        json!({"message": "tool not available", "retryable": false})
    );
    // A model server that refuses what it is sent: nothing to repeat.
    cluster.sim.set(|sim| {
        sim.say = None;
        sim.fail_rate = 1.0;
        sim.fail_status = 400;
    });
    let answer = cluster.rails(PATH, "alice", &turn("hello")).send().await.good();
    let found = events(&answer);
    assert_eq!(
        (&found[0]["type"], &found[0]["data"]["retryable"]),
        (&json!("error"), &json!(false))
    );
    cluster.assert_clean().await;
}
