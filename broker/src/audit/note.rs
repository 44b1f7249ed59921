//! Checkpoints: what a tree was, as C2SP tlog-checkpoint has it, in a signed note with Ed25519 signatures.
//!
//! Keys are lines of text as Go's `sumdb/note` writes them, so that other programs read them: a signer's
//! `PRIVATE+KEY+name+id+base64` and a verifier's `name+id+base64`. The name is the log's origin.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::tree::Hash;

/// What stands for Ed25519 in a key and in its id.
const ALGORITHM: u8 = 1;
const PRIVATE: &str = "PRIVATE+KEY+";
const SIGNATURE: &str = "\u{2014} ";
/// Begins the extension line that says when a checkpoint was signed.
const TIME: &str = "time ";

/// Why a key or a checkpoint cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// A line of a key file.
    #[error("line {0} is no key such as duo-broker audit key writes")]
    Key(usize),
    /// A file without a key.
    #[error("there is no key in it; make one with duo-broker audit key")]
    NoKey,
    /// Keys that sign together are of one log.
    #[error("its keys have different names; all keys of a log have the log's name")]
    Names,
    /// A name that no note can have.
    #[error("the name {0:?} is empty, or has a space or a plus in it")]
    Name(String),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// A text that is no checkpoint.
    #[error("this is no checkpoint: {0}")]
    Checkpoint(&'static str),
}

/// A size and a root, and what was signed over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// Records in it.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
    /// When it was signed, as the signer says.
    pub at: Option<OffsetDateTime>,
    /// The whole signed note.
    pub note: String,
}

/// A log's private keys, every one of which signs.
pub struct SigningKeys {
    keys: Vec<(Ed25519KeyPair, VerifyingKey)>,
}

/// A log's public keys, any of which proves a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKeys(Vec<VerifyingKey>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct VerifyingKey {
    name: String,
    id: [u8; 4],
    public: Vec<u8>,
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|(_, key)| key))
            .finish()
    }
}

/// Lines of a key file with their numbers; blank lines and those starting with `#` are passed over.
fn key_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// A new signer's line for the log `name`.
///
/// # Errors
/// No such name can be, or there are no random numbers.
pub fn generate_key(name: &str) -> Result<String, NoteError> {
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '+') {
        return Err(NoteError::Name(name.to_owned()));
    }
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| NoteError::Random)?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| NoteError::Random)?;
    let key = VerifyingKey::new(name, pair.public_key().as_ref());
    Ok(format!(
        "{PRIVATE}{name}+{}+{}\n",
        hex::encode(key.id),
        STANDARD.encode([&[ALGORITHM][..], &seed].concat())
    ))
}

impl SigningKeys {
    /// Reads a file of signers' lines.
    ///
    /// # Errors
    /// A line is no key, there is none, or they are of several logs.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut keys: Vec<(Ed25519KeyPair, VerifyingKey)> = Vec::new();
        for (number, line) in key_lines(text) {
            let key = signer(line).ok_or(NoteError::Key(number))?;
            if keys.first().is_some_and(|first| first.1.name != key.1.name) {
                return Err(NoteError::Names);
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(NoteError::NoKey);
        }
        Ok(Self { keys })
    }

    /// The log's name.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.keys.first().map_or("", |(_, key)| key.name.as_str())
    }

    /// The public halves.
    #[must_use]
    pub fn verifying(&self) -> VerifyingKeys {
        VerifyingKeys(self.keys.iter().map(|(_, key)| key.clone()).collect())
    }

    /// Signs that the log had `size` records and this `root` at `at`.
    #[must_use]
    pub fn sign(&self, size: u64, root: &Hash, at: OffsetDateTime) -> Checkpoint {
        let at = at
            .to_offset(time::UtcOffset::UTC)
            .replace_nanosecond(0)
            .unwrap_or(at);
        let when = at.format(&Rfc3339).unwrap_or_default();
        let text = format!(
            "{}\n{size}\n{}\n{TIME}{when}\n",
            self.origin(),
            STANDARD.encode(root)
        );
        Checkpoint {
            origin: self.origin().to_owned(),
            size,
            root: *root,
            at: Some(at),
            note: self.note(&text),
        }
    }

    /// Signs `text`, which ends with a line feed and has no empty line; its first line has to say what sort of text it is.
    #[must_use]
    pub fn note(&self, text: &str) -> String {
        let mut note = format!("{text}\n");
        for (pair, key) in &self.keys {
            let signature = pair.sign(text.as_bytes());
            let signature = STANDARD.encode([&key.id[..], signature.as_ref()].concat());
            note.push_str(&format!("{SIGNATURE}{} {signature}\n", key.name));
        }
        note
    }
}

