//! Prompts: chat messages rendered by a simple template, plain text, or token ids.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::refusal::Refusal;
use super::sequence::ASSISTANT;
use super::vocabulary::{self, Token};

/// One chat message as far as the template looks at it.
#[derive(Debug, Deserialize)]
pub(crate) struct Message<'a> {
    pub(crate) role: String,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}

/// What the model reads before it answers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// The prompt's text.
    pub(crate) text: String,
    /// Text the model said already, when the prompt came as ids and ends with generated ones.
    pub(crate) generated: String,
    /// The ids, if the prompt came as such.
    ids: Option<Vec<u32>>,
}

/// How the end of the chat prompt is to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// Ask for a new answer.
    pub(crate) generation_prompt: bool,
    /// Leave the last message open so that the answer goes on from it.
    pub(crate) continue_final: bool,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

impl Message<'_> {
    /// The message's text; parts that are not text are left out.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        let Some(raw) = self.content.map(RawValue::get) else {
            return Cow::Borrowed("");
        };
        if let Some(plain) = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'))
            && !plain.contains('\\')
        {
            return Cow::Borrowed(plain);
        }
        if let Ok(text) = serde_json::from_str::<String>(raw) {
            return Cow::Owned(text);
        }
        let parts: Vec<Part<'_>> = serde_json::from_str(raw).unwrap_or_default();
        Cow::Owned(parts.into_iter().filter_map(|part| part.text).collect())
    }
}

impl Prompt {
    /// Renders chat messages.
    pub(crate) fn of_messages(messages: &[Message<'_>], ending: Ending) -> Self {
        let mut text = String::with_capacity(256);
        for (index, message) in messages.iter().enumerate() {
            text.extend(["<|", &message.role, "|>\n", &message.text()]);
            text.push_str(message.tool_calls.map_or("", RawValue::get));
            if !(ending.continue_final && index + 1 == messages.len()) {
                text.push('\n');
            }
        }
        if ending.generation_prompt {
            text.push_str(ASSISTANT);
        }
        Self::of_text(text)
    }

    /// A prompt given as text.
    pub(crate) fn of_text(text: String) -> Self {
        Self {
            text,
            ..Self::default()
        }
    }

    /// A prompt given as token ids: bytes up to the last one that holds bytes, generated text behind it.
    pub(crate) fn of_ids(ids: Vec<u32>) -> Result<Self, Refusal> {
        let mut text = Vec::new();
        let mut generated = String::new();
        for id in &ids {
            match vocabulary::decode(*id) {
                Some(Token::Text(word)) => generated.push_str(word),
                Some(Token::Bytes(bytes)) => {
                    text.extend(std::mem::take(&mut generated).into_bytes());
                    text.extend(bytes);
                }
                None => {
                    return Err(Refusal::bad(
                        "prompt",
                        format!("Token id {id} is out of vocabulary"),
                    ));
                }
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(Self {
            text,
            generated,
            ids: Some(ids),
        })
    }

    /// The prompts in a `prompt` or `input` field: a text, texts, ids, or several lists of ids.
    pub(crate) fn parse(field: &str, raw: &str) -> Result<Vec<Self>, Refusal> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Texts(Vec<String>),
            Ids(Vec<u32>),
            Batches(Vec<Vec<u32>>),
        }
        let location = format!("body.{field}");
        let form = serde_json::from_str(raw)
            .map_err(|_| Refusal::invalid(&location, "string_type", "Input should be a valid string"))?;
        match form {
            Form::Text(text) => Ok(vec![Self::of_text(text)]),
            Form::Texts(texts) => Ok(texts.into_iter().map(Self::of_text).collect()),
            Form::Ids(ids) => Ok(vec![Self::of_ids(ids)?]),
            Form::Batches(batches) => batches.into_iter().map(Self::of_ids).collect(),
        }
    }

    /// How many tokens it has.
    pub(crate) fn tokens(&self) -> usize {
        self.ids
            .as_ref()
            .map_or_else(|| vocabulary::count(&self.text), Vec::len)
    }

    /// Its token ids.
    pub(crate) fn into_ids(self) -> Vec<u32> {
        self.ids.unwrap_or_else(|| vocabulary::encode(&self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(messages: &str, continue_final: bool) -> String {
        let messages: Vec<Message<'_>> = serde_json::from_str(messages).unwrap();
        let ending = Ending {
            generation_prompt: !continue_final,
            continue_final,
        };
        Prompt::of_messages(&messages, ending).text
    }

    #[test]
    fn a_prefilled_answer_stands_right_behind_the_prompt_it_answers() {
        let fresh = rendered(r#"[{"role":"user","content":"a\n\"b\""}]"#, false);
        let prefilled = rendered(
            r#"[{"role":"user","content":[{"type":"text","text":"a\n\"b\""}]},{"role":"assistant","content":" ok"}]"#,
            true,
        );
        assert_eq!(fresh, "<|user|>\na\n\"b\"\n<|assistant|>\n");
        assert_eq!(prefilled, format!("{fresh} ok"));
    }

    #[test]
    fn ids_of_prompt_and_answer_come_apart_again() {
        let mut ids = vocabulary::encode("héllo");
        ids.extend([5, 9]);
        let prompt = Prompt::of_ids(ids).unwrap();
        assert_eq!(prompt.text, "héllo");
        assert_eq!(
            prompt.generated,
            format!("{}{}", vocabulary::text(5), vocabulary::text(9))
        );
        assert_eq!(prompt.tokens(), 4);
    }
}
