//! AES-256-GCM seals for bodies that JetStream stores.
//!
//! Acknowledged messages linger in JetStream's files, so what is published is
//! sealed. A sealed text is a random 96-bit nonce, the ciphertext and a 128-bit tag.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Length of a key in bytes.
pub const KEY_BYTES: usize = 32;

/// Why sealing, opening or reading keys failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No key of that id here.
    #[error("no seal key named {0:?}: give broker and workers the same key file")]
    UnknownKey(String),
    /// Wrong key or altered bytes.
    #[error("a sealed body does not open: wrong key or altered bytes")]
    Open,
    /// The random source or cipher failed.
    #[error("sealing failed")]
    Seal,
    /// A line of the key file is not `id:base64`.
    #[error("line {0} of the seal keys is not ID:BASE64 of 32 random bytes")]
    KeyLine(usize),
    /// The key file holds no key.
    #[error("the seal keys are empty: write one line ID:BASE64 of 32 random bytes")]
    NoKey,
}

/// The live keys, the first of which seals.
pub struct SealKeys {
    keys: Vec<(Box<str>, RandomizedNonceKey)>,
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|(id, _)| id))
            .finish()
    }
}

impl SealKeys {
    /// Bytes that a seal adds to a body.
    pub const OVERHEAD: usize = NONCE_LEN + 16;

    /// Reads lines of `id:base64`; blank lines and lines starting with `#` are
    /// skipped. The first key seals, every key opens.
    ///
    /// # Errors
    /// A line that is no key, or none at all.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = || SealError::KeyLine(index + 1);
            let (id, key) = line.split_once(':').ok_or_else(wrong)?;
            let key = STANDARD.decode(key.trim()).map_err(|_| wrong())?;
            if !crate::subject::is_token(id.trim()) {
                return Err(wrong());
            }
            keys.push((
                id.trim().into(),
                RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| wrong())?,
            ));
        }
        if keys.is_empty() {
            return Err(SealError::NoKey);
        }
        let keys = Self { keys };
        // A process's first random number takes some 50 ms to seed; now, so that no request waits for it.
        keys.seal(b"", b"", &mut Vec::new())?;
        Ok(keys)
    }

    /// One fresh random key, for tests and first set-ups.
    ///
    /// # Panics
    /// If the system has no random source.
    #[must_use]
    pub fn generate(id: &str) -> Self {
        Self::parse(&Self::generate_line(id)).expect("a generated key parses")
    }

    /// A line for a key file.
    ///
    /// # Panics
    /// If the system has no random source.
    #[must_use]
    pub fn generate_line(id: &str) -> String {
        let mut key = [0; KEY_BYTES];
        aws_lc_rs::rand::fill(&mut key).expect("the system has a random source");
        format!("{id}:{}\n", STANDARD.encode(key))
    }

    /// The ids, the sealing key's first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(id, _)| id.as_ref())
    }

    /// Seals `body` bound to `aad`, appends it to `out` and names the key.
    ///
    /// # Errors
    /// The random source or the cipher failed.
    pub fn seal(&self, aad: &[u8], body: &[u8], out: &mut Vec<u8>) -> Result<Box<str>, SealError> {
        let (id, key) = self.keys.first().ok_or(SealError::NoKey)?;
        let start = out.len();
        out.extend_from_slice(&[0; NONCE_LEN]);
        out.extend_from_slice(body);
        let text = out.get_mut(start + NONCE_LEN..).ok_or(SealError::Seal)?;
        let (nonce, tag) = key
            .seal_in_place_separate_tag(Aad::from(aad), text)
            .map_err(|_| SealError::Seal)?;
        if let Some(place) = out.get_mut(start..start + NONCE_LEN) {
            place.copy_from_slice(nonce.as_ref());
        }
        out.extend_from_slice(tag.as_ref());
        Ok(id.clone())
    }

    /// Opens what [`SealKeys::seal`] wrote.
    ///
    /// # Errors
    /// An unknown key, the wrong key, or altered bytes.
    pub fn open(&self, key_id: &str, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (_, key) = self
            .keys
            .iter()
            .find(|(id, _)| **id == *key_id)
            .ok_or_else(|| SealError::UnknownKey(key_id.into()))?;
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Open)?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key
            .open_in_place(nonce, Aad::from(aad), &mut text)
            .map_err(|_| SealError::Open)?
            .len();
        text.truncate(length);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_seal_after_the_keys_were_read_does_not_wait_for_a_seed() {
        let keys = SealKeys::parse("k:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").expect("a key");
        let began = std::time::Instant::now();
        keys.seal(b"", b"body", &mut Vec::new()).expect("seals");
        assert!(
            began.elapsed() < std::time::Duration::from_millis(20),
            "{:?}",
            began.elapsed()
        );
    }

    #[test]
    fn the_first_key_seals_and_every_key_opens() {
        let (old, new) = (SealKeys::generate_line("a"), SealKeys::generate_line("b"));
        let before = SealKeys::parse(&old).expect("keys");
        let after = SealKeys::parse(&format!("# rotated\n{new}{old}")).expect("keys");
        let mut sealed = Vec::new();
        let id = before.seal(b"head", b"body", &mut sealed).expect("seals");
        assert_eq!(after.open(&id, b"head", &sealed).expect("opens"), b"body");
        assert_eq!(*after.seal(b"", b"", &mut Vec::new()).expect("seals"), *"b");
        assert_eq!(after.open(&id, b"other", &sealed), Err(SealError::Open));
        assert!(matches!(
            after.open("c", b"head", &sealed),
            Err(SealError::UnknownKey(_))
        ));
    }

    #[test]
    fn a_short_key_is_refused_with_its_line() {
        assert_eq!(SealKeys::parse("\nk1:AAAA\n").err(), Some(SealError::KeyLine(2)));
        assert_eq!(SealKeys::parse("# none\n").err(), Some(SealError::NoKey));
    }
}
