//! Where a continued answer goes on: what comes of the model server is made
//! to look as if the first attempt had never been cut.

use duo_contract::claim::Have;
use duo_contract::frame::Tokens;
use serde_json::{Map, Value, json};

use crate::model_server::Fault;

/// How the chunks of the rest follow on those that the client has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seam {
    /// The chunks are to be a chat's, while a completion's come.
    pub(super) chat: bool,
    /// Text to go before the first.
    pub(super) say: String,
    /// Text that the server says again and the client has.
    pub(super) skip: String,
    /// Ids of the prompt proper.
    pub(super) prompt: Option<Vec<u32>>,
    /// How many of the earlier attempts' ids this one goes on after.
    pub(super) after: u32,
    /// How many ids more the client has been told.
    pub(super) told: usize,
    /// Tokens of the answer that the server takes for a part of the prompt.
    pub(crate) earlier: u64,
}

impl Seam {
    /// Behind all of the text, of which the tokens are counted as far as chunks tell.
    pub(super) fn of_text(have: &Have) -> Self {
        let counted = match &have.token_ids {
            Some(_) => have.covered,
            None => have.pieces.len(),
        };
        Self {
            earlier: u64::try_from(counted).unwrap_or(u64::MAX),
            ..Self::default()
        }
    }

    /// What the owner has to know of the ids before the first chunk.
    pub(crate) fn start(&mut self) -> Option<Tokens> {
        Some(Tokens {
            prompt: self.prompt.take()?,
            after: self.after,
            ..Tokens::default()
        })
    }

    /// The lines that stand for one event; with `hide`, without token ids.
    ///
    /// # Errors
    /// The server does not say again what the client has.
    pub(crate) fn event(&mut self, event: &[u8], hide: bool) -> Result<Vec<Vec<u8>>, Fault> {
        let Ok(Value::Object(mut chunk)) = serde_json::from_slice(event) else {
            return Ok(Vec::new());
        };
        if let Some(Value::Object(usage)) = chunk.get_mut("usage") {
            self.count(usage);
        }
        let choice = chunk.get_mut("choices").and_then(|choices| choices.get_mut(0));
        let Some(choice) = choice.and_then(Value::as_object_mut) else {
            if self.chat {
                chunk.insert("object".to_owned(), json!("chat.completion.chunk"));
            }
            return Ok(vec![written(&chunk)]);
        };
        self.ids(choice, hide);
        if let Some(Value::String(text)) = choice.get_mut("text") {
            let shown = self.shown(text)?;
            let silent = shown.is_empty() && !text.is_empty();
            *text = shown;
            if silent && choice.get("finish_reason").is_none_or(Value::is_null) {
                return Ok(Vec::new());
            }
        }
        if !self.chat {
            return Ok(vec![written(&chunk)]);
        }
        to_delta(choice);
        chunk.insert("object".to_owned(), json!("chat.completion.chunk"));
        // A chat's usage has a chunk of its own, unless it comes with each.
        let ends = chunk["choices"][0]["finish_reason"].is_string();
        let usage = chunk.remove("usage").filter(|usage| ends && usage.is_object());
        let mut lines = vec![written(&chunk)];
        if let Some(usage) = usage {
            chunk.insert("usage".to_owned(), usage);
            chunk.insert("choices".to_owned(), json!([]));
            lines.push(written(&chunk));
        }
        Ok(lines)
    }

    /// What the client is to get of `text`.
    fn shown(&mut self, text: &str) -> Result<String, Fault> {
        if self.skip.is_empty() || text.is_empty() {
            return Ok(std::mem::take(&mut self.say) + text);
        }
        let same = self.skip.len().min(text.len());
        if self.skip.as_bytes()[..same] != text.as_bytes()[..same] {
            return Err(Fault::server("the answer broke off and goes on differently"));
        }
        self.skip.drain(..same);
        Ok(text[same..].to_owned())
    }

    fn ids(&mut self, choice: &mut Map<String, Value>, hide: bool) {
        if hide || choice.contains_key("prompt_token_ids") {
            choice.insert("prompt_token_ids".to_owned(), Value::Null);
        }
        match choice.get_mut("token_ids") {
            Some(ids) if hide => *ids = Value::Null,
            Some(Value::Array(ids)) => {
                let again = self.told.min(ids.len());
                self.told -= again;
                ids.drain(..again);
            }
            _ => {}
        }
    }

    /// Counts the whole answer.
    fn count(&self, usage: &mut Map<String, Value>) {
        let mut change = |name: &str, count: fn(u64, u64) -> u64| {
            if let Some(tokens) = usage.get(name).and_then(Value::as_u64) {
                usage.insert(name.to_owned(), count(tokens, self.earlier).into());
            }
        };
        change("prompt_tokens", u64::saturating_sub);
        change("completion_tokens", u64::saturating_add);
    }
}

/// A completion's choice as a chat's.
fn to_delta(choice: &mut Map<String, Value>) {
    choice.remove("prompt_token_ids");
    let text = choice.remove("text").unwrap_or_default();
    let ends = choice.get("finish_reason").is_some_and(Value::is_string);
    if !ends {
        choice.remove("stop_reason");
    }
    let delta = if ends && text == "" {
        json!({})
    } else {
        json!({"content": text})
    };
    choice.insert("delta".to_owned(), delta);
}

