//! Shortening a prompt's inputs to their room, by the rule of its template.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value};

/// What stands for text that was left out.
const LEFT_OUT: &str = "[... left out, because it is too long ...]";

/// One input that may be shortened. What the rules name first goes first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trim {
    /// The input's name.
    pub input: String,
    /// Which end of it stays.
    pub keep: End,
}

/// An end of a text, or of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Its beginning.
    Start,
    /// Its last part.
    End,
}

/// The inputs, shortened where `room` bytes cannot hold them. Without enough to shorten they stay too long.
pub(super) fn fit<'a>(
    rules: &[Trim],
    inputs: &'a Map<String, Value>,
    room: usize,
) -> Cow<'a, Map<String, Value>> {
    let all: usize = inputs.values().map(bytes).sum();
    let mut over = all.saturating_sub(room);
    if over == 0 {
        return Cow::Borrowed(inputs);
    }
    let mut inputs = inputs.clone();
    for rule in rules {
        let Some(input) = inputs.get_mut(&rule.input) else {
            continue;
        };
        let before = bytes(input);
        shorten(input, over, rule.keep);
        over = over.saturating_sub(before - bytes(input));
        if over == 0 {
            break;
        }
    }
    Cow::Owned(inputs)
}

/// Bytes of all texts within a value.
fn bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(bytes).sum(),
        Value::Object(members) => members.values().map(bytes).sum(),
        _ => 0,
    }
}

/// Takes at least `over` bytes from a text or a list, or all there is.
fn shorten(value: &mut Value, over: usize, keep: End) {
    match value {
        Value::String(text) => *text = shortened(text, over, keep),
        Value::Array(items) => {
            let mut left = over;
            while left > 0 {
                let item = match keep {
                    End::Start => items.pop(),
                    End::End if items.is_empty() => None,
                    End::End => Some(items.remove(0)),
                };
                let Some(item) = item else {
                    break;
                };
                left = left.saturating_sub(bytes(&item));
            }
        }
        _ => {}
    }
}

fn shortened(text: &str, over: usize, keep: End) -> String {
    let room = text.len().saturating_sub(over);
    let Some(room) = room.checked_sub(LEFT_OUT.len() + 1).filter(|room| *room > 0) else {
        return String::new();
    };
    match keep {
        End::Start => {
            let end = text.floor_char_boundary(room);
            // A whole line is better than half of one.
            let end = text[..end].rfind('\n').filter(|at| *at > end / 2).unwrap_or(end);
            format!("{}\n{LEFT_OUT}", &text[..end])
        }
        End::End => {
            let from = text.ceil_char_boundary(text.len() - room);
            let half = text.len() - (text.len() - from) / 2;
            let line = text[from..]
                .find('\n')
                .map(|at| from + at + 1)
                .filter(|at| *at < half);
            format!("{LEFT_OUT}\n{}", &text[line.unwrap_or(from)..])
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rules() -> Vec<Trim> {
        let rule = |input: &str, keep| Trim {
            input: input.to_owned(),
            keep,
        };
        vec![
            rule("file", End::Start),
            rule("log", End::End),
            rule("documents", End::Start),
        ]
    }

    fn inputs(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        let inputs = inputs(json!({"file": "abc", "log": "d", "n": 1}));
        assert!(matches!(fit(&rules(), &inputs, 4), Cow::Borrowed(same) if *same == inputs));
    }

    #[test]
    fn the_rules_say_what_goes_first_and_which_end_stays() {
        let lines = |count: usize| (0..count).map(|line| format!("{line}\n")).collect::<String>();
        let inputs = inputs(json!({"file": lines(100), "log": lines(100), "question": "why?"}));
        let fitted = fit(&rules(), &inputs, 290 + 4 + 100);
        let file = fitted["file"].as_str().expect("text");
        assert!(
            file.starts_with("0\n1\n") && file.ends_with(LEFT_OUT) && file.len() <= 100,
            "{file}"
        );
        assert_eq!(fitted["log"], inputs["log"]);
        let fitted = fit(&rules(), &inputs, 104);
        assert_eq!(fitted["file"], "");
        let log = fitted["log"].as_str().expect("text");
        assert!(
            log.starts_with(LEFT_OUT) && log.ends_with("\n99\n") && log.len() <= 100,
            "{log}"
        );
        assert_eq!(fitted["question"], "why?");
    }

    #[test]
    fn documents_go_whole_from_the_end_that_matters_less() {
        let inputs =
            inputs(json!({"documents": [{"id": "1", "content": "abc"}, {"id": "2", "content": "def"}]}));
        let fitted = fit(&rules(), &inputs, 7);
        assert_eq!(fitted["documents"], json!([{"id": "1", "content": "abc"}]));
    }

    proptest! {
        #[test]
        fn no_more_stays_than_there_is_room_for(
            file in "\\PC{0,200}", log in "[a-zü\n]{0,300}", question in "\\PC{0,20}", room in 0usize..600
        ) {
            let inputs = inputs(json!({"file": file, "log": log, "question": question}));
            let fitted = fit(&rules(), &inputs, room);
            let most = room.max(question.len());
            prop_assert!(fitted.values().map(bytes).sum::<usize>() <= most);
            prop_assert_eq!(&fitted["question"], &inputs["question"]);
        }
    }
}
