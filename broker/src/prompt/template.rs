//! One template file: front matter, sections, rendering.

use duo_contract::envelope::Endpoint;
use duo_contract::name::FeatureName;
use duo_contract::snapshot::Model;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde::{Deserialize, Serialize};

use super::Purpose;
use super::trim::Trim;

/// Required inputs that are lists; all others are texts.
const LISTS: [&str; 2] = ["tools", "documents"];

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The rules.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// What a tool answered that the model called.
    Tool,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// What it has to do with a tool call that is data.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub call: Option<Call>,
}

/// A message's part in a tool call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Call {
    /// The model makes it.
    Made {
        /// The call.
        tool_calls: [ToolCall; 1],
    },
    /// It has been answered.
    Answered {
        /// The call's id.
        tool_call_id: String,
    },
}

/// A tool call as model servers write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Function {
    name: String,
    /// JSON, as text.
    arguments: String,
}

impl ToolCall {
    /// The call with this number in its conversation. The id has the form that the strictest servers ask for.
    #[must_use]
    pub fn new(number: usize, name: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self {
            id: Self::id(number),
            kind: "function",
            function: Function {
                name: name.into(),
                arguments: arguments.into(),
            },
        }
    }

    /// The id of the call with this number.
    #[must_use]
    pub fn id(number: usize) -> String {
        format!("call{number:05}")
    }
}

impl Message {
    /// A message of `role`.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            call: None,
        }
    }
}

/// A template after rendering.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// For `/v1/chat/completions`.
    Messages(Vec<Message>),
    /// For `/v1/completions`.
    Text(String),
}

impl Content {
    pub(super) fn endpoint(&self) -> Endpoint {
        match self {
            Content::Messages(_) => Endpoint::ChatCompletions,
            Content::Text(_) => Endpoint::Completions,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.texts().map(str::len).sum()
    }

    /// What the model reads, one text a message.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let (messages, text): (&[Message], _) = match self {
            Content::Messages(messages) => (messages, None),
            Content::Text(text) => (&[], Some(text.as_str())),
        };
        messages
            .iter()
            .map(|message| message.content.as_str())
            .chain(text)
    }
}

/// The front matter; `broker/prompts/README.md` says what each key means.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Front {
    version: String,
    feature: FeatureName,
    scope: String,
    kind: Kind,
    temperature: f64,
    max_tokens: u32,
    stop: Vec<String>,
    inputs: Vec<String>,
    optional: Vec<String>,
    /// Templates that were configured before there was this key have none.
    #[serde(default)]
    trim: Vec<Trim>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Chat,
    Completion,
}

/// What stands between two markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    /// A message of this role.
    Message(Role),
    /// The place of the conversation.
    Conversation,
}

/// A compiled template. A section's template is named by its number.
#[derive(Debug)]
pub(super) struct Template {
    front: Front,
    sections: Vec<Section>,
    environment: Environment<'static>,
    own_bytes: usize,
}

