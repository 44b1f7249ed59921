//! One question, with the answer that nobody cut.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::drill::random::Random;
use crate::harness::Answer;
use crate::harness::model_server::{Kind, ModelServer};

/// What prompts are made of.
const PARTS: [&str; 12] = [
    "def größe(x):\n    return x\n",
    "fn main() { println!(\"héllo\"); }\n",
    "漢字を数える関数",
    "# TODO: счёт 🦀\n",
    "a reviewer reads the merge request",
    "SELECT name FROM users WHERE ünlü = '…';\n",
    "for each item in the list call the function",
    "class Façade:\n\tpass\n",
    "What does a merge train do? ",
    "naïve café – €5 ",
    "x = [1, 2, 3]\n\n",
    "raise an error that names the missing field ",
];
/// Bytes of an answer that are shown before and after a difference.
const SHOWN: usize = 30;
/// Letters of a stop string taken from the answer.
const STOP_LETTERS: usize = 7;

/// A question and its answer.
#[derive(Debug)]
pub(super) struct Question {
    /// Where it goes.
    pub(super) path: &'static str,
    /// What is sent.
    pub(super) body: Value,
    whole: Said,
}

/// What a stream says, taken together.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: String,
    finish: Option<String>,
    usage: Option<[Option<u64>; 3]>,
    ids: Vec<u64>,
    done: bool,
}

impl Question {
    /// Draws one and asks the server itself for the answer.
    pub(super) async fn draw(kind: Kind, random: &mut Random, server: &ModelServer) -> Self {
        let mut prompt: String = (0..=random.below(6))
            .map(|_| PARTS[random.below(PARTS.len())])
            .collect();
        prompt.push_str(&format!("({})", random.below(1_000_000)));
        let tokens = match kind {
            Kind::Llama => 1500 + random.below(1500),
            Kind::Vllm => 60 + random.below(100),
        };
        let chat = random.chance(0.5);
        let mut body = json!({"model": "mistral", "temperature": 0, "stream": true});
        body["stream_options"] = json!({"include_usage": true});
        let limit = if random.chance(0.5) && chat {
            "max_completion_tokens"
        } else {
            "max_tokens"
        };
        body[limit] = tokens.into();
        let path = if chat {
            body["messages"] = json!([
                {"role": "system", "content": PARTS[random.below(PARTS.len())]},
                {"role": "user", "content": prompt},
            ]);
            "/v1/chat/completions"
        } else {
            body["prompt"] = prompt.into();
            "/v1/completions"
        };
        if kind == Kind::Vllm && random.chance(0.3) {
            body["return_token_ids"] = true.into();
        }
        let stops = random.chance(0.4);
        let mut question = Self {
            path,
            body,
            whole: Said::default(),
        };
        question.ask(server).await;
        if stops {
            question.stop(random);
            question.ask(server).await;
        }
        question
    }

    /// Lets a piece of the answer's second half stop it, if it is new there, and something that never comes.
    fn stop(&mut self, random: &mut Random) {
        let letters: Vec<char> = self.whole.text.chars().collect();
        let half = letters.len() / 2;
        let from = half + random.below((letters.len() - half).max(1));
        let stop: String = letters.iter().skip(from).take(STOP_LETTERS).collect();
        let mut stops = vec![json!("\n\nObservation:")];
        if !stop.is_empty()
            && self
                .whole
                .text
                .find(&stop)
                .is_some_and(|first| first > self.whole.text.len() / 3)
        {
            stops.push(stop.into());
        }
        self.body["stop"] = stops.into();
    }

    async fn ask(&mut self, server: &ModelServer) {
        let answer = server.call(self.path, &self.body).send().await.good();
        self.whole = self.said(&answer).expect("the server's own answer is sound");
    }

    /// What it is, for a report.
    pub(super) fn name(&self) -> String {
        self.body.to_string()
    }

    pub(super) fn is_chat(&self) -> bool {
        self.body.get("messages").is_some()
    }

    /// After how many events to cut, somewhere in the first two thirds.
    pub(super) fn cut_after(&self, random: &mut Random) -> usize {
        let tokens = self
            .whole
            .usage
            .and_then(|[_, generated, _]| generated)
            .unwrap_or(3);
        1 + random.below((tokens as usize * 2 / 3).max(1))
    }

    /// Is this the answer?
    pub(super) fn compare(&self, answer: &Answer) -> Result<(), String> {
        let said = self.said(answer)?;
        if said.text != self.whole.text {
            let same = said.text.bytes().zip(self.whole.text.bytes());
            let same = same.take_while(|(a, b)| a == b).count();
            let around = |text: &str| {
                let bytes = &text.as_bytes()[same.saturating_sub(SHOWN)..];
                String::from_utf8_lossy(&bytes[..bytes.len().min(2 * SHOWN)]).into_owned()
            };
            return Err(format!(
                "from byte {same} on {:?} instead of {:?}",
                around(&said.text),
                around(&self.whole.text),
            ));
        }
        if said != self.whole {
            let without_text =
                |said: &Said| format!("{:?} {:?} {:?} {}", said.finish, said.usage, said.ids, said.done);
            return Err(format!(
                "{} instead of {}",
                without_text(&said),
                without_text(&self.whole)
            ));
        }
        Ok(())
    }

    fn said(&self, answer: &Answer) -> Result<Said, String> {
        let mut said = Said::default();
        let (mut identities, mut roles) = (BTreeSet::new(), 0);
        for event in answer.events() {
            if event == "[DONE]" {
                said.done = true;
                continue;
            }
            let chunk: Value = serde_json::from_str(&event).map_err(|error| format!("{error}: {event}"))?;
            if chunk.get("error").is_some() {
                return Err(event);
            }
            identities.insert(format!(
                "{} {} {}",
                chunk["id"], chunk["created"], chunk["object"]
            ));
            if let Some(usage) = chunk["usage"].as_object() {
                let count = |name: &str| usage.get(name).and_then(Value::as_u64);
                said.usage = Some([
                    count("prompt_tokens"),
                    count("completion_tokens"),
                    count("total_tokens"),
                ]);
            }
            let Some(choice) = chunk["choices"].get(0) else {
                continue;
            };
            let text = choice.get("text").or_else(|| choice["delta"].get("content"));
            said.text
                .push_str(text.and_then(Value::as_str).unwrap_or_default());
            roles += usize::from(choice["delta"].get("role").is_some());
            if let Some(finish) = choice["finish_reason"].as_str() {
                said.finish = Some(finish.to_owned());
            }
            let ids = choice["token_ids"].as_array().into_iter().flatten();
            said.ids.extend(ids.filter_map(Value::as_u64));
        }
        if let Some(broken) = &answer.broken {
            return Err(format!("it broke off: {broken}"));
        }
        // llama-server writes the second in each chunk of its own.
        let ids: BTreeSet<_> = identities
            .iter()
            .map(|identity| identity.split(' ').next())
            .collect();
        if ids.len() != 1 || roles != usize::from(self.is_chat()) {
            return Err(format!("{identities:?} and {roles} roles"));
        }
        Ok(said)
    }
}
