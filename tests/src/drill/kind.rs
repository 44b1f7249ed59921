//! The kinds of requests in a load: what is sent, and what every byte of the answer has to be.

use serde_json::{Value, json};

use super::history::End;
use crate::harness::cluster::{agent, chat, completion};
use crate::sim::expected;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A code completion in one piece, as an IDE asks at a keystroke.
    Keystroke,
    /// A code completion as a raw stream.
    KeystrokeStream,
    /// An OpenAI chat in one piece.
    Chat,
    /// An OpenAI chat as a stream.
    ChatStream,
    /// A turn of GitLab's chat: one JSON object a line.
    Agent,
    /// A prompt of GitLab's in one piece.
    Prompt,
    /// A prompt of GitLab's as a raw stream.
    PromptStream,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Keystroke,
        Self::KeystrokeStream,
        Self::Chat,
        Self::ChatStream,
        Self::Agent,
        Self::Prompt,
        Self::PromptStream,
    ];

    /// Where it is sent to.
    pub fn path(self) -> &'static str {
        match self {
            Self::Keystroke | Self::KeystrokeStream => "/v2/code/completions",
            Self::Chat | Self::ChatStream => "/v1/chat/completions",
            Self::Agent => "/v2/chat/agent",
            Self::Prompt | Self::PromptStream => "/v1/prompts/chat/explain_code",
        }
    }

    /// Is it asked by an OpenAI client with an API token, or else by GitLab for a person?
    pub fn is_openai(self) -> bool {
        matches!(self, Self::Chat | Self::ChatStream)
    }

    /// Is it of the keystroke lane, where an answer is worth nothing after two seconds?
    pub fn is_keystroke(self) -> bool {
        matches!(self, Self::Keystroke | Self::KeystrokeStream)
    }

    /// Is its answer a stream without any frame, in which a failure can only be a cut?
    pub fn is_raw(self) -> bool {
        matches!(self, Self::KeystrokeStream | Self::PromptStream)
    }

    /// Does its answer come in pieces?
    pub fn is_stream(self) -> bool {
        !matches!(self, Self::Keystroke | Self::Chat | Self::Prompt)
    }

    /// The body of the request with this id, whose answer is `words` words long where the client may say so.
    pub fn body(self, id: &str, words: usize) -> Value {
        match self {
            Self::Keystroke | Self::KeystrokeStream => {
                let mut body = completion(&format!("# {id}\ndef f(x):\n    "), self.is_stream());
                // A file of its own: a newer completion in the same file would replace this one.
                body["current_file"]["file_name"] = format!("app/{id}.py").into();
                body
            }
            Self::Chat => chat(&question(id), words, false),
            Self::ChatStream => {
                let mut body = chat(&question(id), words, true);
                body["stream_options"] = json!({"include_usage": true});
                body
            }
            Self::Agent => agent(&question(id)),
            Self::Prompt | Self::PromptStream => json!({
                "inputs": {"input": "/explain", "selected_text": format!("let x = \"{id}\";")},
                "prompt_version": "^1.0.0",
                "stream": self.is_stream(),
            }),
        }
    }

    /// The right answer, given what the model server was asked and how many words it says by itself.
    ///
    /// # Panics
    /// It was asked neither a chat nor a completion.
    pub fn answer(self, asked: &Value, natural: usize) -> String {
        let limit = asked["max_tokens"]
            .as_u64()
            .or_else(|| asked["max_completion_tokens"].as_u64());
        let words = limit.map_or(natural, |limit| natural.min(limit as usize));
        let said = |words| match (&asked["prompt"], &asked["messages"]) {
            (Value::String(prompt), _) => expected::completion_text(prompt, words),
            (_, messages) => expected::chat_text(&messages.to_string(), words).expect("messages"),
        };
        if self == Self::Agent {
            // A marker that is not shown takes the first word's place, and blanks behind it are not shown either.
            let behind = said(1).len();
            let shown = said(words).split_off(behind);
            let visible = shown.trim_start_matches(|c: char| c.is_whitespace() || c == '*');
            return visible.to_owned();
        }
        said(words)
    }

    /// What an answer's bytes mean, `ended` telling whether it ended as an answer should.
    pub fn judge(self, status: u16, body: &[u8], ended: bool, right: &str, words: usize) -> End {
        if status != 200 {
            return match ended {
                true => End::Failed {
                    status,
                    reason: reason(body),
                },
                false => End::Cut,
            };
        }
        match self {
            Self::Keystroke | Self::Chat | Self::Prompt if !ended => End::Cut,
            Self::Keystroke | Self::Chat | Self::Prompt => self.judge_whole(body, right, words),
            Self::KeystrokeStream | Self::PromptStream => judge_raw(body, ended, right),
            Self::ChatStream => judge_events(body, ended, right, words),
            Self::Agent => judge_lines(body, ended, right),
        }
    }

    fn judge_whole(self, body: &[u8], right: &str, words: usize) -> End {
        let Ok(json) = serde_json::from_slice::<Value>(body) else {
            return End::Corrupt(format!("no JSON: {}", text_of(body)));
        };
        let said = match self {
            Self::Keystroke if json["choices"] == json!([]) => return failed("no choices"),
            Self::Keystroke => json["choices"][0]["text"].as_str(),
            Self::Chat => {
                if json["usage"]["completion_tokens"] != words {
                    return End::Corrupt(format!("{words} words, but usage says {}", json["usage"]));
                }
                json["choices"][0]["message"]["content"].as_str()
            }
            _ => json.as_str(),
        };
        match said {
            Some(said) => compare(said, right),
            None => End::Corrupt(format!("no text in it: {}", text_of(body))),
        }
    }
}

