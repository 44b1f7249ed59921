//! Duo Chat: its events, its fields, and the tools that GitLab runs for it.

use duo_system_tests::gitlab::TokenSpec;
use duo_system_tests::harness::{Answer, Cluster};
use duo_system_tests::rails::events::{Event, parse};
use serde_json::{Value, json};

use crate::bodies::{AGENT, chat, letters, metadata, second_turn};
use crate::case::{Ask, Case, case};

/// Every case of chat.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = events();
    cases.extend(turns());
    cases.extend(fields());
    cases.extend(scopes());
    cases
}

fn events() -> Vec<Case> {
    vec![
        case("chat answers line by line, each line ended", chat())
            .sim(|sim| sim.react = true)
            .good()
            .header("content-type", "application/x-ndjson; charset=utf-8")
            .check(lines),
        case(
            "an answer ends with an empty piece that says stop, and one line of usage",
            chat(),
        )
        .sim(|sim| sim.react = true)
        .good()
        .check(|answer, _| {
            let events = parse(&answer.text());
            let [.., stop, usage] = events.as_slice() else {
                panic!("{answer}")
            };
            assert_eq!(
                *stop,
                Event::Delta {
                    text: String::new(),
                    finish_reason: Some("stop".to_owned())
                }
            );
            let Event::Usage(usage) = usage else {
                panic!("{answer}")
            };
            assert!(usage["mistral"]["output_tokens"].as_u64() > Some(0), "{answer}");
        }),
        case("lines have a blank behind colons and commas", chat())
            .good()
            .check(|answer, _| {
                let first = answer.text();
                assert!(first.starts_with("{\"type\": \""), "{first}");
            }),
        case("text without markers is shown as it is", chat())
            .good()
            .check(|answer, cluster| {
                let events = parse(&answer.text());
                let Some(Event::Unknown(text)) = events.first() else {
                    panic!("{answer}")
                };
                assert_eq!(text.trim(), cluster.expected(16).trim());
            }),
        case("an empty answer is shown as an empty text", chat())
            .sim(|sim| sim.tokens = 0)
            .good()
            .check(|answer, _| {
                assert_eq!(
                    parse(&answer.text()).first(),
                    Some(&Event::Unknown(String::new())),
                    "{answer}"
                );
            }),
    ]
}

/// Rails finds events by a pattern of one line: every byte has to belong to one.
fn lines(answer: &Answer, _: &Cluster) {
    let text = answer.text();
    assert!(text.ends_with('\n'), "{text}");
    let found: usize = text.lines().map(|line| line.len() + 1).sum();
    assert_eq!(found, text.len());
    for line in text.lines() {
        let _event: Value = serde_json::from_str(line).expect("JSON a line");
    }
    assert!(parse(&text).len() > 2, "{text}");
}

fn turns() -> Vec<Case> {
    let observed = |_: &Answer, cluster: &Cluster| {
        let asked = cluster.last_body()["messages"].to_string();
        for part in ["What is issue 7 about?", "issue_reader", "a bug in the parser"] {
            assert!(asked.contains(part), "{part}: {asked}");
        }
    };
    let step = json!({"thought": "read it", "tool": "issue_reader", "tool_input": "7", "observation": "a bug in the parser"});
    let legacy = chat()
        .with("/messages/0/content", "What is issue 7 about?".into())
        .with(
            "/options",
            json!({"agent_scratchpad": {"agent_type": "react", "steps": [step]}}),
        );
    let user = chat().with("/messages/0/agent_scratchpad", json!([]));
    let system = chat().with(
        "/messages",
        json!([{"role": "system", "content": "x", "agent_scratchpad": []}]),
    );
    vec![
        case(
            "a second turn shows the model what its tool has found",
            second_turn(),
        )
        .good()
        .check(observed),
        case("a second turn in the form of older versions does too", legacy)
            .good()
            .check(observed),
        case("a scratchpad on a user's message makes no sense", user)
            .detail(400, "agent_scratchpad can only be given for the assistant role"),
        case("a scratchpad on a system's message makes no sense", system)
            .detail(400, "agent_scratchpad can only be given for the assistant role"),
        case(
            "a step without a tool is named",
            second_turn().with("/messages/1/agent_scratchpad/0/action", json!({"thought": "x"})),
        )
        .names("tool"),
        case(
            "a step without an action is named",
            second_turn().with("/messages/1/agent_scratchpad/0", json!({"observation": "x"})),
        )
        .names("action"),
        case(
            "a step may have no observation yet",
            second_turn().lacking("/messages/1/agent_scratchpad/0/observation"),
        )
        .good(),
        case(
            "an action needs no type",
            second_turn().lacking("/messages/1/agent_scratchpad/0/action/type"),
        )
        .good(),
    ]
}

fn fields() -> Vec<Case> {
    let message = |value: Value| chat().with("/messages", json!([value]));
    let with = |name: &str, value: Value| chat().with(&format!("/messages/0/{name}"), value);
    let mut cases = vec![
        case("chat without messages is told so", chat().lacking("/messages")).names("messages"),
        case(
            "an empty list of messages is told so",
            chat().with("/messages", json!([])),
        )
        .names("messages"),
        case(
            "messages that are no list are told so",
            chat().with("/messages", json!("hello")),
        )
        .names("messages"),
        case("a message that is no object is told so", message(json!("hello"))).names("messages.0"),
        case(
            "a message without a role is told so",
            message(json!({"content": "x"})),
        )
        .names("messages.0.role"),
        case(
            "an unknown role is told so",
            message(json!({"role": "tool", "content": "x"})),
        )
        .names("messages.0.role"),
        case(
            "content that is no text is told so",
            with("content", json!(["x"])),
        )
        .names("messages.0.content"),
        case(
            "content over the limit is told so",
            with("content", letters(400_001)),
        )
        .names("messages.0.content"),
        case(
            "a system's message is taken",
            chat().with(
                "/messages",
                json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]),
            ),
        )
        .good(),
        case(
            "unavailable resources may be left out",
            chat().lacking("/unavailable_resources"),
        )
        .good(),
        case(
            "unavailable resources that are no texts are told so",
            chat().with("/unavailable_resources", json!([1])),
        )
        .names("unavailable_resources"),
        case(
            "a message may bring what nobody knows",
            with("nobody_knows_me", json!([1])),
        )
        .good(),
        case(
            "a chat may bring what nobody knows",
            chat().with("/nobody_knows_me", json!({"a": null})),
        )
        .good(),
    ];
    cases.extend(company());
    cases
}

