//! Terminal records that came second: the first one stands, these are kept beside it, a hundred thousand at most.

use duo_contract::audit::AuditRecord;
use sqlx::PgConnection;

use super::StoreError;
use super::audit_events::{day_of, moment};

/// Keeps those of `ends` that are not the record that stands. A record is known by its broker and moment, so one
/// that was merely delivered twice is not late.
pub(super) async fn insert(connection: &mut PgConnection, ends: &[&AuditRecord]) -> Result<(), StoreError> {
    let days: Vec<_> = ends.iter().filter_map(|end| day_of(end.request_id)).collect();
    let ids: Vec<_> = ends.iter().map(|end| end.request_id).collect();
    let brokers: Vec<_> = ends.iter().map(|end| end.broker.clone()).collect();
    let moments: Vec<_> = ends.iter().map(|end| moment(end.occurred_at_us)).collect();
    let outcomes: Vec<_> = ends
        .iter()
        .map(|end| end.end.as_ref().map_or("", |e| e.outcome.as_str()).to_owned())
        .collect();
    let records: Vec<_> = ends
        .iter()
        .map(|end| serde_json::to_value(end).expect("a record is plain JSON"))
        .collect();
    sqlx::query!(
        "INSERT INTO audit_late_ends (request_id, broker, occurred_at, outcome, record)
         SELECT late.request_id, late.broker, late.occurred_at, late.outcome, late.record
         FROM unnest($1::date[], $2::uuid[], $3::text[], $4::timestamptz[], $5::text[], $6::jsonb[])
              AS late (day, request_id, broker, occurred_at, outcome, record)
         JOIN audit_events AS stands
           ON stands.day = late.day AND stands.request_id = late.request_id AND stands.kind = 'ended'
         WHERE stands.day = ANY($1) AND (stands.broker, stands.occurred_at) IS DISTINCT FROM (late.broker, late.occurred_at)
           AND (SELECT count(*) FROM audit_late_ends) < 100000
         ON CONFLICT DO NOTHING",
        &days,
        &ids,
        &brokers,
        &moments,
        &outcomes,
        &records,
    )
    .execute(connection)
    .await?;
    Ok(())
}
