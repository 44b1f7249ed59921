//! From the bytes of a request to what is to be generated.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::{Answer, Tool};
use super::plan::{Limits, Plan};
use super::prompt::{Ending, Message, Prompt};
use super::refusal::Refusal;
use super::sequence::{Start, locate};
use super::settings::Settings;

/// Which of the two generating endpoints was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Text,
}

/// A request understood: the answers it will get and how they are to be sent.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) shape: Shape,
    pub(crate) model: String,
    /// One per choice.
    pub(crate) answers: Vec<Answer>,
    pub(crate) prompt_tokens: usize,
    /// Ids of each choice's prompt, if asked for.
    pub(crate) prompt_ids: Option<Vec<Vec<u32>>>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    /// How each prompt relates to an earlier answer.
    pub(crate) starts: Vec<Start>,
    /// The id in its prompt, if ids are looked for.
    pub(crate) id: Option<String>,
}

/// The fields the simulator looks at; all others are accepted and ignored, as vLLM does.
#[derive(Deserialize)]
struct Wire<'a> {
    model: Option<String>,
    #[serde(borrow)]
    messages: Option<Vec<Message<'a>>>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<usize>,
    #[serde(borrow)]
    stop: Option<&'a RawValue>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f64>,
    ignore_eos: Option<bool>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    return_token_ids: Option<bool>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_choice: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

impl Ask {
    /// Understands a request, or says why not.
    pub(crate) fn parse(shape: Shape, body: &[u8], settings: &Settings) -> Result<Self, Refusal> {
        let wire: Wire<'_> = decode(body)?;
        wire.check()?;
        let (prompts, tool) = wire.prompts(shape)?;
        let model = served(wire.model.as_deref(), settings)?;
        let stops = wire.stops()?;
        let last = settings.react && stops.iter().any(|stop| stop.starts_with("Observation"));
        let mut answers = Vec::with_capacity(1);
        let mut starts = Vec::with_capacity(1);
        let mut prompt_ids = wire.return_token_ids.unwrap_or(false).then(Vec::new);
        let prompt_tokens = prompts.iter().map(Prompt::tokens).sum();
        let id = settings.follow.as_ref().and_then(|prefix| {
            let mut texts = prompts.iter().map(|prompt| &prompt.text);
            texts.find_map(|text| id_in(text, prefix))
        });
        for prompt in prompts {
            let limits = wire.limits(prompt.tokens(), settings)?;
            let (sequence, place, start) = locate(&prompt.text, &prompt.generated, last);
            starts.push(start);
            for choice in 0..wire.n.unwrap_or(1).max(1) {
                let sequence = sequence.choice(choice);
                answers.push(match (&tool, &settings.say) {
                    (_, Some(text)) => Answer::Text(Plan::said(text, sequence, limits, &stops)),
                    (Some(name), None) => Answer::Tool(Tool::call(name, sequence)),
                    (None, None) => Answer::Text(Plan::new(sequence, place, limits, &stops)),
                });
            }
            if let Some(ids) = &mut prompt_ids {
                ids.resize(answers.len(), prompt.into_ids());
            }
        }
        let options = wire.stream_options.unwrap_or_default();
        Ok(Self {
            shape,
            model,
            answers,
            prompt_tokens,
            prompt_ids,
            stream: wire.stream.unwrap_or(false),
            include_usage: options.include_usage.unwrap_or(false),
            continuous_usage: options.continuous_usage_stats.unwrap_or(false),
            starts,
            id,
        })
    }

    /// The length of its longest answer.
    pub(crate) fn tokens(&self) -> usize {
        self.answers.iter().map(Answer::tokens).max().unwrap_or(0)
    }
}

/// Decodes a JSON body; what does not decode is the client's mistake, told as vLLM tells it.
pub(crate) fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            return Refusal::invalid("body", "value_error", &error.to_string());
        }
        Refusal::invalid(
            &format!("body.{}", error.column()),
            "json_invalid",
            "JSON decode error",
        )
    })
}

/// The model that will answer; the first one if the request names none.
pub(crate) fn served(model: Option<&str>, settings: &Settings) -> Result<String, Refusal> {
    match model {
        Some(model) if settings.model.iter().any(|served| served == model) => Ok(model.to_owned()),
        Some(model) => Err(Refusal::unknown_model(model, &settings.model)),
        None => Ok(settings.model.first().cloned().unwrap_or_default()),
    }
}