/// What comes along with a message.
fn company() -> Vec<Case> {
    let with = |name: &str, value: Value| chat().with(&format!("/messages/0/{name}"), value);
    let mut cases = Vec::new();
    for kind in ["issue", "epic", "merge_request", "commit", "work_item", "build"] {
        let page = with("context", json!({"type": kind, "title": "The page's title"}));
        cases.push(case(format!("the page may be of the kind {kind}"), page).good());
        let legacy = with("context", json!({"type": kind, "content": "The page's text"}));
        cases.push(
            case(
                format!("a page of the kind {kind} may bring its text, as GitLab until 17.8 did"),
                legacy,
            )
            .good()
            .check(|_, cluster| {
                assert!(
                    cluster.last_body()["messages"]
                        .to_string()
                        .contains("The page's text")
                );
            }),
        );
    }
    cases.push(
        case(
            "a page of an unknown kind is named",
            with("context", json!({"type": "wiki"})),
        )
        .names("messages.0.context.type"),
    );
    let file = json!({"file_path": "lib/a.rb", "data": "puts 'hello'", "selected_code": true});
    cases.push(
        case(
            "the open file reaches the model",
            with("current_file", file.clone()),
        )
        .good()
        .check(|_, cluster| {
            assert!(
                cluster.last_body()["messages"]
                    .to_string()
                    .contains("puts 'hello'")
            );
        }),
    );
    for field in ["file_path", "data"] {
        let ask = with("current_file", file.clone()).lacking(&format!("/messages/0/current_file/{field}"));
        cases.push(case(format!("an open file without {field} is named"), ask).names(field));
    }
    for field in [
        "content",
        "context",
        "current_file",
        "additional_context",
        "agent_scratchpad",
    ] {
        let role = if field == "content" { "assistant" } else { "user" };
        let mut one = json!({"role": role, "content": "x"});
        one[field] = Value::Null;
        let ask = chat().with("/messages", json!([{"role": "user", "content": "q"}, one]));
        cases.push(case(format!("a message's {field} may be null"), ask).good());
    }
    let os = json!([{"category": "os_information", "content": "Linux"}]);
    cases.push(
        case(
            "the operating system may be attached",
            with("additional_context", os),
        )
        .good(),
    );
    let odd = json!([{"category": "horoscope", "content": "x"}]);
    cases.push(
        case(
            "an attachment of an unknown category is named",
            with("additional_context", odd),
        )
        .names("messages.0.additional_context.0.category"),
    );
    for (what, value) in [
        ("missing", Value::Null),
        ("malformed", json!("odd")),
        (
            "of an unknown family",
            metadata("martian", "custom_openai/martian"),
        ),
        ("with an empty identifier", metadata("general", "")),
    ] {
        cases.push(
            case(
                format!("chat: model data that is {what} is overlooked"),
                chat().with("/model_metadata", value),
            )
            .good(),
        );
    }
    cases
}

fn scopes() -> Vec<Case> {
    let tools = [
        ("ask_issue", "issue_reader"),
        ("ask_work_item", "work_item_reader"),
        ("ask_epic", "epic_reader"),
        ("ask_merge_request", "merge_request_reader"),
        ("ask_commit", "commit_reader"),
        ("ask_build", "build_reader"),
        ("documentation_search", "gitlab_documentation"),
    ];
    let offers = |ask: Ask, name: String, tool: &'static str, wanted: bool| {
        case(name, ask).good().check(move |_, cluster| {
            let asked = cluster.last_body()["messages"].to_string();
            assert_eq!(asked.contains(tool), wanted, "{tool}: {asked}");
        })
    };
    let mut cases = Vec::new();
    for (scope, tool) in tools {
        let ask = chat().token(TokenSpec::default().scopes(["duo_chat", scope]));
        cases.push(offers(ask, format!("{AGENT}: {scope} offers {tool}"), tool, true));
        let ask = chat().scopes(&["duo_chat"]);
        cases.push(offers(
            ask,
            format!("{AGENT}: without {scope} nothing is said of {tool}"),
            tool,
            false,
        ));
        let since = ["merge_request_reader", "commit_reader", "build_reader"].contains(&tool);
        let ask = chat()
            .scopes(&["duo_chat", scope])
            .header("x-gitlab-version", "17.4.9");
        cases.push(offers(
            ask,
            format!("{AGENT}: GitLab 17.4 is offered {tool}: {}", !since),
            tool,
            !since,
        ));
        if since {
            let ask = chat()
                .scopes(&["duo_chat", scope])
                .header("x-gitlab-version", "17.5.0-pre");
            cases.push(offers(
                ask,
                format!("{AGENT}: GitLab 17.5 in the making is offered {tool}"),
                tool,
                true,
            ));
        }
    }
    cases
}
