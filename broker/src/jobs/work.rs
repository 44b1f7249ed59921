//! What a job asks of its model and what came of it, sealed as rows hold them.

use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_contract::frame::Summary;
use duo_contract::seal::{SealError, SealKeys};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::chunk;
use crate::prompt::answer::{self, End, Formatter, Unusable};
use crate::request::Work;
use crate::store::jobs::Sealed;

/// Why sealed bytes are of no use.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The key is another, or the bytes are.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Another version of this program wrote them.
    #[error("what the database holds of a job cannot be read")]
    Unreadable(#[from] serde_json::Error),
    /// The head is not there.
    #[error("what the database holds of a job is cut off")]
    Cut,
}

/// What a job asks of its model.
#[derive(Debug, Clone, PartialEq)]
pub struct JobWork {
    head: Head,
    body: Bytes,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Head {
    endpoint: Endpoint,
    stream: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt: Option<(String, String)>,
    form: Form,
}

/// What the answer is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The model's text, as it is.
    Text,
    /// The model's text in the form that the prompt of this id asks for; the ids of the documents it was given.
    Prompt(String, Vec<String>),
    /// The model server's answer, byte for byte.
    Body,
}

/// What came of a job.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// A text.
    Text(TextOutcome),
    /// A model server's answer.
    Body {
        /// As it came.
        body: Box<RawValue>,
    },
}

/// A text and how it came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextOutcome {
    /// The text.
    pub text: String,
    /// Why the model stopped, in the model server's word.
    pub finish_reason: Option<String>,
    /// Tokens, where the model server counts them.
    pub usage: Tokens,
}

/// Tokens of a prompt and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the prompt.
    pub input_tokens: Option<u64>,
    /// Generated.
    pub output_tokens: Option<u64>,
}

impl JobWork {
    /// Work whose answer takes the form `form`.
    #[must_use]
    pub fn new(work: Work, form: Form) -> Self {
        Self {
            head: Head {
                endpoint: work.endpoint,
                stream: work.stream,
                prompt: work.prompt,
                form,
            },
            body: work.body,
        }
    }

    /// Its template, id and version.
    #[must_use]
    pub fn prompt(&self) -> Option<&(String, String)> {
        self.head.prompt.as_ref()
    }

    /// What is to be sent to the model server.
    #[must_use]
    pub fn work(&self) -> Work {
        Work {
            endpoint: self.head.endpoint,
            body: self.body.clone(),
            stream: self.head.stream,
            prompt: self.head.prompt.clone(),
            supersede_key: None,
        }
    }

    /// Puts the answer together as it comes.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let formatter = match &self.head.form {
            Form::Prompt(id, sources) => Some(Formatter::new(id, sources.clone())),
            Form::Text | Form::Body => None,
        };
        Answer {
            is_body: self.head.form == Form::Body,
            is_stream: self.head.stream,
            formatter,
            text: String::new(),
        }
    }

    /// Sealed for the job `id`.
    ///
    /// # Errors
    /// The cipher failed.
    pub fn seal(&self, id: Uuid, keys: &SealKeys) -> Result<Sealed, WorkError> {
        let mut plain = serde_json::to_vec(&self.head)?;
        plain.push(b'\n');
        plain.extend_from_slice(&self.body);
        seal(keys, "input", id, &plain)
    }

    /// What was sealed.
    ///
    /// # Errors
    /// Another key, or bytes of another program.
    pub fn open(id: Uuid, sealed: &Sealed, keys: &SealKeys) -> Result<Self, WorkError> {
        let plain = Bytes::from(keys.open(&sealed.key_id, &aad("input", id), &sealed.bytes)?);
        let end = plain
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or(WorkError::Cut)?;
        let head = serde_json::from_slice(plain.get(..end).unwrap_or_default())?;
        Ok(Self {
            head,
            body: plain.slice(end + 1..),
        })
    }
}

impl Outcome {
    /// Sealed for the job `id`.
    ///
    /// # Errors
    /// The cipher failed.
    pub fn seal(&self, id: Uuid, keys: &SealKeys) -> Result<Sealed, WorkError> {
        seal(keys, "result", id, &serde_json::to_vec(self)?)
    }

    /// What was sealed.
    ///
    /// # Errors
    /// Another key, or bytes of another program.
    pub fn open(id: Uuid, sealed: &Sealed, keys: &SealKeys) -> Result<Self, WorkError> {
        let plain = keys.open(&sealed.key_id, &aad("result", id), &sealed.bytes)?;
        Self::read(&plain)
    }

    fn read(plain: &[u8]) -> Result<Self, WorkError> {
        // Bytes that are to stay as they are cannot be read twice, so it is looked first which kind this is.
        #[derive(Deserialize)]
        struct Kind {
            #[serde(default)]
            body: Option<Box<RawValue>>,
        }
        match serde_json::from_slice::<Kind>(plain)?.body {
            Some(body) => Ok(Self::Body { body }),
            None => Ok(Self::Text(serde_json::from_slice(plain)?)),
        }
    }
}

fn seal(keys: &SealKeys, what: &str, id: Uuid, plain: &[u8]) -> Result<Sealed, WorkError> {
    let mut bytes = Vec::with_capacity(plain.len() + SealKeys::OVERHEAD);
    let key_id = keys.seal(&aad(what, id), plain, &mut bytes)?;
    Ok(Sealed {
        key_id: key_id.into(),
        bytes,
    })
}

