//! Names that travel in subjects: parsed once, safe as subject tokens.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest feature id, in bytes.
pub const MAX_FEATURE_NAME: usize = 64;
/// Longest model name, in bytes, before escaping.
pub const MAX_MODEL_NAME: usize = 128;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or nothing but blanks.
    #[error("a name may not be empty")]
    Empty,
    /// Over the limit, in bytes.
    #[error("a name may have at most {0} characters")]
    TooLong(usize),
    /// A character that the kind of name does not allow.
    #[error("a feature id has lower-case letters, digits, '-' and '_' only, not {0:?}")]
    Character(char),
    /// A control character in a model name.
    #[error("a model name may not hold control characters")]
    Control,
    /// A lane nobody knows.
    #[error("unknown lane {0:?}: keystroke, interactive or background")]
    Lane(String),
}

/// A feature id such as `code_completion`: a slug, one subject token as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct FeatureName(Arc<str>);

impl FeatureName {
    /// Proves that `text` is a slug of lower-case letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// Empty, over [`MAX_FEATURE_NAME`] bytes, or another character.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_FEATURE_NAME {
            return Err(NameError::TooLong(MAX_FEATURE_NAME));
        }
        let bad = |c: &char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-' || *c == '_');
        match text.chars().find(bad) {
            Some(c) => Err(NameError::Character(c)),
            None => Ok(Self(text.into())),
        }
    }

    /// The id, which is also its subject token.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A model's name as administrators write it, such as `codestral-22b-v0.3`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct ModelName(Arc<str>);

impl ModelName {
    /// Proves that `text` can name a model.
    ///
    /// # Errors
    /// Empty, over [`MAX_MODEL_NAME`] bytes, or a control character.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.trim().is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_MODEL_NAME {
            return Err(NameError::TooLong(MAX_MODEL_NAME));
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        Ok(Self(text.into()))
    }

    /// The name as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as one subject token, also good in a consumer name: letters,
    /// digits and `-` stand for themselves, `_` is written `__`, every other
    /// byte as `_` and two hexadecimal digits, so two names never share a token.
    #[must_use]
    pub fn token(&self) -> Cow<'_, str> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if self.0.bytes().all(plain) {
            return Cow::Borrowed(&self.0);
        }
        let mut token = String::with_capacity(self.0.len() + 8);
        for byte in self.0.bytes() {
            match byte {
                b if plain(b) => token.push(char::from(b)),
                b'_' => token.push_str("__"),
                b => token.push_str(&format!("_{b:02X}")),
            }
        }
        Cow::Owned(token)
    }

    /// Reads a subject token back; the inverse of [`ModelName::token`].
    #[must_use]
    pub fn from_token(token: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(token.len());
        let mut rest = token.bytes();
        while let Some(byte) = rest.next() {
            if byte != b'_' {
                bytes.push(byte);
                continue;
            }
            match rest.next()? {
                b'_' => bytes.push(b'_'),
                high => {
                    let low = rest.next()?;
                    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                    bytes.push(digit(high)? << 4 | digit(low)?);
                }
            }
        }
        Self::parse(std::str::from_utf8(&bytes).ok()?).ok()
    }
}

/// How urgent a request is; each lane is served in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "document", derive(utoipa::ToSchema))]
pub enum Lane {
    /// Someone is typing: an answer is worth nothing after about two seconds.
    Keystroke,
    /// Someone is waiting.
    Interactive,
    /// Nobody is waiting; jobs only.
    Background,
}

impl Lane {
    /// Every lane, most urgent first.
    pub const ALL: [Lane; 3] = [Lane::Keystroke, Lane::Interactive, Lane::Background];
    /// The lanes a live request may be in.
    pub const LIVE: [Lane; 2] = [Lane::Keystroke, Lane::Interactive];

    /// The lane's subject token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Keystroke => "keystroke",
            Lane::Interactive => "interactive",
            Lane::Background => "background",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Lane {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Lane::ALL
            .into_iter()
            .find(|lane| lane.as_str() == text)
            .ok_or_else(|| NameError::Lane(text.into()))
    }
}

macro_rules! text_name {
    ($name:ty) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_name!(FeatureName);
text_name!(ModelName);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_feature_id_is_a_slug() {
        assert!(FeatureName::parse("code_completion").is_ok());
        assert_eq!(FeatureName::parse("Code"), Err(NameError::Character('C')));
        assert_eq!(FeatureName::parse("a.b"), Err(NameError::Character('.')));
        assert_eq!(FeatureName::parse(""), Err(NameError::Empty));
    }

    #[test]
    fn dots_and_wildcards_in_a_model_name_are_escaped() {
        let name = ModelName::parse("org/v0.3_*>").expect("a name");
        assert_eq!(name.token(), "org_2Fv0_2E3___2A_3E");
    }

    proptest! {
        #[test]
        fn a_model_name_survives_its_token(text in "[^\\p{Cc}]{1,30}") {
            prop_assume!(!text.trim().is_empty());
            let name = ModelName::parse(&text).expect("a name");
            let token = name.token().into_owned();
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(ModelName::from_token(&token), Some(name));
        }
    }
}
