//! Reads prompts and answers that were kept. Every reading has a reason, and a record before its first byte leaves.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use duo_contract::audit::{AuditKind, AuditRecord, What, Who};
use duo_contract::body::BodyPart;
use duo_process::clock;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::keys::MasterKeys;
use crate::store::audit_bodies::{StoredBody, StoredKey};
use crate::store::{Store, StoreError};

/// Longest reason, in characters.
pub const MOST_REASON: usize = 500;

/// Why a text is not shown.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was not kept, or its time is over.
    #[error(
        "nothing is kept of the prompt and the answer of {0}: its feature keeps none, or their time is over"
    )]
    NotFound(Uuid),
    /// Its key was destroyed.
    #[error("prompt and answer of {0} were erased at {1}")]
    Erased(Uuid, OffsetDateTime),
    /// Nobody said why.
    #[error("a reason has to be given, of 1 to 500 characters")]
    NoReason,
    /// This program has no master keys.
    #[error("prompts and answers cannot be opened here: DUO_AUDIT_MASTER_KEY_FILE is not set")]
    NoMasterKey,
    /// The master key is another, somebody changed it, or pieces are missing.
    #[error("prompt or answer of {0} cannot be opened: {1}")]
    Unreadable(Uuid, String),
    /// Postgres is away or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is kept of a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kept {
    /// The request.
    pub request_id: Uuid,
    /// What went to the model server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Text>,
    /// What came back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Text>,
}

/// One of its two texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Text {
    /// The text.
    pub text: String,
    /// Its length before secrets were taken out and it was cut.
    pub bytes: u64,
    /// Is its end missing?
    pub truncated: bool,
    /// Revision of the rules that took secrets out.
    pub redaction_rules: u32,
    /// How many they took.
    pub redacted: u32,
    /// Of the sealed text, as it is stored now.
    pub sha256: String,
    /// Does the terminal record say the same? Absent where there is none, or none that says anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matches_record: Option<bool>,
    /// The day on which it is dropped.
    pub drop_on: String,
}

/// Opens what was kept. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    store: Store,
    masters: Option<Arc<MasterKeys>>,
    broker: Arc<str>,
}

impl Reader {
    /// A reader under this program's name.
    #[must_use]
    pub fn new(store: Store, masters: Option<MasterKeys>, broker: &str) -> Self {
        Self {
            store,
            masters: masters.map(Arc::new),
            broker: broker.into(),
        }
    }

    /// What is kept of a request, once the reading is recorded.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&self, who: &Who, request_id: Uuid, reason: &str) -> Result<Kept, ReadError> {
        let reason = reason.trim();
        if reason.is_empty() || reason.chars().count() > MOST_REASON || reason.contains('\0') {
            return Err(ReadError::NoReason);
        }
        let masters = self.masters.as_ref().ok_or(ReadError::NoMasterKey)?;
        let bodies = self.store.audit_bodies(request_id).await?;
        if bodies.is_empty() {
            return Err(ReadError::NotFound(request_id));
        }
        let said = self.store.audit_digests(request_id).await?.unwrap_or_default();
        self.record(who, request_id, reason, &bodies).await?;
        let mut kept = Kept {
            request_id,
            prompt: None,
            answer: None,
        };
        for body in bodies {
            let (place, said) = match body.facts.part {
                BodyPart::Prompt => (&mut kept.prompt, &said.prompt_sha256),
                BodyPart::Answer => (&mut kept.answer, &said.answer_sha256),
            };
            *place = Some(open(masters, body, said.as_deref())?);
        }
        Ok(kept)
    }

    /// Before anything is shown, and whether or not it can be.
    async fn record(
        &self,
        who: &Who,
        request_id: Uuid,
        reason: &str,
        bodies: &[StoredBody],
    ) -> Result<(), StoreError> {
        let parts: Vec<_> = bodies.iter().map(|body| body.facts.part.as_str()).collect();
        let is_erased = |body: &StoredBody| matches!(body.key, StoredKey::Destroyed(_));
        let details = json!({
            "what": "bodies",
            "request_id": request_id,
            "reason": reason,
            "parts": parts,
            "erased": bodies.iter().any(is_erased),
        });
        let now = clock::now().unix_timestamp_nanos() / 1000;
        let record = AuditRecord {
            kind: AuditKind::Read,
            request_id: Uuid::now_v7(),
            occurred_at_us: i64::try_from(now).unwrap_or(i64::MAX),
            broker: self.broker.to_string(),
            who: who.clone(),
            what: What::of("audit.bodies", 0),
            end: None,
            details: Some(details.to_string()),
        };
        self.store.record_read(&record).await
    }
}

fn open(masters: &MasterKeys, body: StoredBody, said: Option<&str>) -> Result<Text, ReadError> {
    let facts = body.facts;
    let unreadable = |problem: &dyn std::fmt::Display| {
        ReadError::Unreadable(facts.request_id, format!("{}: {problem}", facts.part.as_str()))
    };
    let key = match body.key {
        StoredKey::Wrapped(key) => masters.open(key).map_err(|error| unreadable(&error))?,
        StoredKey::Destroyed(at) => return Err(ReadError::Erased(facts.request_id, at)),
    };
    let sealed = body
        .sealed
        .ok_or_else(|| unreadable(&"pieces of it are missing"))?;
    let text = key
        .open(&facts.aad(), &sealed)
        .map_err(|error| unreadable(&error))?;
    let sha256 = hex::encode(digest(&SHA256, &sealed));
    Ok(Text {
        // Only the end of a text that was cut may be half a character.
        text: String::from_utf8_lossy(&text).into_owned(),
        bytes: facts.bytes,
        truncated: facts.truncated,
        redaction_rules: facts.rules,
        redacted: facts.redacted,
        matches_record: said.map(|said| said == sha256),
        sha256,
        drop_on: body.drop_on.to_string(),
    })
}
