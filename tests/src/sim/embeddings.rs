//! Deterministic vectors: equal texts get equal vectors, of length one.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::api::receive;
use super::prompt::Prompt;
use super::refusal::Refusal;
use super::request::{decode, served};
use super::sequence::{hash, mix};
use super::shared::Shared;
use super::unary;

const DIMENSIONS: usize = 64;

#[derive(Deserialize)]
struct Wire<'a> {
    model: Option<String>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    dimensions: Option<usize>,
    encoding_format: Option<String>,
}

pub(crate) async fn create(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shared.counters.embeddings();
    embed(&shared, request).await.into_response()
}

async fn embed(shared: &Arc<Shared>, request: Request) -> Result<Response, Refusal> {
    let settings = shared.settings();
    let body = receive(shared, &settings, request).await?;
    let wire: Wire<'_> = decode(&body)?;
    let input = wire
        .input
        .ok_or_else(|| Refusal::invalid("body.input", "missing", "Field required"))?;
    let prompts = Prompt::parse("input", input.get())?;
    let model = served(wire.model.as_deref(), &settings)?;
    let tokens: usize = prompts.iter().map(Prompt::tokens).sum();
    let as_base64 = wire.encoding_format.as_deref() == Some("base64");
    let broken = json!({"object": "list", "model": model});
    let whole = || {
        let entries: Vec<Value> = prompts
            .iter()
            .enumerate()
            .map(|(index, prompt)| {
                let vector = vector(&prompt.text, wire.dimensions.unwrap_or(DIMENSIONS));
                json!({"index": index, "object": "embedding", "embedding": written(&vector, as_base64)})
            })
            .collect();
        let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0});
        let id = format!("embd-{:016x}", shared.next_reply());
        json!({"id": id, "object": "list", "model": model, "data": entries, "usage": usage})
    };
    Ok(unary::without_tokens(shared, &settings, tokens, broken, whole).await)
}

fn written(vector: &[f32], as_base64: bool) -> Value {
    if !as_base64 {
        return vector.into();
    }
    let bytes: Vec<u8> = vector.iter().flat_map(|part| part.to_le_bytes()).collect();
    STANDARD.encode(bytes).into()
}

fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let seed = hash(text.as_bytes());
    let parts: Vec<f32> = (0..dimensions as u64)
        .map(|index| (mix(seed ^ mix(index + 1)) >> 40) as f32 / (1_u32 << 23) as f32 - 1.0)
        .collect();
    let length = parts
        .iter()
        .map(|part| part * part)
        .sum::<f32>()
        .sqrt()
        .max(f32::MIN_POSITIVE);
    parts.into_iter().map(|part| part / length).collect()
}
