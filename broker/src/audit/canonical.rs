//! The bytes of an audit record that are hashed: the same from a row and from a line of an export.
//!
//! `docs/audit-format.md` says how they are made, for programs in other languages. A column that is added to
//! `audit_events` goes to the end of [`FIELDS`]; what is absent is not in the bytes, so older records keep theirs.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize as _;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::tree::{Hash, LEAF_PREFIX, sha256};

/// First byte of a record's bytes.
pub const VERSION: u8 = 1;
/// Where PostgreSQL counts its microseconds from, in microseconds since 1970.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// How a field's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Eight bytes, big end first, two's complement.
    Integer,
    /// One byte, 0 or 1.
    Boolean,
    /// Sixteen bytes.
    Uuid,
    /// An [`Kind::Integer`] of microseconds since 1970, UTC.
    Moment,
    /// As they are; in JSON in lower-case hexadecimal.
    Bytes,
}

/// The columns of `audit_events` but `day`, in the order of their numbers, which begin with 1. Append only.
pub const FIELDS: [(&str, Kind); 36] = [
    ("request_id", Kind::Uuid),
    ("kind", Kind::Text),
    ("occurred_at", Kind::Moment),
    ("recorded_at", Kind::Moment),
    ("broker", Kind::Text),
    ("auth", Kind::Text),
    ("instance_id", Kind::Text),
    ("user_id", Kind::Text),
    ("token_id", Kind::Text),
    ("client", Kind::Text),
    ("address", Kind::Text),
    ("route", Kind::Text),
    ("feature", Kind::Text),
    ("lane", Kind::Text),
    ("model", Kind::Text),
    ("prompt_id", Kind::Text),
    ("prompt_version", Kind::Text),
    ("config_revision", Kind::Integer),
    ("stream", Kind::Boolean),
    ("body_bytes", Kind::Integer),
    ("correlation_id", Kind::Text),
    ("trace_id", Kind::Text),
    ("outcome", Kind::Text),
    ("reason", Kind::Text),
    ("worker", Kind::Text),
    ("attempts", Kind::Integer),
    ("queue_wait_us", Kind::Integer),
    ("first_byte_us", Kind::Integer),
    ("duration_us", Kind::Integer),
    ("input_tokens", Kind::Integer),
    ("output_tokens", Kind::Integer),
    ("job_id", Kind::Uuid),
    ("seq", Kind::Integer),
    ("details", Kind::Text),
    ("prompt_sha256", Kind::Text),
    ("answer_sha256", Kind::Text),
];

/// The one field whose text is itself JSON, and may stand in an export as such.
const JSON_FIELD: &str = "details";

/// Why a record's bytes cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// A line of an export is no JSON object.
    #[error("it is no JSON object")]
    NoObject,
    /// A value is of another kind than its field.
    #[error("its {0} is of another kind than records have")]
    Value(&'static str),
    /// A record without a number is in no tree.
    #[error("it has no seq")]
    NoNumber,
}

/// Makes records' bytes, one after the other, in one buffer.
#[derive(Debug)]
pub struct Canonical {
    /// The prefix of a leaf, then the record.
    leaf: Vec<u8>,
}

impl Default for Canonical {
    fn default() -> Self {
        let mut canonical = Self {
            leaf: Vec::with_capacity(1024),
        };
        canonical.start();
        canonical
    }
}

impl Canonical {
    /// Begins with the next record.
    pub fn start(&mut self) {
        self.leaf.clear();
        self.leaf.extend_from_slice(&[LEAF_PREFIX, VERSION]);
    }

    /// Adds the value of [`FIELDS`]`[index]` as PostgreSQL sends it in binary form.
    ///
    /// # Errors
    /// It is no such value.
    pub fn postgres(&mut self, index: usize, value: &[u8]) -> Result<(), CanonicalError> {
        let (name, kind) = FIELDS[index];
        let wrong = || CanonicalError::Value(name);
        match kind {
            Kind::Integer => {
                let number = match value.len() {
                    4 => i64::from(i32::from_be_bytes(value.try_into().map_err(|_| wrong())?)),
                    _ => i64::from_be_bytes(value.try_into().map_err(|_| wrong())?),
                };
                self.add(index, &number.to_be_bytes());
            }
            Kind::Moment => {
                let since_2000 = i64::from_be_bytes(value.try_into().map_err(|_| wrong())?);
                self.add(index, &since_2000.saturating_add(POSTGRES_EPOCH_US).to_be_bytes());
            }
            Kind::Text | Kind::Boolean | Kind::Uuid | Kind::Bytes => self.add(index, value),
        }
        Ok(())
    }

