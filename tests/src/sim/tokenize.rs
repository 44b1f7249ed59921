//! Token ids of texts and back, as vLLM offers them beside the OpenAI endpoints.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::api::receive;
use super::prompt::{Ending, Message, Prompt};
use super::refusal::Refusal;
use super::request::{decode, served};
use super::shared::Shared;

#[derive(Deserialize)]
struct Texts<'a> {
    model: Option<String>,
    prompt: Option<String>,
    #[serde(borrow)]
    messages: Option<Vec<Message<'a>>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
}

#[derive(Deserialize)]
struct Ids {
    tokens: Vec<u32>,
}

pub(crate) async fn tokenize(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shared.counters.tokenize();
    ids(&shared, request).await.into_response()
}

pub(crate) async fn detokenize(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shared.counters.tokenize();
    text(&shared, request).await.into_response()
}

async fn ids(shared: &Shared, request: Request) -> Result<Response, Refusal> {
    let settings = shared.settings();
    let body = receive(shared, &settings, request).await?;
    let texts: Texts<'_> = decode(&body)?;
    served(texts.model.as_deref(), &settings)?;
    let prompt = match (texts.prompt, &texts.messages) {
        (Some(prompt), _) => Prompt::of_text(prompt),
        (None, Some(messages)) => {
            let ending = Ending {
                generation_prompt: texts.add_generation_prompt.unwrap_or(true),
                continue_final: texts.continue_final_message.unwrap_or(false),
            };
            Prompt::of_messages(messages, ending)
        }
        (None, None) => return Err(Refusal::invalid("body.prompt", "missing", "Field required")),
    };
    let (count, ids) = (prompt.tokens(), prompt.into_ids());
    let reply = json!({"count": count, "max_model_len": settings.context, "tokens": ids, "token_strs": null});
    Ok(axum::Json(reply).into_response())
}

async fn text(shared: &Shared, request: Request) -> Result<Response, Refusal> {
    let body = receive(shared, &shared.settings(), request).await?;
    let ids: Ids = decode(&body)?;
    let prompt = Prompt::of_ids(ids.tokens)?;
    Ok(axum::Json(json!({"prompt": prompt.text + &prompt.generated})).into_response())
}