impl Template {
    /// Compiles a template file's text.
    ///
    /// # Errors
    /// Says in words what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (front, body) = split_front(text).ok_or("front matter between two lines of --- is missing")?;
        let front: Front = serde_saphyr::from_str(front).map_err(|error| format!("front matter: {error}"))?;
        check_front(&front)?;
        let parts = match front.kind {
            Kind::Completion => vec![(Section::Message(Role::User), body.to_owned())],
            Kind::Chat => sections(body)?,
        };
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        for (number, (section, text)) in parts.iter().enumerate() {
            if *section != Section::Conversation {
                environment
                    .add_template_owned(number.to_string(), text.clone())
                    .map_err(|error| format!("section {}: {error}", number + 1))?;
            }
        }
        let template = Self {
            front,
            sections: parts.into_iter().map(|(section, _)| section).collect(),
            environment,
            own_bytes: body.len(),
        };
        template.check_inputs()?;
        Ok(template)
    }

    pub(super) fn purpose(&self) -> Purpose {
        Purpose {
            feature: self.front.feature.clone(),
            scope: self.front.scope.clone(),
            inputs: self.inputs().cloned().collect(),
            trim: self.front.trim.clone(),
        }
    }

    pub(super) fn version(&self) -> &str {
        &self.front.version
    }

    pub(super) fn temperature(&self) -> f64 {
        self.front.temperature
    }

    pub(super) fn stop(&self) -> &[String] {
        &self.front.stop
    }

    /// The output limit for `model`: the answer may have half of the window, or the question has no room in a small one.
    pub(super) fn max_tokens(&self, model: &Model) -> u32 {
        let half = (model.context_tokens / 2).max(1);
        self.front.max_tokens.min(model.max_output_tokens).min(half)
    }

    /// Bytes of the template itself, for the budget.
    pub(super) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// The first required input that is absent or null.
    pub(super) fn missing_input(&self, inputs: &Value) -> Option<&str> {
        let absent = |name: &&String| {
            inputs
                .get_attr(name)
                .map_or(true, |value| value.is_undefined() || value.is_none())
        };
        self.front.inputs.iter().find(absent).map(String::as_str)
    }

    /// Renders every section and puts the conversation in its place.
    pub(super) fn render(
        &self,
        inputs: &Value,
        mut conversation: Vec<Message>,
    ) -> Result<Content, minijinja::Error> {
        if self.front.kind == Kind::Completion {
            return Ok(Content::Text(self.environment.get_template("0")?.render(inputs)?));
        }
        let mut messages = Vec::with_capacity(self.sections.len() + conversation.len());
        for (number, section) in self.sections.iter().enumerate() {
            match section {
                Section::Conversation => messages.append(&mut conversation),
                Section::Message(role) => {
                    let template = self.environment.get_template(&number.to_string())?;
                    messages.push(Message::new(*role, template.render(inputs)?));
                }
            }
        }
        Ok(Content::Messages(messages))
    }

    /// Inputs that a use without anybody behind it has: each that is required, as short as may be.
    pub(super) fn sample(&self) -> Value {
        let sample = |name: &String| {
            let value = match LISTS.contains(&name.as_str()) {
                true => serde_json::json!([]),
                false => "example".into(),
            };
            (name.clone(), value)
        };
        let inputs: serde_json::Map<_, _> = self.front.inputs.iter().map(sample).collect();
        Value::from(Serde(inputs))
    }

    fn inputs(&self) -> impl Iterator<Item = &String> {
        self.front.inputs.iter().chain(&self.front.optional)
    }

    fn check_inputs(&self) -> Result<(), String> {
        if let Some(rule) = self
            .front
            .trim
            .iter()
            .find(|rule| !self.inputs().any(|input| *input == rule.input))
        {
            return Err(format!("{:?} is to be trimmed, but is no input", rule.input));
        }
        for (_, template) in self.environment.templates() {
            for name in template.undeclared_variables(false) {
                if !self.inputs().any(|input| *input == name) {
                    return Err(format!("{name:?} is used, but is no input"));
                }
            }
        }
        Ok(())
    }
}

/// Front matter and body; the body starts after the closing line.
fn split_front(text: &str) -> Option<(&str, &str)> {
    let rest = text
        .strip_prefix("---\n")
        .or_else(|| text.strip_prefix("---\r\n"))?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some((&rest[..at], &rest[at + line.len()..]));
        }
        at += line.len();
    }
    None
}

fn check_front(front: &Front) -> Result<(), String> {
    if front.max_tokens == 0 {
        return Err("max_tokens has to be at least 1".to_owned());
    }
    if !(0.0..=2.0).contains(&front.temperature) {
        return Err("temperature has to be between 0 and 2".to_owned());
    }
    let numbers = front
        .version
        .split('.')
        .filter(|part| part.parse::<u32>().is_ok());
    if front.version.split('.').count() != 3 || numbers.count() != 3 {
        return Err(format!("version {:?} is not of the form 1.2.3", front.version));
    }
    if front.stop.iter().any(String::is_empty) {
        return Err("a stop string may not be empty".to_owned());
    }
    Ok(())
}

/// Cuts a chat template at its marker lines.
fn sections(body: &str) -> Result<Vec<(Section, String)>, String> {
    let mut sections: Vec<(Section, String)> = Vec::new();
    for line in body.split_inclusive('\n') {
        match (marker(line), sections.last_mut()) {
            (Some(section), _) => sections.push((section, String::new())),
            (None, Some((_, text))) => text.push_str(line),
            (None, None) if line.trim().is_empty() => {}
            (None, None) => return Err("text stands before the first marker".to_owned()),
        }
    }
    if sections.is_empty() {
        return Err("a chat template needs at least one section".to_owned());
    }
    for (section, text) in &mut sections {
        *text = text.trim().to_owned();
        if (*section == Section::Conversation) != text.is_empty() {
            return Err("every section but [[messages]] has text, and that one has none".to_owned());
        }
    }
    Ok(sections)
}

fn marker(line: &str) -> Option<Section> {
    match line.trim_end_matches(['\n', '\r']) {
        "[[system]]" => Some(Section::Message(Role::System)),
        "[[user]]" => Some(Section::Message(Role::User)),
        "[[assistant]]" => Some(Section::Message(Role::Assistant)),
        "[[messages]]" => Some(Section::Conversation),
        _ => None,
    }
}
