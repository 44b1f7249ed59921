//! Prompt templates: what a model is asked, in files that an administrator may
//! replace.
//!
//! Owns: the built-in templates, the overrides of the configuration, the choice
//! of a template for a model's family, rendering, and the estimate of what fits
//! into a model's window. Does not choose models and knows no HTTP; the
//! handlers in [`crate::api`] call it. `broker/prompts/README.md` is the
//! format's description.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_contract::name::FeatureName;
use duo_contract::snapshot::{Model, PromptOverride};
use minijinja::Value;
use serde_json::Map;

pub mod answer;
mod body;
pub mod budget;
mod builtin;
mod family;
mod library;
mod template;
pub mod tokens;
mod trim;

use body::{Settings, body};
use library::{Library, builtin_library, checked};
pub use template::{Call, Message, Role, ToolCall};
use template::{Content, Template};
use tokens::Tokenizers;
pub use trim::Trim;

/// Times that a prompt is made smaller by its count, before it is made so small that it surely fits.
const FIT_ROUNDS: usize = 4;

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// No template has the id.
    #[error("there is no prompt {0:?}")]
    Unknown(String),
    /// A required input is absent or null.
    #[error("the input {0:?} is missing")]
    MissingInput(String),
    /// More than the model's window holds, even by the most generous estimate.
    #[error("the prompt is longer than the model's window of {window} tokens")]
    TooLong {
        /// The model's window in tokens.
        window: u32,
    },
    /// The template broke; the cause is for the log only, it may quote an input.
    #[error("the prompt template {id:?} could not be rendered")]
    Template {
        /// Prompt id.
        id: String,
        /// The template engine's own error.
        #[source]
        source: minijinja::Error,
    },
}

/// One use of a prompt.
#[derive(Debug)]
pub struct Use<'a> {
    /// Prompt id, such as `chat/explain_code`.
    pub id: &'a str,
    /// The model it is for.
    pub model: &'a Model,
    /// The template's inputs by name.
    pub inputs: Value,
    /// The conversation, for templates that have a place for one.
    pub messages: Vec<Message>,
    /// Is the answer to come as a stream?
    pub stream: bool,
}

/// A conversation in the client's own words, with its own settings.
#[derive(Debug)]
pub struct Conversation<'a> {
    /// The model it is for.
    pub model: &'a Model,
    /// What has been said.
    pub messages: Vec<Message>,
    /// The output limit; the model's own may be lower.
    pub max_tokens: u32,
    /// Between 0 and 2.
    pub temperature: f64,
    /// Texts that end the answer.
    pub stop: &'a [String],
    /// Is the answer to come as a stream?
    pub stream: bool,
}

/// A rendered prompt, ready for a model server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Which call of the model server.
    pub endpoint: Endpoint,
    /// JSON object without its `model` member.
    pub body: Bytes,
    /// The template's id and version.
    pub prompt: (String, String),
}

impl Rendered {
    /// The same call, in which the model may call `tools`, a JSON array.
    #[must_use]
    pub fn with_tools(mut self, tools: &str) -> Self {
        let members = self.body.strip_suffix(b"}").unwrap_or(&self.body);
        let more = [
            &br#","tools":"#[..],
            tools.as_bytes(),
            &br#","tool_choice":"auto"}"#[..],
        ];
        self.body = [members, &more.concat()].concat().into();
        self
    }
}

/// What a prompt id stands for, whichever family answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    /// Feature the prompt belongs to.
    pub feature: FeatureName,
    /// Unit primitive that opens it.
    pub scope: String,
    /// Names of the inputs it can take.
    pub inputs: Vec<String>,
    /// Which of them may be shortened, first things first.
    pub trim: Vec<Trim>,
}

impl Purpose {
    /// The inputs, shortened where `room` bytes cannot hold them.
    #[must_use]
    pub fn fit<'a>(
        &self,
        inputs: &'a Map<String, serde_json::Value>,
        room: usize,
    ) -> Cow<'a, Map<String, serde_json::Value>> {
        trim::fit(&self.trim, inputs, room)
    }
}

/// All templates of the moment. Cheap to clone; every clone sees a change.
#[derive(Debug, Clone)]
pub struct Prompts {
    library: Arc<ArcSwap<Library>>,
    tokenizers: Tokenizers,
}

impl Prompts {
    /// The built-in templates; tokens are estimated.
    ///
    /// # Panics
    /// Never: a unit test compiles every built-in template.
    #[must_use]
    pub fn builtin() -> Self {
        Self::with_tokenizers(Tokenizers::default())
    }

