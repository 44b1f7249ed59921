//! API tokens: a hash and its rights. The secret leaves this file once and is nowhere afterwards.

use aws_lc_rs::{digest, rand};
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::snapshot::{ApiToken, Role};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::change_records::ChangeRecord;
use super::{Store, StoreError, expect_rows, parsed, unsigned};

/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Digits that 32 bytes need at base 62.
const SECRET_DIGITS: usize = 43;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What a token is to open.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// What people call it; no other live token may have the name.
    pub name: String,
    /// What it opens.
    pub role: Role,
    /// Not valid from then on.
    pub expires_at: Option<OffsetDateTime>,
    /// Features it may use; none named means the OpenAI features.
    pub features: Option<Vec<FeatureName>>,
    /// Models it may use; none named means all.
    pub models: Option<Vec<ModelName>>,
    /// Requests it may have queued or running for one feature and model.
    pub limit: u32,
}

/// A token as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenRow {
    /// Its id, which audit records name.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What it opens.
    pub role: String,
    /// `valid`, `expired` or `revoked`.
    pub state: String,
    /// Features it may use.
    pub features: Option<Vec<String>>,
    /// Models it may use.
    pub models: Option<Vec<String>>,
    /// Requests it may have queued or running for one feature and model.
    pub limit: i64,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// By whom.
    pub created_by: String,
    /// Not valid from then on.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was revoked.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

impl Store {
    /// Makes a token and returns its id and secret, which nothing can show again.
    ///
    /// # Errors
    /// A live token has the name, a feature does not exist, or Postgres is away.
    pub async fn create_token(
        &self,
        actor: &str,
        new: &NewToken,
    ) -> Result<(Uuid, SecretString), StoreError> {
        let secret = secret(new.role);
        let id = Uuid::now_v7();
        let features: Option<Vec<String>> = texts(new.features.as_deref());
        let models: Option<Vec<String>> = texts(new.models.as_deref());
        let mut change = self.begin_change(actor).await?;
        refuse_unknown_features(change.connection(), features.as_deref()).await?;
        let result = sqlx::query!(
            "INSERT INTO api_tokens
                 (id, name, sha256, role, features, models, request_limit, created_by, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING",
            id,
            new.name,
            sha256(&secret),
            new.role.as_str(),
            features.as_deref(),
            models.as_deref(),
            i64::from(new.limit),
            actor,
            new.expires_at,
        )
        .execute(change.connection())
        .await?;
        if result.rows_affected() == 0 {
            return Err(StoreError::Conflict(format!(
                "there is a token called {:?} already; revoke it first or take another name",
                new.name
            )));
        }
        let expires_at = new.expires_at.map(OffsetDateTime::unix_timestamp);
        let after = json!({
            "id": id, "name": new.name, "role": new.role.as_str(), "features": features, "models": models,
            "limit": new.limit, "expires_at": expires_at,
        });
        let record = ChangeRecord {
            what: "token.create",
            subject: id.to_string(),
            before: None,
            after: Some(after),
        };
        change.record(&record).await?;
        change.commit().await?;
        Ok((id, secret.into()))
    }

    /// Revokes the live token with this id or name and returns its id.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none, or Postgres is away.
    pub async fn revoke_token(&self, actor: &str, id_or_name: &str) -> Result<Uuid, StoreError> {
        let mut change = self.begin_change(actor).await?;
        let found = sqlx::query!(
            "SELECT id, name, role FROM api_tokens
             WHERE revoked_at IS NULL AND (id::text = $1 OR name = $1)
             ORDER BY (id::text = $1) DESC LIMIT 1",
            id_or_name,
        )
        .fetch_optional(change.connection())
        .await?;
        let Some(token) = found else {
            return Err(StoreError::NotFound(format!(
                "no live token has the id or name {id_or_name:?}; `duo-broker token list` shows them all"
            )));
        };
        let result = sqlx::query!(
            "UPDATE api_tokens SET revoked_at = now(), revoked_by = $2 WHERE id = $1",
            token.id,
            actor,
        )
        .execute(change.connection())
        .await?;
        expect_rows(&result, 1)?;
        let record = ChangeRecord {
            what: "token.revoke",
            subject: token.id.to_string(),
            before: Some(json!({ "id": token.id, "name": token.name, "role": token.role })),
            after: None,
        };
        change.record(&record).await?;
        change.commit().await?;
        Ok(token.id)
    }

    /// Every token, newest first, revoked ones too.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let tokens = sqlx::query_as!(
            TokenRow,
            r#"SELECT id, name, role,
                      CASE WHEN revoked_at IS NOT NULL THEN 'revoked'
                           WHEN expires_at <= now() THEN 'expired'
                           ELSE 'valid' END AS "state!",
                      features, models, request_limit AS "limit", created_at, created_by, expires_at, revoked_at
               FROM api_tokens ORDER BY created_at DESC, id DESC"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(tokens)
    }
}

