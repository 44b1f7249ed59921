//! Code completion: `/v2/code/completions` and, straight from editors,
//! `/v2/completions`. What the components of `/v3` and `/v4` share with it is
//! here too.

use std::borrow::Cow;
use std::sync::LazyLock;

use aws_lc_rs::digest;
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use duo_contract::name::FeatureName;
use http::HeaderMap;
use minijinja::{Value, context};
use serde::Serialize;
use serde_json::json;

use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::language;
use super::stream::chunk::{self, Whole};
use super::stream::raw::{self, RawText};
use super::stream::{self, content_type};
use crate::caller::Grant;
use crate::exchange::Reply;
use crate::prompt::{Use, budget};
use crate::request::{ModelChoice, RoutedRequest, Work};

/// Longest name, path or identifier, in characters.
pub(super) const MAX_NAME: usize = 255;
/// Longest text on one side of the cursor, in characters.
pub(super) const MAX_SIDE: usize = 100_000;
const MAX_CONTEXT_ITEMS: usize = 100;
const MAX_CONTEXT_NAME: usize = 1024;
const MAX_CONTEXT_CONTENT: usize = 500_000;
const MAX_MODEL_NAME: usize = 255;
const MAX_IDENTIFIER: usize = 1000;
/// Longest prompt in the client's own words, in characters.
pub(super) const MAX_PROMPT: usize = 400_000;
/// Texts that are read for their type alone.
const MAX_IGNORED: usize = 10_000;
const PROMPT_ID: &str = "code_suggestions/completions";
/// Where IDEs ask without a detour through GitLab.
const DIRECT_PATH: &str = "/v2/completions";
const SCOPE: &str = "complete_code";
const REFUSAL: &str = "Unauthorized to access code completions";

/// The feature of completions.
pub(super) static CODE_COMPLETION: LazyLock<FeatureName> =
    LazyLock::new(|| FeatureName::parse("code_completion").expect("a feature id"));

/// `POST /v2/code/completions` and `POST /v2/completions`.
pub(super) async fn completions(mut inbound: Inbound) -> Response {
    let mut stream = false;
    complete(&mut inbound, &mut stream)
        .await
        .unwrap_or_else(|error| error.respond(Shape::Completion { stream }))
}

async fn complete(inbound: &mut Inbound, stream: &mut bool) -> Result<Response, ApiError> {
    if !is_direct(inbound) {
        inbound.require(&[SCOPE], &CODE_COMPLETION, REFUSAL)?;
    }
    if let Err(refusal) = inbound.gate(&CODE_COMPLETION) {
        *stream = inbound.wants_stream().await;
        return Err(refusal);
    }
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    *stream = fields.flag("stream")?;
    let completion = parse(&fields)?;
    let (routed, reply) = ask(inbound, &completion, *stream).await?;
    if *stream {
        return stream::respond(reply, RawText::default()).await;
    }
    let lang = language::name(completion.file.language.as_deref(), &completion.file.name);
    answer(reply, &routed, lang, &inbound.headers).await
}

/// An IDE with a token of ours, on the one path that it opens?
fn is_direct(inbound: &Inbound) -> bool {
    matches!(&*inbound.caller.grant, Grant::Direct) && inbound.uri.path() == DIRECT_PATH
}

/// A file with a cursor in it.
pub(super) struct CodeFile<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) language: Option<Cow<'a, str>>,
    pub(super) above: Cow<'a, str>,
    pub(super) below: Cow<'a, str>,
}

impl<'a> CodeFile<'a> {
    pub(super) fn parse(fields: &Fields<'a>) -> Result<Self, ApiError> {
        Ok(Self {
            name: fields.required_trimmed("file_name", MAX_NAME)?,
            language: fields.text("language_identifier", MAX_NAME)?,
            above: fields.required_text("content_above_cursor", MAX_SIDE)?,
            below: fields.required_text("content_below_cursor", MAX_SIDE)?,
        })
    }
}

/// Another file or snippet that the editor sends along.
pub(super) struct ContextItem<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) content: Cow<'a, str>,
}

/// What is to be completed.
pub(super) struct Completion<'a> {
    pub(super) file: CodeFile<'a>,
    pub(super) context: Vec<ContextItem<'a>>,
    pub(super) choice: ModelChoice,
    pub(super) project: Option<String>,
}

