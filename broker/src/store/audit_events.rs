//! Audit records: written in batches, and counted as they are written.

use std::collections::{BTreeSet, HashSet};

use duo_contract::audit::{AuditKind, AuditRecord};
use serde::Serialize;
use sqlx::PgConnection;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::{Store, StoreError, audit_facets, audit_late_ends};

/// One audit record as readers see it. `outcome` is there on terminal records only.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "each is documented where brokers write it, duo_contract::audit"
)]
pub struct Event {
    pub request_id: Uuid,
    pub kind: String,
    #[serde(with = "time::serde::rfc3339")]
    pub occurred_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub recorded_at: OffsetDateTime,
    pub broker: String,
    pub auth: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub route: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_version: Option<String>,
    pub config_revision: i64,
    pub stream: bool,
    pub body_bytes: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_json")]
    pub details: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_wait_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<i64>,
    /// Its number; absent on records from before records had numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_sha256: Option<String>,
}

/// A JSON text as the JSON that it is.
fn as_json<S: serde::Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let value: Option<&serde_json::value::RawValue> =
        text.as_deref().and_then(|text| serde_json::from_str(text).ok());
    value.serialize(serializer)
}

/// The UTC day in which a request id was made, which decides its partition; `None` when it is no UUIDv7.
#[must_use]
pub fn day_of(request_id: Uuid) -> Option<Date> {
    if request_id.get_version() != Some(uuid::Version::SortRand) {
        return None;
    }
    let (seconds, _) = request_id.get_timestamp()?.to_unix();
    let moment = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
    Some(moment.date())
}

impl Store {
    /// Makes the partition of `day` unless it is there; any number of brokers may ask together.
    ///
    /// # Errors
    /// Postgres is away, or this user may not make tables.
    pub async fn create_audit_partition(&self, day: Date) -> Result<(), StoreError> {
        sqlx::query!("SELECT create_audit_partition($1)", day)
            .fetch_one(&self.pool)
            .await?;
        Ok(())
    }

    /// Writes records, numbers and counts them, and returns how many were not there yet. The same record again does
    /// nothing; a second, other terminal record of a request is kept as a late end.
    ///
    /// # Errors
    /// Postgres is away, or refuses a value; then none is written.
    ///
    /// # Panics
    /// When a record's id has no day, see [`day_of`].
    pub async fn insert_audit_records(&self, records: &[&AuditRecord]) -> Result<u64, StoreError> {
        let count = records.len() as u64;
        let mut transaction = self.pool.begin().await?;
        if insert(&mut transaction, records).await? == count {
            transaction.commit().await?;
            return Ok(count);
        }
        // Rarely some are there already: their numbers would be gaps, so only the others are written.
        transaction.rollback().await?;
        let mut transaction = self.pool.begin().await?;
        lock_head(&mut transaction).await?;
        let new = unknown(&mut transaction, records).await?;
        let inserted = insert(&mut transaction, &new).await?;
        let ends: Vec<_> = records
            .iter()
            .copied()
            .filter(|r| r.kind == AuditKind::Ended)
            .collect();
        audit_late_ends::insert(&mut transaction, &ends).await?;
        transaction.commit().await?;
        Ok(inserted)
    }
}

/// Keeps every other writer of records waiting until this transaction ends.
pub(super) async fn lock_head(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SELECT size FROM audit_head FOR UPDATE")
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Those of `records` that are not there yet, each once.
async fn unknown<'a>(
    connection: &mut PgConnection,
    records: &[&'a AuditRecord],
) -> Result<Vec<&'a AuditRecord>, StoreError> {
    let mut known = HashSet::new();
    let days: BTreeSet<Date> = records
        .iter()
        .filter_map(|record| day_of(record.request_id))
        .collect();
    let ids: Vec<Uuid> = records.iter().map(|record| record.request_id).collect();
    // Day by day, so that each look goes to one partition.
    for day in days {
        let rows = sqlx::query!(
            "SELECT request_id, kind FROM audit_events WHERE day = $1 AND request_id = ANY($2)",
            day,
            &ids,
        )
        .fetch_all(&mut *connection)
        .await?;
        known.extend(rows.into_iter().map(|row| (row.request_id, row.kind)));
    }
    let is_new = |record: &&AuditRecord| known.insert((record.request_id, record.kind.as_str().to_owned()));
    Ok(records.iter().copied().filter(is_new).collect())
}