fn question(id: &str) -> String {
    format!("{id}: what does this project do?")
}

fn failed(reason: &str) -> End {
    End::Failed {
        status: 200,
        reason: reason.to_owned(),
    }
}

fn compare(said: &str, right: &str) -> End {
    if said == right {
        return End::Whole;
    }
    let same = said
        .bytes()
        .zip(right.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    End::Corrupt(format!(
        "from byte {same} on: {} bytes instead of {}: {said:?} instead of {right:?}",
        said.len(),
        right.len()
    ))
}

/// What has come of an answer that was cut.
fn cut(said: &str, right: &str) -> End {
    if right.starts_with(said) {
        End::Cut
    } else {
        compare(said, right)
    }
}

fn judge_raw(body: &[u8], ended: bool, right: &str) -> End {
    if ended && body.is_empty() {
        return failed("nothing in it");
    }
    if !ended && right.as_bytes().starts_with(body) {
        return End::Cut;
    }
    compare(&String::from_utf8_lossy(body), right)
}

fn judge_events(body: &[u8], ended: bool, right: &str, words: usize) -> End {
    let text = String::from_utf8_lossy(body);
    let (mut said, mut finished, mut done, mut usage) = (String::new(), 0, false, Value::Null);
    let (mut ids, mut roles) = (Vec::new(), 0);
    // Behind the last blank line there is nothing, or an event of which a part is missing.
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
    for event in whole.split("\n\n").filter(|event| !event.is_empty()) {
        let Some(data) = event.strip_prefix("data: ") else {
            return End::Corrupt(format!("no event: {event:?}"));
        };
        if done {
            return End::Corrupt(format!("behind the end: {data}"));
        }
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let Ok(chunk) = serde_json::from_str::<Value>(data) else {
            return End::Corrupt(format!("no JSON: {data:?}"));
        };
        if let Some(error) = chunk.get("error") {
            if !right.starts_with(&said) {
                return compare(&said, right);
            }
            return failed(&reason(error.to_string().as_bytes()));
        }
        let choice = &chunk["choices"][0];
        said += choice["delta"]["content"].as_str().unwrap_or_default();
        finished += usize::from(choice["finish_reason"].is_string());
        roles += usize::from(choice["delta"]["role"].is_string());
        if chunk["usage"].is_object() {
            usage = chunk["usage"].clone();
        }
        ids.push(chunk["id"].clone());
    }
    if !done {
        return match ended {
            true => End::Corrupt(format!("it ends without an end: {said:?}")),
            false => cut(&said, right),
        };
    }
    ids.dedup();
    if finished != 1 || ids.len() != 1 || roles != 1 {
        return End::Corrupt(format!("{finished} finish reasons, {roles} roles, ids {ids:?}"));
    }
    if usage["completion_tokens"] != words {
        return End::Corrupt(format!("{words} words, but usage says {usage}"));
    }
    compare(&said, right)
}

fn judge_lines(body: &[u8], ended: bool, right: &str) -> End {
    let text = String::from_utf8_lossy(body);
    let (mut said, mut usage) = (String::new(), false);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.split('\n').filter(|line| !line.is_empty()) {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            return End::Corrupt(format!("no JSON: {line:?}"));
        };
        match event["type"].as_str() {
            Some("error") if right.starts_with(&said) => {
                return failed(&reason(event["data"].to_string().as_bytes()));
            }
            Some("error") => return compare(&said, right),
            Some("usage") => usage = true,
            Some("final_answer_delta" | "unknown") => {
                said += event["data"]["text"].as_str().unwrap_or_default();
            }
            _ => return End::Corrupt(format!("an event of another kind: {line}")),
        }
    }
    match (usage, ended) {
        (true, _) => compare(&said, right),
        (false, true) => End::Corrupt(format!("it ends without an end: {said:?}")),
        (false, false) => cut(&said, right),
    }
}

