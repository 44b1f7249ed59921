//! What an export holds, as a text that is signed like a checkpoint and can never be taken for one.
//!
//! The text is a C2SP signed note: a line that names the log and says that this is a manifest, then JSON. The name of a
//! log has no space in it, so no checkpoint begins with such a line. Without a key the text is the JSON alone.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use uuid::Uuid;

use super::note::{Checkpoint, SigningKeys, VerifyingKeys};
use crate::store::audit_search::Filter;

/// Behind the log's name in the first line of a signed manifest.
const TITLE: &str = " audit export manifest v1";

/// What an export holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Manifest {
    /// The export.
    pub export: Uuid,
    /// What was asked for.
    pub filter: Filter,
    /// How it is written.
    pub format: &'static str,
    /// How many at most, where a sample was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<u32>,
    /// The sample's seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// Records in it.
    pub records: u64,
    /// The lowest number of its records.
    pub first_seq: Option<i64>,
    /// The highest.
    pub last_seq: Option<i64>,
    /// Bytes of it.
    pub bytes: u64,
    /// SHA-256 of those bytes, lower-case hexadecimal.
    pub sha256: String,
    /// When it was at its end.
    #[serde(with = "time::serde::rfc3339")]
    pub ended_at: OffsetDateTime,
    /// Is it all that was asked for? Not where it broke off.
    pub is_whole: bool,
    /// The log's newest checkpoint when the export began.
    pub log: Option<LogState>,
}

/// What the log was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogState {
    /// Records under the checkpoint.
    pub tree_size: u64,
    /// Their root, hexadecimal.
    pub root: String,
    /// The signed checkpoint.
    pub checkpoint: String,
}

impl From<Checkpoint> for LogState {
    fn from(checkpoint: Checkpoint) -> Self {
        Self {
            tree_size: checkpoint.size,
            root: hex::encode(checkpoint.root),
            checkpoint: checkpoint.note,
        }
    }
}

impl Manifest {
    /// The id of the record that keeps the manifest of an export.
    #[must_use]
    pub fn record_of(export: Uuid) -> Uuid {
        Uuid::from_u128(export.as_u128() ^ 1)
    }

    /// What that record says; `signed` is the manifest as [`Manifest::sign`] made it.
    #[must_use]
    pub fn details(&self, signed: Option<&str>) -> Value {
        let mut details = serde_json::json!({"read": "export_ended", "manifest": self});
        if let Some(signed) = signed {
            details["signed"] = signed.into();
        }
        details
    }

    /// Signs it.
    #[must_use]
    pub fn sign(&self, keys: &SigningKeys) -> String {
        keys.note(&format!("{}{TITLE}\n{}", keys.origin(), self.json()))
    }

    /// The text without a signature.
    #[must_use]
    pub fn json(&self) -> String {
        unsigned(&serde_json::to_value(self).unwrap_or_default())
    }
}

/// A manifest's text as [`Manifest::json`] writes it, of what a record keeps.
#[must_use]
pub fn unsigned(manifest: &Value) -> String {
    format!("{manifest:#}\n")
}

/// A text that is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The first line of a note is of something else.
    #[error("it is a signed note, but none of an export's manifest")]
    Other,
    /// It is no manifest at all.
    #[error("it is no manifest of an export")]
    Json(#[from] serde_json::Error),
}

/// A manifest that somebody has.
#[derive(Debug, Clone)]
pub struct SignedManifest {
    /// Which log's key signed it, as it says; absent on one that is not signed.
    pub origin: Option<String>,
    /// What it says.
    pub stated: Stated,
    note: String,
}

/// What a manifest says, as far as it can be compared with something.
#[derive(Debug, Clone, Deserialize)]
pub struct Stated {
    /// The export.
    pub export: Uuid,
    /// What was asked for.
    pub filter: Map<String, Value>,
    /// How it is written.
    pub format: String,
    /// How many at most, of a sample.
    pub sample: Option<u32>,
    /// Records in it.
    pub records: u64,
    /// Bytes of it.
    pub bytes: u64,
    /// SHA-256 of those bytes.
    pub sha256: String,
    /// When it was at its end.
    #[serde(with = "time::serde::rfc3339")]
    pub ended_at: OffsetDateTime,
    /// Is it all that was asked for?
    pub is_whole: bool,
    /// What the log was then.
    pub log: Option<LogState>,
}

