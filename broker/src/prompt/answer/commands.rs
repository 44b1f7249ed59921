//! Git commands with what they do. The `glab` program offers to run what stands in fences.

use std::borrow::Cow;

use super::{End, Unusable};

const FENCE: &str = "```";
const PROGRAMS: [&str; 2] = ["git ", "glab "];

/// Puts commands into a fence where there is none, and ends one that has no end.
pub(super) fn repair(text: &str, _: End) -> Result<Cow<'_, str>, Unusable> {
    // One may begin and end on the same line.
    let fences = text.matches(FENCE).count();
    if fences > 0 {
        let line_break = if text.ends_with('\n') { "" } else { "\n" };
        return Ok(match fences % 2 {
            0 => Cow::Borrowed(text),
            _ => Cow::Owned(format!("{text}{line_break}{FENCE}")),
        });
    }
    if !text.lines().any(|line| command(line).is_some()) {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len() + 2 * FENCE.len() + 2);
    let mut within = false;
    for line in text.lines() {
        let found = command(line);
        if found.is_some() != within {
            within = !within;
            out.push_str(FENCE);
            out.push('\n');
        }
        out.push_str(found.unwrap_or(line));
        out.push('\n');
    }
    if within {
        out.push_str(FENCE);
    }
    Ok(Cow::Owned(out))
}

/// The command that a line is, without a prompt or quotes around it.
fn command(line: &str) -> Option<&str> {
    let line = line.trim();
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let quoted = line.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
    let line = quoted.filter(|inner| !inner.contains('`')).unwrap_or(line);
    let is_command = PROGRAMS.iter().any(|program| line.starts_with(program));
    // A sentence on a command ends as sentences do.
    let is_sentence = line.ends_with(':') || (line.ends_with('.') && !line.ends_with(" ."));
    (is_command && !is_sentence).then_some(line)
}