/// Writes records with the next numbers, one statement for the whole batch, one array per column. Fewer than given came
/// where some were there already; then the transaction must not be committed. The head stays locked until its end.
pub(super) async fn insert(
    connection: &mut PgConnection,
    records: &[&AuditRecord],
) -> Result<u64, StoreError> {
    macro_rules! column {
        ($record:ident => $value:expr) => {
            &records.iter().map(|$record| $value).collect::<Vec<_>>()[..]
        };
    }
    let base = sqlx::query_scalar!(
        r#"UPDATE audit_head SET size = size + $1 RETURNING size - $1 AS "base!""#,
        i64::try_from(records.len()).unwrap_or(i64::MAX),
    )
    .fetch_one(&mut *connection)
    .await?;
    let result = sqlx::query!(
        "INSERT INTO audit_events
             (day, request_id, kind, occurred_at, broker, auth, instance_id, user_id, token_id, client, address,
              route, feature, lane, model, prompt_id, prompt_version, config_revision, stream, body_bytes,
              correlation_id, trace_id, outcome, reason, worker, attempts, queue_wait_us, first_byte_us,
              duration_us, input_tokens, output_tokens, job_id, details, seq, prompt_sha256, answer_sha256)
         SELECT * FROM unnest($1::date[], $2::uuid[], $3::text[], $4::timestamptz[], $5::text[], $6::text[],
              $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[],
              $15::text[], $16::text[], $17::text[], $18::bigint[], $19::boolean[], $20::bigint[], $21::text[],
              $22::text[], $23::text[], $24::text[], $25::text[], $26::int[], $27::bigint[], $28::bigint[],
              $29::bigint[], $30::bigint[], $31::bigint[], $32::uuid[],
              $33::text[], $34::bigint[], $35::text[], $36::text[])
         ON CONFLICT DO NOTHING",
        column!(r => day_of(r.request_id).expect("the caller has checked the id")),
        column!(r => r.request_id),
        column!(r => r.kind.as_str()) as &[&str],
        column!(r => moment(r.occurred_at_us)),
        column!(r => r.broker.as_str()) as &[&str],
        column!(r => r.who.auth.as_str()) as &[&str],
        column!(r => r.who.instance_id.as_deref()) as &[Option<&str>],
        column!(r => r.who.user_id.as_deref()) as &[Option<&str>],
        column!(r => r.who.token_id.as_deref()) as &[Option<&str>],
        column!(r => r.who.client.as_deref()) as &[Option<&str>],
        column!(r => r.who.address.as_deref()) as &[Option<&str>],
        column!(r => r.what.route.as_str()) as &[&str],
        column!(r => r.what.feature.as_ref().map(|f| f.as_str())) as &[Option<&str>],
        column!(r => r.what.lane.map(|l| l.as_str())) as &[Option<&str>],
        column!(r => r.what.model.as_ref().map(|m| m.as_str())) as &[Option<&str>],
        column!(r => r.what.prompt_id.as_deref()) as &[Option<&str>],
        column!(r => r.what.prompt_version.as_deref()) as &[Option<&str>],
        column!(r => r.what.config_revision.cast_signed()),
        column!(r => r.what.stream),
        column!(r => r.what.body_bytes.cast_signed()),
        column!(r => r.what.correlation_id.as_deref()) as &[Option<&str>],
        column!(r => r.what.trace_id.as_deref()) as &[Option<&str>],
        column!(r => r.end.as_ref().map(|e| e.outcome.as_str())) as &[Option<&str>],
        column!(r => r.end.as_ref().and_then(|e| e.reason.as_deref())) as &[Option<&str>],
        column!(r => r.end.as_ref().and_then(|e| e.worker.as_deref())) as &[Option<&str>],
        column!(r => r.end.as_ref().map(|e| e.attempts.cast_signed())) as &[Option<i32>],
        column!(r => r.end.as_ref().and_then(|e| e.queue_wait_us)) as &[Option<i64>],
        column!(r => r.end.as_ref().and_then(|e| e.first_byte_us)) as &[Option<i64>],
        column!(r => r.end.as_ref().map(|e| e.duration_us)) as &[Option<i64>],
        column!(r => r.end.as_ref().and_then(|e| e.input_tokens)) as &[Option<i64>],
        column!(r => r.end.as_ref().and_then(|e| e.output_tokens)) as &[Option<i64>],
        column!(r => r.what.job_id) as &[Option<Uuid>],
        column!(r => r.details.as_deref()) as &[Option<&str>],
        &(base..).take(records.len()).collect::<Vec<_>>(),
        column!(r => r.end.as_ref().and_then(|e| e.prompt_sha256.as_deref())) as &[Option<&str>],
        column!(r => r.end.as_ref().and_then(|e| e.answer_sha256.as_deref())) as &[Option<&str>],
    )
    .execute(&mut *connection)
    .await?;
    let inserted = result.rows_affected();
    if inserted == records.len() as u64 {
        audit_facets::count(connection, records).await?;
    }
    Ok(inserted)
}

/// Writes a record that tells what is done in this transaction, and makes the partition that it belongs in.
pub(super) async fn insert_here(
    connection: &mut PgConnection,
    record: &AuditRecord,
) -> Result<(), StoreError> {
    if let Some(day) = day_of(record.request_id) {
        sqlx::query!(
            "SELECT create_audit_partition($1)
             WHERE to_regclass('audit_events_' || to_char($1::date, 'YYYYMMDD')) IS NULL",
            day
        )
        .fetch_optional(&mut *connection)
        .await?;
    }
    insert(connection, &[record]).await?;
    Ok(())
}

/// A record's moment, exact in Postgres, which counts microseconds too.
pub(super) fn moment(occurred_at_us: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(occurred_at_us) * 1000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_comes_from_the_request_id() {
        let id = Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 1_767_225_599, 0));
        assert_eq!(day_of(id), Some(time::macros::date!(2025 - 12 - 31)));
        assert_eq!(day_of(Uuid::new_v4()), None);
    }
}
