//! What the paths are fed: the same bytes every time.

use bytes::Bytes;
use duo_contract::audit::{AuditKind, AuditRecord, End, Outcome, What, Who};
use duo_contract::claim::ClaimRequest;
use duo_contract::envelope::{Endpoint, Head, RequestEnvelope};
use duo_contract::frame::{FrameKind, Summary, Tokens};
use duo_contract::name::{FeatureName, Lane, ModelName};
use duo_contract::seal::SealKeys;
use duo_process::clock;
use uuid::Uuid;

/// A chat that wants its answer whole.
pub(crate) const CHAT: &str = r#"{"model":"mistral","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"What does a merge train do, in two sentences? Answer for somebody who has never used one."}],"max_tokens":64,"temperature":0.2}"#;
/// The same chat as a stream.
pub(crate) const CHAT_STREAM: &str = r#"{"model":"mistral","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"What does a merge train do, in two sentences? Answer for somebody who has never used one."}],"max_tokens":64,"temperature":0.2,"stream":true}"#;
/// A code completion as GitLab sends it.
pub(crate) const COMPLETION: &str = r#"{"prompt_version":1,"project_path":"shop/backend","project_id":17,"current_file":{"file_name":"lib/prices.py","language_identifier":"Python","content_above_cursor":"import csv\n\n\ndef read_prices(path):\n    \"\"\"Prices of a CSV file, one a line.\"\"\"\n    with open(path) as file:\n        rows = csv.reader(file)\n        return ","content_below_cursor":"\n\n\ndef total(prices):\n    return sum(prices)\n"},"model_provider":"litellm","model_name":"mistral","choices_count":1,"telemetry":[],"stream":false}"#;
/// An answer that is no stream.
pub(crate) const WHOLE: &str = r#"{"id":"chatcmpl-0000000000000001","object":"chat.completion","created":1760000000,"model":"mistral","choices":[{"index":0,"message":{"role":"assistant","content":"A merge train queues merge requests and tests each one on top of those before it."},"text":"[float(row[0]) for row in rows]","logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":31,"total_tokens":47,"completion_tokens":16}}"#;
/// Tokens of an answer that is a stream.
pub(crate) const TOKENS: usize = 16;

const SEAL_KEY: &str = "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

pub(crate) fn keys() -> SealKeys {
    SealKeys::parse(SEAL_KEY).expect("a key")
}

/// A chunk with one token, as vLLM writes it without its token ids.
fn line(token: usize) -> String {
    format!(
        r#"{{"id":"chatcmpl-0000000000000001","object":"chat.completion.chunk","created":1760000000,"model":"mistral","choices":[{{"index":0,"delta":{{"content":" word{token:02}"}},"logprobs":null,"finish_reason":null}}]}}"#
    )
}

/// The chunk with the finish reason.
const LAST_LINE: &str = r#"{"id":"chatcmpl-0000000000000001","object":"chat.completion.chunk","created":1760000000,"model":"mistral","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":null}]}"#;
const USAGE_LINE: &str = r#"{"id":"chatcmpl-0000000000000001","object":"chat.completion.chunk","created":1760000000,"model":"mistral","choices":[],"usage":{"prompt_tokens":31,"total_tokens":47,"completion_tokens":16}}"#;

/// The events of an answer's tokens, each with its id, and those behind them.
pub(crate) fn events() -> (Vec<String>, String) {
    let event = |token: usize| {
        let line = line(token);
        let line = line.replace(
            r#""finish_reason":null}"#,
            r#""finish_reason":null,"token_ids":[4711]}"#,
        );
        format!("data: {line}\n\n")
    };
    let end = format!("data: {LAST_LINE}\n\ndata: {USAGE_LINE}\n\ndata: [DONE]\n\n");
    ((0..TOKENS).map(event).collect(), end)
}

/// A frame with one token.
pub(crate) fn token_frame(token: usize) -> FrameKind {
    let tokens = Tokens {
        prompt: if token == 0 { vec![7; 31] } else { Vec::new() },
        after: u32::try_from(token).expect("a few"),
        lines: vec![1],
        ids: vec![4711],
    };
    FrameKind::Tokens(tokens, line(token).into())
}

