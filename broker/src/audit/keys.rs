//! Keys of prompts and answers: a data key for each subject and day, under a master key that is in no database.
//!
//! Whoever destroys a data key has erased what it sealed, in every copy of it. A broker makes data keys by itself, so
//! that nothing waits for Postgres; a subject may have several for a day.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use duo_contract::audit::Who;
use duo_contract::body::WrappedKey;
use duo_contract::seal::{KEY_BYTES, SealError, SealKeys};
use time::Date;
use uuid::Uuid;

/// A broker seals with a data key for so long: what comes later than that after an erasure is not erased with it.
const USED_FOR: Duration = Duration::from_secs(15 * 60);
/// Data keys that a broker holds at most.
const MOST: usize = 8192;
/// Hexadecimal digits of a master key's fingerprint that name it.
const NAME_DIGITS: usize = 16;

/// Why there are no master keys.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file cannot be read.
    #[error("the master keys cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// A line is no key.
    #[error("line {0} of the master keys is not base64 of 32 random bytes")]
    Line(usize),
    /// There is no key.
    #[error("the master keys are empty: write one line of base64 of 32 random bytes")]
    Empty,
    /// The cipher failed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// The master keys; the first wraps, all unwrap.
#[derive(Debug)]
pub struct MasterKeys(SealKeys);

/// A data key in use.
#[derive(Debug)]
pub struct DataKey {
    /// Seals and opens.
    keys: SealKeys,
    /// How it is stored.
    pub wrapped: WrappedKey,
}

impl MasterKeys {
    /// Reads lines of base64; blank lines and lines starting with `#` are skipped.
    ///
    /// # Errors
    /// A line that is no key, or none at all.
    pub fn parse(text: &str) -> Result<Self, MasterKeyError> {
        let mut lines = String::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = STANDARD.decode(line).ok().filter(|key| key.len() == KEY_BYTES);
            let key = key.ok_or(MasterKeyError::Line(index + 1))?;
            // A key is named for itself, so that an operator has no names to keep apart.
            let mut name = hex::encode(digest::digest(&digest::SHA256, &key));
            name.truncate(NAME_DIGITS);
            lines.push_str(&format!("{name}:{line}\n"));
        }
        if lines.is_empty() {
            return Err(MasterKeyError::Empty);
        }
        Ok(Self(SealKeys::parse(&lines)?))
    }

    /// The keys of a file.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self, MasterKeyError> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    /// The name of the key that wraps.
    #[must_use]
    pub fn first(&self) -> &str {
        self.0.ids().next().unwrap_or_default()
    }

    /// A new data key.
    ///
    /// # Errors
    /// The random source or the cipher failed.
    pub fn make(&self, subject: &str, period: Date) -> Result<DataKey, SealError> {
        let line = SealKeys::generate_line("data");
        let mut wrapped = WrappedKey {
            id: Uuid::new_v4(),
            subject: subject.to_owned(),
            period: period.to_string(),
            master: String::new(),
            wrapped: String::new(),
        };
        let mut sealed = Vec::new();
        let master = self.0.seal(&aad(&wrapped), line.as_bytes(), &mut sealed)?;
        wrapped.master = master.into();
        wrapped.wrapped = STANDARD.encode(sealed);
        Ok(DataKey {
            keys: SealKeys::parse(&line)?,
            wrapped,
        })
    }

    /// Opens a stored data key.
    ///
    /// # Errors
    /// Another master key wraps it, or somebody changed it.
    pub fn open(&self, wrapped: WrappedKey) -> Result<DataKey, SealError> {
        let line = self.line(&wrapped)?;
        Ok(DataKey {
            keys: SealKeys::parse(&line)?,
            wrapped,
        })
    }

    /// The same data key under the first master key.
    ///
    /// # Errors
    /// As [`MasterKeys::open`].
    pub fn rewrap(&self, wrapped: &WrappedKey) -> Result<WrappedKey, SealError> {
        let line = self.line(wrapped)?;
        let mut sealed = Vec::new();
        let master = self.0.seal(&aad(wrapped), line.as_bytes(), &mut sealed)?;
        Ok(WrappedKey {
            master: master.into(),
            wrapped: STANDARD.encode(sealed),
            ..wrapped.clone()
        })
    }

    fn line(&self, wrapped: &WrappedKey) -> Result<String, SealError> {
        let sealed = STANDARD.decode(&wrapped.wrapped).map_err(|_| SealError::Open)?;
        let line = self.0.open(&wrapped.master, &aad(wrapped), &sealed)?;
        String::from_utf8(line).map_err(|_| SealError::Open)
    }
}

/// A wrapped key cannot take the place of another.
fn aad(key: &WrappedKey) -> Vec<u8> {
    format!("duo audit key 1\n{}\n{}\n{}", key.id, key.period, key.subject).into_bytes()
}

