//! Golden bytes of the formats, and what the sharing part promises.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use duo_contract::failure::FailureKind;

use super::raw::RawText;
use super::sse::{Events, Start, StartMetadata, StartModel};
use super::*;
use crate::prompt::answer::Formatter;

/// What a client gets: the bytes, and whether the body ended well.
pub(in crate::api) async fn collect(
    events: Vec<Result<ReplyEvent, ExchangeError>>,
    encoder: impl Encoder,
) -> (String, bool) {
    let mut pieces = Box::pin(encode(stream::iter(events), encoder));
    let mut text = Vec::new();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(bytes) => text.extend_from_slice(&bytes),
            Err(CutOff(_)) => return (String::from_utf8(text).expect("text"), false),
        }
    }
    (String::from_utf8(text).expect("text"), true)
}

/// Chunk lines as they come from a worker.
pub(in crate::api) fn chunks(lines: &[&str]) -> Result<ReplyEvent, ExchangeError> {
    Ok(ReplyEvent::Chunks(lines.join("\n").into()))
}

/// A chunk of a chat completion.
pub(in crate::api) fn delta(text: &str) -> String {
    serde_json::json!({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]}).to_string()
}

/// The good end.
pub(in crate::api) fn done() -> Result<ReplyEvent, ExchangeError> {
    Ok(ReplyEvent::Done {
        summary: Summary {
            input_tokens: Some(3),
            output_tokens: Some(2),
            ..Summary::default()
        },
        body: Bytes::new(),
    })
}

/// A bad end.
pub(in crate::api) fn failed() -> Result<ReplyEvent, ExchangeError> {
    Err(ExchangeError::new(
        FailureKind::ModelServerFault,
        "model_server_fault",
        "the model server broke off",
    ))
}

fn events() -> Events {
    let model = StartModel {
        engine: "agent",
        name: "Code Generations".to_owned(),
    };
    let metadata = StartMetadata {
        model,
        timestamp: 1_760_000_000,
        enabled_feature_flags: vec![],
        region: "self-managed",
    };
    Events::new(Start { metadata }, Some(Formatter::code("python")))
}

const START: &str = "event: stream_start\r\ndata: {\"metadata\": {\"model\": {\"engine\": \"agent\", \"name\": \
    \"Code Generations\"}, \"timestamp\": 1760000000, \"enabled_feature_flags\": [], \"region\": \
    \"self-managed\"}}\r\n\r\n";

#[tokio::test]
async fn the_events_of_v4_are_exact_to_the_byte() {
    let answer = vec![
        chunks(&[r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#]),
        chunks(&[&delta("```python\nde"), &delta("f add\n```")]),
        chunks(&[r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#]),
        chunks(&[r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#]),
        done(),
    ];
    let content = |text: &str| {
        format!(
            "event: content_chunk\r\ndata: {{\"choices\": [{{\"delta\": {{\"content\": \"{text}\"}}, \"index\": 0}}]}}\r\n\r\n"
        )
    };
    let expected = format!(
        "{START}{}{}event: stream_end\r\ndata: null\r\n\r\n",
        content("de"),
        content("f add\\n")
    );
    assert_eq!(collect(answer, events()).await, (expected, true));
}

#[tokio::test]
async fn a_failure_in_mid_stream_never_looks_like_an_end() {
    let answer = || vec![chunks(&[&delta("half")]), failed()];
    let (text, whole) = collect(answer(), events()).await;
    assert!(text.starts_with(START) && !text.contains("stream_end") && !whole);
    assert_eq!(
        collect(answer(), RawText::default()).await,
        ("half".to_owned(), false)
    );
    let nothing_more = vec![chunks(&[&delta("half")])];
    assert_eq!(
        collect(nothing_more, RawText::default()).await,
        ("half".to_owned(), false)
    );
    let unreadable = vec![chunks(&["{"]), done()];
    assert_eq!(
        collect(unreadable, RawText::default()).await,
        (String::new(), false)
    );
}

#[tokio::test]
async fn raw_text_has_no_frame_of_any_kind() {
    let answer = vec![
        chunks(&[
            r#"{"choices":[{"text":"a\n","index":0}]}"#,
            r#"{"choices":[{"text":"b ü\"","index":0}]}"#,
        ]),
        done(),
    ];
    assert_eq!(
        collect(answer, RawText::default()).await,
        ("a\nb ü\"".to_owned(), true)
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_model_is_bridged_by_pings() {
    let silent = stream::iter(vec![chunks(&[&delta("a")])]).chain(stream::pending());
    let mut pieces = Box::pin(encode(silent, events()));
    assert!(pieces.next().await.is_some_and(|piece| piece.is_ok()));
    let ping = pieces.next().await.expect("a ping").expect("no cut");
    let ping = std::str::from_utf8(&ping).expect("text");
    assert!(
        ping.starts_with(": ping - 2") && ping.ends_with("+00:00\r\n\r\n"),
        "{ping}"
    );
}

#[tokio::test]
async fn the_status_is_held_back_until_the_first_byte() {
    let refused = respond_to(stream::iter(vec![failed()]), RawText::default()).await;
    assert!(matches!(refused, Err(ApiError::Exchange(_))));
    let role = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
    let nothing_shown = respond_to(stream::iter(vec![chunks(&[role]), failed()]), RawText::default());
    assert!(matches!(nothing_shown.await, Err(ApiError::Exchange(_))));
    let response = respond_to(
        stream::iter(vec![chunks(&[&delta("x")]), done()]),
        RawText::default(),
    );
    let response = response.await.expect("a response");
    assert_eq!(
        response.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
}

#[tokio::test]
async fn a_client_that_leaves_drops_the_reply() {
    struct Guard(Arc<AtomicBool>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = Guard(Arc::clone(&dropped));
    let events = stream::iter(vec![chunks(&[&delta("x")])]).chain(stream::pending());
    let events = events.inspect(move |_| {
        let _ = &guard;
    });
    let response = respond_to(events, RawText::default()).await.expect("a response");
    assert!(!dropped.load(Ordering::SeqCst));
    drop(response);
    assert!(dropped.load(Ordering::SeqCst));
}
