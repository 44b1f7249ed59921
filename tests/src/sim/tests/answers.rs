//! What it says.

use super::*;

#[tokio::test]
async fn the_answer_is_the_expected_one_whole_or_streamed() {
    let sim = start(|settings| settings.tokens = 100).await;
    let expected = expected::chat_text(MESSAGES, 100).unwrap();
    let whole = ask(
        &sim,
        "/v1/chat/completions",
        json!({"model": "sim", "messages": messages()}),
    )
    .await;
    assert_eq!(whole["choices"][0]["message"]["content"], expected);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["usage"]["completion_tokens"], 100);
    let streamed = events(&sim, "/v1/chat/completions", json!({"messages": messages()})).await;
    assert_eq!(content(&parsed(&streamed)), expected);
    let body = json!({"prompt": "fn main() {", "max_tokens": 9});
    let whole = ask(&sim, "/v1/completions", body.clone()).await;
    assert_eq!(
        whole["choices"][0]["text"],
        expected::completion_text("fn main() {", 9)
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let streamed = events(&sim, "/v1/completions", body).await;
    assert_eq!(content(&parsed(&streamed)), whole["choices"][0]["text"]);
}

#[tokio::test]
async fn a_chat_stream_has_the_shape_vllm_gives_it() {
    let sim = start(|_| {}).await;
    let options = json!({"include_usage": true});
    let body = json!({"messages": messages(), "max_tokens": 3, "stream_options": options});
    let events = events(&sim, "/v1/chat/completions", body).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let head = r#"{"id":"chatcmpl-0000000000000000","object":"chat.completion.chunk","created":"#;
    assert!(events[0].starts_with(head), "{}", events[0]);
    let role = r#""choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}"#;
    assert!(events[0].ends_with(role), "{}", events[0]);
    assert!(events[1].ends_with(r#""},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#));
    let last = r#""},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}"#;
    assert!(events[3].ends_with(last), "{}", events[3]);
    let usage = parsed(&events).pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 3);
    assert_eq!(events.len(), 6);
}

#[tokio::test]
async fn tokens_choices_and_events_are_grouped_as_asked() {
    let sim = start(|settings| (settings.chunk_tokens, settings.coalesce) = (4, 3)).await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"messages": messages(), "max_tokens": 6, "n": 2, "stream_options": options});
    let events = parsed(&events(&sim, "/v1/chat/completions", body.clone()).await);
    // Two roles, two times two events of text, one of usage.
    assert_eq!(events.len(), 7);
    assert!(events.iter().all(|event| event["usage"].is_object()));
    assert_eq!(events[6]["usage"]["completion_tokens"], 12);
    let of = |number: usize| {
        let own = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == number);
        own.filter_map(|choice| choice["delta"]["content"].as_str())
            .collect::<String>()
    };
    assert_eq!(of(0), expected::chat_text(MESSAGES, 6).unwrap());
    assert_ne!(of(0), of(1));
}

#[tokio::test]
async fn a_prefilled_answer_goes_on_where_it_was_cut() {
    let sim = start(|settings| settings.tokens = 40).await;
    let whole = expected::chat_text(MESSAGES, 40).unwrap();
    for cut in (1..=whole.len())
        .filter(|cut| whole.is_char_boundary(*cut))
        .step_by(7)
    {
        let mut messages = messages();
        messages
            .as_array_mut()
            .unwrap()
            .push(json!({"role": "assistant", "content": whole[..cut]}));
        let body =
            json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": false});
        let rest = content(&parsed(&events(&sim, "/v1/chat/completions", body).await));
        assert_eq!(rest, whole[cut..], "cut at {cut}");
    }
    assert_eq!(sim.stats().diverged, 0);
}