impl Stated {
    /// Were some records asked for, so that others lie between them?
    #[must_use]
    pub fn is_selection(&self) -> bool {
        !self.filter.is_empty() || self.sample.is_some()
    }
}

impl SignedManifest {
    /// Reads a manifest; whether a signature is good is [`SignedManifest::is_proved_by`]'s to say.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        // Nothing in JSON that is written on several lines is an empty line.
        let (origin, json) = match text.split_once("\n\n") {
            Some((note, _)) => {
                let (first, json) = note.split_once('\n').ok_or(ManifestError::Other)?;
                let origin = first.strip_suffix(TITLE).ok_or(ManifestError::Other)?;
                (Some(origin.to_owned()), json)
            }
            None => (None, text),
        };
        Ok(Self {
            origin,
            stated: serde_json::from_str(json)?,
            note: text.to_owned(),
        })
    }

    /// Has one of the keys signed it, for the log of its name?
    #[must_use]
    pub fn is_proved_by(&self, keys: &VerifyingKeys) -> bool {
        self.origin
            .as_deref()
            .is_some_and(|origin| keys.prove_note(&self.note, origin))
    }
}

#[cfg(test)]
mod tests {
    use super::super::note::generate_key;
    use super::*;

    fn manifest(keys: &SigningKeys) -> Manifest {
        let checkpoint = keys.sign(3, &[7; 32], OffsetDateTime::UNIX_EPOCH);
        Manifest {
            export: Uuid::nil(),
            filter: Filter {
                // What would end a note if it stood there as it is.
                q: Some("\n\n\u{2014} log AAAA\n".into()),
                ..Filter::default()
            },
            format: "csv",
            sample: Some(25),
            seed: Some("s".into()),
            records: 25,
            first_seq: Some(0),
            last_seq: Some(24),
            bytes: 100,
            sha256: "00".into(),
            ended_at: OffsetDateTime::UNIX_EPOCH,
            is_whole: true,
            log: Some(checkpoint.into()),
        }
    }

    #[test]
    fn a_manifest_and_a_checkpoint_are_never_taken_for_each_other() {
        let keys = SigningKeys::parse(&generate_key("log").expect("a key")).expect("a key");
        let signed = manifest(&keys).sign(&keys);
        let read = SignedManifest::parse(&signed).expect("a manifest");
        assert!(read.is_proved_by(&keys.verifying()) && read.stated.is_selection());
        assert!(Checkpoint::parse(&signed).is_err());
        assert_eq!(Checkpoint::read_file(&signed).0, []);
        let checkpoint = keys.sign(3, &[7; 32], OffsetDateTime::UNIX_EPOCH);
        assert!(SignedManifest::parse(&checkpoint.note).is_err());
        let other = SigningKeys::parse(&generate_key("log").expect("a key")).expect("a key");
        assert!(!read.is_proved_by(&other.verifying()));
    }

    #[test]
    fn no_byte_of_a_manifest_can_be_changed_and_its_signature_not_be_left_out() {
        let keys = SigningKeys::parse(&generate_key("log").expect("a key")).expect("a key");
        let manifest = manifest(&keys);
        let signed = manifest.sign(&keys);
        let end = signed.find("\n\n").expect("signatures");
        for at in (0..end).filter(|at| signed.is_char_boundary(*at) && signed.is_char_boundary(at + 1)) {
            let mut bytes = signed.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(text) = String::from_utf8(bytes) else {
                continue;
            };
            let proved = SignedManifest::parse(&text).is_ok_and(|read| read.is_proved_by(&keys.verifying()));
            assert!(!proved, "{text}");
        }
        let bare = SignedManifest::parse(&manifest.json()).expect("a manifest");
        assert_eq!((bare.origin.as_deref(), bare.stated.records), (None, 25));
        assert!(!bare.is_proved_by(&keys.verifying()));
    }
}
