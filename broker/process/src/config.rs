//! Reads a process's settings from `DUO_` variables and reports everything wrong with them at once.
//!
//! A program asks an [`Env`] for each setting in turn and calls [`Env::finish`]: until then a problem only takes
//! note of itself and yields the default. A variable that no setting asked for is a problem too, since it is most
//! often a misspelt one. An empty variable counts as not set. It knows no setting itself: names, defaults and their
//! documentation stand in each program's own `config.rs`.

mod effective;
mod unit;
mod unknown;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;

pub use self::effective::Effective;
pub use self::unit::parse_duration;

use self::effective::{Source, without_credentials};
use self::unit::{bytes_text, duration_text, parse_bytes};
use crate::telemetry::LogFormat;

/// The status a process exits with when its settings are wrong: EX_CONFIG of `sysexits.h`.
pub const CONFIG_EXIT_CODE: u8 = 78;

const PREFIX: &str = "DUO_";

/// The variables of a process, the settings read from them so far and the problems found.
pub struct Env {
    /// Variables with the prefix, empty ones left out.
    variables: BTreeMap<String, String>,
    /// Every name asked for, whether set or not.
    known: BTreeSet<String>,
    effective: Effective,
    problems: Vec<String>,
}

/// Everything wrong with a process's settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    /// One sentence per problem, none of which shows a secret.
    pub problems: Vec<String>,
}

