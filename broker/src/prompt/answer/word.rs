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

/// A line without a heading's signs, a label in front and what is around the whole of it.
fn bare(line: &str) -> &str {
    let line = line.trim();
    let heading = line.trim_start_matches('#');
    let line = match heading.starts_with(' ') {
        true => unwrapped(heading),
        // A reference, such as #12.
        false => unwrapped(line),
    };
    let is_label = |label: &str| label.trim_matches(['*', ' ']).eq_ignore_ascii_case("title");
    let line = match line.split_once(':') {
        Some((label, title)) if is_label(label) && !title.trim().is_empty() => {
            title.trim_start_matches(['*', ' '])
        }
        _ => line,
    };
    unwrapped(unwrapped(line).trim_end_matches('.')).trim_end_matches('.')
}

/// A line without signs and quotes that are around the whole of it; those around a part are the title's own.
fn unwrapped(line: &str) -> &str {
    let mut line = line.trim();
    while let Some(inside) = ["**", "*", "`", "\"", "'"].iter().find_map(|sign| {
        let behind = line.strip_prefix(sign)?;
        match behind.strip_suffix(sign) {
            Some(inside) => (!inside.contains(sign)).then_some(inside),
            // Its end was cut off; an apostrophe has none.
            None => (!behind.contains(sign) && *sign != "'").then_some(behind),
        }
    }) {
        line = inside.trim();
    }
    line
}
