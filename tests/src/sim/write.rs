//! Replies as bytes, in the shapes vLLM sends.
//!
//! Written by hand: this server is the yardstick of the benchmarks, so it must not be what they measure.

use std::io::Write as _;

use bytes::Bytes;
use time::OffsetDateTime;

use super::answer::Answer;
use super::plan::escape;
use super::request::{Ask, Shape};

/// What real servers put here names their build.
const FINGERPRINT: &str = r#","system_fingerprint":"sim-1.0""#;
/// The end of every stream that was not cut.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";

/// Writes the reply to one request; keeps what all its parts have in common.
#[derive(Debug)]
pub(crate) struct Writer {
    head: Vec<u8>,
}

impl Writer {
    /// A writer for `ask`; `number` makes the reply's id.
    pub(crate) fn new(ask: &Ask, number: u64) -> Self {
        let (prefix, object) = match (ask.shape, ask.stream) {
            (Shape::Chat, true) => ("chatcmpl", "chat.completion.chunk"),
            (Shape::Chat, false) => ("chatcmpl", "chat.completion"),
            (Shape::Text, _) => ("cmpl", "text_completion"),
        };
        let created = OffsetDateTime::now_utc().unix_timestamp();
        let mut head = Vec::with_capacity(160);
        if ask.stream {
            head.extend_from_slice(b"data: ");
        }
        put(
            &mut head,
            format_args!(
                r#"{{"id":"{prefix}-{number:016x}","object":"{object}","created":{created},"model":""#
            ),
        );
        escape(&ask.model, &mut head);
        head.extend_from_slice(br#"","choices":["#);
        Self { head }
    }

    /// The event that opens a chat choice.
    pub(crate) fn role(&self, ask: &Ask, choice: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        put(
            out,
            format_args!(
                r#"{{"index":{choice},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]"#
            ),
        );
        continuous_usage(ask, 0, out);
        out.extend_from_slice(br#","prompt_token_ids":"#);
        put_ids(
            ask.prompt_ids
                .as_ref()
                .and_then(|ids| ids.get(choice))
                .map(Vec::as_slice),
            out,
        );
        out.extend_from_slice(b",\"prompt_text\":null}\n\n");
    }

    /// The event with the tokens `from..to` of a choice; `finish` if it is the last one.
    pub(crate) fn tokens(
        &self,
        ask: &Ask,
        choice: usize,
        (from, to): (usize, usize),
        finish: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        let answer = &ask.answers[choice];
        out.extend_from_slice(&self.head);
        put(out, format_args!(r#"{{"index":{choice},"#));
        self.delta(ask.shape, answer, (from, to), out);
        match finish {
            Some(finish) => put(
                out,
                format_args!(
                    r#","logprobs":null,"finish_reason":"{finish}","stop_reason":{}"#,
                    answer.stop()
                ),
            ),
            None => out.extend_from_slice(br#","logprobs":null,"finish_reason":null"#),
        }
        if ask.shape == Shape::Text {
            if finish.is_none() {
                out.extend_from_slice(br#","stop_reason":null"#);
            }
            out.extend_from_slice(br#","prompt_token_ids":"#);
            let ids = ask
                .prompt_ids
                .as_ref()
                .filter(|_| from == 0)
                .and_then(|ids| ids.get(choice));
            put_ids(ids.map(Vec::as_slice), out);
        }
        out.extend_from_slice(br#","token_ids":"#);
        put_ids(
            ask.prompt_ids.is_some().then(|| answer.ids(from, to)).as_deref(),
            out,
        );
        out.extend_from_slice(b"}]");
        continuous_usage(ask, to, out);
        if finish.is_some() && !ask.include_usage && choice + 1 == ask.answers.len() {
            out.extend_from_slice(FINGERPRINT.as_bytes());
        }
        out.extend_from_slice(b"}\n\n");
    }

    /// The event that tells how many tokens the whole reply took.
    pub(crate) fn usage(&self, ask: &Ask, generated: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        let (prompt, total) = (ask.prompt_tokens, ask.prompt_tokens + generated);
        put(
            out,
            format_args!(
                r#"],"usage":{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{generated}}}"#
            ),
        );
        out.extend_from_slice(FINGERPRINT.as_bytes());
        out.extend_from_slice(b"}\n\n");
    }

    /// An event cut off in the middle of its JSON.
    pub(crate) fn broken(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"{\"index\":0,\"delta\":{\"content\":\" oh\n\n");
    }

    /// The whole reply, with at most `limit` tokens of each choice; `finish` replaces the answer's own reason.
    pub(crate) fn whole(self, ask: &Ask, limit: usize, finish: Option<&str>) -> Bytes {
        let mut out = Vec::with_capacity(800 + ask.tokens().min(limit) * 8);
        out.extend_from_slice(&self.head);
        let mut generated = 0;
        for (choice, answer) in ask.answers.iter().enumerate() {
            let tokens = answer.tokens().min(limit);
            generated += tokens;
            if choice > 0 {
                out.push(b',');
            }
            put(&mut out, format_args!(r#"{{"index":{choice},"#));
            self.message(ask.shape, answer, tokens, &mut out);
            let finish = finish.unwrap_or_else(|| answer.finish());
            let stop = answer.stop();
            put(
                &mut out,
                format_args!(
                    r#","logprobs":null,"finish_reason":"{finish}","stop_reason":{stop},"token_ids":"#
                ),
            );
            put_ids(
                ask.prompt_ids.is_some().then(|| answer.ids(0, tokens)).as_deref(),
                &mut out,
            );
            if ask.shape == Shape::Text {
                out.extend_from_slice(br#","prompt_logprobs":null,"prompt_token_ids":"#);
                let ids = ask.prompt_ids.as_ref().and_then(|ids| ids.get(choice));
                put_ids(ids.map(Vec::as_slice), &mut out);
            }
            out.extend_from_slice(br#","routed_experts":null}"#);
        }
        let (prompt, total) = (ask.prompt_tokens, ask.prompt_tokens + generated);
        put(
            &mut out,
            format_args!(
                r#"],"service_tier":null{FINGERPRINT},"usage":{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{generated},"prompt_tokens_details":null,"completion_tokens_details":null}}"#
            ),
        );
        if ask.shape == Shape::Chat {
            out.extend_from_slice(br#","prompt_logprobs":null,"prompt_token_ids":"#);
            let ids = ask.prompt_ids.as_ref().and_then(|ids| ids.first());
            put_ids(ids.map(Vec::as_slice), &mut out);
            out.extend_from_slice(br#","prompt_text":null"#);
        }
        out.extend_from_slice(br#","kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}"#);
        Bytes::from(out)
    }

    fn delta(&self, shape: Shape, answer: &Answer, (from, to): (usize, usize), out: &mut Vec<u8>) {
        match (shape, answer) {
            (Shape::Chat, Answer::Tool(tool)) => {
                put(out, format_args!(r#""delta":{}"#, tool.delta(from, to)))
            }
            (Shape::Chat, _) => {
                out.extend_from_slice(br#""delta":{"content":""#);
                self.text(answer, (from, to), out);
                out.extend_from_slice(br#""}"#);
            }
            (Shape::Text, _) => {
                out.extend_from_slice(br#""text":""#);
                self.text(answer, (from, to), out);
                out.push(b'"');
            }
        }
    }

    fn message(&self, shape: Shape, answer: &Answer, tokens: usize, out: &mut Vec<u8>) {
        if shape == Shape::Text {
            return self.delta(shape, answer, (0, tokens), out);
        }
        out.extend_from_slice(br#""message":{"role":"assistant","content":"#);
        match answer {
            Answer::Tool(tool) => put(out, format_args!(r#"null,"tool_calls":{}"#, tool.whole())),
            Answer::Text(_) => {
                out.push(b'"');
                self.text(answer, (0, tokens), out);
                out.push(b'"');
            }
        }
        out.extend_from_slice(
            br#","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}"#,
        );
    }

    fn text(&self, answer: &Answer, (from, to): (usize, usize), out: &mut Vec<u8>) {
        if let Answer::Text(plan) = answer {
            for index in from..to {
                plan.write(index, out);
            }
        }
    }
}

fn continuous_usage(ask: &Ask, generated: usize, out: &mut Vec<u8>) {
    if ask.continuous_usage {
        let (prompt, total) = (ask.prompt_tokens, ask.prompt_tokens + generated);
        put(
            out,
            format_args!(
                r#","usage":{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{generated},"completion_tokens_details":null}}"#
            ),
        );
    }
}

fn put_ids(ids: Option<&[u32]>, out: &mut Vec<u8>) {
    let Some(ids) = ids else {
        return out.extend_from_slice(b"null");
    };
    out.push(b'[');
    for (index, id) in ids.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        put(out, format_args!("{comma}{id}"));
    }
    out.push(b']');
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a vector cannot fail.
    let _written = out.write_fmt(text);
}
