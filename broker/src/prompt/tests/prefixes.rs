//! What stands in front of a prompt's inputs stays the same from request to request, so that model servers can use what
//! they have cached of it; and from release to release, unless its version says otherwise.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use serde_json::Value as Json;

use minijinja::value::Serde;

use super::table::{FAMILIES, asked};
use super::*;

/// Prompt id, family, version, bytes in front of the first input, digest of these.
const PREFIXES: &str = include_str!("prefixes.txt");

/// Every text of the inputs with another beginning; what chooses among parts of the template stays.
fn varied(inputs: &Json, with: &str) -> Json {
    match inputs {
        Json::String(text) => format!("{with}{text}").into(),
        Json::Array(items) => items.iter().map(|item| varied(item, with)).collect(),
        Json::Object(members) => {
            let vary = |(name, value): (&String, &Json)| match name.as_str() {
                // The tools are those of the caller's scopes, the same for all that it asks.
                "tools" | "unavailable_resources" => (name.clone(), value.clone()),
                _ => (name.clone(), varied(value, with)),
            };
            members.iter().map(vary).collect()
        }
        other => other.clone(),
    }
}

fn rendered(id: &str, family: &str, inputs: &Json, question: &str) -> (String, String) {
    let model = Model {
        max_output_tokens: 4096,
        context_tokens: 32_768,
        ..model(family)
    };
    let rendered = Prompts::builtin().render(Use {
        id,
        model: &model,
        inputs: Value::from(Serde(inputs)),
        messages: vec![Message::new(Role::User, question)],
        stream: true,
    });
    let rendered = rendered.expect("renders");
    (
        String::from_utf8(rendered.body.to_vec()).expect("text"),
        rendered.prompt.1,
    )
}

fn common<'a>(one: &'a str, other: &str) -> &'a str {
    let differs = one
        .bytes()
        .zip(other.bytes())
        .position(|(one, other)| one != other);
    &one[..one.floor_char_boundary(differs.unwrap_or(one.len().min(other.len())))]
}

#[test]
fn what_stands_in_front_of_the_inputs_stays_as_it_is() {
    let mut table = String::new();
    for (id, _, _, inputs) in asked() {
        for family in FAMILIES {
            let (one, version) = rendered(id, family, &varied(&inputs, "\u{1}1"), "1");
            let (again, _) = rendered(id, family, &varied(&inputs, "\u{1}1"), "1");
            assert_eq!(
                one, again,
                "{id} for {family} is not the same for the same inputs"
            );
            let (other, _) = rendered(id, family, &varied(&inputs, "\u{2}2"), "2");
            let prefix = common(&one, &other);
            let digest = digest::digest(&digest::SHA256, prefix.as_bytes());
            let digest = hex::encode(&digest.as_ref()[..6]);
            let _infallible = writeln!(table, "{id} {family} {version} {} {digest}", prefix.len());
        }
    }
    let changed: Vec<&str> = table
        .lines()
        .filter(|line| !PREFIXES.lines().any(|known| known == *line))
        .collect();
    assert!(
        table == PREFIXES,
        "prompts changed: raise their versions and write this into broker/src/prompt/tests/prefixes.txt\n{}\n{table}",
        changed.join("\n"),
    );
}

#[test]
fn the_next_turn_of_a_chat_begins_with_the_turn_before() {
    let (_, _, _, inputs) = asked()
        .into_iter()
        .find(|(id, ..)| *id == "chat/agent")
        .expect("the agent");
    for family in FAMILIES {
        let turn = |messages: Vec<Message>| {
            let model = Model {
                context_tokens: 32_768,
                ..model(family)
            };
            let call = Use {
                id: "chat/agent",
                model: &model,
                inputs: Value::from(Serde(&inputs)),
                messages,
                stream: true,
            };
            let rendered = Prompts::builtin().render(call).expect("renders");
            let body: Json = serde_json::from_slice(&rendered.body).expect("JSON");
            body["messages"].as_array().cloned().expect("messages")
        };
        let question = Message::new(Role::User, "Who wrote it?");
        let first = turn(vec![question.clone()]);
        let second = turn(vec![
            question,
            Message::new(
                Role::Assistant,
                "Thought: t\nAction: issue_reader\nAction Input: 1",
            ),
            Message::new(Role::User, "Observation: o"),
        ]);
        assert!(second.starts_with(&first), "{family}");
        assert_eq!(second.len(), first.len() + 2, "{family}");
    }
}
