//! The answer of a vulnerability's resolution, which GitLab applies to the file.
//!
//! GitLab takes an answer without `<fixed_code>` for the statement that the finding is a false positive. So one that
//! says neither this nor how to repair it is refused, as is a repair that was cut off.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::fold::{between, unfenced};
use super::{End, Unusable};

const OPEN: &str = "<fixed_code>";
const CLOSE: &str = "</fixed_code>";
const OLD: (&str, &str) = ("<old_code>", "</old_code>");
const NEW: (&str, &str) = ("<new_code>", "</new_code>");
const FALSE_POSITIVE: (&str, &str) = ("<is_false_positive>", "</is_false_positive>");
/// What stands beside the code.
const TEXTS: [(&str, &str); 2] = [("<analysis>", "</analysis>"), ("<summary>", "</summary>")];

pub(super) fn repair(text: &str, end: End) -> Result<Cow<'_, str>, Unusable> {
    if !text.contains(OLD.0) {
        return false_positive(text).ok_or(Unusable);
    }
    let pairs = pairs(code(text, end)?)?;
    let normal = normal(&pairs);
    if text.contains(&normal) && text.matches(OPEN).count() == 1 {
        return Ok(Cow::Borrowed(text));
    }
    Ok(Cow::Owned(beside(text) + &normal))
}

/// The statement that there is nothing to repair. An empty place for code beside it would make GitLab look for some.
fn false_positive(text: &str) -> Option<Cow<'_, str>> {
    let (said, _) = between(text, FALSE_POSITIVE.0, FALSE_POSITIVE.1)?;
    if !said.trim().eq_ignore_ascii_case("true") {
        return None;
    }
    Some(match text.contains(OPEN) {
        false => Cow::Borrowed(text),
        true => Cow::Owned(format!(
            "{}{}true{}",
            beside(text),
            FALSE_POSITIVE.0,
            FALSE_POSITIVE.1
        )),
    })
}

/// The texts in front of the code.
fn beside(text: &str) -> String {
    let before = &text[..text.find(OPEN).or_else(|| text.find(OLD.0)).unwrap_or(text.len())];
    let mut out = String::with_capacity(text.len());
    for (open, close) in TEXTS {
        if let Some((said, _)) = between(before, open, close) {
            let _infallible = writeln!(out, "{open}\n{}\n{close}", said.trim());
        }
    }
    out
}

/// The part that holds pairs of old and new code.
fn code(text: &str, end: End) -> Result<&str, Unusable> {
    let code = match text.find(OPEN) {
        Some(at) => &text[at + OPEN.len()..],
        None => &text[text.find(OLD.0).unwrap_or(0)..],
    };
    match code.rfind(CLOSE) {
        Some(length) => Ok(&code[..length]),
        None if end.cut => Err(Unusable),
        None => Ok(code),
    }
}

/// Pairs of old and new code; none, or half of one, cannot be applied.
fn pairs(mut code: &str) -> Result<Vec<(&str, &str)>, Unusable> {
    let mut pairs = Vec::new();
    while code.contains(OLD.0) {
        let (old, at) = between(code, OLD.0, OLD.1).ok_or(Unusable)?;
        code = &code[at..];
        let (new, at) = between(code, NEW.0, NEW.1).ok_or(Unusable)?;
        if code[..at].contains(OLD.0) || unfenced(old).trim().is_empty() {
            return Err(Unusable);
        }
        code = &code[at..];
        pairs.push((unfenced(old), unfenced(new)));
    }
    if pairs.is_empty() {
        Err(Unusable)
    } else {
        Ok(pairs)
    }
}

fn normal(pairs: &[(&str, &str)]) -> String {
    let mut out = format!("{OPEN}\n");
    for (old, new) in pairs {
        for ((open, close), code) in [(OLD, old), (NEW, new)] {
            let line_break = if code.is_empty() { "" } else { "\n" };
            let _infallible = writeln!(out, "{open}\n{code}{line_break}{close}");
        }
    }
    out + CLOSE
}
