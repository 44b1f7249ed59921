//! Secrets and signatures as the Standard Webhooks scheme has them.

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;

/// Length of a secret in bytes.
const SECRET_BYTES: usize = 32;

/// A secret that signs. It does not print.
pub struct Secret(Vec<u8>);

impl Secret {
    /// A new one.
    ///
    /// # Panics
    /// If the system has no random source.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = vec![0; SECRET_BYTES];
        rand::fill(&mut bytes).expect("the system has random bytes");
        Self(bytes)
    }

    /// The one that these bytes are.
    #[must_use]
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Its bytes, for sealing.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As its receiver is told it.
    #[must_use]
    pub fn text(&self) -> SecretString {
        format!("whsec_{}", STANDARD.encode(&self.0)).into()
    }

    /// The signature of one attempt.
    fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let tag = hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(tag))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// The value of `webhook-signature`: one for each secret that is good, so that either side may change to another.
#[must_use]
pub fn signatures(secrets: &[Secret], id: &str, timestamp: i64, body: &str) -> String {
    let all: Vec<String> = secrets
        .iter()
        .map(|secret| secret.sign(id, timestamp, body))
        .collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    /// Computed by Python's hmac module.
    #[test]
    fn a_signature_is_what_another_program_computes() {
        let secret = Secret::of_bytes((0..32).collect());
        assert_eq!(
            secret.text().expose_secret(),
            "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
        );
        let signed = signatures(&[secret], "msg_1", 1_700_000_000, r#"{"type":"job.succeeded"}"#);
        assert_eq!(signed, "v1,xeyIEQfF67HXFPceirxyBuHjbKXeabv2jR+1/krgLME=");
    }

    #[test]
    fn each_secret_has_its_own_signature() {
        let secrets = [Secret::generate(), Secret::generate()];
        let signed = signatures(&secrets, "msg_1", 1, "{}");
        let parts: Vec<&str> = signed.split(' ').collect();
        assert_eq!(parts.len(), 2);
        assert!(parts.iter().all(|part| part.starts_with("v1,")));
        assert_ne!(parts[0], parts[1]);
        assert_eq!(format!("{:?}", secrets[0]), "Secret");
    }
}