fn signer(line: &str) -> Option<(Ed25519KeyPair, VerifyingKey)> {
    let mut parts = line.strip_prefix(PRIVATE)?.splitn(3, '+');
    let (name, id, seed) = (parts.next()?, parts.next()?, parts.next()?);
    let seed = STANDARD.decode(seed).ok()?;
    let pair = Ed25519KeyPair::from_seed_unchecked(seed.strip_prefix(&[ALGORITHM])?).ok()?;
    let key = VerifyingKey::new(name, pair.public_key().as_ref());
    (hex::encode(key.id) == id && !name.is_empty()).then_some((pair, key))
}

impl VerifyingKey {
    fn new(name: &str, public: &[u8]) -> Self {
        let hashed = [name.as_bytes(), b"\n", &[ALGORITHM], public].concat();
        let mut id = [0; 4];
        id.copy_from_slice(&digest::digest(&digest::SHA256, &hashed).as_ref()[..4]);
        Self {
            name: name.to_owned(),
            id,
            public: public.to_vec(),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, '+');
        let (name, id, public) = (parts.next()?, parts.next()?, parts.next()?);
        let public = STANDARD.decode(public).ok()?;
        let key = Self::new(name, public.strip_prefix(&[ALGORITHM])?);
        (hex::encode(key.id) == id && key.public.len() == 32 && !name.is_empty()).then_some(key)
    }
}

impl fmt::Display for VerifyingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for key in &self.0 {
            let public = STANDARD.encode([&[ALGORITHM][..], &key.public].concat());
            writeln!(f, "{}+{}+{public}", key.name, hex::encode(key.id))?;
        }
        Ok(())
    }
}

impl VerifyingKeys {
    /// Reads a file of verifiers' lines; signers' lines will do too.
    ///
    /// # Errors
    /// A line is no key, or there is none.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut keys = Vec::new();
        for (number, line) in key_lines(text) {
            let key = if line.starts_with(PRIVATE) {
                signer(line).map(|(_, key)| key)
            } else {
                VerifyingKey::parse(line)
            };
            keys.push(key.ok_or(NoteError::Key(number))?);
        }
        if keys.is_empty() {
            return Err(NoteError::NoKey);
        }
        Ok(Self(keys))
    }

    /// Has one of the keys signed this checkpoint, for the log of its name? Signatures of others, such as witnesses,
    /// count neither way.
    #[must_use]
    pub fn prove(&self, checkpoint: &Checkpoint) -> bool {
        self.prove_note(&checkpoint.note, &checkpoint.origin)
    }

    /// Has one of the keys signed this note as the log `origin`? What sort of note it is is the caller's to say.
    pub(super) fn prove_note(&self, note: &str, origin: &str) -> bool {
        let Some((text, signatures)) = note.split_once("\n\n") else {
            return false;
        };
        signatures.lines().any(|line| {
            let Some((name, signature)) = line.strip_prefix(SIGNATURE).and_then(|line| line.split_once(' '))
            else {
                return false;
            };
            let Ok(signature) = STANDARD.decode(signature) else {
                return false;
            };
            let Some((id, signature)) = signature.split_at_checked(4) else {
                return false;
            };
            self.0
                .iter()
                .filter(|key| key.name == name && key.id == id && key.name == origin)
                .any(|key| {
                    let public = UnparsedPublicKey::new(&ED25519, &key.public);
                    public.verify(format!("{text}\n").as_bytes(), signature).is_ok()
                })
        })
    }
}

