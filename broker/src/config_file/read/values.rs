//! What single values say: texts, numbers, spans of time, words of a closed set.

use std::path::Path;
use std::time::Duration;

use duo_contract::name::Lane;
use duo_contract::snapshot::{BodyPolicy, SupportLevel};
use duo_process::config::parse_duration;

use super::Reader;
use crate::config::is_base_url;
use crate::config_file::node::{Node, Value};
use crate::store::features::body_policy;
use crate::store::support_levels;

/// Longest deadline a feature may have.
const LONGEST_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest text of a reason, an acknowledgement, a family.
const LONGEST_LINE: usize = 1000;
/// Longest family and prompt id.
const LONGEST_WORD: usize = 128;

impl Reader<'_> {
    pub(in crate::config_file) fn parsed<T>(&mut self, path: &str, node: Node) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let place = node.place;
        let text = self.text(path, node)?;
        text.parse()
            .map_err(|error: T::Err| self.problem(place, path.to_owned(), error.to_string()))
            .ok()
    }

    pub(in crate::config_file) fn text(&mut self, path: &str, node: Node) -> Option<String> {
        let hint = match &node.value {
            Value::Text(text) if text.contains('\0') => {
                self.problem(node.place, path.to_owned(), "a text may not hold NUL".to_owned());
                return None;
            }
            Value::Text(text) => return Some(text.clone()),
            Value::Count(_) | Value::Number(_) | Value::Bool(_) => "a text; put it in quotes",
            _ => "a text",
        };
        self.expected(node.place, path, hint, &node.value);
        None
    }

    fn bounded(&mut self, path: &str, node: Node, longest: usize) -> Option<String> {
        let place = node.place;
        let text = self.text(path, node)?;
        let problem = if text.trim().is_empty() {
            "must not be empty".to_owned()
        } else if text.len() > longest {
            format!("may have at most {longest} bytes")
        } else if text.chars().any(char::is_control) {
            "may not hold control characters".to_owned()
        } else {
            return Some(text);
        };
        self.problem(place, path.to_owned(), problem);
        None
    }

    pub(in crate::config_file) fn line(&mut self, path: &str, node: Node) -> Option<String> {
        self.bounded(path, node, LONGEST_LINE)
    }

    pub(in crate::config_file) fn word(&mut self, path: &str, node: Node) -> Option<String> {
        self.bounded(path, node, LONGEST_WORD)
    }

    pub(in crate::config_file) fn flag(&mut self, path: &str, node: Node) -> Option<bool> {
        if let Value::Bool(flag) = node.value {
            return Some(flag);
        }
        self.expected(node.place, path, "true or false", &node.value);
        None
    }

    pub(super) fn tokens(&mut self, path: &str, node: Node) -> Option<u32> {
        if let Value::Count(count) = node.value
            && let Ok(count @ 1..) = u32::try_from(count)
        {
            return Some(count);
        }
        self.expected(
            node.place,
            path,
            "a whole number of tokens above zero",
            &node.value,
        );
        None
    }

    pub(super) fn lane(&mut self, path: &str, node: Node) -> Option<Lane> {
        let place = node.place;
        let lane = self.parsed::<Lane>(path, node)?;
        if Lane::LIVE.contains(&lane) {
            return Some(lane);
        }
        let message = "a live request is never background: use keystroke or interactive".to_owned();
        self.problem(place, path.to_owned(), message);
        None
    }

    pub(super) fn deadline(&mut self, path: &str, node: Node) -> Option<Duration> {
        let place = node.place;
        let span = self.span(path, node)?;
        if span <= LONGEST_DEADLINE {
            return Some(span);
        }
        self.problem(place, path.to_owned(), "may be a day at most".to_owned());
        None
    }

    pub(in crate::config_file) fn span(&mut self, path: &str, node: Node) -> Option<Duration> {
        let place = node.place;
        if matches!(node.value, Value::Count(_) | Value::Number(_)) {
            self.expected(
                place,
                path,
                "a span of time such as 2500ms, 50s or 10m",
                &node.value,
            );
            return None;
        }
        let text = self.text(path, node)?;
        match parse_duration(&text) {
            Ok(span) if span.is_zero() => {
                self.problem(place, path.to_owned(), "must be above zero".to_owned())
            }
            Ok(span) => return Some(span),
            Err(error) => self.problem(place, path.to_owned(), error),
        }
        None
    }

    pub(super) fn bodies(&mut self, path: &str, node: Node) -> Option<BodyPolicy> {
        let place = node.place;
        let text = self.text(path, node)?;
        let policy = body_policy(&text);
        if policy.is_none() {
            self.problem(
                place,
                path.to_owned(),
                format!("unknown policy {text:?}: none, digest or full"),
            );
        }
        policy
    }

    pub(super) fn level(&mut self, path: &str, node: Node) -> Option<SupportLevel> {
        let place = node.place;
        let text = self.text(path, node)?;
        let level = support_levels::level(&text);
        if level.is_none() {
            let message = format!("unknown level {text:?}: supported, to_be_evaluated or not_supported");
            self.problem(place, path.to_owned(), message);
        }
        level
    }

    pub(super) fn url(&mut self, path: &str, node: Node) -> Option<String> {
        let place = node.place;
        let text = self.line(path, node)?;
        if is_base_url(&text) {
            return Some(text);
        }
        let message =
            "is no base URL; write https://gitlab.example.com as the instance calls itself".to_owned();
        self.problem(place, path.to_owned(), message);
        None
    }

    pub(super) fn file_content(&mut self, path: &str, node: Node) -> Option<String> {
        let place = node.place;
        let name = self.line(path, node)?;
        match std::fs::read_to_string(self.folder.unwrap_or(Path::new(".")).join(&name)) {
            Ok(text) if text.contains('\0') => {
                self.problem(place, path.to_owned(), format!("the file {name} holds NUL"));
            }
            Ok(text) => return Some(text),
            Err(error) => self.problem(place, path.to_owned(), format!("cannot read {name}: {error}")),
        }
        None
    }
}
