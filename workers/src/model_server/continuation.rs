//! The call that continues an answer after what the client already has.
//!
//! By token ids where they are known or can be found, which is exact; else by
//! text. Ids go to `/v1/completions` for chats as well, and [`Seam`] makes chat
//! chunks of what comes back. Answers whose beginning is more than plain text
//! are not continued: several choices, log probabilities, tools and
//! constrained output.

mod llama;
mod seam;
mod vllm;

use bytes::Bytes;
use duo_contract::claim::Have;
use duo_contract::envelope::Endpoint;
use duo_contract::failure::{Failure, FailureKind};
use serde_json::{Map, Value, json};

use super::openai::Http;
use crate::config::ServerKind;

pub use seam::Seam;

/// Members whose answers cannot be taken up in the middle.
const NOT_CONTINUED: [&str; 12] = [
    "tools",
    "functions",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "prompt_logprobs",
    "echo",
    "suffix",
    "top_logprobs",
];
/// Members that only chats know, or that would change a prompt that is ids already.
const NOT_FOR_IDS: [&str; 19] = [
    "messages",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "documents",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "reasoning_effort",
    "include_reasoning",
    "response_format",
    "return_prompt_text",
    "logprobs",
    "top_logprobs",
    "add_special_tokens",
    "truncate_prompt_tokens",
];
/// Members that bound the tokens of an answer from above and from below.
const LIMITS: [&str; 3] = ["max_tokens", "max_completion_tokens", "n_predict"];
const LEAST: &str = "min_tokens";

/// What is to be asked of the model server.
#[derive(Debug)]
pub struct Continued {
    /// Which call it is.
    pub endpoint: Endpoint,
    /// Its members, without the model's.
    pub body: Bytes,
    /// Where its answer goes on; none if it begins anew.
    pub seam: Option<Seam>,
}

impl Continued {
    /// The request as it came.
    #[must_use]
    pub fn from_the_start(endpoint: Endpoint, body: Bytes) -> Self {
        Self {
            endpoint,
            body,
            seam: None,
        }
    }

    fn new(endpoint: Endpoint, body: &Map<String, Value>, seam: Seam) -> Option<Self> {
        Some(Self {
            endpoint,
            body: serde_json::to_vec(body).ok()?.into(),
            seam: Some(seam),
        })
    }
}

/// The call that continues `body`'s answer after `have`.
///
/// # Errors
/// The server or the request cannot be continued.
pub async fn continued(
    http: &Http,
    served_as: &str,
    endpoint: Endpoint,
    body: &Bytes,
    have: &Have,
) -> Result<Continued, Failure> {
    if have.text.is_empty() {
        return Ok(Continued::from_the_start(endpoint, body.clone()));
    }
    let continued = match Request::parse(endpoint, body) {
        None => None,
        Some(request) => match http.kind() {
            ServerKind::Vllm => vllm::continued(http, served_as, request, have).await,
            ServerKind::Llama => llama::continued(http, request, have).await,
            ServerKind::Openai | ServerKind::Kserve => None,
        },
    };
    continued.ok_or_else(|| {
        Failure::new(
            FailureKind::ModelServerFault,
            "the answer broke off and cannot be continued",
        )
    })
}

/// A request whose answer is one choice of plain text.
#[derive(Debug, Clone)]
struct Request {
    endpoint: Endpoint,
    body: Map<String, Value>,
}

impl Request {
    fn parse(endpoint: Endpoint, body: &[u8]) -> Option<Self> {
        let mut body: Map<String, Value> = serde_json::from_slice(body).ok()?;
        body.retain(|_, value| !value.is_null());
        let plain = !matches!(endpoint, Endpoint::Embeddings | Endpoint::Infer) && plain(&body);
        plain.then_some(Self { endpoint, body })
    }

    fn is_chat(&self) -> bool {
        self.endpoint == Endpoint::ChatCompletions
    }

    /// Is the prompt text alone? Ids say nothing of pictures and sounds.
    fn is_text(&self) -> bool {
        let Some(messages) = self.body.get("messages").and_then(Value::as_array) else {
            return self.body.contains_key("prompt");
        };
        let contents = messages.iter().map(|message| &message["content"]);
        let mut parts = contents.filter_map(Value::as_array).flatten();
        parts.all(|part| part["type"] == "text" || part.is_string())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name)?.as_str()
    }

    /// Tokens that the answer may have, as far as the request says.
    fn limit(&self) -> Option<u64> {
        let limits = LIMITS.iter().filter_map(|name| self.body.get(*name)?.as_u64());
        limits.min()
    }

    /// The rest of the answer from token ids.
    fn by_ids(mut self, ids: &[u32], seam: Seam) -> Option<Continued> {
        for name in NOT_FOR_IDS {
            self.body.remove(name);
        }
        if let Some(limit) = self.limit() {
            for name in LIMITS {
                self.body.remove(name);
            }
            self.body.insert(LIMITS[0].to_owned(), limit.into());
        }
        self.body.insert("prompt".to_owned(), json!(ids));
        self.spend(seam.earlier)?;
        Continued::new(Endpoint::Completions, &self.body, seam)
    }

    /// The rest of the answer from its text, behind the prompt's.
    fn by_text(mut self, have: &Have) -> Option<Continued> {
        let seam = Seam::of_text(have);
        let prompt = format!("{}{}", self.text("prompt")?, have.text);
        self.body.insert("prompt".to_owned(), prompt.into());
        self.spend(seam.earlier)?;
        Continued::new(self.endpoint, &self.body, seam)
    }

    /// Subtracts the tokens that were generated before from what bounds the answer.
    fn spend(&mut self, spent: u64) -> Option<()> {
        for name in LIMITS {
            if let Some(limit) = self.body.get(name).and_then(Value::as_u64) {
                let left = limit.checked_sub(spent).filter(|left| *left > 0)?;
                self.body.insert(name.to_owned(), left.into());
            }
        }
        if let Some(least) = self.body.get(LEAST).and_then(Value::as_u64) {
            self.body
                .insert(LEAST.to_owned(), least.saturating_sub(spent).into());
        }
        Some(())
    }
}

fn plain(body: &Map<String, Value>) -> bool {
    let set = |name: &str| {
        body.get(name).is_some_and(|value| {
            let unset = *value == Value::Bool(false) || value.as_array().is_some_and(Vec::is_empty);
            !unset && value["type"] != "text"
        })
    };
    let one = |name: &str| body.get(name).is_none_or(|value| *value == 1);
    let logprobs = body
        .get("logprobs")
        .is_some_and(|value| *value != Value::Bool(false));
    !logprobs && one("n") && one("best_of") && !NOT_CONTINUED.into_iter().any(set)
}

#[cfg(test)]
mod tests;