/// What an error says, in few words.
fn reason(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = if json["error"].is_object() {
        &json["error"]
    } else {
        &json
    };
    let told = ["code", "message", "error", "detail"]
        .iter()
        .find_map(|name| error[*name].as_str());
    told.map_or_else(|| text_of(body), str::to_owned)
}

fn text_of(body: &[u8]) -> String {
    const ENOUGH: usize = 200;
    let text = String::from_utf8_lossy(body);
    text.chars().take(ENOUGH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(said: &[&str], rest: &str) -> Vec<u8> {
        let mut text = String::new();
        for (number, word) in said.iter().enumerate() {
            let role = if number == 0 { "assistant" } else { "" };
            let mut delta = json!({"content": word});
            if !role.is_empty() {
                delta["role"] = role.into();
            }
            text += &format!(
                "data: {}\n\n",
                json!({"id": "x", "choices": [{"delta": delta, "finish_reason": null}]})
            );
        }
        (text + rest).into_bytes()
    }

    const END: &str = concat!(
        "data: {\"id\":\"x\",\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
        "data: {\"id\":\"x\",\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\n",
        "data: [DONE]\n\n"
    );

    #[test]
    fn a_stream_is_whole_cut_failed_or_corrupt() {
        let judge = |body: Vec<u8>, ended| Kind::ChatStream.judge(200, &body, ended, " a b", 2);
        assert_eq!(judge(events(&[" a", " b"], END), true), End::Whole);
        assert_eq!(judge(events(&[" a"], "data: {\"id"), false), End::Cut);
        assert!(matches!(judge(events(&[" a"], ""), true), End::Corrupt(_)));
        assert!(matches!(judge(events(&[" a", " a"], END), true), End::Corrupt(_)));
        assert!(matches!(judge(events(&[" b"], ""), false), End::Corrupt(_)));
        let error = "data: {\"error\":{\"code\":\"deadline\"}}\n\n";
        assert_eq!(judge(events(&[" a"], error), true), failed("deadline"));
    }

    #[test]
    fn a_raw_stream_that_ends_early_as_if_it_were_whole_is_corrupt() {
        let judge = |body: &[u8], ended| Kind::KeystrokeStream.judge(200, body, ended, " a b", 2);
        assert_eq!(judge(b" a b", true), End::Whole);
        assert_eq!(judge(b" a", false), End::Cut);
        assert!(matches!(judge(b" a", true), End::Corrupt(_)));
        assert_eq!(judge(b"", true), failed("nothing in it"));
    }

    #[test]
    fn an_agents_turn_ends_with_its_usage() {
        let judge = |body: &[u8], ended| Kind::Agent.judge(200, body, ended, "a b", 2);
        let said = b"{\"type\":\"final_answer_delta\",\"data\":{\"text\":\"a b\"}}\n".to_vec();
        let whole = [said.clone(), b"{\"type\":\"usage\",\"data\":{}}\n".to_vec()].concat();
        assert_eq!(judge(&whole, true), End::Whole);
        assert_eq!(judge(&said, false), End::Cut);
        assert!(matches!(judge(&said, true), End::Corrupt(_)));
    }
}
