//! Answers of a word or a line.

use std::borrow::Cow;

use super::{End, Unusable, fold};

/// GitLab starts something for the first two.
const INTENTS: [&str; 3] = ["code_review_request", "assistant_flow", "agentic_chat"];
/// The longest title, in characters; GitLab cuts at 255.
const LONGEST_TITLE: usize = 100;

/// One of the three words; where the answer names none or several, the one that starts nothing.
pub(super) fn intent(text: &str, _: End) -> Result<Cow<'_, str>, Unusable> {
    if INTENTS.contains(&text) {
        return Ok(Cow::Borrowed(text));
    }
    let lower = text.to_lowercase();
    let mut named = INTENTS.iter().filter(|word| lower.contains(*word));
    Ok(Cow::Borrowed(match (named.next(), named.next()) {
        (Some(only), None) => only,
        _ => INTENTS[2],
    }))
}

/// The first line that is no introduction, without what surrounds a title.
pub(super) fn title(text: &str, _: End) -> Result<Cow<'_, str>, Unusable> {
    let mut lines = text.lines().map(bare).filter(|line| !line.is_empty());
    let line = lines
        .find(|line| !fold::is_introduction(line))
        .unwrap_or_default();
    match line.char_indices().nth(LONGEST_TITLE) {
        Some((at, _)) => Ok(Cow::Borrowed(line[..at].trim_end())),
        None => Ok(Cow::Borrowed(line)),
    }
}

/// A line without Markdown's signs, quotes and a label in front.
fn bare(line: &str) -> &str {
    let signs = |c: char| c.is_whitespace() || "*#`\"'".contains(c);
    let line = line.trim_matches(signs);
    let line = match line.split_once(':') {
        Some((label, title)) if label.eq_ignore_ascii_case("title") && !title.trim().is_empty() => title,
        _ => line,
    };
    line.trim_matches(signs).trim_end_matches('.')
}