impl DataKey {
    /// Seals a text.
    ///
    /// # Errors
    /// The random source or the cipher failed.
    pub fn seal(&self, aad: &[u8], text: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut sealed = Vec::with_capacity(text.len() + SealKeys::OVERHEAD);
        self.keys.seal(aad, text, &mut sealed)?;
        Ok(sealed)
    }

    /// Opens a text.
    ///
    /// # Errors
    /// Another key sealed it, or somebody changed it.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let id = self.keys.ids().next().unwrap_or_default();
        self.keys.open(id, aad, sealed)
    }
}

/// Whose texts a key seals: the person, else the token, else the instance.
#[must_use]
pub fn subject_of(who: &Who) -> String {
    let ids = [
        ("user", &who.user_id),
        ("token", &who.token_id),
        ("instance", &who.instance_id),
    ];
    ids.into_iter()
        .find_map(|(kind, id)| id.as_ref().map(|id| format!("{kind}:{id}")))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// The data keys that a broker seals with.
#[derive(Debug)]
pub struct DataKeys {
    masters: MasterKeys,
    used: Mutex<HashMap<Scope, (Instant, Arc<DataKey>)>>,
}

/// Subject, day, and the day on which it all is dropped, since keys go with what they sealed.
type Scope = (String, Date, Date);

impl DataKeys {
    /// Keys under these master keys.
    #[must_use]
    pub fn new(masters: MasterKeys) -> Self {
        Self {
            masters,
            used: Mutex::default(),
        }
    }

    /// The key of a subject for a day.
    ///
    /// # Errors
    /// The random source or the cipher failed.
    pub fn key(&self, subject: &str, period: Date, drop_on: Date) -> Result<Arc<DataKey>, SealError> {
        let now = Instant::now();
        let scope = (subject.to_owned(), period, drop_on);
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let is_young = |made: &Instant| now.saturating_duration_since(*made) < USED_FOR;
        if let Some((made, key)) = used.get(&scope)
            && is_young(made)
        {
            return Ok(Arc::clone(key));
        }
        if used.len() >= MOST {
            used.retain(|_, (made, _)| is_young(made));
            if used.len() >= MOST {
                used.clear();
            }
        }
        let key = Arc::new(self.masters.make(subject, period)?);
        used.insert(scope, (now, Arc::clone(&key)));
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const TWO: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn day() -> Date {
        time::macros::date!(2026 - 12 - 01)
    }

    #[test]
    fn a_data_key_opens_under_its_master_key_only_and_under_no_other_name() {
        let one = MasterKeys::parse(ONE).expect("a key");
        let key = one.make("user:x", day()).expect("a data key");
        let sealed = key.seal(b"aad", b"text").expect("seals");
        assert!(!key.wrapped.wrapped.contains("data:"));
        let again = one.open(key.wrapped.clone()).expect("opens");
        assert_eq!(again.open(b"aad", &sealed).expect("opens"), b"text");
        assert_eq!(again.open(b"other", &sealed), Err(SealError::Open));
        let another = WrappedKey {
            subject: "user:y".into(),
            ..key.wrapped.clone()
        };
        assert!(one.open(another).is_err());
        let two = MasterKeys::parse(TWO).expect("a key");
        assert!(matches!(
            two.open(key.wrapped.clone()),
            Err(SealError::UnknownKey(_))
        ));
    }

    #[test]
    fn after_a_rotation_the_old_master_key_is_of_no_use() {
        let old = MasterKeys::parse(ONE).expect("a key");
        let key = old.make("user:x", day()).expect("a data key");
        let sealed = key.seal(b"", b"text").expect("seals");
        let both = MasterKeys::parse(&format!("# new\n{TWO}\n\n{ONE}\n")).expect("two keys");
        let rewrapped = both.rewrap(&key.wrapped).expect("opens");
        assert_eq!(rewrapped.master, both.first());
        assert!(old.open(rewrapped.clone()).is_err());
        let new = MasterKeys::parse(TWO).expect("a key");
        let again = new.open(rewrapped).expect("opens");
        assert_eq!(again.open(b"", &sealed).expect("opens"), b"text");
    }

    #[test]
    fn what_is_no_key_is_named_by_its_line() {
        assert!(matches!(
            MasterKeys::parse("# none\n"),
            Err(MasterKeyError::Empty)
        ));
        let short = format!("{ONE}\nAAAA\n");
        assert!(matches!(MasterKeys::parse(&short), Err(MasterKeyError::Line(2))));
    }

    #[test]
    fn a_subject_has_one_key_a_day() {
        let keys = DataKeys::new(MasterKeys::parse(ONE).expect("a key"));
        let of = |subject: &str, day: Date| keys.key(subject, day, day).expect("a key").wrapped.id;
        let next = day().next_day().expect("a day");
        assert_eq!(of("user:x", day()), of("user:x", day()));
        assert_ne!(of("user:x", day()), of("user:y", day()));
        assert_ne!(of("user:x", day()), of("user:x", next));
    }
}
