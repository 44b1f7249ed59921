//! Reads request bodies field by field, so that every complaint names its
//! field and none quotes its value. Unknown fields are ignored.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::ApiError;

/// A JSON object whose values have not been read yet, in the client's order.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    path: String,
    entries: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// Not JSON, or no object.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        // Some clients write a byte order mark in front, which GitLab's own gateway passes over.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        match serde_json::from_slice::<Entries<'a>>(body) {
            Ok(Entries(entries)) => Ok(Self {
                path: String::new(),
                entries,
            }),
            Err(error) if error.is_data() => Err(ApiError::invalid("", "the body has to be an object")),
            Err(_) => Err(ApiError::Malformed),
        }
    }

    /// The fields as they came.
    pub(crate) fn entries(&self) -> &[(Cow<'a, str>, &'a RawValue)] {
        &self.entries
    }

    /// A field's value; absent and null are the same. Of two fields with one
    /// name the last counts.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let found = self.entries.iter().rev().find(|(key, _)| key == name);
        found
            .map(|(_, value)| *value)
            .filter(|value| value.get() != "null")
    }

    /// A field's path from the body's root.
    pub(crate) fn path_of(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// A problem with the field `name`.
    pub(crate) fn invalid(&self, name: &str, problem: impl Into<String>) -> ApiError {
        ApiError::invalid(self.path_of(name), problem)
    }

    /// A text of at most `most` characters, if there is one.
    ///
    /// # Errors
    /// Another type, or too long.
    pub(crate) fn text(&self, name: &str, most: usize) -> Result<Option<Cow<'a, str>>, ApiError> {
        let Some(raw) = self.raw(name) else {
            return Ok(None);
        };
        let text = read_text(raw).ok_or_else(|| self.invalid(name, "has to be a string"))?;
        self.at_most(name, &text, most)?;
        Ok(Some(text))
    }

    fn at_most(&self, name: &str, text: &str, most: usize) -> Result<(), ApiError> {
        if text.len() > most && text.chars().count() > most {
            return Err(self.invalid(name, format!("may have at most {most} characters")));
        }
        Ok(())
    }

    /// A text without the blanks around it, then of at most `most` characters.
    ///
    /// # Errors
    /// Absent, another type, or too long.
    pub(crate) fn required_trimmed(&self, name: &str, most: usize) -> Result<Cow<'a, str>, ApiError> {
        let text = match self.required_text(name, usize::MAX)? {
            Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
            Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
        };
        self.at_most(name, &text, most)?;
        Ok(text)
    }

    /// A text of at most `most` characters.
    ///
    /// # Errors
    /// Absent, another type, or too long.
    pub(crate) fn required_text(&self, name: &str, most: usize) -> Result<Cow<'a, str>, ApiError> {
        self.text(name, most)?.ok_or_else(|| self.required(name))
    }

    /// A boolean; false when absent.
    ///
    /// # Errors
    /// Another type.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.raw(name).map(RawValue::get) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(self.invalid(name, "has to be true or false")),
        }
    }

    /// An integer, if there is one.
    ///
    /// # Errors
    /// Another type.
    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(raw) = self.raw(name) else {
            return Ok(None);
        };
        let number = serde_json::from_str(raw.get());
        number
            .map(Some)
            .map_err(|_| self.invalid(name, "has to be an integer"))
    }

    /// An object, if there is one.
    ///
    /// # Errors
    /// Another type.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.raw(name)
            .map(|raw| Self::below(self.path_of(name), raw))
            .transpose()
    }

    /// An object.
    ///
    /// # Errors
    /// Absent or another type.
    pub(crate) fn required_object(&self, name: &str) -> Result<Fields<'a>, ApiError> {
        self.object(name)?.ok_or_else(|| self.required(name))
    }

    /// A list of at most `most` values; empty when absent.
    ///
    /// # Errors
    /// Another type, or too long.
    pub(crate) fn list(&self, name: &str, most: usize) -> Result<Vec<&'a RawValue>, ApiError> {
        let Some(raw) = self.raw(name) else {
            return Ok(Vec::new());
        };
        let list: Vec<&RawValue> =
            serde_json::from_str(raw.get()).map_err(|_| self.invalid(name, "has to be a list"))?;
        if list.len() > most {
            return Err(self.invalid(name, format!("may have at most {most} items")));
        }
        Ok(list)
    }

    /// A list of at most `most` objects; empty when absent.
    ///
    /// # Errors
    /// Another type, or too long.
    pub(crate) fn objects(&self, name: &str, most: usize) -> Result<Vec<Fields<'a>>, ApiError> {
        let list = self.list(name, most)?.into_iter().enumerate();
        list.map(|(index, raw)| Self::below(format!("{}.{index}", self.path_of(name)), raw))
            .collect()
    }

    /// A list of at most `most` texts of any length; empty when absent.
    ///
    /// # Errors
    /// Another type, or too long.
    pub(crate) fn texts(&self, name: &str, most: usize) -> Result<Vec<Cow<'a, str>>, ApiError> {
        let list = self.list(name, most)?.into_iter();
        list.map(|raw| read_text(raw).ok_or_else(|| self.invalid(name, "has to be a list of strings")))
            .collect()
    }

    /// A required field's complaint.
    pub(crate) fn required(&self, name: &str) -> ApiError {
        self.invalid(name, "is required")
    }

    fn below(path: String, raw: &'a RawValue) -> Result<Self, ApiError> {
        match serde_json::from_str::<Entries<'a>>(raw.get()) {
            Ok(Entries(entries)) => Ok(Self { path, entries }),
            Err(_) => Err(ApiError::invalid(path, "has to be an object")),
        }
    }
}

