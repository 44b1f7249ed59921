//! Sealed prompts and answers, and the wrapped keys that open them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use duo_contract::audit::AuditRecord;
use duo_contract::body::{BodyFacts, BodyHead, BodyMessage, BodyPart, WrappedKey};
use time::format_description::well_known::Iso8601;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::audit_events::day_of;
use super::{Store, StoreError, audit_events, unsigned};

/// A piece of a sealed text, ready for its row.
#[derive(Debug, Clone)]
pub struct Piece {
    /// What it is a piece of.
    pub head: BodyHead,
    /// The day on which it is dropped.
    pub drop_on: Date,
    /// The day whose texts its key seals.
    pub period: Date,
    wrapped: Vec<u8>,
    sealed: Bytes,
}

impl TryFrom<BodyMessage> for Piece {
    type Error = String;

    fn try_from(message: BodyMessage) -> Result<Self, String> {
        let day = |text: &str| {
            Date::parse(text, &Iso8601::DATE).map_err(|error| format!("{text:?} is no day: {error}"))
        };
        let wrapped = STANDARD.decode(&message.head.key.wrapped);
        Ok(Self {
            drop_on: day(&message.head.drop_on)?,
            period: day(&message.head.key.period)?,
            wrapped: wrapped.map_err(|error| format!("the wrapped key: {error}"))?,
            head: message.head,
            sealed: message.sealed,
        })
    }
}

/// A text as it is stored.
#[derive(Debug, Clone)]
pub struct StoredBody {
    /// What it is.
    pub facts: BodyFacts,
    /// SHA-256 of the sealed text, hexadecimal, as its messages said.
    pub sha256: String,
    /// The day on which it is dropped.
    pub drop_on: Date,
    /// The sealed text; `None` while pieces of it are missing.
    pub sealed: Option<Vec<u8>>,
    /// What opens it.
    pub key: StoredKey,
}

/// A data key as it is stored.
#[derive(Debug, Clone)]
pub enum StoredKey {
    /// Under its master key.
    Wrapped(WrappedKey),
    /// What it sealed is erased.
    Destroyed(OffsetDateTime),
}

struct Row {
    part: String,
    chunk: i32,
    chunks: i32,
    bytes: i64,
    truncated: bool,
    rules: i32,
    redacted: i32,
    sha256: String,
    drop_on: Date,
    sealed: Vec<u8>,
    key_id: Uuid,
    subject: String,
    period: Date,
    master: Option<String>,
    wrapped: Option<Vec<u8>>,
    destroyed_at: Option<OffsetDateTime>,
}

impl Store {
    /// Makes the partitions of the texts that `day` drops unless they are there.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn create_audit_body_partition(&self, day: Date) -> Result<(), StoreError> {
        sqlx::query!("SELECT create_audit_body_partition($1)", day)
            .fetch_one(&self.pool)
            .await?;
        Ok(())
    }

    /// Writes a piece of a text and the key that opens it. The same again does nothing; a destroyed key stays so.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn insert_audit_body(&self, piece: &Piece) -> Result<(), StoreError> {
        let (head, facts, key) = (&piece.head, &piece.head.facts, &piece.head.key);
        let mut transaction = self.pool.begin().await?;
        sqlx::query!(
            "INSERT INTO audit_keys (drop_on, key_id, subject, period, master, wrapped)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            piece.drop_on,
            key.id,
            key.subject,
            piece.period,
            key.master,
            piece.wrapped,
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            "INSERT INTO audit_bodies (drop_on, request_id, part, chunk, chunks, key_id, bytes, truncated, rules, redacted,
                                       sha256, sealed)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING",
            piece.drop_on,
            facts.request_id,
            facts.part.as_str(),
            head.chunk.cast_signed(),
            head.chunks.cast_signed(),
            key.id,
            facts.bytes.cast_signed(),
            facts.truncated,
            facts.rules.cast_signed(),
            facts.redacted.cast_signed(),
            head.sha256,
            &piece.sealed[..],
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The texts of a request: prompt, then answer, as far as they are there.
    ///
    /// # Errors
    /// Postgres is away, or a row cannot be read.
    pub async fn audit_bodies(&self, request_id: Uuid) -> Result<Vec<StoredBody>, StoreError> {
        let rows = sqlx::query_as!(
            Row,
            "SELECT part, chunk, chunks, bytes, truncated, rules, redacted, sha256, b.drop_on, sealed, b.key_id,
                    subject, period, master, wrapped, destroyed_at
             FROM audit_bodies AS b JOIN audit_keys AS k ON k.key_id = b.key_id AND k.drop_on = b.drop_on
             WHERE request_id = $1
             ORDER BY part DESC, chunk",
            request_id,
        )
        .fetch_all(&self.pool)
        .await?;
        let parts = rows.chunk_by(|one, next| one.part == next.part);
        parts.map(|rows| stored(request_id, rows)).collect()
    }
}

/// One text from its rows, of which there is one at least.
fn stored(request_id: Uuid, rows: &[Row]) -> Result<StoredBody, StoreError> {
    let Some(first) = rows.first() else {
        return Err(StoreError::NotFound("no text".to_owned()));
    };
    let part = [BodyPart::Prompt, BodyPart::Answer]
        .into_iter()
        .find(|part| part.as_str() == first.part);
    let part = part.ok_or_else(|| StoreError::Corrupt {
        what: "part of a text".to_owned(),
        problem: first.part.clone(),
    })?;
    let facts = BodyFacts {
        request_id,
        part,
        bytes: unsigned("length of a text", first.bytes)?,
        truncated: first.truncated,
        rules: unsigned("revision of rules", first.rules.into())?,
        redacted: unsigned("count of secrets", first.redacted.into())?,
    };
    let is_whole = (0..).zip(rows).all(|(number, row)| row.chunk == number)
        && usize::try_from(first.chunks).is_ok_and(|chunks| chunks == rows.len());
    let key = match (&first.master, &first.wrapped, first.destroyed_at) {
        (Some(master), Some(wrapped), None) => StoredKey::Wrapped(WrappedKey {
            id: first.key_id,
            subject: first.subject.clone(),
            period: first.period.to_string(),
            master: master.clone(),
            wrapped: STANDARD.encode(wrapped),
        }),
        (_, _, destroyed_at) => StoredKey::Destroyed(destroyed_at.unwrap_or(OffsetDateTime::UNIX_EPOCH)),
    };
    Ok(StoredBody {
        facts,
        sha256: first.sha256.clone(),
        drop_on: first.drop_on,
        sealed: is_whole.then(|| rows.iter().flat_map(|row| row.sealed.iter().copied()).collect()),
        key,
    })
}

/// What a terminal record says of the texts.
#[derive(Debug, Clone, Default)]
pub struct Digests {
    /// Of the prompt.
    pub prompt_sha256: Option<String>,
    /// Of the answer.
    pub answer_sha256: Option<String>,
}

impl Store {
    /// What the terminal record of a request says of its texts.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn audit_digests(&self, request_id: Uuid) -> Result<Option<Digests>, StoreError> {
        let digests = sqlx::query_as!(
            Digests,
            "SELECT prompt_sha256, answer_sha256 FROM audit_events
             WHERE day = $1 AND request_id = $2 AND kind = 'ended'",
            day_of(request_id),
            request_id,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(digests)
    }

    /// Writes the record of a reading.
    ///
    /// # Errors
    /// Postgres is away or refuses; then nothing may be shown.
    pub async fn record_read(&self, record: &AuditRecord) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        audit_events::insert_here(&mut transaction, record).await?;
        transaction.commit().await?;
        Ok(())
    }
}