#[tokio::test]
async fn a_chat_and_its_continuation_go_on_by_token_ids() {
    let sim = start(|settings| settings.tokens = 30).await;
    let whole = expected::chat_text(MESSAGES, 30).unwrap();
    // The chat itself starts inside a word of an earlier answer, so that its first token is a tail.
    let mut messages = messages();
    messages
        .as_array_mut()
        .unwrap()
        .push(json!({"role": "assistant", "content": whole[..3]}));
    let body = json!({
        "messages": messages, "continue_final_message": true, "add_generation_prompt": false,
        "max_tokens": 10, "return_token_ids": true,
    });
    let begun = parsed(&events(&sim, "/v1/chat/completions", body).await);
    let mut ids = begun[0]["prompt_token_ids"].as_array().unwrap().clone();
    for event in &begun[1..] {
        ids.extend(
            event["choices"][0]["token_ids"]
                .as_array()
                .unwrap()
                .iter()
                .cloned(),
        );
    }
    let body = json!({"prompt": ids, "max_tokens": 100, "return_token_ids": true});
    let rest = ask(&sim, "/v1/completions", body).await;
    assert_eq!(rest["choices"][0]["prompt_token_ids"], json!(ids));
    let rest = rest["choices"][0]["text"].as_str().unwrap();
    assert_eq!(format!("{}{}{rest}", &whole[..3], content(&begun)), whole);
    assert_eq!(sim.stats().continued, 2);
}

#[tokio::test]
async fn prompts_come_as_text_texts_or_ids() {
    let sim = start(|_| {}).await;
    let ids = ask(&sim, "/tokenize", json!({"prompt": "ab cd é"})).await["tokens"].clone();
    let back = ask(&sim, "/detokenize", json!({"tokens": ids})).await;
    assert_eq!(back["prompt"], "ab cd é");
    let one = ask(&sim, "/v1/completions", json!({"prompt": "ab cd é"})).await;
    let same = ask(&sim, "/v1/completions", json!({"prompt": ids})).await;
    let two = ask(&sim, "/v1/completions", json!({"prompt": ["x", "ab cd é"]})).await;
    assert_eq!(one["choices"][0]["text"], same["choices"][0]["text"]);
    assert_eq!(one["choices"][0]["text"], two["choices"][1]["text"]);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_itself() {
    let sim = start(|_| {}).await;
    let whole = expected::chat_text(MESSAGES, 16).unwrap();
    let words: Vec<_> = whole.split(' ').collect();
    let stop = format!("{} {}", words[4], &words[5][..1]);
    let body = json!({"messages": messages(), "stop": [stop, "never"]});
    let answer = ask(&sim, "/v1/chat/completions", body.clone()).await;
    let expected = &whole[..whole.find(&stop).unwrap()];
    assert_eq!(answer["choices"][0]["message"]["content"], expected);
    assert_eq!(answer["choices"][0]["stop_reason"], stop);
    let streamed = parsed(&events(&sim, "/v1/chat/completions", body).await);
    assert_eq!(content(&streamed), expected);
    assert_eq!(streamed.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_tool_is_called_whole_or_in_deltas() {
    let sim = start(|_| {}).await;
    let tools = json!([{"type": "function", "function": {"name": "find_issue", "parameters": {}}}]);
    let body = json!({"messages": [{"role": "user", "content": "please use-tool"}], "tools": tools});
    let answer = ask(&sim, "/v1/chat/completions", body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "find_issue");
    let streamed = parsed(&events(&sim, "/v1/chat/completions", body.clone()).await);
    let deltas = streamed
        .iter()
        .map(|event| &event["choices"][0]["delta"]["tool_calls"][0]["function"]);
    let arguments: String = deltas
        .filter_map(|function| function["arguments"].as_str())
        .collect();
    assert_eq!(call["arguments"], arguments);
    assert!(serde_json::from_str::<Value>(&arguments).unwrap()["query"].is_string());
    assert_eq!(
        streamed.last().unwrap()["choices"][0]["finish_reason"],
        "tool_calls"
    );
    let mut body = body;
    body["tool_choice"] = json!("none");
    assert_eq!(
        ask(&sim, "/v1/chat/completions", body).await["choices"][0]["finish_reason"],
        "stop"
    );
}