impl Checkpoint {
    /// Reads a signed note; whether a signature is good is [`VerifyingKeys::prove`]'s to say.
    ///
    /// # Errors
    /// It is no checkpoint.
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        let (text, signatures) = note
            .split_once("\n\n")
            .ok_or(NoteError::Checkpoint("it has no signatures"))?;
        if !signatures.starts_with(SIGNATURE) || !signatures.ends_with('\n') {
            return Err(NoteError::Checkpoint("its signatures are not whole"));
        }
        let mut lines = text.lines();
        let origin = lines
            .next()
            .filter(|line| !line.is_empty())
            .ok_or(NoteError::Checkpoint("it has no origin"))?;
        let size = lines
            .next()
            .filter(|line| {
                line.chars().all(|c| c.is_ascii_digit()) && (*line == "0" || !line.starts_with('0'))
            })
            .and_then(|line| line.parse().ok())
            .ok_or(NoteError::Checkpoint("its size is no number"))?;
        let root = lines
            .next()
            .and_then(|line| STANDARD.decode(line).ok())
            .and_then(|root| Hash::try_from(root).ok())
            .ok_or(NoteError::Checkpoint("its root is no hash"))?;
        let at = lines
            .find_map(|line| line.strip_prefix(TIME))
            .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
            at,
            note: note.to_owned(),
        })
    }

    /// As a checkpoint file has it: a blank line behind it.
    #[must_use]
    pub fn file_entry(&self) -> String {
        format!("{}\n", self.note)
    }

    /// The checkpoints of a file, and how many pieces of it are none, as a crash in mid-write leaves one.
    #[must_use]
    pub fn read_file(text: &str) -> (Vec<Self>, usize) {
        let mut read = Vec::new();
        let mut unreadable = 0;
        let mut pending: Option<&str> = None;
        for block in text.split("\n\n").map(|block| block.trim_matches('\n')) {
            if block.is_empty() {
                continue;
            }
            if !block.starts_with(SIGNATURE) {
                unreadable += usize::from(pending.is_some());
                pending = Some(block);
                continue;
            }
            match pending
                .take()
                .map(|text| Self::parse(&format!("{text}\n\n{block}\n")))
            {
                Some(Ok(checkpoint)) => read.push(checkpoint),
                Some(Err(_)) | None => unreadable += 1,
            }
        }
        (read, unreadable + usize::from(pending.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment() -> OffsetDateTime {
        time::macros::datetime!(2026-01-31 12:00:00.5 UTC)
    }

    /// The seed is 32 times 7; the rest is by Python's cryptography package, see `tests/vectors/note.py`.
    const VECTOR: &str = include_str!("../../tests/vectors/note.json");

    #[test]
    fn an_independent_implementation_signs_the_same() {
        let vector: serde_json::Value = serde_json::from_str(VECTOR).expect("JSON");
        let text = |name: &str| vector[name].as_str().expect(name);
        let keys = SigningKeys::parse(text("signer")).expect("a key");
        assert_eq!(keys.verifying().to_string(), text("verifier"));
        let signed = keys.sign(5, &[9; 32], moment());
        assert_eq!(signed.note, text("note"));
        assert_eq!(Checkpoint::parse(text("note")), Ok(signed));
    }

    #[test]
    fn both_keys_of_a_rotation_prove_a_checkpoint_and_a_stranger_does_not() {
        let [old, new, other] = ["log", "log", "log"].map(|name| generate_key(name).expect("a key"));
        let signed = SigningKeys::parse(&format!("# new\n{new}{old}"))
            .expect("keys")
            .sign(1, &[1; 32], moment());
        let read = Checkpoint::parse(&signed.note).expect("a checkpoint");
        assert_eq!(read, signed);
        let proves = |key: &str| VerifyingKeys::parse(key).expect("a key").prove(&read);
        assert!(proves(&old) && proves(&new) && !proves(&other));
        let public = SigningKeys::parse(&old).expect("a key").verifying();
        assert_eq!(VerifyingKeys::parse(&public.to_string()), Ok(public.clone()));
        for (from, to) in [("\n1\n", "\n2\n"), ("log\n1", "gol\n1"), ("12:00:00", "12:00:01")] {
            let forged = Checkpoint::parse(&signed.note.replacen(from, to, 1)).expect("a checkpoint");
            assert!(!public.prove(&forged), "{from:?}");
        }
    }

    #[test]
    fn keys_of_two_logs_do_not_sign_together() {
        let keys = generate_key("a").expect("a key") + &generate_key("b").expect("a key");
        assert_eq!(SigningKeys::parse(&keys).err(), Some(NoteError::Names));
        assert_eq!(SigningKeys::parse("# none\n").err(), Some(NoteError::NoKey));
        assert_eq!(SigningKeys::parse("\nx").err(), Some(NoteError::Key(2)));
        assert!(generate_key("a+b").is_err() && generate_key("").is_err());
    }

    #[test]
    fn a_file_is_read_over_a_torn_entry() {
        let keys = SigningKeys::parse(&generate_key("log").expect("a key")).expect("a key");
        let entry = |size| keys.sign(size, &[1; 32], moment()).file_entry();
        let whole = entry(1) + &entry(2);
        let sizes = |text: &str| {
            let (read, unreadable) = Checkpoint::read_file(text);
            (read.iter().map(|one| one.size).collect::<Vec<_>>(), unreadable)
        };
        assert_eq!(sizes(&whole), (vec![1, 2], 0));
        let torn = &entry(3)[..20];
        assert_eq!(
            sizes(&format!("{whole}{torn}\n\n{}", entry(4))),
            (vec![1, 2, 4], 1)
        );
        assert_eq!(sizes(&format!("{whole}{torn}")), (vec![1, 2], 1));
    }
}
