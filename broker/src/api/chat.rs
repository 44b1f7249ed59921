//! Duo Chat, `/v2/chat/agent`: GitLab holds the loop of turns; each turn's
//! answer is text for the user or a tool that GitLab is to run.

use std::borrow::Cow;
use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use bytes::BytesMut;
use duo_contract::name::FeatureName;
use minijinja::{Value, context};

use super::code;
use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::stream::{self, content_type};
use crate::prompt::{PromptError, Rendered, Use};
use crate::request::{RoutedRequest, Work};

mod calls;
mod events;
mod question;
mod react;
mod tools;

use events::Turn;
use question::{Attachment, CurrentFile, Page, Question};
use tools::Tool;

/// For models that call tools in their text.
const PROMPT_ID: &str = "chat/agent";
/// For models whose server turns their calls into data.
const CALLING_PROMPT_ID: &str = "chat/agent_with_tools";
const SCOPES: [&str; 2] = ["duo_classic_chat", "duo_chat"];
const REFUSAL: &str = "Unauthorized to access duo chat";
/// The label of the events.
const CONTENT_TYPE: &str = "application/x-ndjson; charset=utf-8";

static DUO_CHAT: LazyLock<FeatureName> =
    LazyLock::new(|| FeatureName::parse("duo_chat").expect("a feature id"));

/// `POST /v2/chat/agent`.
pub(super) async fn agent(mut inbound: Inbound) -> Response {
    answer(&mut inbound)
        .await
        .unwrap_or_else(|error| error.respond(Shape::Chat))
}

async fn answer(inbound: &mut Inbound) -> Result<Response, ApiError> {
    inbound.require(&SCOPES, &DUO_CHAT, REFUSAL)?;
    inbound.gate(&DUO_CHAT)?;
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    let question = Question::parse(&fields)?;
    for category in question.categories() {
        let scope = format!("include_{category}_context");
        inbound.require(&[&scope], &DUO_CHAT, format!("Unauthorized to access {scope}"))?;
    }
    let tools = tools::offered(&inbound.caller);
    let routed = inbound.route(&DUO_CHAT, &code::metadata_hint(&fields), true)?;
    let as_data = !tools.is_empty() && inbound.api.exchange.calls_tools(&routed.model.name);
    let rendered = if as_data {
        render_calling(inbound, &routed, &question, &tools).await
    } else {
        render(inbound, &routed, &question, &tools).await
    };
    let rendered = rendered.map_err(|error| ApiError::from(error).prompt_at("messages"))?;
    let work = Work {
        endpoint: rendered.endpoint,
        body: rendered.body,
        stream: true,
        prompt: Some(rendered.prompt),
        supersede_key: None,
    };
    inbound.record.judge_answer();
    let reply = inbound.send(&routed, work).await?;
    stream::respond(reply, Turn::new(tools, &routed.model.name, as_data)).await
}

/// The prompt for a model that calls tools in its text.
async fn render(
    inbound: &Inbound,
    routed: &RoutedRequest,
    question: &Question<'_>,
    tools: &[&'static Tool],
) -> Result<Rendered, PromptError> {
    let tools: Vec<Value> = tools
        .iter()
        .map(|tool| context! { name => tool.name, description => tool.description, example => tool.example })
        .collect();
    let call = |room| {
        let mut question = question.clone();
        question.fit(room);
        Use {
            id: PROMPT_ID,
            model: &routed.model,
            inputs: context! { tools => tools.clone(), ..company(&question) },
            messages: question.as_text(),
            stream: true,
        }
    };
    inbound.api.prompts.fit(PROMPT_ID, &routed.model, call).await
}

/// The prompt for a model whose server turns its calls into data.
async fn render_calling(
    inbound: &Inbound,
    routed: &RoutedRequest,
    question: &Question<'_>,
    tools: &[&'static Tool],
) -> Result<Rendered, PromptError> {
    let tools = tools::as_data(tools);
    let call = |room: usize| {
        let mut question = question.clone();
        question.fit(room.saturating_sub(tools.len()));
        Use {
            id: CALLING_PROMPT_ID,
            model: &routed.model,
            inputs: company(&question),
            messages: question.as_calls(),
            stream: true,
        }
    };
    let prompts = &inbound.api.prompts;
    let rendered = prompts.fit(CALLING_PROMPT_ID, &routed.model, call).await?;
    Ok(rendered.with_tools(&tools))
}

/// What came along with the question, as templates take it.
fn company(question: &Question<'_>) -> Value {
    let attachments: Vec<Value> = question.attachments.iter().map(Attachment::value).collect();
    let unavailable = question.unavailable_resources.iter().map(Cow::as_ref);
    context! {
        context => question.page.as_ref().map(Page::value),
        current_file => question.current_file.as_ref().map(CurrentFile::value),
        additional_context => attachments,
        unavailable_resources => unavailable.map(Value::from).collect::<Vec<_>>(),
    }
}

/// An error before the first byte: an event all the same, because GitLab shows
/// users its text and repeats a turn only when an event allows it.
pub(super) fn error_response(message: &str, retryable: bool) -> Response {
    let mut out = BytesMut::new();
    events::error(message, retryable, &mut out);
    let mut response = Response::new(Body::from(out.freeze()));
    *response.headers_mut() = content_type(CONTENT_TYPE);
    response
}