/// Tokens for the snapshot: neither revoked nor expired for a day, so that a fresh expiry is still told as such.
pub(super) async fn valid(connection: &mut PgConnection) -> Result<Vec<ApiToken>, StoreError> {
    let rows = sqlx::query!(
        "SELECT id, name, sha256, role, features, models, request_limit, expires_at
         FROM api_tokens
         WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now() - interval '1 day')
         ORDER BY id"
    )
    .fetch_all(connection)
    .await?;
    let tokens = rows.into_iter().map(|row| {
        Ok(ApiToken {
            id: row.id,
            name: row.name,
            sha256: row.sha256,
            role: parsed("role", &row.role)?,
            expires_at_ms: row.expires_at.map(unix_ms),
            features: names("feature", row.features.as_deref())?,
            models: names("model", row.models.as_deref())?,
            limit: unsigned("request_limit", row.request_limit)?,
        })
    });
    tokens.collect()
}

async fn refuse_unknown_features(
    connection: &mut PgConnection,
    features: Option<&[String]>,
) -> Result<(), StoreError> {
    let Some(features) = features else { return Ok(()) };
    let unknown = sqlx::query_scalar!(
        r#"SELECT named AS "named!" FROM unnest($1::text[]) AS named
           WHERE NOT EXISTS (SELECT FROM features WHERE features.name = named)"#,
        features,
    )
    .fetch_all(connection)
    .await?;
    if unknown.is_empty() {
        return Ok(());
    }
    Err(StoreError::NotFound(format!(
        "no such feature: {}",
        unknown.join(", ")
    )))
}

fn texts(names: Option<&[impl ToString]>) -> Option<Vec<String>> {
    names.map(|names| names.iter().map(ToString::to_string).collect())
}

fn names<T>(what: &str, texts: Option<&[String]>) -> Result<Option<Vec<T>>, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    texts
        .map(|texts| texts.iter().map(|text| parsed(what, text)).collect())
        .transpose()
}

fn unix_ms(moment: OffsetDateTime) -> u64 {
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

fn sha256(secret: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, secret.as_bytes()))
}

/// A prefix that people and secret scanners recognise, the role's initial, and 256 random bits.
fn secret(role: Role) -> String {
    let mut bytes = [0; SECRET_BYTES];
    rand::fill(&mut bytes).expect("the system has random bytes");
    let initial = role.as_str().chars().next().expect("a role has a name");
    format!("duo_{initial}_{}", base62(bytes))
}

/// Writes the bytes as one number with a fixed count of digits.
fn base62(mut number: [u8; SECRET_BYTES]) -> String {
    let mut digits = [0; SECRET_DIGITS];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0u16;
        for byte in &mut number {
            let value = rest << 8 | u16::from(*byte);
            *byte = u8::try_from(value / 62).expect("the rest is below 62, so the quotient is below 256");
            rest = value % 62;
        }
        *digit = BASE62[usize::from(rest)];
    }
    digits.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base62_is_a_number_of_fixed_length() {
        let mut one = [0; SECRET_BYTES];
        assert_eq!(base62(one), "0".repeat(SECRET_DIGITS));
        one[SECRET_BYTES - 1] = 62;
        assert_eq!(base62(one), format!("{}10", "0".repeat(SECRET_DIGITS - 2)));
        assert_eq!(
            base62([255; SECRET_BYTES]),
            "yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1"
        );
    }

    #[test]
    fn a_secret_shows_its_role_and_never_repeats() {
        let first = secret(Role::Client);
        assert!(first.starts_with("duo_c_"));
        assert_eq!(first.len(), "duo_c_".len() + SECRET_DIGITS);
        assert_ne!(first, secret(Role::Client));
    }
}