/// Sealed bytes of one job open for no other and as nothing else.
fn aad(what: &str, id: Uuid) -> Vec<u8> {
    format!("job {what} {id}").into_bytes()
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The model server sent something else.
    #[error(transparent)]
    Unreadable(#[from] chunk::Unreadable),
    /// Nothing can be made of it.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

/// An answer that is being put together.
#[derive(Debug)]
pub struct Answer {
    is_body: bool,
    is_stream: bool,
    formatter: Option<Formatter>,
    text: String,
}

impl Answer {
    /// Takes chunk objects, one a line; the text that a follower may see now.
    ///
    /// # Errors
    /// They are none.
    pub fn push(&mut self, lines: &[u8]) -> Result<String, AnswerError> {
        let mut shown = String::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Some(text) = chunk::text(line)? else {
                continue;
            };
            match &mut self.formatter {
                Some(formatter) => shown.push_str(&formatter.push(&text)),
                None => shown.push_str(&text),
            }
        }
        self.text.push_str(&shown);
        Ok(shown)
    }

    /// The end: what of the text was held back, and the whole.
    ///
    /// # Errors
    /// The model server's answer cannot be read, or nothing can be made of it.
    pub fn finish(mut self, summary: &Summary, body: &[u8]) -> Result<(String, Outcome), AnswerError> {
        if self.is_body {
            let body = serde_json::from_slice(body).map_err(|_| chunk::Unreadable)?;
            return Ok((String::new(), Outcome::Body { body }));
        }
        let (mut rest, mut finish_reason) = (String::new(), summary.finish_reason.clone());
        let mut usage = Tokens {
            input_tokens: summary.input_tokens,
            output_tokens: summary.output_tokens,
        };
        if self.is_stream {
            if let Some(formatter) = &mut self.formatter {
                let cut = finish_reason.as_deref() == Some("length");
                rest = formatter.finish(End { cut })?;
            }
        } else {
            let whole = chunk::whole(summary, body)?;
            let end = End { cut: whole.at_limit };
            rest = match self.formatter.take() {
                Some(formatter) => answer::whole(formatter, whole.text, end)?,
                None => whole.text,
            };
            finish_reason = whole.finish_reason.or(finish_reason);
            usage = Tokens {
                input_tokens: Some(whole.usage.prompt_tokens),
                output_tokens: Some(whole.usage.completion_tokens),
            };
        }
        self.text.push_str(&rest);
        let outcome = TextOutcome {
            text: self.text,
            finish_reason,
            usage,
        };
        Ok((rest, Outcome::Text(outcome)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        serde_json::from_str(r#"{"worker":"w","finish_reason":"stop","input_tokens":3,"output_tokens":2}"#)
            .expect("a summary")
    }

    fn job(form: Form, stream: bool) -> JobWork {
        let work = Work {
            endpoint: Endpoint::ChatCompletions,
            body: Bytes::from_static(b"{\"a\":\"x\ny\"}"),
            stream,
            prompt: Some(("p".to_owned(), "1.0.0".to_owned())),
            supersede_key: None,
        };
        JobWork::new(work, form)
    }

    #[test]
    fn what_is_sealed_opens_for_its_own_job_only() {
        let (keys, id) = (SealKeys::generate("k"), Uuid::now_v7());
        let job = job(Form::Prompt("chat/agent".to_owned(), vec!["d".to_owned()]), true);
        let sealed = job.seal(id, &keys).expect("seals");
        assert_eq!(JobWork::open(id, &sealed, &keys).expect("opens"), job);
        assert!(JobWork::open(Uuid::now_v7(), &sealed, &keys).is_err());
        assert!(
            Outcome::open(id, &sealed, &keys).is_err(),
            "an input is no result"
        );
    }

    #[test]
    fn a_text_is_put_together_from_chunks() {
        let mut answer = job(Form::Text, true).answer();
        let lines = b"{\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n{\"choices\":[{\"delta\":{\"content\":\"b\"}}]}";
        assert_eq!(answer.push(lines).expect("reads"), "ab");
        let (rest, outcome) = answer.finish(&summary(), b"").expect("ends");
        assert_eq!(rest, "");
        let shown = serde_json::to_value(&outcome).expect("JSON");
        let usage = serde_json::json!({"input_tokens": 3, "output_tokens": 2});
        assert_eq!(
            shown,
            serde_json::json!({"text": "ab", "finish_reason": "stop", "usage": usage})
        );
    }

    #[test]
    fn an_answer_in_the_wrong_form_is_none() {
        let mut answer = job(Form::Prompt("review_merge_request".to_owned(), Vec::new()), true).answer();
        let lines = b"{\"choices\":[{\"delta\":{\"content\":\"no review\"}}]}";
        assert_eq!(answer.push(lines).expect("reads"), "", "it is read whole");
        assert!(matches!(
            answer.finish(&summary(), b""),
            Err(AnswerError::Unusable(_))
        ));
    }

    #[test]
    fn a_body_stays_as_it_is() {
        let answer = job(Form::Body, false).answer();
        let (_, outcome) = answer.finish(&summary(), b"{\"data\": [1.50]}").expect("ends");
        let shown = serde_json::to_string(&outcome).expect("JSON");
        assert_eq!(shown, "{\"body\":{\"data\": [1.50]}}");
        let read = Outcome::read(shown.as_bytes()).expect("reads");
        assert!(matches!(read, Outcome::Body { .. }));
    }
}
