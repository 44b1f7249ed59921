//! Code suggestions made of components: `/v3/code/completions` and
//! `/v4/code/suggestions`, for code generation and for completion. They differ
//! in the format of their streams only. Their first gate comes after the body,
//! which tells whether code is to be completed or generated.

use std::borrow::Cow;
use std::sync::LazyLock;

use axum::Json;
use axum::response::{IntoResponse, Response};
use duo_contract::name::FeatureName;
use minijinja::{Value, context};
use serde_json::json;

use super::code::{self, CODE_COMPLETION, CodeFile, Completion, ContextItem, ENGINE, MAX_PROMPT};
use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::language;
use super::stream::raw::RawText;
use super::stream::sse::{Events, Start, StartMetadata, StartModel};
use super::stream::{self, chunk};
use super::version;
use crate::exchange::Reply;
use crate::prompt::answer::{self, End, Formatter};
use crate::prompt::{Use, budget};
use crate::request::{ModelChoice, RoutedRequest, Work};

const MAX_COMPONENTS: usize = 100;
const MAX_CONTEXT_CONTENT: usize = 100_000;
/// Both sides of the cursor that Rails has already trimmed.
const MAX_TRIMMED: usize = 100_000;
const MAX_LIST: usize = 1000;
const PROMPT_ID: &str = "code_suggestions/generations";
const REFUSAL: &str = "Unauthorized to access code suggestions";
const GENERATION_ENGINE: &str = "agent";
const GENERATION_NAME: &str = "Code Generations";
/// The language schema of editors wants a text here.
const REGION: &str = "self-managed";
/// Editors before this one send context that is not meant for the prompt.
const CONTEXT_SINCE: [u32; 3] = [7, 17, 1];

/// The feature of generations.
pub(super) static CODE_GENERATION: LazyLock<FeatureName> =
    LazyLock::new(|| FeatureName::parse("code_generation").expect("a feature id"));

/// How a route streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// v3.
    Raw,
    /// v4.
    Events,
}

/// `POST /v3/code/completions`.
pub(super) async fn v3(inbound: Inbound) -> Response {
    suggest(inbound, Format::Raw).await
}

/// `POST /v4/code/suggestions`.
pub(super) async fn v4(inbound: Inbound) -> Response {
    suggest(inbound, Format::Events).await
}

async fn suggest(mut inbound: Inbound, format: Format) -> Response {
    let mut shape = Shape::GitLab;
    try_suggest(&mut inbound, format, &mut shape)
        .await
        .unwrap_or_else(|error| error.respond(shape))
}

async fn try_suggest(inbound: &mut Inbound, format: Format, shape: &mut Shape) -> Result<Response, ApiError> {
    if inbound
        .require(&["complete_code", "generate_code"], &CODE_GENERATION, REFUSAL)
        .is_err()
    {
        inbound.require(&["complete_code"], &CODE_COMPLETION, REFUSAL)?;
    }
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    let components = fields.objects("prompt_components", MAX_COMPONENTS)?;
    let first = components
        .first()
        .ok_or_else(|| fields.required("prompt_components"))?;
    let payload = first.required_object("payload")?;
    let stream = payload.flag("stream")?;
    payload.integer("choices_count")?;
    let choice = code::metadata_hint(&fields);
    match &*first.required_text("type", code::MAX_NAME)? {
        "code_editor_completion" => {
            *shape = Shape::Completion { stream };
            inbound.require(&["complete_code"], &CODE_COMPLETION, REFUSAL)?;
            inbound.gate(&CODE_COMPLETION)?;
            let completion = Completion {
                file: CodeFile::parse(&payload)?,
                context: context_of(inbound, &components)?,
                choice,
                project: None,
            };
            complete(inbound, &completion, stream, format).await
        }
        "code_editor_generation" => {
            inbound.require(&["generate_code"], &CODE_GENERATION, REFUSAL)?;
            inbound.gate(&CODE_GENERATION)?;
            generate(inbound, &Generation::parse(&payload, choice)?, stream, format).await
        }
        _ => Err(first.invalid(
            "type",
            "has to be code_editor_completion or code_editor_generation",
        )),
    }
}

