//! What a submission asks for, as the body for a model server.

use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use serde_json::json;

use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::api::inbound::Inbound;
use crate::api::{infer, messages, prompts};
use crate::jobs::work::{Form, JobWork};
use crate::prompt::{Conversation, Message, Purpose, Role, budget};
use crate::request::{RoutedRequest, Work};
use crate::routing::INFERENCE;

const MAX_INPUT: usize = 4 << 20;
const MAX_STOPS: usize = 16;
/// Texts that are made vectors of together.
const MAX_TEXTS: usize = 2048;
const TEMPERATURE: f64 = 0.2;
const MAX_TEMPERATURE: f64 = 2.0;
const EMBEDDINGS: [&str; 2] = ["code_embeddings", "openai_embedding"];
const COMPLETIONS: &str = "openai_completion";

/// What is to be sent to the model server.
pub(super) async fn work(
    inbound: &Inbound,
    fields: &Fields<'_>,
    prompt: Option<&(String, Purpose)>,
    routed: &RoutedRequest,
) -> Result<JobWork, ApiError> {
    let given: Vec<&str> = ["input", "messages", "prompt_id"]
        .into_iter()
        .filter(|name| fields.raw(name).is_some())
        .collect();
    if given.len() != 1 {
        let problem = "say what is to be done by one of input, messages, or prompt_id with inputs";
        return Err(ApiError::invalid(
            given.get(1).copied().unwrap_or("input"),
            problem,
        ));
    }
    if let Some((id, purpose)) = prompt {
        for name in ["max_output_tokens", "temperature", "stop"] {
            if fields.raw(name).is_some() {
                return Err(fields.invalid(name, "is the prompt's own; leave it out"));
            }
        }
        let (rendered, sources) = prompts::render_job(inbound, id, purpose, fields, routed).await?;
        return Ok(JobWork::new(rendered, Form::Prompt(id.clone(), sources)));
    }
    if fields.raw("inputs").is_some() {
        return Err(fields.invalid("inputs", "goes with prompt_id"));
    }
    let name = routed.feature.name.as_str();
    if INFERENCE.contains(&name) {
        let input = fields.required_object("input")?;
        infer::check(&input)?;
        let raw = fields.raw("input").ok_or_else(|| fields.required("input"))?;
        return Ok(whole(
            Endpoint::Infer,
            Bytes::copy_from_slice(raw.get().as_bytes()),
        ));
    }
    if EMBEDDINGS.contains(&name) {
        return embedding(fields, routed);
    }
    let settings = Settings::parse(fields, routed)?;
    if name == COMPLETIONS {
        return completion(fields, routed, &settings);
    }
    let messages = match fields.raw("messages") {
        Some(_) => messages::parse(fields, "messages")?.unwrap_or_default(),
        None => vec![Message::new(
            Role::User,
            fields.required_text("input", MAX_INPUT)?,
        )],
    };
    let work = messages::work(Conversation {
        model: &routed.model,
        messages,
        max_tokens: settings.max_tokens,
        temperature: settings.temperature,
        stop: &settings.stop,
        stream: true,
    });
    Ok(JobWork::new(
        work.map_err(|error| too_long(error, given[0]))?,
        Form::Text,
    ))
}

fn too_long(error: ApiError, path: &'static str) -> ApiError {
    match error {
        ApiError::ContextLength { window, .. } => ApiError::invalid(
            path,
            format!("is too long for the model's context window of {window} tokens"),
        ),
        other => other,
    }
}

/// Work whose answer comes whole and stays as it is.
fn whole(endpoint: Endpoint, body: Bytes) -> JobWork {
    let work = Work {
        endpoint,
        body,
        stream: false,
        prompt: None,
        supersede_key: None,
    };
    JobWork::new(work, Form::Body)
}

/// A text or texts, each with the model's window for itself.
fn embedding(fields: &Fields<'_>, routed: &RoutedRequest) -> Result<JobWork, ApiError> {
    let is_text = fields.raw("input").is_some_and(|raw| raw.get().starts_with('"'));
    let texts = match is_text {
        true => vec![fields.required_text("input", MAX_INPUT)?],
        false => fields.texts("input", MAX_TEXTS)?,
    };
    if texts.is_empty() {
        return Err(fields.required("input"));
    }
    let most = budget::most_bytes(&routed.model);
    if texts.iter().any(|text| text.len() > most) {
        let window = routed.model.context_tokens;
        return Err(too_long(
            ApiError::ContextLength {
                path: "input",
                window,
            },
            "input",
        ));
    }
    let body = json!({"input": texts, "encoding_format": "float"});
    Ok(whole(Endpoint::Embeddings, Bytes::from(body.to_string())))
}

fn completion(fields: &Fields<'_>, routed: &RoutedRequest, settings: &Settings) -> Result<JobWork, ApiError> {
    let text = fields.required_text("input", MAX_INPUT)?;
    if text.len() > budget::most_bytes(&routed.model) {
        let window = routed.model.context_tokens;
        return Err(too_long(
            ApiError::ContextLength {
                path: "input",
                window,
            },
            "input",
        ));
    }
    let mut body = json!({
        "prompt": text,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if !settings.stop.is_empty() {
        body["stop"] = json!(settings.stop);
    }
    let work = Work {
        endpoint: Endpoint::Completions,
        body: Bytes::from(body.to_string()),
        stream: true,
        prompt: None,
        supersede_key: None,
    };
    Ok(JobWork::new(work, Form::Text))
}

/// How the model is to answer.
struct Settings {
    max_tokens: u32,
    temperature: f64,
    stop: Vec<String>,
}

impl Settings {
    fn parse(fields: &Fields<'_>, routed: &RoutedRequest) -> Result<Self, ApiError> {
        let most = routed.model.max_output_tokens;
        let max_tokens = match fields.integer("max_output_tokens")? {
            None => most,
            Some(tokens) => u32::try_from(tokens)
                .ok()
                .filter(|tokens| (1..=most).contains(tokens))
                .ok_or_else(|| fields.invalid("max_output_tokens", format!("has to be from 1 to {most}")))?,
        };
        let temperature = match fields.raw("temperature") {
            None => TEMPERATURE,
            Some(raw) => raw
                .get()
                .parse()
                .ok()
                .filter(|number| (0.0..=MAX_TEMPERATURE).contains(number))
                .ok_or_else(|| fields.invalid("temperature", "has to be from 0 to 2"))?,
        };
        let stop = fields.texts("stop", MAX_STOPS)?;
        Ok(Self {
            max_tokens,
            temperature,
            stop: stop.into_iter().map(std::borrow::Cow::into_owned).collect(),
        })
    }
}