impl Wire<'_> {
    fn check(&self) -> Result<(), Refusal> {
        let asks_for_both =
            self.continue_final_message == Some(true) && self.add_generation_prompt.unwrap_or(true);
        if asks_for_both {
            let message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True.";
            return Err(Refusal::bad("add_generation_prompt", message.to_owned()));
        }
        if let Some(temperature) = self.temperature.filter(|temperature| *temperature < 0.0) {
            let text = format!(
                "temperature must be non-negative, got {temperature:?}. (parameter=temperature, value={temperature:?})"
            );
            return Err(Refusal::bad("temperature", text));
        }
        if self.stream_options.is_some() && self.stream != Some(true) {
            let text = "Stream options can only be defined when `stream=True`. (parameter=stream_options)";
            return Err(Refusal::bad("stream_options", text.to_owned()));
        }
        Ok(())
    }

    /// The prompts, and the name of the function to call if the request calls for one.
    fn prompts(&self, shape: Shape) -> Result<(Vec<Prompt>, Option<String>), Refusal> {
        let missing = |field: &str| Refusal::invalid(&format!("body.{field}"), "missing", "Field required");
        match shape {
            Shape::Text => {
                let prompt = self.prompt.ok_or_else(|| missing("prompt"))?;
                Ok((Prompt::parse("prompt", prompt.get())?, None))
            }
            Shape::Chat => {
                let messages = self.messages.as_ref().ok_or_else(|| missing("messages"))?;
                let ending = Ending {
                    generation_prompt: self.add_generation_prompt.unwrap_or(true),
                    continue_final: self.continue_final_message.unwrap_or(false),
                };
                let tool = self.tools.and_then(|tools| {
                    Tool::wanted(tools.get(), self.tool_choice.map(RawValue::get), messages)
                });
                Ok((vec![Prompt::of_messages(messages, ending)], tool))
            }
        }
    }

    fn limits(&self, prompt_tokens: usize, settings: &Settings) -> Result<Limits, Refusal> {
        let context = settings.context;
        if prompt_tokens > context {
            return Err(Refusal::long_prompt(context));
        }
        let room = context - prompt_tokens;
        let raw = self.max_completion_tokens.or(self.max_tokens);
        let budget = match raw.map(usize::try_from) {
            Some(Ok(asked)) if asked > 0 && asked <= room => asked,
            Some(asked) => return Err(refuse_budget(asked.ok(), raw, prompt_tokens, context)),
            // The natural length decides then, on either endpoint.
            None => room,
        };
        let natural = (!self.ignore_eos.unwrap_or(false)).then_some(settings.tokens);
        Ok(Limits { budget, natural })
    }

    fn stops(&self) -> Result<Vec<String>, Refusal> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Stop {
            None(()),
            One(String),
            Many(Vec<String>),
        }
        let Some(stop) = self.stop else {
            return Ok(Vec::new());
        };
        match serde_json::from_str(stop.get()) {
            Ok(Stop::None(())) => Ok(Vec::new()),
            Ok(Stop::One(stop)) => Ok(vec![stop]),
            Ok(Stop::Many(stops)) => Ok(stops),
            Err(_) => Err(Refusal::invalid(
                "body.stop",
                "string_type",
                "Input should be a valid string",
            )),
        }
    }
}

/// The first id in a prompt: the prefix and the letters, digits and dashes behind it.
fn id_in(text: &str, prefix: &str) -> Option<String> {
    let found = &text[text.find(prefix)?..];
    let behind = found[prefix.len()..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let end = behind.map_or(found.len(), |behind| prefix.len() + behind);
    Some(found[..end].to_owned())
}

fn refuse_budget(asked: Option<usize>, raw: Option<i64>, prompt: usize, context: usize) -> Refusal {
    let Some(asked) = asked.filter(|asked| *asked > 0) else {
        let raw = raw.unwrap_or_default();
        let text = format!("max_tokens must be at least 1, got {raw}. (parameter=max_tokens, value={raw})");
        return Refusal::bad("max_tokens", text);
    };
    if asked > context {
        let text = format!(
            "max_tokens={asked} cannot be greater than max_model_len={context}. Please request fewer output tokens. \
             (parameter=max_tokens, value={asked})"
        );
        return Refusal::bad("max_tokens", text);
    }
    let text = format!(
        "This model's maximum context length is {context} tokens. However, you requested {asked} output tokens and \
         your prompt contains at least {prompt} input tokens, for a total of at least {} tokens. Please reduce the \
         length of the input prompt or the number of requested output tokens. (parameter=input_tokens, value={prompt})",
        asked + prompt
    );
    Refusal::bad("input_tokens", text)
}