async fn complete(
    inbound: &Inbound,
    completion: &Completion<'_>,
    stream: bool,
    format: Format,
) -> Result<Response, ApiError> {
    let (routed, reply) = code::ask(inbound, completion, stream).await?;
    let model = StartModel {
        engine: ENGINE,
        name: routed.model.name.as_str().to_owned(),
    };
    let lang = language::name(completion.file.language.as_deref(), &completion.file.name);
    match (stream, format) {
        (false, _) => respond(inbound, reply, &model, lang, None).await,
        (true, Format::Raw) => stream::respond(reply, RawText::default()).await,
        (true, Format::Events) => stream::respond(reply, Events::new(start(inbound, model), None)).await,
    }
}

async fn generate(
    inbound: &Inbound,
    generation: &Generation<'_>,
    stream: bool,
    format: Format,
) -> Result<Response, ApiError> {
    let routed = inbound.route(&CODE_GENERATION, &generation.choice, stream)?;
    let work = generation.render(inbound, &routed, stream).await?;
    inbound.record.judge_answer();
    let reply = inbound.send(&routed, work).await?;
    let model = StartModel {
        engine: GENERATION_ENGINE,
        name: GENERATION_NAME.to_owned(),
    };
    let formatter = Formatter::code(generation.lang());
    match (stream, format) {
        (false, _) => respond(inbound, reply, &model, generation.lang(), Some(formatter)).await,
        (true, Format::Raw) => stream::respond(reply, RawText::formatted(formatter)).await,
        (true, Format::Events) => {
            stream::respond(reply, Events::new(start(inbound, model), Some(formatter))).await
        }
    }
}

fn start(inbound: &Inbound, model: StartModel) -> Start {
    Start {
        metadata: StartMetadata {
            model,
            timestamp: code::now(),
            enabled_feature_flags: code::enabled_feature_flags(&inbound.headers),
            region: REGION,
        },
    }
}

async fn respond(
    inbound: &Inbound,
    mut reply: Reply,
    model: &StartModel,
    lang: &str,
    formatter: Option<Formatter>,
) -> Result<Response, ApiError> {
    let (summary, body) = reply.whole().await?;
    let whole = chunk::whole(&summary, &body)?;
    let text = match formatter {
        Some(formatter) => answer::whole(formatter, whole.text, End { cut: whole.at_limit })?,
        None => whole.text,
    };
    let model = json!({"engine": model.engine, "name": model.name, "lang": lang});
    let body = json!({
        "choices": code::choices(&text),
        "metadata": {
            "model": model,
            "timestamp": code::now(),
            "enabled_feature_flags": code::enabled_feature_flags(&inbound.headers),
            "region": null,
        },
        "model": model,
    });
    Ok(Json(body).into_response())
}

/// The further components of a completion, for editors that mean them so.
fn context_of<'a>(inbound: &Inbound, components: &[Fields<'a>]) -> Result<Vec<ContextItem<'a>>, ApiError> {
    let editor = inbound.headers.get("x-gitlab-language-server-version");
    let editor = editor.and_then(|value| value.to_str().ok());
    if !editor.is_some_and(|editor| version::at_least(editor, CONTEXT_SINCE)) {
        return Ok(Vec::new());
    }
    let mut items = Vec::new();
    for component in components {
        if component.required_text("type", code::MAX_NAME)? == "code_context" {
            items.push(code::context_item(
                &component.required_object("payload")?,
                MAX_CONTEXT_CONTENT,
            )?);
        }
    }
    Ok(items)
}

/// A task in the client's own words, which counts where no prompt of ours is
/// named. A list of messages is a prompt for one kind of model and is passed over.
fn own_prompt<'a>(payload: &Fields<'a>) -> Result<Option<Cow<'a, str>>, ApiError> {
    if payload
        .raw("prompt")
        .is_some_and(|prompt| prompt.get().starts_with('['))
    {
        return Ok(None);
    }
    let prompt = payload.text("prompt", MAX_PROMPT)?;
    Ok(prompt.filter(|_| payload.raw("prompt_id").is_none()))
}

/// Code that is to be written.
pub(super) struct Generation<'a> {
    file: CodeFile<'a>,
    above: Option<Cow<'a, str>>,
    below: Option<Cow<'a, str>>,
    instruction: Option<Cow<'a, str>>,
    libraries: Vec<Cow<'a, str>>,
    related_files: Vec<Cow<'a, str>>,
    related_snippets: Vec<Cow<'a, str>>,
    examples: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    choice: ModelChoice,
}

