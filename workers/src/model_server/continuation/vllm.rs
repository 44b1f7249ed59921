//! vLLM: by the ids that it gave with the text, else by the text.
//!
//! With stop strings it holds back the last characters of what it has
//! generated, so that the ids are ahead of the text that the client has. Then
//! the place where the text ends is looked for among the ids, by
//! `/detokenize`: the answer goes on there, and stop strings across the seam
//! are still the server's to find.

use duo_contract::claim::Have;
use serde_json::{Value, json};

use super::{Continued, Request, Seam};
use crate::model_server::openai::Http;

/// Tokens of a completion whose request names no limit.
const DEFAULT_LIMIT: u64 = 16;
/// Ids of the prompt that a text is decoded behind: some decoders treat the first token differently.
const CONTEXT: usize = 16;
/// Most places that are tried: stop strings hold back a few tokens.
const MOST_TRIES: usize = 64;
/// What stands for a character that is not whole.
const INCOMPLETE: char = '\u{fffd}';

pub(super) async fn continued(
    http: &Http,
    served_as: &str,
    mut request: Request,
    have: &Have,
) -> Option<Continued> {
    if !request.is_chat() && request.limit().is_none() {
        request.body.insert("max_tokens".to_owned(), DEFAULT_LIMIT.into());
    }
    if let Some((prompt, ids)) = known(&request, have)
        && let Some(cut) = cut(http, &request, prompt, ids, have).await
    {
        return by_ids(http, served_as, request, (prompt, ids), cut).await;
    }
    match request.is_chat() {
        true => turn(request, have),
        false => request.by_text(have),
    }
}

/// The ids of the prompt and of the answer up to its last chunk with text.
fn known<'a>(request: &Request, have: &'a Have) -> Option<(&'a [u32], &'a [u32])> {
    let prompt = have.prompt_token_ids.as_deref()?;
    let all = have.token_ids.as_deref()?;
    (request.is_text() && (1..=all.len()).contains(&have.covered)).then_some((prompt, all))
}

/// Where an answer goes on among its ids.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cut {
    /// After so many ids.
    ids: usize,
    /// Text that these ids hold and the client has not.
    say: String,
    /// Text behind these ids that the client has.
    skip: String,
}

/// Stop strings of a request, and whether they become part of the answer.
struct Stops {
    strings: Vec<String>,
    included: bool,
}

impl Stops {
    fn of(request: &Request) -> Option<Self> {
        let strings = match request.body.get("stop") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(many) => serde_json::from_value(many.clone()).ok()?,
        };
        Some(Self {
            strings,
            included: request.body.get("include_stop_str_in_output") == Some(&Value::Bool(true)),
        })
    }

    /// Could one of them begin in `text` and end behind it?
    fn may_begin_in(&self, text: &str) -> bool {
        let ends = text.char_indices().map(|(place, _)| &text[place..]);
        ends.into_iter()
            .any(|end| self.strings.iter().any(|stop| stop.starts_with(end)))
    }

    /// `text` without the characters at its end in which a stop string may begin that is part of the answer.
    fn settled<'a>(&self, text: &'a str) -> &'a str {
        let longest = self.strings.iter().map(|stop| stop.chars().count()).max();
        let open = if self.included { longest.unwrap_or(0) } else { 0 };
        match open {
            0 | 1 => text,
            open => {
                let place = text.char_indices().rev().nth(open - 2);
                &text[..place.map_or(0, |(place, _)| place)]
            }
        }
    }
}

