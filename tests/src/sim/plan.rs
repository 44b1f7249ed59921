//! One answer, decided before its first token is sent.
//!
//! Because the text is a pure function of the prompt, length, stop strings and finish reason are known at once;
//! streaming only chooses when to say what.

use super::sequence::{Place, Sequence};
use super::vocabulary;

/// Characters in one token of a text that is given.
const TOKEN: usize = 4;

/// What bounds an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Tokens the request and the context leave room for.
    pub(crate) budget: usize,
    /// Words after which the model ends by itself, counted from the start of the whole answer.
    pub(crate) natural: Option<usize>,
}

/// The text part of one choice.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    sequence: Sequence,
    start: Place,
    /// How many tokens it takes.
    pub(crate) tokens: usize,
    /// What is shown when, if there are stop strings.
    held: Option<Held>,
    /// Why it ends.
    pub(crate) finish: &'static str,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
}

impl Plan {
    /// Plans the answer of `sequence` from `start` on.
    pub(crate) fn new(sequence: Sequence, start: Place, limits: Limits, stops: &[String]) -> Self {
        let natural = limits.natural.map(|words| words.saturating_sub(start.word));
        let tokens = natural.map_or(limits.budget, |natural| natural.min(limits.budget));
        let finish = if natural == Some(tokens) { "stop" } else { "length" };
        let mut plan = Self {
            sequence,
            start,
            tokens,
            held: None,
            finish,
            stop: None,
        };
        if !stops.is_empty() {
            plan.look_for_stop(stops);
        }
        plan
    }

    /// Plans an answer whose text is given; its ids are those of another.
    pub(crate) fn said(text: &str, sequence: Sequence, limits: Limits, stops: &[String]) -> Self {
        let found = stops
            .iter()
            .filter_map(|stop| Some((text.find(stop.as_str())?, stop)))
            .min();
        let text = &text[..found.map_or(text.len(), |(at, _)| at)];
        let places = text.char_indices().map(|(at, _)| at).skip(TOKEN).step_by(TOKEN);
        let ends: Vec<usize> = places.chain([text.len()]).take(limits.budget).collect();
        let whole = ends.last() == Some(&text.len());
        Self {
            sequence,
            start: Place::default(),
            tokens: ends.len(),
            held: Some(Held {
                text: text.to_owned(),
                ends,
            }),
            finish: if whole { "stop" } else { "length" },
            stop: found.filter(|_| whole).map(|(_, stop)| stop.clone()),
        }
    }

    /// The id of the token at `index` of this answer.
    pub(crate) fn id(&self, index: usize) -> u32 {
        vocabulary::id(self.sequence.word(self.start.word + index), self.cut(index))
    }

    /// Appends the text that goes with the token at `index` as the inside of a JSON string.
    pub(crate) fn write(&self, index: usize, out: &mut Vec<u8>) {
        if let Some(held) = &self.held {
            return escape(held.shown(index), out);
        }
        if self.cut(index) == 0 {
            let word = self.sequence.word(self.start.word + index);
            return out.extend_from_slice(vocabulary::json(word).as_bytes());
        }
        escape(self.piece(index), out);
    }

    fn piece(&self, index: usize) -> &'static str {
        &vocabulary::text(self.sequence.word(self.start.word + index))[self.cut(index)..]
    }

    fn cut(&self, index: usize) -> usize {
        if index == 0 { self.start.cut } else { 0 }
    }

    /// Ends the answer with the token that completes the first stop string, and hides the string itself. Until the
    /// end, the last characters are held back in which one could begin, as vLLM does.
    fn look_for_stop(&mut self, stops: &[String]) {
        let longest = stops.iter().map(|stop| stop.chars().count()).max();
        let back = longest.unwrap_or(0).saturating_sub(1);
        let mut held = Held {
            text: String::new(),
            ends: Vec::with_capacity(self.tokens),
        };
        for index in 0..self.tokens {
            let before = held.text.len();
            held.text.push_str(self.piece(index));
            for stop in stops.iter().filter(|stop| !stop.is_empty()) {
                let from = held.text.floor_char_boundary(before.saturating_sub(stop.len()));
                if let Some(found) = held.text[from..].find(stop.as_str()) {
                    held.text.truncate(from + found);
                    self.tokens = index + 1;
                    self.finish = "stop";
                    self.stop = Some(stop.clone());
                    break;
                }
            }
            held.ends.push(held.all_but(back));
            if self.stop.is_some() {
                break;
            }
        }
        if let Some(last) = held.ends.last_mut() {
            *last = held.text.len();
        }
        self.held = Some(held);
    }
}