impl<'a> Generation<'a> {
    /// Of a file alone.
    pub(super) fn of(file: CodeFile<'a>, choice: ModelChoice) -> Self {
        Self {
            file,
            above: None,
            below: None,
            instruction: None,
            libraries: Vec::new(),
            related_files: Vec::new(),
            related_snippets: Vec::new(),
            examples: Vec::new(),
            choice,
        }
    }

    fn parse(payload: &Fields<'a>, choice: ModelChoice) -> Result<Self, ApiError> {
        let mut generation = Self::of(CodeFile::parse(payload)?, choice);
        if let Some(enhancer) = payload.object("prompt_enhancer")? {
            generation.enhance(&enhancer)?;
        }
        let prompt = own_prompt(payload)?;
        generation.instruction = generation.instruction.or(prompt);
        Ok(generation)
    }

    /// What Rails has gathered around the file.
    fn enhance(&mut self, enhancer: &Fields<'a>) -> Result<(), ApiError> {
        self.above = enhancer.text("trimmed_content_above_cursor", MAX_TRIMMED)?;
        self.below = enhancer.text("trimmed_content_below_cursor", MAX_TRIMMED)?;
        self.instruction = enhancer.text("user_instruction", MAX_PROMPT)?;
        self.libraries = enhancer.texts("libraries", MAX_LIST)?;
        self.related_files = enhancer.texts("related_files", MAX_LIST)?;
        self.related_snippets = enhancer.texts("related_snippets", MAX_LIST)?;
        for example in enhancer.objects("examples_array", MAX_LIST)? {
            let text = |name| example.required_text(name, MAX_PROMPT);
            self.examples.push((text("example")?, text("response")?));
        }
        Ok(())
    }

    fn lang(&self) -> &'static str {
        language::name(self.file.language.as_deref(), &self.file.name)
    }

    /// Fits it into the model's window: the instruction always stays, then
    /// snippets and files near the cursor, then libraries and examples.
    pub(super) async fn render(
        &self,
        inbound: &Inbound,
        routed: &RoutedRequest,
        stream: bool,
    ) -> Result<Work, ApiError> {
        let call = |room| Use {
            id: PROMPT_ID,
            model: &routed.model,
            inputs: self.inputs(room),
            messages: Vec::new(),
            stream,
        };
        let rendered = inbound.api.prompts.fit(PROMPT_ID, &routed.model, call).await?;
        Ok(Work {
            endpoint: rendered.endpoint,
            body: rendered.body,
            stream,
            prompt: Some(rendered.prompt),
            supersede_key: None,
        })
    }

    /// The prompt's inputs, in `room` bytes.
    fn inputs(&self, room: usize) -> Value {
        let instruction = self.instruction.as_deref().filter(|text| !text.trim().is_empty());
        let room = room.saturating_sub(instruction.map_or(0, str::len));
        let lists = [&self.related_snippets, &self.related_files, &self.libraries];
        let listed: usize = lists
            .iter()
            .flat_map(|list| list.iter())
            .map(|text| text.len())
            .sum();
        let examples: usize = self.examples.iter().map(|(a, b)| a.len() + b.len()).sum();
        let above = self.above.as_deref().unwrap_or(&self.file.above);
        let below = self.below.as_deref().unwrap_or(&self.file.below);
        let fitted = budget::fit(room, above, below, listed + examples);
        let mut left = fitted.context;
        let [snippets, files, libraries] = lists.map(|list| -> Vec<Value> {
            let kept = budget::whole_items(left, list.iter().map(|text| &**text), |text| text.len());
            left -= kept.iter().map(|text| text.len()).sum::<usize>();
            kept.into_iter().map(Value::from).collect()
        });
        let examples = budget::whole_items(left, &self.examples, |(a, b)| a.len() + b.len());
        let examples: Vec<Value> = examples
            .into_iter()
            .map(|(example, response)| context! { example => &**example, response => &**response })
            .collect();
        let language = match (self.lang(), self.file.language.as_deref()) {
            ("", identifier) => identifier.unwrap_or_default(),
            (known, _) => known,
        };
        context! {
            language => language,
            file_name => &*self.file.name,
            prefix => fitted.prefix,
            suffix => fitted.suffix,
            instruction => instruction,
            libraries => libraries,
            related_files => files,
            related_snippets => snippets,
            examples => examples,
        }
    }
}