async fn cut(http: &Http, request: &Request, prompt: &[u32], ids: &[u32], have: &Have) -> Option<Cut> {
    let stops = Stops::of(request)?;
    if stops.strings.is_empty() {
        return Some(Cut {
            ids: have.covered,
            ..Cut::default()
        });
    }
    let context = &prompt[prompt.len().saturating_sub(CONTEXT)..];
    let before = decoded(http, context).await?;
    let (text, settled) = (&*have.text, stops.settled(&have.text));
    let mut ahead = None;
    for count in (0..=have.covered).rev().take(MOST_TRIES) {
        let whole = decoded(http, &[context, &ids[..count]].concat()).await?;
        let said = whole.strip_prefix(&before)?;
        if said.ends_with(INCOMPLETE) {
            continue;
        }
        if let Some(skip) = settled.strip_prefix(said) {
            let skip = format!("{skip}{}", &text[settled.len()..]);
            let behind = Cut {
                ids: count,
                say: String::new(),
                skip,
            };
            // At a temperature other tokens may come where some that were held back are generated again.
            let exact = request.body.get("temperature").and_then(Value::as_f64) == Some(0.0);
            return Some(match ahead {
                Some(ahead) if !behind.skip.is_empty() && !exact => ahead,
                _ => behind,
            });
        }
        match said.strip_prefix(text) {
            Some(say) if !stops.may_begin_in(say) => {
                ahead = Some(Cut {
                    ids: count,
                    say: say.to_owned(),
                    skip: String::new(),
                });
            }
            Some(_) => {}
            None if text.starts_with(said) => {}
            None => return None,
        }
    }
    None
}

async fn decoded(http: &Http, ids: &[u32]) -> Option<String> {
    let answer = http.ask("detokenize", &json!({"tokens": ids})).await?;
    Some(answer["prompt"].as_str()?.to_owned())
}

async fn by_ids(
    http: &Http,
    served_as: &str,
    mut request: Request,
    (prompt, all): (&[u32], &[u32]),
    cut: Cut,
) -> Option<Continued> {
    let ids = [prompt, &all[..cut.ids]].concat();
    if request.limit().is_none() {
        // A chat may fill the context; a completion would end after a few tokens.
        let spent = u64::try_from(prompt.len()).ok()?;
        let limit = http.room(served_as).await?.checked_sub(spent)?;
        request.body.insert("max_tokens".to_owned(), limit.into());
    }
    let seam = Seam {
        chat: request.is_chat(),
        say: cut.say,
        skip: cut.skip,
        prompt: Some(prompt.to_vec()),
        after: u32::try_from(cut.ids).ok()?,
        told: all[cut.ids..].len(),
        earlier: u64::try_from(cut.ids).ok()?,
    };
    request.by_ids(&ids, seam)
}

/// A chat goes on in a prefilled turn.
fn turn(mut request: Request, have: &Have) -> Option<Continued> {
    // Templates trim a turn's end, which would glue the next word on.
    if have.text.ends_with(char::is_whitespace) {
        return None;
    }
    let seam = Seam::of_text(have);
    request.spend(seam.earlier)?;
    let body = &mut request.body;
    let messages = body.get_mut("messages")?.as_array_mut()?;
    messages.push(json!({"role": "assistant", "content": have.text}));
    body.insert("continue_final_message".to_owned(), json!(true));
    body.insert("add_generation_prompt".to_owned(), json!(false));
    Continued::new(request.endpoint, body, seam)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(strings: &[&str], included: bool) -> Stops {
        Stops {
            strings: strings.iter().map(|&stop| stop.to_owned()).collect(),
            included,
        }
    }

    #[test]
    fn a_stop_string_may_begin_where_its_beginning_ends_a_text() {
        let stops = stops(&["\n\n", "Observation:"], false);
        assert!(stops.may_begin_in("x\n") && stops.may_begin_in(" Obs"));
        assert!(!stops.may_begin_in("x") && !stops.may_begin_in("") && !stops.may_begin_in("Obsx"));
    }

    #[test]
    fn text_is_settled_where_no_included_stop_string_can_begin() {
        assert_eq!(stops(&["abc"], true).settled("xyzä"), "xy");
        assert_eq!(stops(&["abc"], true).settled("x"), "");
        assert_eq!(stops(&["a"], true).settled("x"), "x");
        assert_eq!(stops(&["abc"], false).settled("xyz"), "xyz");
    }
}
