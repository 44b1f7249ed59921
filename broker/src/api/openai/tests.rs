use duo_contract::name::ModelName;
use duo_contract::snapshot::Model;

use super::*;
use crate::api::stream::tests::{chunks, collect, done, failed};

fn chat(body: &str) -> Result<OpenAiRequest<'_>, ApiError> {
    OpenAiRequest::parse(body.as_bytes(), Endpoint::ChatCompletions)
}

fn forwarded(body: &str) -> String {
    String::from_utf8(chat(body).expect("parses").for_model_server().into()).expect("text")
}

#[test]
fn everything_but_the_model_passes_through_in_order_and_unharmed() {
    let body = r#"{"messages":[{"role":"user","content":"a\u00fc"}], "model":"m","n":2,
        "tools":[{"x": 1.10}],"future":{"deep":[null, 1e3]},"stream_options":{"odd":1},"stream":false}"#;
    assert_eq!(
        forwarded(body),
        r#"{"messages":[{"role":"user","content":"a\u00fc"}],"n":2,"tools":[{"x": 1.10}],"future":{"deep":[null, 1e3]},"stream_options":{"odd":1},"stream":false}"#
    );
}

#[test]
fn a_stream_asks_for_usage_and_keeps_the_clients_own_options() {
    let body =
        r#"{"model":"m","messages":[{}],"stream":true,"stream_options":{"include_usage":false,"extra":[1]}}"#;
    assert_eq!(
        forwarded(body),
        r#"{"messages":[{}],"stream":true,"stream_options":{"extra":[1],"include_usage":true}}"#
    );
    assert!(!chat(body).expect("parses").wants_usage);
    assert_eq!(
        forwarded(r#"{"stream":true,"model":"m","messages":[{}]}"#),
        r#"{"stream":true,"messages":[{}],"stream_options":{"include_usage":true}}"#
    );
}

#[test]
fn a_bad_field_is_named() {
    for (body, param) in [
        (r#"{"messages":[{}]}"#, "model"),
        (r#"{"model":7,"messages":[{}]}"#, "model"),
        (r#"{"model":"m"}"#, "messages"),
        (r#"{"model":"m","messages":"hi"}"#, "messages"),
        (r#"{"model":"m","messages":[]}"#, "messages"),
        (r#"{"model":"m","messages":["hi"]}"#, "messages.0"),
        (r#"{"model":"m","messages":[{}],"stream":"yes"}"#, "stream"),
        (r#"{"model":"m","messages":[{}],"model":"n"}"#, "model"),
        (
            r#"{"model":"m","messages":[{}],"stream":true,"stream_options":1}"#,
            "stream_options",
        ),
    ] {
        match chat(body) {
            Err(ApiError::Invalid { path, .. }) => assert_eq!(path, param, "{body}"),
            other => panic!("{body}: {other:?}"),
        }
    }
    assert!(matches!(chat("{"), Err(ApiError::Malformed)));
    let embed = |body: &'static str| OpenAiRequest::parse(body.as_bytes(), Endpoint::Embeddings);
    for input in [r#""a""#, r#"["a","b"]"#, "[1,2]", "[[1],[2]]"] {
        let body = format!(r#"{{"model":"m","input":{input},"dimensions":8}}"#);
        assert!(
            OpenAiRequest::parse(body.as_bytes(), Endpoint::Embeddings).is_ok(),
            "{body}"
        );
    }
    for (body, param) in [
        (r#"{"model":"m"}"#, "input"),
        (r#"{"model":"m","input":7}"#, "input"),
        (r#"{"model":"m","input":[]}"#, "input"),
        (r#"{"model":"m","input":"a","input":"b"}"#, "input"),
        (r#"{"model":"m","input":"a","stream":true}"#, "stream"),
    ] {
        match embed(body) {
            Err(ApiError::Invalid { path, .. }) => assert_eq!(path, param, "{body}"),
            other => panic!("{body}: {other:?}"),
        }
    }
    let prompt = |body: &'static str| OpenAiRequest::parse(body.as_bytes(), Endpoint::Completions);
    assert!(prompt(r#"{"model":"m","prompt":[1,2]}"#).is_ok());
    assert!(prompt(r#"{"model":"m","prompt":""}"#).is_ok());
    assert!(
        matches!(prompt(r#"{"model":"m","prompt":{}}"#), Err(ApiError::Invalid { path, .. }) if path == "prompt")
    );
}

#[test]
fn only_text_that_surely_does_not_fit_is_refused() {
    let model = Model {
        name: ModelName::parse("m").expect("a name"),
        family: "general".to_owned(),
        context_tokens: 10,
        max_output_tokens: 5,
    };
    let check = |content: &str| {
        let body = format!(r#"{{"model":"m","messages":[{content}]}}"#);
        chat(&body).expect("parses").check_length(&model).is_ok()
    };
    let long = "x".repeat(100);
    assert!(check(r#"{"content":"short"}"#));
    assert!(!check(&format!(r#"{{"content":"{long}"}}"#)));
    assert!(check(&format!(
        r#"{{"content":[{{"type":"image_url","image_url":{{"url":"data:{long}"}}}}]}}"#
    )));
}

const USAGE: &str = r#"{"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
const TEXT: &str = r#"{"id":"c","choices":[{"index":0,"delta":{"content":"\"usage\""}}],"usage":null}"#;

#[tokio::test]
async fn usage_alone_reaches_only_clients_that_asked_for_it() {
    let answer = || vec![chunks(&[TEXT, USAGE]), done()];
    assert_eq!(
        collect(answer(), Events::new(false)).await,
        (format!("data: {TEXT}\n\ndata: [DONE]\n\n"), true)
    );
    assert_eq!(
        collect(answer(), Events::new(true)).await,
        (format!("data: {TEXT}\n\ndata: {USAGE}\n\ndata: [DONE]\n\n"), true)
    );
}

#[tokio::test]
async fn a_failed_stream_ends_with_an_error_and_without_done() {
    let (text, _) = collect(vec![chunks(&[TEXT]), failed()], Events::new(false)).await;
    let (_, error) = text.split_once("\n\n").expect("two events");
    assert_eq!(
        error,
        "data: {\"error\":{\"code\":\"model_server_fault\",\"message\":\"the model server broke off\",\
         \"param\":null,\"type\":\"server_error\"}}\n\n"
    );
}
