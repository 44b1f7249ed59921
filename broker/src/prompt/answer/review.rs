//! The review of a merge request, whose comments GitLab posts at their lines.
//!
//! GitLab reads the last `<review>` block and tells the author that nothing was found where that holds no comment. So
//! an answer without a block, or whose comments all lack a place, is refused.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::fold::{between, unfenced};
use super::{End, Unusable};

const OPEN: &str = "<review>";
const CLOSE: &str = "</review>";
const COMMENT: &str = "<comment";
const COMMENT_END: &str = "</comment>";
const SUMMARY: (&str, &str) = ("<summary>", "</summary>");
const PROPOSAL: [(&str, &str); 2] = [("<from>", "</from>"), ("<to>", "</to>")];

/// One comment at its place.
struct Comment<'a> {
    file: &'a str,
    old_line: Option<u32>,
    new_line: Option<u32>,
    text: &'a str,
}

pub(super) fn repair(text: &str, end: End) -> Result<Cow<'_, str>, Unusable> {
    let (review, closed) = review(text).ok_or(Unusable)?;
    let (comments, found) = comments(review, end.cut && !closed);
    if comments.is_empty() && (found > 0 || !closed) {
        return Err(Unusable);
    }
    let block = write(&comments);
    if closed && (found == 0 || (found == comments.len() && text.contains(&block))) {
        return Ok(Cow::Borrowed(text));
    }
    let summary = between(text, SUMMARY.0, SUMMARY.1).map(|(summary, _)| summary.trim());
    Ok(Cow::Owned(match summary {
        Some(summary) => format!("{block}\n{}\n{summary}\n{}", SUMMARY.0, SUMMARY.1),
        None => block,
    }))
}

/// The inside of the last block, and whether it has an end. Comments without a block count as one.
fn review(text: &str) -> Option<(&str, bool)> {
    let opens = || text.rmatch_indices(OPEN).map(|(at, _)| at);
    // One that stands within a line may be a comment's own words, or the code's.
    if let Some(at) = opens()
        .find(|at| begins_line(text, *at))
        .or_else(|| opens().next())
    {
        let inside = &text[at + OPEN.len()..];
        return Some(match inside.rfind(CLOSE) {
            Some(length) => (&inside[..length], true),
            None => (inside, false),
        });
    }
    let inside = &text[text.find("<comment ")?..];
    let length = inside.rfind(COMMENT_END)? + COMMENT_END.len();
    Some((&inside[..length], false))
}

fn begins_line(text: &str, at: usize) -> bool {
    let before = text[..at].trim_end_matches([' ', '\t']);
    before.is_empty() || before.ends_with(['\n', '\r'])
}

/// The comments that have a place, and how many there were. The last one does not count where it was cut off.
fn comments(review: &str, cut: bool) -> (Vec<Comment<'_>>, usize) {
    let mut comments = Vec::new();
    let mut found = 0;
    let mut rest = review;
    while let Some(at) = next(rest) {
        found += 1;
        rest = &rest[at + COMMENT.len()..];
        let Some((attributes, behind)) = rest.split_once('>') else {
            break;
        };
        let until_next = next(behind).unwrap_or(behind.len());
        let text = match behind[..until_next].find(COMMENT_END) {
            Some(length) => &behind[..length],
            None if cut && until_next == behind.len() => break,
            None => &behind[..until_next],
        };
        rest = &behind[until_next..];
        let line = |name| attribute(attributes, name).and_then(|number| number.trim().parse().ok());
        let comment = Comment {
            file: attribute(attributes, "file").unwrap_or_default().trim(),
            old_line: line("old_line"),
            new_line: line("new_line"),
            text,
        };
        let placed = comment.old_line.is_some() || comment.new_line.is_some();
        if placed && !comment.file.is_empty() && !comment.text.trim().is_empty() {
            comments.push(comment);
        }
    }
    (comments, found)
}

/// Where the next comment's tag begins: on a line of its own or right behind another tag, as code may hold such text.
fn next(text: &str) -> Option<usize> {
    let mut tags = text.match_indices(COMMENT).map(|(at, _)| at);
    tags.find(|at| {
        let before = text[..*at].trim_end_matches([' ', '\t']);
        (before.is_empty() || before.ends_with(['\n', '\r', '>']))
            && text[at + COMMENT.len()..].starts_with(|c: char| c.is_whitespace() || c == '>')
    })
}

/// The value of an attribute, in quotes of either kind or in none.
fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let mut places = attributes.match_indices(name).map(|(at, _)| at);
    let at = places.find(|at| {
        let before = attributes[..*at].chars().next_back();
        before.is_none_or(char::is_whitespace) && attributes[at + name.len()..].trim_start().starts_with('=')
    })?;
    let value = attributes[at + name.len()..]
        .trim_start()
        .strip_prefix('=')?
        .trim_start();
    for quote in ['"', '\''] {
        if let Some(quoted) = value.strip_prefix(quote) {
            return quoted.split(quote).next();
        }
    }
    value.split_whitespace().next()
}

fn write(comments: &[Comment<'_>]) -> String {
    let mut out = format!("{OPEN}\n");
    let number = |line: Option<u32>| line.map(|line| line.to_string()).unwrap_or_default();
    for comment in comments {
        let (old_line, new_line) = (number(comment.old_line), number(comment.new_line));
        let _infallible = writeln!(
            out,
            "{COMMENT} file=\"{}\" old_line=\"{old_line}\" new_line=\"{new_line}\">\n{}\n{COMMENT_END}",
            comment.file,
            proposals(comment.text.trim_matches(['\n', '\r', ' '])),
        );
    }
    out + CLOSE
}

/// Puts the tags of proposals on lines of their own and takes fences from within them.
fn proposals(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for (open, close) in PROPOSAL {
        let mut out = String::with_capacity(text.len());
        let mut rest: &str = &text;
        while let Some((code, end)) = between(rest, open, close) {
            let start = end - close.len() - code.len() - open.len();
            let before = rest[..start].trim_end_matches([' ', '\t']);
            out.push_str(before);
            if !before.is_empty() && !before.ends_with('\n') {
                out.push('\n');
            }
            let code = unfenced(code);
            let line_break = if code.is_empty() { "" } else { "\n" };
            let _infallible = write!(out, "{open}\n{code}{line_break}{close}");
            rest = &rest[end..];
            if !rest.is_empty() && !rest.starts_with(['\n', '\r']) {
                out.push('\n');
                rest = rest.trim_start_matches([' ', '\t']);
            }
        }
        out.push_str(rest);
        text = Cow::Owned(out);
    }
    text
}
