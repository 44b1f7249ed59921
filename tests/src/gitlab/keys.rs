//! RSA keys of the instance.

use std::io;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use aws_lc_rs::{digest, error::Unspecified};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// A key that signs, and what is published of it.
#[derive(Debug)]
pub struct SigningKey {
    pair: RsaKeyPair,
    kid: String,
}

impl SigningKey {
    /// Makes a new key of 2048 bits.
    ///
    /// # Errors
    /// The machine has no randomness to give.
    pub fn generate() -> io::Result<Self> {
        Ok(Self::of(RsaKeyPair::generate(KeySize::Rsa2048).map_err(no_key)?))
    }

    /// Reads a key back from PKCS#8.
    ///
    /// # Errors
    /// These are not the bytes of an RSA key.
    pub fn from_pkcs8(der: &[u8]) -> io::Result<Self> {
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "not an RSA key in PKCS#8");
        Ok(Self::of(RsaKeyPair::from_pkcs8(der).map_err(invalid)?))
    }

    /// The private key in PKCS#8.
    ///
    /// # Errors
    /// The key cannot be written out.
    pub fn to_pkcs8(&self) -> io::Result<Vec<u8>> {
        let der: Pkcs8V1Der<'_> = self.pair.as_der().map_err(no_key)?;
        Ok(der.as_ref().to_vec())
    }

    /// The key's id.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key as an entry of a key set.
    pub fn published(&self) -> Value {
        let (modulus, exponent) = (self.modulus(), self.exponent());
        json!({"kty": "RSA", "kid": self.kid, "use": "sig", "alg": "RS256", "n": modulus, "e": exponent})
    }

    /// Signs with RS256.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .map_err(no_key)?;
        Ok(signature)
    }

    /// The modulus in base64url, as published.
    pub(crate) fn modulus(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.pair.public_key().modulus().big_endian_without_leading_zero())
    }

    fn exponent(&self) -> String {
        URL_SAFE_NO_PAD.encode(
            self.pair
                .public_key()
                .exponent()
                .big_endian_without_leading_zero(),
        )
    }

    fn of(pair: RsaKeyPair) -> Self {
        let digest = digest::digest(&digest::SHA256, pair.public_key().as_ref());
        // Long enough that no two keys of a test share it.
        let kid = URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]);
        Self { pair, kid }
    }
}

fn no_key(_: Unspecified) -> io::Error {
    io::Error::other("the cryptography library refused")
}