/// Text that is not shown as soon as it is generated.
#[derive(Clone, Debug)]
struct Held {
    text: String,
    /// How much of it is shown with each token.
    ends: Vec<usize>,
}

impl Held {
    /// The bytes of the text without its last `count` characters.
    fn all_but(&self, count: usize) -> usize {
        match count {
            0 => self.text.len(),
            count => {
                let place = self.text.char_indices().rev().nth(count - 1);
                place.map_or(0, |(place, _)| place)
            }
        }
    }

    fn shown(&self, index: usize) -> &str {
        let from = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        // The stop string may begin in what had to be held back no longer.
        let to = self.ends[index].min(self.text.len());
        &self.text[from.min(to)..to]
    }
}

/// Appends `text` escaped for the inside of a JSON string.
pub(crate) fn escape(text: &str, out: &mut Vec<u8>) {
    let quoted = serde_json::Value::from(text).to_string();
    out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(plan: &Plan) -> String {
        let mut out = Vec::from("\"");
        (0..plan.tokens).for_each(|index| plan.write(index, &mut out));
        out.push(b'"');
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn the_natural_end_is_a_stop_and_anything_shorter_a_length() {
        let sequence = Sequence::of("x");
        let plan = |budget, natural| Plan::new(sequence, Place::default(), Limits { budget, natural }, &[]);
        assert_eq!(
            (plan(16, Some(16)).tokens, plan(16, Some(16)).finish),
            (16, "stop")
        );
        assert_eq!(
            (plan(15, Some(16)).tokens, plan(15, Some(16)).finish),
            (15, "length")
        );
        assert_eq!((plan(20, None).tokens, plan(20, None).finish), (20, "length"));
        assert_eq!(said(&plan(15, None)), sequence.text(15));
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_shown() {
        let sequence = Sequence::of("stop me");
        let whole = sequence.text(20);
        let middle = sequence.text(7).len();
        let stop = whole[middle - 1..middle + 2].to_owned();
        let limits = Limits {
            budget: 20,
            natural: Some(20),
        };
        let plan = Plan::new(sequence, Place::default(), limits, std::slice::from_ref(&stop));
        assert_eq!(said(&plan), whole[..whole.find(&stop).unwrap()]);
        assert_eq!((plan.finish, plan.stop), ("stop", Some(stop)));
    }

    #[test]
    fn what_may_be_a_stop_strings_beginning_is_held_back() {
        let sequence = Sequence::of("hold");
        let limits = Limits {
            budget: 5,
            natural: None,
        };
        let plan = Plan::new(sequence, Place::default(), limits, &["never seen".to_owned()]);
        let mut first = Vec::new();
        (0..3).for_each(|index| plan.write(index, &mut first));
        let mut generated = Vec::new();
        escape(&sequence.text(3), &mut generated);
        assert!(first.len() + 9 <= generated.len() && generated.starts_with(&first));
        assert_eq!(said(&plan), sequence.text(5));
    }

    #[test]
    fn a_text_that_is_given_is_said_as_far_as_budget_and_stop_strings_let_it() {
        let plan = |budget, stops: &[String]| {
            let limits = Limits {
                budget,
                natural: None,
            };
            Plan::said("One ü two\nStop here", Sequence::of("x"), limits, stops)
        };
        assert_eq!(
            (said(&plan(9, &[])).as_str(), plan(9, &[]).finish),
            ("One ü two\nStop here", "stop")
        );
        assert_eq!(
            (said(&plan(2, &[])).as_str(), plan(2, &[]).finish),
            ("One ü tw", "length")
        );
        let stops = ["Stop".to_owned()];
        assert_eq!(said(&plan(9, &stops)), "One ü two\n");
        assert_eq!(plan(9, &stops).stop.as_deref(), Some("Stop"));
    }

    #[test]
    fn a_continuation_ends_where_the_whole_answer_would_have() {
        let sequence = Sequence::of("go on");
        let start = Place { word: 5, cut: 2 };
        let plan = Plan::new(
            sequence,
            start,
            Limits {
                budget: 100,
                natural: Some(16),
            },
            &[],
        );
        let before = sequence.text(5).len() + 2;
        assert_eq!(
            (said(&plan), plan.tokens, plan.finish),
            (sequence.text(16)[before..].to_owned(), 11, "stop")
        );
    }
}