    /// Takes a whole record from a line of an export, and returns its number. Keys that are no fields are passed over.
    ///
    /// # Errors
    /// The line is no record.
    pub fn json(&mut self, line: &str) -> Result<u64, CanonicalError> {
        self.start();
        let object: HashMap<Cow<'_, str>, &RawValue> =
            serde_json::from_str(line).map_err(|_| CanonicalError::NoObject)?;
        let mut number = None;
        for (index, (name, kind)) in FIELDS.into_iter().enumerate() {
            let Some(text) = object.get(name).map(|value| value.get()) else {
                continue;
            };
            if text == "null" {
                continue;
            }
            let value = json_value(name, kind, text).ok_or(CanonicalError::Value(name))?;
            if name == "seq" {
                let bytes = value.as_ref().try_into().map(i64::from_be_bytes);
                number = bytes.ok().and_then(|seq| u64::try_from(seq).ok());
            }
            self.add(index, &value);
        }
        number.ok_or(CanonicalError::NoNumber)
    }

    /// The record's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.leaf[1..]
    }

    /// The record's leaf in the tree.
    #[must_use]
    pub fn leaf_hash(&self) -> Hash {
        sha256(&self.leaf)
    }

    fn add(&mut self, index: usize, value: &[u8]) {
        self.leaf.push(u8::try_from(index + 1).unwrap_or(u8::MAX));
        // PostgreSQL has no value of four gigabytes.
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.leaf.extend_from_slice(&length.to_be_bytes());
        self.leaf.extend_from_slice(value);
    }
}

fn json_value<'a>(name: &str, kind: Kind, text: &'a str) -> Option<Cow<'a, [u8]>> {
    let string = || {
        let mut json = serde_json::Deserializer::from_str(text);
        Cow::<str>::deserialize(&mut json).ok()
    };
    let value: Cow<'a, [u8]> = match kind {
        Kind::Text if name == JSON_FIELD && !text.starts_with('"') => text.as_bytes().into(),
        Kind::Text => string()?.into_owned().into_bytes().into(),
        Kind::Integer => text.parse::<i64>().ok()?.to_be_bytes().to_vec().into(),
        Kind::Boolean => vec![u8::from(text.parse::<bool>().ok()?)].into(),
        Kind::Uuid => Uuid::try_parse(&string()?).ok()?.as_bytes().to_vec().into(),
        Kind::Moment => {
            let moment = OffsetDateTime::parse(&string()?, &Rfc3339).ok()?;
            let micros = i64::try_from(moment.unix_timestamp_nanos().div_euclid(1000)).ok()?;
            micros.to_be_bytes().to_vec().into()
        }
        Kind::Bytes => hex::decode(string()?.as_bytes()).ok()?.into(),
    };
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"request_id":"01939b2c-0000-7000-8000-000000000001","kind":"changed","occurred_at":"2026-01-31T12:00:00.000001Z",
        "recorded_at":"2026-01-31T12:00:00Z","broker":"b","auth":"a","route":"model.put","config_revision":7,"stream":false,
        "body_bytes":0,"attempts":null,"seq":5,"details":{"what": "é"},"day":"2026-01-31","other":[1]}"#;

    #[test]
    fn a_record_has_these_bytes() {
        let mut canonical = Canonical::default();
        assert_eq!(canonical.json(LINE), Ok(5));
        let expected = concat!(
            "01",
            "010000001001939b2c000070008000000000000001",
            "02000000076368616e676564",
            "0300000008000649ae1ad31001",
            "0400000008000649ae1ad31000",
            "050000000162",
            "060000000161",
            "0c000000096d6f64656c2e707574",
            "12000000080000000000000007",
            "130000000100",
            "14000000080000000000000000",
            "21000000080000000000000005",
            "220000000e7b2277686174223a2022c3a9227d",
        );
        let moment = |text| {
            let moment = OffsetDateTime::parse(text, &Rfc3339).expect("a moment");
            format!("{:016x}", moment.unix_timestamp_nanos() / 1000)
        };
        let expected = expected
            .replace("000649ae1ad31001", &moment("2026-01-31T12:00:00.000001Z"))
            .replace("000649ae1ad31000", &moment("2026-01-31T12:00:00Z"));
        assert_eq!(hex::encode(canonical.bytes()), expected);
    }

    #[test]
    fn details_count_the_same_as_json_and_as_a_text_of_it() {
        let leaf = |line: &str| {
            let mut canonical = Canonical::default();
            canonical.json(line).expect("a record");
            canonical.leaf_hash()
        };
        let as_text = LINE.replace(r#"{"what": "é"}"#, r#""{\"what\": \"\u00e9\"}""#);
        assert_eq!(leaf(LINE), leaf(&as_text));
        assert_ne!(leaf(LINE), leaf(&LINE.replace(r#""what": "#, r#""what":"#)));
    }

    #[test]
    fn what_is_no_record_is_told() {
        let mut canonical = Canonical::default();
        assert_eq!(canonical.json("[]"), Err(CanonicalError::NoObject));
        assert_eq!(canonical.json("{}"), Err(CanonicalError::NoNumber));
        let wrong = LINE.replace("false", "\"no\"");
        assert_eq!(canonical.json(&wrong), Err(CanonicalError::Value("stream")));
    }
}
