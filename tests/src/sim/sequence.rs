//! The endless text that belongs to a prompt, and where in it a continuation starts.
//!
//! The text is a pure function of the prompt: word `i` is drawn by a mixing function from the prompt's hash and `i`,
//! so any place in it can be reached without walking there. Who continues an answer, by text or by token ids,
//! gets exactly the words that the first attempt would have sent next.

use super::vocabulary;

/// Ends every chat prompt that asks for an answer; what stands behind it is the answer's beginning.
pub(crate) const ASSISTANT: &str = "<|assistant|>\n";

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The words that follow one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    seed: u64,
    /// Does it begin as the last answer of a chat agent?
    last: bool,
}

/// A place in a sequence: a word, and how many of its bytes lie behind us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) word: usize,
    pub(crate) cut: usize,
}

/// How a prompt relates to an earlier answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// A prompt without any beginning of an answer.
    Fresh,
    /// The beginning given is what this model would have said.
    Continued,
    /// The beginning given is not; the answer is that of a new prompt.
    Diverged,
}

impl Sequence {
    /// The sequence of a prompt.
    pub(crate) fn of(prompt: &str) -> Self {
        Self {
            seed: hash(prompt.as_bytes()),
            last: false,
        }
    }

    /// The same, beginning as the last answer of a chat agent if `last` says so.
    fn beginning(self, last: bool) -> Self {
        Self { last, ..self }
    }

    /// The sequence of the choice with this number; choice 0 is the sequence itself.
    pub(crate) fn choice(self, number: usize) -> Self {
        Self {
            seed: self.seed ^ (number as u64).wrapping_mul(GOLDEN),
            ..self
        }
    }

    /// The word at an index.
    pub(crate) fn word(self, index: usize) -> u32 {
        if self.last && index == 0 {
            return vocabulary::FINAL_ANSWER;
        }
        let drawn = mix(self.seed.wrapping_add((index as u64 + 1).wrapping_mul(GOLDEN)));
        (drawn >> 40) as u32 % vocabulary::WORDS
    }

    /// The first `count` words as one text.
    pub(crate) fn text(self, count: usize) -> String {
        (0..count)
            .map(|index| vocabulary::text(self.word(index)))
            .collect()
    }

    /// Where a beginning ends, if it is one of this sequence.
    fn place(self, beginning: &str) -> Option<Place> {
        let mut rest = beginning;
        for index in 0.. {
            let word = vocabulary::text(self.word(index));
            match rest.strip_prefix(word) {
                Some("") => {
                    return Some(Place {
                        word: index + 1,
                        cut: 0,
                    });
                }
                Some(behind) => rest = behind,
                None if word.starts_with(rest) => {
                    return Some(Place {
                        word: index,
                        cut: rest.len(),
                    });
                }
                None => break,
            }
        }
        None
    }
}

/// The sequence and place at which the answer to `prompt` starts, `generated` being what was said already.
pub(crate) fn locate(prompt: &str, generated: &str, last: bool) -> (Sequence, Place, Start) {
    let base = prompt
        .rfind(ASSISTANT)
        .map_or(prompt.len(), |marker| marker + ASSISTANT.len());
    let (base, prefill) = prompt.split_at(base);
    if prefill.is_empty() && generated.is_empty() {
        return (
            Sequence::of(prompt).beginning(last),
            Place::default(),
            Start::Fresh,
        );
    }
    let sequence = Sequence::of(base).beginning(last);
    if let Some(place) = sequence.place(&format!("{prefill}{generated}")) {
        return (sequence, place, Start::Continued);
    }
    (
        Sequence::of(&format!("{prompt}{generated}")).beginning(last),
        Place::default(),
        Start::Diverged,
    )
}

/// Spreads the bits of a number (the finaliser of SplitMix64).
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A 64-bit hash that takes eight bytes a step; stable between runs and machines.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut state = GOLDEN ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state ^ u64::from_le_bytes(word))
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(29);
        state = state.wrapping_mul(GOLDEN);
    }
    mix(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_cut_anywhere_is_found_again() {
        let prompt = format!("<|user|>\nhello\n{ASSISTANT}");
        let sequence = Sequence::of(&prompt);
        let whole = sequence.text(200);
        for cut in (1..whole.len()).filter(|cut| whole.is_char_boundary(*cut)) {
            let (found, place, start) = locate(&format!("{prompt}{}", &whole[..cut]), "", false);
            assert_eq!((found, start), (sequence, Start::Continued));
            assert_eq!(sequence.text(place.word).len() + place.cut, cut);
        }
    }

    #[test]
    fn a_foreign_beginning_makes_a_new_prompt() {
        let prompt = format!("<|user|>\nhello\n{ASSISTANT}");
        let (found, place, start) = locate(&format!("{prompt}Sure, "), "", false);
        assert_eq!((place, start), (Place::default(), Start::Diverged));
        assert_ne!(found, Sequence::of(&prompt));
    }

    #[test]
    fn choices_differ_and_choice_zero_is_the_answer() {
        let sequence = Sequence::of("x");
        assert_eq!(sequence.choice(0), sequence);
        assert_ne!(sequence.choice(1).text(4), sequence.text(4));
    }
}
