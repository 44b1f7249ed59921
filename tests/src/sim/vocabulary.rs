//! The words the simulated model speaks and the ids of its tokens.
//!
//! A generated token is one of 4096 words, leading space included. Some hold accents, ideographs, emoji, quotes,
//! backslashes or blank lines, so that a wrong split of bytes, JSON or events shows. Three kinds of ids exist, and
//! each can be turned back into its text: a word, the tail of a word (after a cut inside it), and up to three bytes
//! of a prompt.

use std::sync::LazyLock;

/// How many words there are; a power of two, so that twelve random bits pick one.
pub(crate) const WORDS: u32 = 4096;
/// One word more: how an answer begins that a chat agent's reader takes for the last one.
pub(crate) const FINAL_ANSWER: u32 = WORDS;
/// Ids from here on hold bytes: two bits of length above three bytes of payload.
const BYTES: u32 = WORDS;
/// Ids from here on are tails: the word's number and, in the low six bits, how many of its bytes are left out.
const TAILS: u32 = 1 << 27;
const TAIL_BITS: u32 = 6;
/// How many bytes of a prompt one token holds; close to what real tokenizers average.
const PACK: usize = 3;

struct Word {
    text: String,
    json: String,
}

static TABLE: LazyLock<Vec<Word>> = LazyLock::new(|| {
    (0..WORDS)
        .map(spell)
        .chain([word("Final Answer:".to_owned())])
        .collect()
});

/// Text of a word.
pub(crate) fn text(word: u32) -> &'static str {
    &TABLE[word as usize].text
}

/// The same, escaped for the inside of a JSON string.
pub(crate) fn json(word: u32) -> &'static str {
    &TABLE[word as usize].json
}

/// The id of a word of which the first `cut` bytes are left out.
pub(crate) fn id(word: u32, cut: usize) -> u32 {
    match u32::try_from(cut) {
        Ok(0) | Err(_) => word,
        Ok(cut) => TAILS + (word << TAIL_BITS) + cut,
    }
}

/// How many tokens a prompt has.
pub(crate) fn count(prompt: &str) -> usize {
    prompt.len().div_ceil(PACK)
}

/// The ids of a prompt.
pub(crate) fn encode(prompt: &str) -> Vec<u32> {
    prompt.as_bytes().chunks(PACK).map(pack).collect()
}

/// One id taken apart.
pub(crate) enum Token {
    /// Bytes of a prompt.
    Bytes(Vec<u8>),
    /// Generated text.
    Text(&'static str),
}

/// What an id stands for; nothing if no such token exists.
pub(crate) fn decode(id: u32) -> Option<Token> {
    if id <= FINAL_ANSWER {
        return Some(Token::Text(text(id)));
    }
    if id >= TAILS {
        let (word, cut) = ((id - TAILS) >> TAIL_BITS, (id - TAILS) & ((1 << TAIL_BITS) - 1));
        let text = (word <= FINAL_ANSWER).then(|| text(word))?;
        return text.get(cut as usize..).map(Token::Text);
    }
    let packed = (id - BYTES).to_be_bytes();
    let length = usize::from(packed[0]);
    (1..=PACK)
        .contains(&length)
        .then(|| Token::Bytes(packed[1..=length].to_vec()))
}

fn pack(bytes: &[u8]) -> u32 {
    let mut packed = [0; 4];
    packed[0] = bytes.len() as u8;
    packed[1..=bytes.len()].copy_from_slice(bytes);
    BYTES + u32::from_be_bytes(packed)
}

fn spell(number: u32) -> Word {
    const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
    const VOWELS: &[u8; 4] = b"aeio";
    let mut text = String::from(" ");
    for shift in [6, 0] {
        let syllable = (number >> shift) as usize & 63;
        text.push(char::from(CONSONANTS[syllable >> 2]));
        text.push(char::from(VOWELS[syllable & 3]));
    }
    // One word in about eleven is a trap for whoever splits bytes, events or JSON by hand.
    match number % 89 {
        3 => text.push('é'),
        11 => text.push_str("漢字"),
        19 => text.push('🦀'),
        29 => text.push('\n'),
        37 => text = format!(" \"{}\"", text.trim_start()),
        47 => text.push_str("\\n"),
        59 => text.push_str("\n\ndata: x"),
        71 => text.push('\t'),
        _ => {}
    }
    word(text)
}

fn word(text: String) -> Word {
    let quoted = serde_json::Value::from(text.as_str()).to_string();
    let json = quoted[1..quoted.len() - 1].to_owned();
    Word { text, json }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_its_own_and_short_enough_for_a_tail_id() {
        let mut texts: Vec<_> = (0..WORDS).map(text).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), WORDS as usize);
        assert!(texts.iter().all(|text| text.len() < 1 << TAIL_BITS));
    }

    #[test]
    fn every_id_turns_back_into_its_text() {
        let prompt = "héllo 漢字 wörld";
        let mut bytes = Vec::new();
        for id in encode(prompt) {
            match decode(id) {
                Some(Token::Bytes(some)) => bytes.extend(some),
                _ => panic!("{id} should hold bytes"),
            }
        }
        assert_eq!(String::from_utf8(bytes).unwrap(), prompt);
        assert_eq!(encode(prompt).len(), count(prompt));
        assert!(matches!(decode(id(17, 0)), Some(Token::Text(whole)) if whole == text(17)));
        assert!(matches!(decode(id(17, 2)), Some(Token::Text(tail)) if *tail == text(17)[2..]));
        assert!(decode(BYTES + 1).is_none());
    }
}