impl Env {
    /// Takes the variables of this process; the only place that reads them.
    pub fn from_process() -> Env {
        let mut env = Env::from_pairs::<[(String, String); 0], _, _>([]);
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => env.add(name, value),
                Err(_) if name.starts_with(PREFIX) => {
                    env.problem(format!("{name} is not valid UTF-8"));
                    env.known.insert(name);
                }
                Err(_) => {}
            }
        }
        env
    }

    /// Takes the given variables, as a test or a settings file has them; those without the prefix are ignored.
    pub fn from_pairs<I, K, V>(pairs: I) -> Env
    where
        I: IntoIterator<Item = (K, V)>,
        K: Into<String>,
        V: Into<String>,
    {
        let mut env = Env {
            variables: BTreeMap::new(),
            known: BTreeSet::new(),
            effective: Effective::default(),
            problems: Vec::new(),
        };
        for (name, value) in pairs {
            env.add(name.into(), value.into());
        }
        env
    }

    /// Reads a text, or its default where the variable is not set.
    pub fn text(&mut self, name: &str, default: &str) -> String {
        let (value, source) = match self.take(name) {
            Some(value) => (value, Source::Variable),
            None => (default.to_owned(), Source::Default),
        };
        self.effective.add(name, &value, source);
        value
    }

    /// Reads a text that may be missing.
    pub fn optional(&mut self, name: &str) -> Option<String> {
        let value = self.take(name);
        match &value {
            Some(value) => self.effective.add(name, value, Source::Variable),
            None => self.effective.add(name, "", Source::Unset),
        }
        value
    }

    /// Reads a text that must be there; `what` tells the operator what to set it to. Yields an empty text if not.
    pub fn required(&mut self, name: &str, what: &str) -> String {
        let value = self.optional(name);
        value.unwrap_or_else(|| {
            self.problem(format!("{name} is not set: {what}"));
            String::new()
        })
    }

    /// Reads a value by its [`FromStr`].
    pub fn parse<T: FromStr + 'static>(&mut self, name: &str, default: T) -> T
    where
        T::Err: Display,
    {
        let default_text = printed(&default);
        self.read(name, default, &default_text, |text| {
            text.parse::<T>().map_err(|error| error.to_string())
        })
    }

    /// Reads a span of time such as `250ms`, `5s`, `2m`, `1h` or `30d`.
    pub fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.read(name, default, &duration_text(default), parse_duration)
    }

    /// Reads a number of bytes such as `512KiB`, `4MiB`, `1GiB` or a plain number.
    pub fn bytes(&mut self, name: &str, default: u64) -> u64 {
        self.read(name, default, &bytes_text(default), parse_bytes)
    }

    /// Reads a secret from the variable, or from the file that the variable with `_FILE` behind its name points
    /// to, white space around its content removed. Setting both is a problem.
    pub fn secret(&mut self, name: &str) -> Option<SecretString> {
        let file_name = format!("{name}_FILE");
        let secret = match (self.take(name), self.take(&file_name)) {
            (Some(_), Some(_)) => {
                self.problem(format!("{name} and {file_name} are both set: keep one"));
                None
            }
            (Some(value), None) => Some(value),
            (None, Some(path)) => {
                self.effective.add(&file_name, &path, Source::Variable);
                return self.secret_file(&file_name, &path).map(SecretString::from);
            }
            (None, None) => None,
        };
        let source = if secret.is_some() {
            Source::Secret
        } else {
            Source::Unset
        };
        self.effective.add(name, "", source);
        secret.map(SecretString::from)
    }

    /// Adds a problem that only the program can see, such as two settings that contradict each other.
    pub fn problem(&mut self, message: String) {
        self.problems.push(message);
    }

    /// Returns the effective values once every setting has been read.
    ///
    /// # Errors
    /// With all problems of the process together, unknown variables among them.
    pub fn finish(mut self) -> Result<Effective, ConfigError> {
        for (name, value) in &self.variables {
            if !self.known.contains(name) {
                self.problems.push(unknown::problem(name, value, &self.known));
            }
        }
        if self.problems.is_empty() {
            Ok(self.effective)
        } else {
            Err(ConfigError {
                problems: self.problems,
            })
        }
    }

    /// Returns the effective values for a program that reads only some of its settings, where variables that
    /// nobody asked for belong to others.
    ///
    /// # Errors
    /// With all problems of what was read.
    pub fn finish_part(mut self) -> Result<Effective, ConfigError> {
        self.variables.clear();
        self.finish()
    }

    fn add(&mut self, name: String, value: String) {
        if name.starts_with(PREFIX) && !value.is_empty() {
            self.variables.insert(name, value);
        }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.known.insert(name.to_owned());
        self.variables.get(name).cloned()
    }

    fn read<T>(
        &mut self,
        name: &str,
        default: T,
        default_text: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let Some(text) = self.take(name) else {
            self.effective.add(name, default_text, Source::Default);
            return default;
        };
        match parse(&text) {
            Ok(value) => {
                self.effective.add(name, &text, Source::Variable);
                value
            }
            Err(error) => {
                let (text, error) = (without_credentials(&text), without_credentials(&error));
                self.problem(format!("{name}={text} is not valid: {error}"));
                default
            }
        }
    }

    fn secret_file(&mut self, file_name: &str, path: &str) -> Option<String> {
        match fs::read_to_string(path) {
            Ok(content) if !content.trim().is_empty() => return Some(content.trim().to_owned()),
            Ok(_) => self.problem(format!("{file_name}: the file {path} is empty")),
            Err(error) => self.problem(format!("{file_name}: cannot read {path}: {error}")),
        }
        None
    }
}

/// The text of a default, where its type is one that settings commonly have and that prints as it parses.
fn printed(value: &dyn Any) -> String {
    fn print<T: Display + 'static>(value: &dyn Any) -> Option<String> {
        value.downcast_ref::<T>().map(T::to_string)
    }
    let printers = [
        print::<bool>,
        print::<u8>,
        print::<u16>,
        print::<u32>,
        print::<u64>,
        print::<usize>,
        print::<i64>,
        print::<f64>,
        print::<String>,
        print::<SocketAddr>,
        print::<LogFormat>,
    ];
    printers
        .iter()
        .find_map(|print| print(value))
        .unwrap_or_else(|| "(built in)".to_owned())
}

#[cfg(test)]
mod tests;