    /// The built-in templates, with tokenizers for the models that have one.
    #[must_use]
    pub fn with_tokenizers(tokenizers: Tokenizers) -> Self {
        Self {
            library: Arc::new(ArcSwap::from_pointee(builtin_library())),
            tokenizers,
        }
    }

    /// What tokens are counted with.
    #[must_use]
    pub fn tokenizers(&self) -> &Tokenizers {
        &self.tokenizers
    }

    /// Puts `overrides` in place of the built-in templates of their id and
    /// family, and drops earlier overrides. One that does not compile is
    /// reported in the log and left out, so an old broker keeps serving what a
    /// newer one accepted; [`check`] refuses it where it is configured.
    pub fn apply(&self, overrides: &[PromptOverride]) {
        let mut library = builtin_library();
        for replacement in overrides {
            match checked(replacement) {
                Ok(template) => {
                    let families = library.entry(replacement.id.as_str().into()).or_default();
                    families.insert(replacement.family.as_str().into(), Arc::new(template));
                }
                Err(problem) => tracing::warn!(
                    prompt = replacement.id,
                    family = replacement.family,
                    problem,
                    "prompt override ignored"
                ),
            }
        }
        self.library.store(Arc::new(library));
    }

    /// What the prompt `id` is for; `None` when nobody knows it.
    #[must_use]
    pub fn purpose(&self, id: &str) -> Option<Purpose> {
        let library = self.library.load();
        Some(library.get(id)?.get(family::BASE)?.purpose())
    }

    /// Unit primitives that open a prompt of `feature`.
    #[must_use]
    pub fn scopes(&self, feature: &FeatureName) -> Vec<String> {
        let library = self.library.load();
        let bases = library.values().filter_map(|families| families.get(family::BASE));
        bases
            .map(|template| template.purpose())
            .filter(|purpose| purpose.feature == *feature)
            .map(|purpose| purpose.scope)
            .collect()
    }

    /// Ids of the prompts of `feature`, in order.
    #[must_use]
    pub fn ids(&self, feature: &FeatureName) -> Vec<String> {
        let library = self.library.load();
        let ids = library.iter().filter(|(_, families)| {
            let base = families.get(family::BASE);
            base.is_some_and(|template| template.purpose().feature == *feature)
        });
        let mut ids: Vec<_> = ids.map(|(id, _)| id.to_string()).collect();
        ids.sort();
        ids
    }

    /// Families that prompt `id` has a template for, in order.
    #[must_use]
    pub fn families(&self, id: &str) -> Vec<String> {
        let library = self.library.load();
        let families = library.get(id).into_iter().flat_map(HashMap::keys);
        let mut families: Vec<_> = families.map(ToString::to_string).collect();
        families.sort();
        families
    }

