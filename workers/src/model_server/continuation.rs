//! The body that continues an answer after what the client already has.
//!
//! By token ids where they are known, which is exact; else by text. Answers
//! whose beginning is more than plain text are not continued: several choices,
//! log probabilities, tools and constrained output.

use duo_contract::claim::Have;
use duo_contract::envelope::Endpoint;
use duo_contract::failure::{Failure, FailureKind};
use serde_json::{Map, Value, json};

use crate::config::ServerKind;

/// Members whose answers cannot be taken up in the middle.
const NOT_CONTINUED: [&str; 12] = [
    "tools",
    "functions",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "prompt_logprobs",
    "echo",
    "suffix",
    "top_logprobs",
];
/// Members that bound the tokens of an answer.
const LIMITS: [&str; 2] = ["max_tokens", "max_completion_tokens"];

/// The members of the call that continues `body`'s answer after `have`.
///
/// # Errors
/// The server or the request cannot be continued.
pub fn continued(kind: ServerKind, endpoint: Endpoint, body: &[u8], have: &Have) -> Result<Vec<u8>, Failure> {
    if have.text.is_empty() && have.token_ids.as_ref().is_none_or(Vec::is_empty) {
        return Ok(body.to_vec());
    }
    let continued = serde_json::from_slice(body)
        .ok()
        .and_then(|mut body: Map<String, Value>| {
            plain(&body).then_some(())?;
            match (kind, endpoint) {
                (ServerKind::Vllm | ServerKind::Llama, Endpoint::Completions) => {
                    prompt(kind, &mut body, have)?
                }
                (ServerKind::Vllm, Endpoint::ChatCompletions) => turn(&mut body, have)?,
                // llama-server says the prefilled text again, others may start a new turn.
                (ServerKind::Llama | ServerKind::Openai, _) | (_, Endpoint::Embeddings) => return None,
            }
            spend(&mut body, have)?;
            serde_json::to_vec(&body).ok()
        });
    continued.ok_or_else(|| {
        Failure::new(
            FailureKind::ModelServerFault,
            "the answer broke off and cannot be continued",
        )
    })
}

fn plain(body: &Map<String, Value>) -> bool {
    let set = |name: &str| {
        body.get(name)
            .is_some_and(|value| !value.is_null() && *value != Value::Bool(false))
    };
    let one = |name: &str| body.get(name).is_none_or(|value| value.is_null() || *value == 1);
    let logprobs = body
        .get("logprobs")
        .is_some_and(|value| !value.is_null() && *value != Value::Bool(false));
    !logprobs && one("n") && one("best_of") && !NOT_CONTINUED.into_iter().any(set)
}

fn prompt(kind: ServerKind, body: &mut Map<String, Value>, have: &Have) -> Option<()> {
    let ids = (kind == ServerKind::Vllm).then(|| have.prompt_token_ids.as_ref().zip(have.token_ids.as_ref()));
    let continued = match ids.flatten() {
        Some((prompt, generated)) => json!([&prompt[..], &generated[..]].concat()),
        None => json!(format!("{}{}", body.get("prompt")?.as_str()?, have.text)),
    };
    body.insert("prompt".to_owned(), continued);
    Some(())
}

fn turn(body: &mut Map<String, Value>, have: &Have) -> Option<()> {
    // Templates trim a turn's end, which would glue the next word on.
    if have.text.is_empty() || have.text.ends_with(char::is_whitespace) {
        return None;
    }
    let messages = body.get_mut("messages")?.as_array_mut()?;
    messages.push(json!({"role": "assistant", "content": have.text}));
    body.insert("continue_final_message".to_owned(), json!(true));
    body.insert("add_generation_prompt".to_owned(), json!(false));
    Some(())
}

/// Subtracts the tokens that the client has from the answer's limit: exactly by their ids, else as the owner counted them.
fn spend(body: &mut Map<String, Value>, have: &Have) -> Option<()> {
    let spent = match &have.token_ids {
        Some(ids) => u64::try_from(ids.len()).ok()?,
        None => have.tokens,
    };
    for name in LIMITS {
        if let Some(limit) = body.get(name).and_then(Value::as_u64) {
            let left = limit.checked_sub(spent).filter(|left| *left > 0)?;
            body.insert(name.to_owned(), json!(left));
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn have(text: &str) -> Have {
        Have {
            text: text.to_owned(),
            ..Have::default()
        }
    }

    fn call(kind: ServerKind, endpoint: Endpoint, body: &str, have: &Have) -> Option<Value> {
        let body = continued(kind, endpoint, body.as_bytes(), have).ok()?;
        serde_json::from_slice(&body).ok()
    }

    #[test]
    fn a_completion_goes_on_behind_its_text_or_exactly_by_token_ids() {
        let body = r#"{"prompt":"def ","max_tokens":9}"#;
        let by_text = call(ServerKind::Llama, Endpoint::Completions, body, &have("f(")).expect("continued");
        assert_eq!(by_text["prompt"], "def f(");
        let ids = Have {
            prompt_token_ids: Some(vec![1, 2]),
            token_ids: Some(vec![3]),
            ..have("f(")
        };
        let by_ids = call(ServerKind::Vllm, Endpoint::Completions, body, &ids).expect("continued");
        assert_eq!(
            (&by_ids["prompt"], &by_ids["max_tokens"]),
            (&json!([1, 2, 3]), &json!(8))
        );
    }

    #[test]
    fn a_chat_goes_on_in_a_prefilled_turn() {
        let body = r#"{"messages":[{"role":"user","content":"hi"}],"tools":null,"n":1}"#;
        let on = call(ServerKind::Vllm, Endpoint::ChatCompletions, body, &have("Hel")).expect("continued");
        assert_eq!(on["messages"][1], json!({"role": "assistant", "content": "Hel"}));
        assert_eq!(
            (&on["continue_final_message"], &on["add_generation_prompt"]),
            (&json!(true), &json!(false))
        );
    }

    #[test]
    fn what_cannot_be_continued_is_refused() {
        let chat =
            |body: &str, text: &str| call(ServerKind::Vllm, Endpoint::ChatCompletions, body, &have(text));
        for member in [
            r#""n":2"#,
            r#""tools":[{}]"#,
            r#""logprobs":true"#,
            r#""response_format":{}"#,
        ] {
            assert_eq!(
                chat(&format!(r#"{{"messages":[],{member}}}"#), "x"),
                None,
                "{member}"
            );
        }
        assert_eq!(chat(r#"{"messages":[]}"#, "x "), None);
        let plain = r#"{"messages":[]}"#;
        assert_eq!(
            call(ServerKind::Openai, Endpoint::ChatCompletions, plain, &have("x")),
            None
        );
        let spent = Have {
            token_ids: Some(vec![1, 2]),
            ..have("x")
        };
        assert_eq!(
            call(
                ServerKind::Vllm,
                Endpoint::ChatCompletions,
                r#"{"messages":[],"max_tokens":2}"#,
                &spent
            ),
            None
        );
    }

    #[test]
    fn where_the_client_has_nothing_the_call_stays_as_it_was() {
        let body = r#"{"messages":[],"n":2}"#;
        assert_eq!(
            call(
                ServerKind::Openai,
                Endpoint::ChatCompletions,
                body,
                &Have::default()
            ),
            serde_json::from_str(body).ok()
        );
    }
}