/// Reads the body of a completion, which one of `/v2/code/generations` is too.
pub(super) fn parse<'a>(fields: &Fields<'a>) -> Result<Completion<'a>, ApiError> {
    let version = fields.raw("prompt_version").map(serde_json::value::RawValue::get);
    if !matches!(version, None | Some("1" | "2" | "3")) {
        return Err(fields.invalid("prompt_version", "has to be 1, 2 or 3"));
    }
    fields.integer("choices_count")?;
    for text in ["model_provider", "model_endpoint", "model_api_key", "prompt_id"] {
        fields.text(text, MAX_IGNORED)?;
    }
    let path = fields.text("project_path", MAX_NAME)?;
    let project_id = fields.integer("project_id")?;
    let identifier = fields.text("model_identifier", MAX_IDENTIFIER)?;
    let name = fields.text("model_name", MAX_MODEL_NAME)?;
    Ok(Completion {
        file: CodeFile::parse(&fields.required_object("current_file")?)?,
        context: parse_context(fields)?,
        choice: hint(identifier.as_deref(), name.as_deref()),
        project: path.map(Cow::into_owned).or(project_id.map(|id| id.to_string())),
    })
}

fn parse_context<'a>(fields: &Fields<'a>) -> Result<Vec<ContextItem<'a>>, ApiError> {
    let items = fields.objects("context", MAX_CONTEXT_ITEMS)?;
    items
        .iter()
        .map(|item| context_item(item, MAX_CONTEXT_CONTENT))
        .collect()
}

/// One context item.
pub(super) fn context_item<'a>(item: &Fields<'a>, most: usize) -> Result<ContextItem<'a>, ApiError> {
    item.required_text("type", MAX_CONTEXT_NAME)?;
    Ok(ContextItem {
        name: item.required_text("name", MAX_CONTEXT_NAME)?,
        content: item.required_text("content", most)?,
    })
}

/// The model a request names: the part of its identifier behind the provider,
/// else its family. Never an address to call.
pub(super) fn hint(identifier: Option<&str>, name: Option<&str>) -> ModelChoice {
    let identifier = identifier.map(|text| text.split_once('/').map_or(text, |(_, model)| model));
    [identifier, name]
        .into_iter()
        .flatten()
        .find(|text| !text.trim().is_empty())
        .map_or(ModelChoice::Assigned, |text| {
            ModelChoice::Hint(text.trim().to_owned())
        })
}

/// The model that `model_metadata` names; malformed, it names none.
pub(super) fn metadata_hint(fields: &Fields<'_>) -> ModelChoice {
    let Ok(Some(metadata)) = fields.object("model_metadata") else {
        return ModelChoice::Assigned;
    };
    let text = |name| metadata.text(name, MAX_IDENTIFIER).ok().flatten();
    hint(text("identifier").as_deref(), text("name").as_deref())
}

/// Routes, renders and sends a completion.
pub(super) async fn ask(
    inbound: &Inbound,
    completion: &Completion<'_>,
    stream: bool,
) -> Result<(RoutedRequest, Reply), ApiError> {
    let routed = inbound.route(&CODE_COMPLETION, &completion.choice, stream)?;
    let file = &completion.file;
    let context_bytes = completion.context.iter().map(item_bytes).sum();
    let call = |room| {
        let fitted = budget::fit(room, &file.above, &file.below, context_bytes);
        let context = budget::whole_items(fitted.context, &completion.context, |item| item_bytes(item));
        Use {
            id: PROMPT_ID,
            model: &routed.model,
            inputs: context! {
                prefix => fitted.prefix,
                suffix => fitted.suffix,
                file_name => &*file.name,
                language => language::name(file.language.as_deref(), &file.name),
                context => context.iter().map(|item| item_value(item)).collect::<Vec<_>>(),
            },
            messages: Vec::new(),
            stream,
        }
    };
    let rendered = inbound.api.prompts.fit(PROMPT_ID, &routed.model, call).await?;
    let work = Work {
        endpoint: rendered.endpoint,
        body: rendered.body,
        stream,
        prompt: Some(rendered.prompt),
        supersede_key: supersede_key(inbound, completion),
    };
    let reply = inbound.send(&routed, work).await?;
    Ok((routed, reply))
}

fn item_value(item: &ContextItem<'_>) -> Value {
    context! { name => &*item.name, content => &*item.content }
}

fn item_bytes(item: &ContextItem<'_>) -> usize {
    item.name.len() + item.content.len()
}