    /// Every prompt id, in order.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.library.load().keys().map(ToString::to_string).collect();
        ids.sort();
        ids
    }

    /// Renders prompt `id` with inputs that are as short as may be.
    ///
    /// # Errors
    /// See [`PromptError`].
    pub fn render_sample(&self, id: &str, model: &Model) -> Result<Rendered, PromptError> {
        let template = self.template(id, model)?;
        self.render(Use {
            id,
            model,
            inputs: template.sample(),
            messages: vec![Message::new(Role::User, "Reply with the single word: ready")],
            stream: false,
        })
    }

    /// Bytes that the inputs of prompt `id` may have for `model` so that
    /// prompt and answer surely fit, by the estimate of [`budget`].
    ///
    /// # Errors
    /// [`PromptError::Unknown`].
    pub fn room(&self, id: &str, model: &Model) -> Result<usize, PromptError> {
        let template = self.template(id, model)?;
        Ok(budget::room(
            model,
            template.max_tokens(model),
            template.own_bytes(),
        ))
    }

    /// Renders one call of a model server so that prompt and answer fit into
    /// its window: `make` is asked for the call with inputs of so many bytes.
    /// Where the model has no tokenizer it is asked once, with
    /// [`Prompts::room`]; else first with room for the most generous text, and
    /// again with less while the count says so.
    ///
    /// # Errors
    /// See [`PromptError`].
    pub async fn fit<'a>(
        &self,
        id: &str,
        model: &Model,
        make: impl Fn(usize) -> Use<'a>,
    ) -> Result<Rendered, PromptError> {
        let Some(tokenizer) = self.tokenizers.of(model) else {
            return self.render(make(self.room(id, model)?));
        };
        let template = self.template(id, model)?;
        let most = budget::prompt_tokens(model, template.max_tokens(model));
        let own = template.own_bytes();
        let mut room = budget::most_bytes(model).saturating_sub(own);
        for _ in 0..FIT_ROUNDS {
            let call = make(room);
            let stream = call.stream;
            let content = compose(&template, call)?;
            let bytes = content.bytes();
            if bytes <= most {
                return Ok(rendered(id, model, &template, &content, stream));
            }
            let (content, counted) = self.tokenizers.count(Arc::clone(&tokenizer), content).await;
            let Some(tokens) = counted else {
                return self.render(make(self.room(id, model)?));
            };
            if tokens <= most {
                return Ok(rendered(id, model, &template, &content, stream));
            }
            // A little less than the share that fits: what is left may be denser.
            let fitting = bytes.min(room.saturating_add(own)).saturating_mul(most) / tokens * 95 / 100;
            room = fitting.saturating_sub(own).min(room / 10 * 9);
        }
        // No text has more tokens than bytes.
        let call = make(most.saturating_sub(own));
        let stream = call.stream;
        let content = compose(&template, call)?;
        let (content, counted) = self.tokenizers.count(tokenizer, content).await;
        if counted.is_some_and(|tokens| tokens > most) {
            return Err(PromptError::TooLong {
                window: model.context_tokens,
            });
        }
        Ok(rendered(id, model, &template, &content, stream))
    }

    /// Renders one call of a model server as it is.
    ///
    /// # Errors
    /// See [`PromptError`].
    pub fn render(&self, call: Use<'_>) -> Result<Rendered, PromptError> {
        let template = self.template(call.id, call.model)?;
        let (id, model, stream) = (call.id, call.model, call.stream);
        let content = compose(&template, call)?;
        if content.bytes() > budget::most_bytes(model) {
            return Err(PromptError::TooLong {
                window: model.context_tokens,
            });
        }
        Ok(rendered(id, model, &template, &content, stream))
    }

    /// One call of a model server for a conversation that no template of ours has a part in.
    ///
    /// # Errors
    /// [`PromptError::TooLong`].
    pub fn converse(conversation: Conversation<'_>) -> Result<(Endpoint, Bytes), PromptError> {
        let Conversation {
            model,
            messages,
            max_tokens,
            temperature,
            stop,
            stream,
        } = conversation;
        let content = Content::Messages(family::arrange(&model.family, messages));
        if content.bytes() > budget::most_bytes(model) {
            return Err(PromptError::TooLong {
                window: model.context_tokens,
            });
        }
        let settings = Settings {
            max_tokens: max_tokens.min(model.max_output_tokens),
            temperature,
            stop,
        };
        Ok((content.endpoint(), body(&settings, &content, stream).into()))
    }

    fn template(&self, id: &str, model: &Model) -> Result<Arc<Template>, PromptError> {
        let library = self.library.load();
        library
            .get(id)
            .and_then(|families| family::chain(&model.family).find_map(|name| families.get(name)))
            .cloned()
            .ok_or_else(|| PromptError::Unknown(id.to_owned()))
    }
}

/// What the model is to read.
fn compose(template: &Template, call: Use<'_>) -> Result<Content, PromptError> {
    if let Some(name) = template.missing_input(&call.inputs) {
        return Err(PromptError::MissingInput(name.to_owned()));
    }
    let content = template
        .render(&call.inputs, call.messages)
        .map_err(|source| PromptError::Template {
            id: call.id.to_owned(),
            source,
        })?;
    Ok(match content {
        Content::Messages(messages) => Content::Messages(family::arrange(&call.model.family, messages)),
        text @ Content::Text(_) => text,
    })
}

fn rendered(id: &str, model: &Model, template: &Template, content: &Content, stream: bool) -> Rendered {
    Rendered {
        endpoint: content.endpoint(),
        body: body(&Settings::of(template, model), content, stream).into(),
        prompt: (id.to_owned(), template.version().to_owned()),
    }
}

impl Default for Prompts {
    fn default() -> Self {
        Self::builtin()
    }
}

/// Would this override load, and can a prompt be made of it?
///
/// # Errors
/// Says in words what is wrong with it.
pub fn check(replacement: &PromptOverride) -> Result<(), String> {
    let template = checked(replacement)?;
    let rendered = template.render(&template.sample(), vec![Message::new(Role::User, "example")]);
    rendered
        .map(drop)
        .map_err(|error| format!("it cannot be rendered: {error}"))
}

/// The text of a built-in template, which an override begins from.
#[must_use]
pub fn builtin_text(id: &str, family: &str) -> Option<&'static str> {
    builtin::text(id, family)
}

#[cfg(test)]
mod tests;
