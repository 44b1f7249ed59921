//! What the simulated model answers, for tests and load generators that check every byte.

use super::prompt::{Ending, Message, Prompt};
use super::sequence::locate;

/// The answer of `words` words to a chat, given the `messages` array as JSON.
///
/// The server says `min(max_tokens, natural length)` words. A final assistant message is taken as part of the
/// conversation, not as a beginning to go on from: leave it out to get the whole answer.
///
/// # Errors
/// The JSON is not an array of messages.
pub fn chat_text(messages: &str, words: usize) -> serde_json::Result<String> {
    let messages: Vec<Message<'_>> = serde_json::from_str(messages)?;
    let ending = Ending {
        generation_prompt: true,
        continue_final: false,
    };
    Ok(text_after(&Prompt::of_messages(&messages, ending).text, words))
}

/// The answer of `words` words to a plain prompt.
pub fn completion_text(prompt: &str, words: usize) -> String {
    text_after(prompt, words)
}

fn text_after(prompt: &str, words: usize) -> String {
    let (sequence, start, _) = locate(prompt, "", false);
    let whole = sequence.text(start.word + words);
    let behind = sequence.text(start.word).len() + start.cut;
    whole[behind..].to_owned()
}