/// A JSON string's text. Editors cut text between the halves of a surrogate
/// pair; such a half becomes the replacement character.
fn read_text(raw: &RawValue) -> Option<Cow<'_, str>> {
    if let Ok(Text(text)) = serde_json::from_str(raw.get()) {
        return Some(text);
    }
    let Lossy(text) = serde_json::from_str(raw.get()).ok()?;
    Some(Cow::Owned(text))
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Lossy(String);

impl<'de> Deserialize<'de> for Lossy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Lossy;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Lossy, E> {
                Ok(Lossy(String::from_utf8_lossy(bytes).into_owned()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

struct Entries<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::with_capacity(16);
                while let Some((Text(key), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    entries.push((key, value));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> Fields<'_> {
        Fields::parse(body.as_bytes()).expect("an object")
    }

    #[test]
    fn characters_are_counted_not_bytes() {
        let body = format!(r#"{{"a": "{}", "b": "{}"}}"#, "ü".repeat(5), "ü".repeat(6));
        let fields = fields(&body);
        assert!(fields.text("a", 5).is_ok());
        assert_eq!(
            fields.text("b", 5).expect_err("too long").to_string(),
            "b: may have at most 5 characters"
        );
    }

    #[test]
    fn a_complaint_names_the_path_and_never_the_value() {
        let fields = fields(r#"{"a": {"b": 7, "c": ["secret", 1]}, "list": [{"x": "secret"}]}"#);
        let a = fields.required_object("a").expect("an object");
        for error in [
            a.required_text("b", 9).expect_err("a number"),
            a.texts("c", 9).expect_err("mixed"),
            a.flag("c").expect_err("a list"),
            fields.objects("list", 9).expect("objects")[0]
                .integer("x")
                .expect_err("text"),
        ] {
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert_eq!(
            fields.objects("list", 9).expect("objects")[0]
                .required("y")
                .to_string(),
            "list.0.y: is required"
        );
    }

    #[test]
    fn blanks_around_a_name_do_not_count() {
        let body = format!(r#"{{"a": "  {}  ", "b": "{}"}}"#, "n".repeat(5), "n".repeat(6));
        let fields = fields(&body);
        assert_eq!(fields.required_trimmed("a", 5).expect("fits"), "nnnnn");
        assert!(fields.required_trimmed("b", 5).is_err());
    }

    #[test]
    fn a_byte_order_mark_is_passed_over_and_other_roots_are_no_object() {
        assert!(Fields::parse(b"\xef\xbb\xbf{}").is_ok());
        for body in ["[]", "null", "7", "\"x\""] {
            let error = Fields::parse(body.as_bytes()).expect_err("no object");
            assert_eq!(error.to_string(), "the body has to be an object");
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_replaced() {
        let fields = fields(r#"{"a": "x\ud83d"}"#);
        assert!(
            fields
                .required_text("a", 10)
                .expect("text")
                .starts_with("x\u{fffd}")
        );
    }

    #[test]
    fn null_counts_as_absent() {
        let fields = fields(r#"{"a": null, "s": null}"#);
        assert_eq!(fields.text("a", 5).expect("none"), None);
        assert!(!fields.flag("s").expect("false"));
    }
}