/// The last frame of a good answer with such a body.
pub(crate) fn done(body: impl Into<Bytes>) -> FrameKind {
    let summary = Summary {
        worker: "w".into(),
        finish_reason: Some("stop".into()),
        input_tokens: Some(31),
        output_tokens: Some(16),
        model_first_us: 20_000,
        model_total_us: 400_000,
        model_calls: 1,
    };
    FrameKind::Done {
        summary,
        body: body.into(),
    }
}

/// An answer as a stream: each token in a frame of its own, or all of them in one.
pub(crate) fn stream_frames(together: bool) -> Vec<FrameKind> {
    let lines = || (0..TOKENS).map(line);
    let mut frames: Vec<_> = if together {
        let text = lines().collect::<Vec<_>>().join("\n");
        vec![FrameKind::Chunk(text.into())]
    } else {
        (0..TOKENS).map(token_frame).collect()
    };
    frames.push(done(format!("{LAST_LINE}\n{USAGE_LINE}")));
    frames
}

pub(crate) fn claim(request_id: Uuid) -> ClaimRequest {
    ClaimRequest {
        request_id,
        publication: 1,
        stream_sequence: 1,
        delivery: 1,
        worker: "w".into(),
        job: Some(Uuid::from_u128(9)),
        server: Some("gpu0".into()),
    }
}

/// A request on its way to a worker, accepted now.
pub(crate) fn envelope(request_id: Uuid, stream: bool) -> RequestEnvelope {
    let now = clock::unix_ms();
    let body = if stream { CHAT_STREAM } else { CHAT };
    let head = Head {
        request_id,
        publication: 1,
        owner: "b".into(),
        feature: FeatureName::parse("openai_chat").expect("a name"),
        model: ModelName::parse("mistral").expect("a name"),
        lane: Lane::Interactive,
        endpoint: Endpoint::ChatCompletions,
        stream,
        accepted_at_ms: now,
        first_byte_by_ms: now + 600_000,
        end_by_ms: now + 600_000,
        lease_ms: 5000,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        config_revision: 1,
    };
    // A body is without its model.
    let body = body.replace(r#""model":"mistral","#, "");
    RequestEnvelope {
        head,
        body: body.into(),
    }
}

/// The terminal record of a good answer.
pub(crate) fn record() -> AuditRecord {
    let who = Who {
        auth: "gitlab".into(),
        instance_id: Some("5f0d3a52-7c0e-4b8e-9f6e-0f5f2b1f7a10".into()),
        user_id: Some("o3Hdj1zXq0kR".into()),
        token_id: Some("7d1e4f5a-95f0-4b5f-8e8b-2f8f0d1f6a10".into()),
        client: Some("ide vscode 6.40.0".into()),
        address: Some("10.0.0.1".into()),
    };
    let what = What {
        route: "/v2/code/completions".into(),
        feature: Some(FeatureName::parse("code_completion").expect("a name")),
        lane: Some(Lane::Keystroke),
        model: Some(ModelName::parse("mistral").expect("a name")),
        prompt_id: Some("code_suggestions/completions".into()),
        prompt_version: Some("1.0.0".into()),
        config_revision: 1,
        stream: false,
        body_bytes: 812,
        correlation_id: Some("01K8ZC3MZ0Q4N8V2M6Y1T0R5AB".into()),
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".into()),
        job_id: None,
    };
    let end = End {
        outcome: Outcome::Completed,
        reason: None,
        worker: Some("w".into()),
        attempts: 1,
        queue_wait_us: Some(800),
        first_byte_us: Some(21_000),
        duration_us: 402_000,
        input_tokens: Some(31),
        output_tokens: Some(16),
        prompt_sha256: None,
        answer_sha256: None,
    };
    AuditRecord {
        kind: AuditKind::Ended,
        request_id: Uuid::from_u128(7),
        occurred_at_us: 1_760_000_000_000_000,
        broker: "b".into(),
        who,
        what,
        end: Some(end),
        details: None,
    }
}