fn written(chunk: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(chunk).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(seam: &mut Seam, event: &Value) -> Vec<Value> {
        let lines = seam.event(event.to_string().as_bytes(), true).expect("goes on");
        let lines = lines
            .iter()
            .map(|line| serde_json::from_slice(line).expect("JSON"));
        lines.collect()
    }

    fn text(text: &str) -> Value {
        json!({"object": "text_completion", "choices": [
            {"index": 0, "text": text, "finish_reason": null, "stop_reason": null, "prompt_token_ids": [1], "token_ids": [5]},
        ]})
    }

    #[test]
    fn a_completions_chunks_become_a_chats() {
        let mut seam = Seam {
            chat: true,
            earlier: 3,
            ..Seam::default()
        };
        let chunk = json!({"object": "chat.completion.chunk", "choices": [
            {"index": 0, "delta": {"content": "lo"}, "finish_reason": null, "token_ids": null},
        ]});
        assert_eq!(event(&mut seam, &text("lo")), [chunk]);
        // As llama-server ends a completion.
        let end = json!({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10}, "timings": {}});
        let lines = event(&mut seam, &end);
        assert_eq!(lines[0]["choices"][0]["finish_reason"], "stop");
        assert_eq!(
            (&lines[0]["choices"][0]["delta"], &lines[0]["usage"]),
            (&json!({}), &Value::Null)
        );
        assert_eq!(lines[1]["choices"], json!([]));
        assert_eq!(
            lines[1]["usage"],
            json!({"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10})
        );
    }

    #[test]
    fn what_the_client_has_is_not_said_again() {
        let mut seam = Seam {
            skip: "hello".to_owned(),
            ..Seam::default()
        };
        assert!(event(&mut seam, &text("hel")).is_empty());
        assert_eq!(event(&mut seam, &text("lo w"))[0]["choices"][0]["text"], " w");
        assert_eq!(event(&mut seam, &text("orld"))[0]["choices"][0]["text"], "orld");
    }

    #[test]
    fn an_answer_that_goes_on_differently_is_a_fault() {
        let mut seam = Seam {
            skip: "hello".to_owned(),
            ..Seam::default()
        };
        assert!(seam.event(text("help").to_string().as_bytes(), true).is_err());
    }

    #[test]
    fn what_was_held_back_goes_first() {
        let mut seam = Seam {
            say: "wor".to_owned(),
            ..Seam::default()
        };
        assert_eq!(event(&mut seam, &text("ld"))[0]["choices"][0]["text"], "world");
        assert_eq!(event(&mut seam, &text("!"))[0]["choices"][0]["text"], "!");
    }

    #[test]
    fn ids_that_the_client_asked_for_are_told_once() {
        let mut seam = Seam {
            told: 1,
            ..Seam::default()
        };
        let line = seam
            .event(text("x").to_string().as_bytes(), false)
            .expect("goes on");
        let line: Value = serde_json::from_slice(&line[0]).expect("JSON");
        assert_eq!(line["choices"][0]["token_ids"], json!([]));
        let line = seam
            .event(text("x").to_string().as_bytes(), false)
            .expect("goes on");
        let line: Value = serde_json::from_slice(&line[0]).expect("JSON");
        assert_eq!(line["choices"][0]["token_ids"], json!([5]));
    }

    /// The answer as events that are cut at `cuts`, and what of it is shown.
    fn goes_on(seam: &mut Seam, answer: &str, cuts: &[usize]) -> Result<String, Fault> {
        let mut cuts: Vec<_> = cuts.iter().map(|at| answer.floor_char_boundary(*at)).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let mut shown = String::new();
        for ends in cuts.windows(2) {
            let event = text(&answer[ends[0]..ends[1]]).to_string();
            for line in seam.event(event.as_bytes(), true)? {
                let line: Value = serde_json::from_slice(&line).expect("JSON");
                let choice = &line["choices"][0];
                let said = choice.get("text").unwrap_or(&choice["delta"]["content"]);
                shown.push_str(said.as_str().expect("text"));
            }
        }
        Ok(shown)
    }

    proptest! {
        #[test]
        fn an_answer_goes_on_the_same_however_it_is_cut(
            answer in "[a-c\u{e4}\u{1f600}\"]{0,16}",
            has in 0usize..40,
            cuts in prop::collection::vec(0usize..40, 0..6),
            chat in any::<bool>(),
        ) {
            let (has, rest) = answer.split_at(answer.floor_char_boundary(has));
            let behind = Seam { skip: has.to_owned(), chat, ..Seam::default() };
            prop_assert_eq!(goes_on(&mut behind.clone(), &answer, &cuts).ok(), Some(rest.to_owned()));
            let ahead = Seam { say: has.to_owned(), chat, ..Seam::default() };
            // What is said first goes with the first event.
            prop_assert_eq!(goes_on(&mut ahead.clone(), rest, &cuts).ok(), Some(answer.clone()));
        }

        #[test]
        fn one_that_differs_in_what_the_client_has_is_never_shown_as_its_rest(
            answer in "[a-c\u{e4}]{1,16}", at in any::<prop::sample::Index>(), cuts in prop::collection::vec(0usize..40, 0..6),
        ) {
            let at = answer.floor_char_boundary(at.index(answer.len()));
            let differs = format!("{}X{}", &answer[..at], &answer[at..]);
            let mut seam = Seam { skip: answer, ..Seam::default() };
            prop_assert!(goes_on(&mut seam, &differs, &cuts).is_err());
        }

        #[test]
        fn no_event_is_a_panic(
            event in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..80).boxed(),
                "(\\{|\\}|\\[|\\]|\"choices\":|\"text\":|\"usage\":|\"prompt_tokens\":|\"token_ids\":|\"finish_reason\":|\"x\"|7|null|,){0,24}"
                    .prop_map(String::into_bytes).boxed(),
            ],
            chat in any::<bool>(), hide in any::<bool>(), skip in "[a-z]{0,2}", told in 0usize..3,
        ) {
            let mut seam = Seam { chat, skip, told, earlier: u64::MAX, ..Seam::default() };
            let _lines = seam.event(&event, hide);
        }
    }
}
