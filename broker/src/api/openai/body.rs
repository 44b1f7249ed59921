//! An OpenAI request's body: parsed once, kept raw.

use std::borrow::Cow;

use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_contract::snapshot::Model;
use serde_json::value::RawValue;

use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::prompt::budget;

/// Fields that are read here; a second one of them could tell the model server
/// something else than us.
const READ: [&str; 6] = ["model", "messages", "prompt", "input", "stream", "stream_options"];
const MAX_MODEL_NAME: usize = 128;

/// What is known of a body; everything else passes through.
#[derive(Debug)]
pub(in crate::api) struct OpenAiRequest<'a> {
    /// The model it names.
    pub(in crate::api) model: Cow<'a, str>,
    /// Does it want a stream?
    pub(in crate::api) stream: bool,
    /// Did it ask for usage at the end of the stream?
    pub(in crate::api) wants_usage: bool,
    /// Its messages, prompt or input.
    input: &'a RawValue,
    input_name: &'static str,
    fields: Fields<'a>,
}

impl<'a> OpenAiRequest<'a> {
    /// Reads what has to be known.
    ///
    /// # Errors
    /// Not JSON, or a field that is missing, doubled or of another type.
    pub(in crate::api) fn parse(body: &'a [u8], endpoint: Endpoint) -> Result<Self, ApiError> {
        let fields = Fields::parse(body)?;
        for name in READ {
            if fields.entries().iter().filter(|(key, _)| key == name).count() > 1 {
                return Err(fields.invalid(name, "may be given once"));
            }
        }
        let model = fields.required_text("model", MAX_MODEL_NAME)?;
        let stream = fields.flag("stream")?;
        if stream && matches!(endpoint, Endpoint::Embeddings | Endpoint::Infer) {
            return Err(fields.invalid("stream", "embeddings come whole"));
        }
        let options = if stream {
            fields.object("stream_options")?
        } else {
            None
        };
        let wants_usage = options.map_or(Ok(false), |options| options.flag("include_usage"))?;
        let input_name = match endpoint {
            Endpoint::ChatCompletions => "messages",
            Endpoint::Completions => "prompt",
            Endpoint::Embeddings => "input",
            Endpoint::Infer => "inputs",
        };
        let input = fields
            .raw(input_name)
            .ok_or_else(|| fields.required(input_name))?;
        match (input_name, input.get().as_bytes().first()) {
            (_, Some(b'[')) | ("prompt" | "input", Some(b'"')) => {}
            ("messages", _) => return Err(fields.invalid(input_name, "has to be a list of messages")),
            _ => return Err(fields.invalid(input_name, "has to be a string or a list")),
        }
        if input_name != "messages"
            && fields
                .list(input_name, usize::MAX)
                .is_ok_and(|list| list.is_empty())
        {
            return Err(fields.invalid(input_name, "may not be empty"));
        }
        if input_name == "messages" && fields.objects("messages", usize::MAX)?.is_empty() {
            return Err(fields.invalid(input_name, "may not be empty"));
        }
        Ok(Self {
            model,
            stream,
            wants_usage,
            input,
            input_name,
            fields,
        })
    }

    /// Refuses text that surely does not fit into the model's window. Pictures,
    /// sounds and token ids are not text.
    ///
    /// # Errors
    /// `context_length_exceeded`.
    pub(in crate::api) fn check_length(&self, model: &Model) -> Result<(), ApiError> {
        let text = self.input.get();
        if text.len() <= budget::most_bytes(model) || !is_text(text) {
            return Ok(());
        }
        // Of a list of texts to embed each has the window for itself.
        let each = (self.input_name == "input")
            .then(|| self.fields.list(self.input_name, usize::MAX).ok())
            .flatten();
        if each.is_some_and(|each| {
            each.iter()
                .all(|one| one.get().len() <= budget::most_bytes(model))
        }) {
            return Ok(());
        }
        Err(ApiError::ContextLength {
            path: self.input_name,
            window: model.context_tokens,
        })
    }

    /// The body without the model, which the worker names as its server knows
    /// it. A stream always asks for usage, for the record.
    pub(in crate::api) fn for_model_server(&self) -> Bytes {
        let entries = self.fields.entries();
        let size: usize = entries
            .iter()
            .map(|(key, value)| key.len() + value.get().len() + 4)
            .sum();
        let mut body = Vec::with_capacity(size + 48);
        body.push(b'{');
        for (key, value) in entries {
            if key == "model" || (self.stream && key == "stream_options") {
                continue;
            }
            push_member(&mut body, key, value.get());
        }
        if self.stream {
            push_member(&mut body, "stream_options", &self.stream_options());
        }
        body.push(b'}');
        body.into()
    }

    /// The client's own options, with usage.
    fn stream_options(&self) -> String {
        let mut options = vec![b'{'];
        if let Ok(Some(own)) = self.fields.object("stream_options") {
            for (key, value) in own.entries().iter().filter(|(key, _)| key != "include_usage") {
                push_member(&mut options, key, value.get());
            }
        }
        push_member(&mut options, "include_usage", "true");
        options.push(b'}');
        String::from_utf8(options).expect("made of text")
    }
}

fn push_member(object: &mut Vec<u8>, key: &str, value: &str) {
    if object.len() > 1 {
        object.push(b',');
    }
    serde_json::to_writer(&mut *object, key).expect("text serialises into memory");
    object.push(b':');
    object.extend_from_slice(value.as_bytes());
}

fn is_text(input: &str) -> bool {
    let token_ids = input
        .trim_start_matches(['[', ' ', '\n', '\r', '\t'])
        .starts_with(|first: char| first.is_ascii_digit());
    !token_ids
        && !["\"image_url\"", "\"input_audio\"", "\"file\"", "\"video_url\""]
            .iter()
            .any(|kind| input.contains(kind))
}
