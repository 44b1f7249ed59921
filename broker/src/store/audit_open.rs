//! Admitted requests that have no terminal record.

use duo_contract::audit::{AuditKind, AuditRecord, What, Who};
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::audit_events::day_of;
use super::{Store, StoreError};

/// A search walks down the index of moments and looks each request's end up. Partitions of today have no statistics that
/// would tell the planner so: it reads whole days then, for as long as it may, and whoever drops one waits for it. That an
/// end lies in the same days is said in so many words: else each request is looked up in a plan of all partitions.
const BEGIN: &str = "BEGIN; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL statement_timeout = '15s'; \
                     SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; \
                     SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
                     SET LOCAL max_parallel_workers_per_gather = 0";

/// A place among admitted records, in the order of their moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// When it was admitted.
    pub at: OffsetDateTime,
    /// The request.
    pub request_id: Uuid,
}

impl Place {
    /// The place before everything admitted at `at`.
    #[must_use]
    pub fn at(at: OffsetDateTime) -> Self {
        Self {
            at,
            request_id: Uuid::nil(),
        }
    }
}

impl Store {
    /// The *admitted* records after `after` and before `until` whose requests have no terminal record, in order;
    /// `limit` at most. It reads the index over that span, so a short span is cheap.
    ///
    /// # Errors
    /// Postgres is away, or the search takes longer than fifteen seconds.
    pub async fn unended(
        &self,
        after: Place,
        until: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        let mut transaction = self.pool.begin_with(BEGIN).await?;
        let rows = sqlx::query!(
            "SELECT request_id, occurred_at, broker, auth, instance_id, user_id, token_id, client, address, route,
                    feature, lane, model, prompt_id, prompt_version, config_revision, stream, body_bytes,
                    correlation_id, trace_id, job_id
             FROM audit_events AS admitted
             WHERE kind = 'admitted'
               AND (occurred_at, request_id) > ($1, $2::uuid)
               AND occurred_at < $3
               AND day BETWEEN $4 AND $5
               AND NOT EXISTS (SELECT FROM audit_events AS ended
                               WHERE ended.day = admitted.day AND ended.request_id = admitted.request_id
                                 AND ended.kind = 'ended' AND ended.day BETWEEN $4 AND $5)
             ORDER BY occurred_at, request_id
             LIMIT $6",
            after.at,
            after.request_id,
            until,
            day_before(after.at),
            day_after(until),
            i64::from(limit),
        )
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        let records = rows.into_iter().map(|row| AuditRecord {
            kind: AuditKind::Admitted,
            request_id: row.request_id,
            occurred_at_us: i64::try_from(row.occurred_at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX),
            broker: row.broker,
            who: Who {
                auth: row.auth,
                instance_id: row.instance_id,
                user_id: row.user_id,
                token_id: row.token_id,
                client: row.client,
                address: row.address,
            },
            // A name that no longer parses must not keep a request open.
            what: What {
                route: row.route,
                feature: row.feature.and_then(|name| name.parse().ok()),
                lane: row.lane.and_then(|lane| lane.parse().ok()),
                model: row.model.and_then(|name| name.parse().ok()),
                prompt_id: row.prompt_id,
                prompt_version: row.prompt_version,
                config_revision: u64::try_from(row.config_revision).unwrap_or_default(),
                stream: row.stream,
                body_bytes: u64::try_from(row.body_bytes).unwrap_or_default(),
                correlation_id: row.correlation_id,
                trace_id: row.trace_id,
                job_id: row.job_id,
            },
            end: None,
            details: None,
        });
        Ok(records.collect())
    }

    /// Those of `requests` that have a terminal record.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn ended_among(&self, requests: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
        let days: Vec<Date> = requests.iter().filter_map(|id| day_of(*id)).collect();
        let ended = sqlx::query_scalar!(
            "SELECT ended.request_id
             FROM unnest($1::date[], $2::uuid[]) AS asked (day, request_id)
             JOIN audit_events AS ended
               ON ended.day = asked.day AND ended.request_id = asked.request_id AND ended.kind = 'ended'
             WHERE ended.day = ANY($1)",
            &days,
            requests,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(ended)
    }
}

/// A request's day is that of its id, which may lie a little before the moment of its record.
fn day_before(moment: OffsetDateTime) -> Date {
    let day = moment.to_offset(time::UtcOffset::UTC).date();
    day.previous_day().unwrap_or(day)
}

fn day_after(moment: OffsetDateTime) -> Date {
    let day = moment.to_offset(time::UtcOffset::UTC).date();
    day.next_day().unwrap_or(day)
}
