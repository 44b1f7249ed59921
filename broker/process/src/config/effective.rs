//! What a process runs with, in a form that may be printed.

use std::fmt;

/// The values of all settings in the order they were read, secrets redacted.
///
/// Prints one `NAME=value` line per setting; a comment marks defaults and settings that have no value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    settings: Vec<Setting>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    name: String,
    /// Safe to print: a secret never comes this far, a URL has lost its credentials.
    value: String,
    source: Source,
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Variable,
    Default,
    Secret,
    Unset,
}

impl Effective {
    /// Adds a setting; one that is read again keeps its first place and value.
    pub(super) fn add(&mut self, name: &str, value: &str, source: Source) {
        if !self.settings.iter().any(|setting| setting.name == name) {
            self.settings.push(Setting {
                name: name.to_owned(),
                value: without_credentials(value),
                source,
            });
        }
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Setting { name, value, source } in &self.settings {
            match source {
                Source::Variable => writeln!(f, "{name}={value}")?,
                Source::Default => writeln!(f, "{name}={value} # default")?,
                Source::Secret => writeln!(f, "{name}=[redacted]")?,
                Source::Unset => writeln!(f, "{name}= # not set")?,
            }
        }
        Ok(())
    }
}

/// Replaces what stands before the `@` in each URL of a value, which may be a list of URLs.
///
/// Everything up to the last `@` before the next URL goes, since a password may hold any character.
pub(super) fn without_credentials(value: &str) -> String {
    let mut parts = value.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("://");
        match part.rsplit_once('@') {
            Some((_, rest)) => {
                shown.push_str("[redacted]@");
                shown.push_str(rest);
            }
            None => shown.push_str(part),
        }
    }
    shown
}