/// A person types in one place of a file at a time. Callers without a person
/// may be many, so their requests never replace each other.
fn supersede_key(inbound: &Inbound, completion: &Completion<'_>) -> Option<String> {
    inbound.caller.who.user_id.as_ref()?;
    let project = completion.project.as_deref().unwrap_or_default();
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [inbound.caller.share_key.as_str(), project, &completion.file.name] {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    Some(hex::encode(&context.finish().as_ref()[..8]))
}

/// A model as code responses describe it.
#[derive(Debug, Serialize)]
struct ModelShape<'a> {
    engine: &'static str,
    name: &'a str,
    lang: &'a str,
    tokens_consumption_metadata: Option<TokensShape>,
    region: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct TokensShape {
    input_tokens: u64,
    output_tokens: u64,
    max_output_tokens_used: bool,
    context_tokens_sent: u64,
    context_tokens_used: u64,
}

/// A whole answer's body.
#[derive(Debug, Serialize)]
pub(super) struct CompletionShape<'a> {
    id: &'static str,
    model: ModelShape<'a>,
    experiments: [(); 0],
    object: &'static str,
    created: i64,
    choices: Vec<ChoiceShape<'a>>,
    metadata: MetadataShape,
}

/// A choice as code responses describe it; the reason is always this one.
#[derive(Debug, Serialize)]
pub(super) struct ChoiceShape<'a> {
    text: &'a str,
    index: u32,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct MetadataShape {
    enabled_feature_flags: Vec<String>,
}

/// No choice for an empty text, else one.
pub(super) fn choices(text: &str) -> Vec<ChoiceShape<'_>> {
    let choice = ChoiceShape {
        text,
        index: 0,
        finish_reason: "length",
    };
    if text.is_empty() { Vec::new() } else { vec![choice] }
}

async fn answer(
    mut reply: Reply,
    routed: &RoutedRequest,
    lang: &str,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let (summary, body) = reply.whole().await?;
    let whole = chunk::whole(&summary, &body)?;
    let flags = enabled_feature_flags(headers);
    Ok(completed(&whole, routed.model.name.as_str(), lang, flags).into_response())
}

/// A whole answer as completions describe it.
pub(super) fn completed<'a>(
    whole: &'a Whole,
    model: &'a str,
    lang: &'a str,
    enabled_feature_flags: Vec<String>,
) -> Json<CompletionShape<'a>> {
    let tokens = TokensShape {
        input_tokens: whole.usage.prompt_tokens,
        output_tokens: whole.usage.completion_tokens,
        max_output_tokens_used: whole.at_limit,
        context_tokens_sent: 0,
        context_tokens_used: 0,
    };
    Json(CompletionShape {
        id: "id",
        model: ModelShape {
            engine: ENGINE,
            name: model,
            lang,
            tokens_consumption_metadata: (!whole.text.is_empty()).then_some(tokens),
            region: None,
        },
        experiments: [],
        object: "text_completion",
        created: now(),
        choices: choices(&whole.text),
        metadata: MetadataShape {
            enabled_feature_flags,
        },
    })
}

/// What code responses call the engine of self-hosted models.
pub(super) const ENGINE: &str = "litellm";

/// Nothing to suggest: what an editor takes best when there is no room.
pub(super) fn nothing(stream: bool) -> Response {
    if stream {
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = content_type(raw::CONTENT_TYPE);
        return response;
    }
    let body = json!({
        "id": "id",
        "model": {"engine": ENGINE, "name": "", "lang": "", "tokens_consumption_metadata": null, "region": null},
        "experiments": [],
        "object": "text_completion",
        "created": now(),
        "choices": [],
        "metadata": {"enabled_feature_flags": []},
    });
    Json(body).into_response()
}

/// Seconds since the epoch.
pub(super) fn now() -> i64 {
    duo_process::clock::now().unix_timestamp()
}

/// The feature flags of the request, each once: none without the header, an
/// empty one for an empty header.
pub(super) fn enabled_feature_flags(headers: &HeaderMap) -> Vec<String> {
    let header = headers.get("x-gitlab-enabled-feature-flags");
    let mut flags: Vec<String> = Vec::new();
    for flag in header
        .and_then(|value| value.to_str().ok())
        .into_iter()
        .flat_map(|text| text.split(','))
    {
        if !flags.iter().any(|known| known == flag.trim()) {
            flags.push(flag.trim().to_owned());
        }
    }
    flags
}

#[cfg(test)]
mod tests;
