//! Small readings of text that several formats share.

/// What an introduction begins with, in lower case.
const OPENERS: [&str; 12] = [
    "sure",
    "certainly",
    "of course",
    "here is",
    "here's",
    "here are",
    "below is",
    "okay",
    "ok,",
    "the following",
    "absolutely",
    "great",
];
/// What an introduction of one or two words says, in lower case and without its colon.
const LABELS: [&str; 8] = [
    "commit message",
    "title",
    "summary",
    "description",
    "issue description",
    "answer",
    "summary of the review",
    "merge request description",
];
/// The longest introduction, in bytes.
pub(super) const LONGEST_INTRODUCTION: usize = 200;

/// Text that comes in pieces and whose leading blanks are looked at once, however many there are.
#[derive(Debug, Default)]
pub(super) struct Held {
    text: String,
    blanks: usize,
}

impl Held {
    pub(super) fn push(&mut self, piece: &str) {
        self.text.push_str(piece);
    }

    /// The text without the blanks in front.
    pub(super) fn begun(&mut self) -> &str {
        let begun = self.text[self.blanks..].trim_start();
        self.blanks = self.text.len() - begun.len();
        &self.text[self.blanks..]
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn take(&mut self) -> String {
        std::mem::take(self).text
    }
}

/// Is `line` an introduction to what follows, and nothing else?
pub(super) fn is_introduction(line: &str) -> bool {
    let line = line.trim().trim_matches('*').trim_end();
    let Some(said) = line.strip_suffix(':') else {
        return false;
    };
    let said = said.trim_end_matches('*').to_lowercase();
    said.len() <= LONGEST_INTRODUCTION
        && (LABELS.contains(&said.as_str()) || OPENERS.iter().any(|opener| opens(&said, opener)))
}

/// Does it begin with these words, and not with a longer one?
fn opens(said: &str, opener: &str) -> bool {
    said.strip_prefix(opener)
        .is_some_and(|behind| !behind.starts_with(char::is_alphanumeric))
}

/// May `beginning`, the first part of a line, become an introduction?
pub(super) fn may_introduce(beginning: &str) -> bool {
    let said = beginning.trim_start().trim_start_matches('*').to_lowercase();
    beginning.len() <= LONGEST_INTRODUCTION
        && OPENERS
            .iter()
            .chain(&LABELS)
            .any(|known| said.starts_with(known) || known.starts_with(said.as_str()))
}

/// May `beginning`, the first part of a line, become an introduction that says more than a label?
pub(super) fn may_open(beginning: &str) -> bool {
    let said = beginning.trim_start().trim_start_matches('*').to_lowercase();
    beginning.len() <= LONGEST_INTRODUCTION
        && OPENERS
            .iter()
            .any(|known| said.starts_with(known) || known.starts_with(said.as_str()))
}

/// A block without the line breaks next to its tags and without a fence around it.
pub(super) fn unfenced(block: &str) -> &str {
    let inner = block.trim_end_matches([' ', '\t']);
    let inner = inner
        .strip_prefix("\r\n")
        .or_else(|| inner.strip_prefix('\n'))
        .unwrap_or(inner);
    let inner = inner.strip_suffix('\n').unwrap_or(inner);
    let inner = inner.strip_suffix('\r').unwrap_or(inner);
    let body = inner
        .trim_end()
        .strip_suffix("```")
        .and_then(|rest| match rest.rsplit_once('\n') {
            Some((body, blanks)) => blanks.trim().is_empty().then_some(body),
            None => None,
        });
    let begun = inner.trim_start_matches(['\n', ' ']);
    match body {
        Some(body) if begun.starts_with("```") => {
            let opening = inner.len() - begun.len() + begun.find('\n').map_or(begun.len(), |at| at + 1);
            // Between the two there may be nothing.
            body.get(opening..).unwrap_or("")
        }
        _ => inner,
    }
}

/// The text between the first `open` and the next `close`, and where it ends, the tag included.
pub(super) fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, usize)> {
    let from = text.find(open)? + open.len();
    let length = text[from..].find(close)?;
    Some((&text[from..from + length], from + length + close.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_introduction_is_known_by_its_beginning_and_its_colon() {
        for line in [
            "Sure! Here is the summary:",
            "**Commit message:**",
            "Here's it:",
            "Title:",
        ] {
            assert!(is_introduction(line), "{line}");
            for (at, _) in line.char_indices() {
                assert!(may_introduce(&line[..at]), "{line} {at}");
            }
        }
        for line in ["Fix: the bug", "Sure.", "Add here is:", ""] {
            assert!(!is_introduction(line), "{line}");
        }
    }

    #[test]
    fn a_fence_around_a_block_goes() {
        assert_eq!(unfenced("\n```rb\n  a\nb\n```\n"), "  a\nb");
        assert_eq!(unfenced("\n  a\n"), "  a");
        assert_eq!(unfenced("```\n```"), "");
        assert_eq!(unfenced("```"), "```");
        assert_eq!(unfenced("a\n```"), "a\n```");
        assert_eq!(unfenced("\n\n  a\n\n  "), "\n  a\n");
    }
}
