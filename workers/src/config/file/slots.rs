//! `slots:` of a model server: a number, or `auto` within bounds.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Visitor};

use super::ServerKind;
use crate::slots::auto::Bounds;

/// Most slots of one server; far above what one server runs at once.
const MOST_SLOTS: u32 = 4096;
/// Bounds of `auto` where the file gives none: enough to begin with on any GPU, and what vLLM runs at once by default.
const LEAST_AUTO: u32 = 4;
const MOST_AUTO: u32 = 256;

/// How many requests a server takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// So many.
    Fixed(u32),
    /// As many as its own line and cache allow.
    Auto {
        /// Never fewer.
        min: u32,
        /// Never more.
        max: u32,
    },
}

/// `slots:` as the file has it.
#[derive(Debug, Clone, Copy)]
pub(super) enum SlotsField {
    Number(u32),
    Auto,
}

impl Slots {
    /// The most there can be.
    #[must_use]
    pub fn most(self) -> usize {
        let (Slots::Fixed(most) | Slots::Auto { max: most, .. }) = self;
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// The bounds of a number that changes.
    #[must_use]
    pub fn bounds(self) -> Option<Bounds> {
        let count = |count| usize::try_from(count).unwrap_or(usize::MAX);
        match self {
            Slots::Fixed(_) => None,
            Slots::Auto { min, max } => Some(Bounds {
                min: count(min),
                max: count(max),
            }),
        }
    }

    pub(super) fn checked(
        field: SlotsField,
        min: Option<u32>,
        max: Option<u32>,
        kind: ServerKind,
    ) -> Result<Self, String> {
        match field {
            SlotsField::Number(_) if min.is_some() || max.is_some() => {
                Err("slots_min and slots_max go with `slots: auto` only".to_owned())
            }
            SlotsField::Number(slots) if (1..=MOST_SLOTS).contains(&slots) => Ok(Slots::Fixed(slots)),
            SlotsField::Number(_) => Err(format!("slots must be `auto` or from 1 to {MOST_SLOTS}")),
            SlotsField::Auto if kind != ServerKind::Vllm => Err(format!(
                "`slots: auto` follows the queue metrics of vLLM and SGLang, which `kind: {}` does not have: give a number",
                kind.as_str()
            )),
            SlotsField::Auto => {
                let max = max.unwrap_or(MOST_AUTO);
                let min = min.unwrap_or(LEAST_AUTO.min(max));
                if min == 0 || min > max || max > MOST_SLOTS {
                    return Err(format!(
                        "slots_min ({min}) and slots_max ({max}) must be from 1 to {MOST_SLOTS}, the lower first"
                    ));
                }
                Ok(Slots::Auto { min, max })
            }
        }
    }
}

impl<'de> Deserialize<'de> for SlotsField {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SlotsVisitor)
    }
}

struct SlotsVisitor;

impl Visitor<'_> for SlotsVisitor {
    type Value = SlotsField;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a number of slots, or auto")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<SlotsField, E> {
        // What does not fit is far beyond the limit, which is looked at later.
        Ok(SlotsField::Number(u32::try_from(number).unwrap_or(u32::MAX)))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<SlotsField, E> {
        let number =
            u64::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))?;
        self.visit_u64(number)
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<SlotsField, E> {
        match word {
            "auto" => Ok(SlotsField::Auto),
            other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::file::{ServerConfig, parse};

    use super::*;

    fn read(fields: &str) -> Result<Vec<ServerConfig>, Vec<String>> {
        let text = format!("servers: [{{name: a, url: 'http://x', models: [{{model: m}}], {fields}}}]");
        parse(&text, |_| None)
    }

    fn slots(fields: &str) -> Slots {
        read(fields).expect("valid")[0].slots
    }

    #[test]
    fn slots_are_a_number_or_follow_the_server() {
        assert_eq!(slots("slots: 12"), Slots::Fixed(12));
        assert_eq!(slots("slots: auto"), Slots::Auto { min: 4, max: 256 });
        assert_eq!(slots("slots: auto, slots_max: 2"), Slots::Auto { min: 2, max: 2 });
        assert_eq!(
            slots("slots: auto, slots_min: 8, slots_max: 64"),
            Slots::Auto { min: 8, max: 64 }
        );
    }

    #[test]
    fn what_cannot_be_followed_is_refused_in_words() {
        for (fields, word) in [
            ("slots: 0", "from 1 to"),
            ("slots: -1", "a number of slots, or auto"),
            ("slots: many", "a number of slots, or auto"),
            ("slots: 8, slots_max: 9", "go with `slots: auto`"),
            ("slots: auto, slots_min: 9, slots_max: 8", "the lower first"),
            ("slots: auto, slots_min: 0", "the lower first"),
            ("slots: auto, kind: llama", "give a number"),
            ("slots: auto, kind: openai", "give a number"),
        ] {
            let problems = read(fields).expect_err(fields).join("\n");
            assert!(problems.contains(word), "{fields}: {problems}");
        }
    }
}
