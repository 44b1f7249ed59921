//! Searches of the audit log, page by page, newest first.
//!
//! A search goes down in time. It opens the partitions that hold records of the time it is at (`audit_days`), passes
//! over hours in which nothing of the sort occurred (`audit_counts`), and looks at records in steps when no index knows
//! its filters. What it has not reached when its time is up the next page goes on with, so no search is too slow.

mod filter;
mod stretch;

use std::time::{Duration, Instant};

use duo_contract::audit::{AuditKind, Outcome};
use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::filter::{Cursor, Filter};
pub(super) use self::stretch::{Day, Stretch, days, stretch};
use super::audit_events::{Event, day_of};
use super::audit_matching::matching;
use super::{Store, StoreError};

/// Most events on one page.
pub const MAX_PAGE: u32 = 1000;
/// A page is given back after so long, however little it has.
const BUDGET: Duration = Duration::from_secs(2);
/// Records that a search looks at in its first step; each step is larger than the one before.
const FIRST_STEP: i64 = 250;
/// The same where an index finds the records of somebody.
const FIRST_STEP_OF_A_USER: i64 = 4000;
const LARGEST_STEP: i64 = 64_000;
/// How much longer the next stretch is at most.
const FASTER: usize = 8;
/// Hours of which it is looked at once whether anything of a sort occurred.
const HOURS: i64 = 64;
const HOUR: time::Duration = time::Duration::HOUR;

/// Events, newest first, and where the next page begins.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Page {
    /// The events.
    pub events: Vec<Event>,
    /// Give it back for the next page; absent on the last one.
    pub next_cursor: Option<Cursor>,
    /// The search took long and has come down to this moment only; the next page goes on from there.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub searched_to: Option<OffsetDateTime>,
}

/// Has each statement of the transaction planned for its own values, and ended when it takes too long.
pub(super) async fn prepare(connection: &mut PgConnection) -> Result<(), StoreError> {
    // A plan that suits all filters would scan everything, and no constraint of the partitions rules out what is asked for.
    sqlx::query_scalar!(
        "SELECT concat(set_config('plan_cache_mode', 'force_custom_plan', true),
                       set_config('constraint_exclusion', 'off', true), set_config('statement_timeout', '15s', true))"
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// The event of a row that has more columns.
macro_rules! event {
    ($row:ident) => {
        Event {
            request_id: $row.request_id,
            kind: $row.kind,
            occurred_at: $row.occurred_at,
            recorded_at: $row.recorded_at,
            broker: $row.broker,
            auth: $row.auth,
            instance_id: $row.instance_id,
            user_id: $row.user_id,
            token_id: $row.token_id,
            client: $row.client,
            address: $row.address,
            route: $row.route,
            feature: $row.feature,
            lane: $row.lane,
            model: $row.model,
            prompt_id: $row.prompt_id,
            prompt_version: $row.prompt_version,
            config_revision: $row.config_revision,
            stream: $row.stream,
            body_bytes: $row.body_bytes,
            correlation_id: $row.correlation_id,
            trace_id: $row.trace_id,
            job_id: $row.job_id,
            details: $row.details,
            outcome: $row.outcome,
            reason: $row.reason,
            worker: $row.worker,
            attempts: $row.attempts,
            queue_wait_us: $row.queue_wait_us,
            first_byte_us: $row.first_byte_us,
            duration_us: $row.duration_us,
            input_tokens: $row.input_tokens,
            output_tokens: $row.output_tokens,
            seq: $row.seq,
            prompt_sha256: $row.prompt_sha256,
            answer_sha256: $row.answer_sha256,
        }
    };
}

/// A search under way.
struct Search<'a> {
    filter: &'a Filter,
    wanted: usize,
    events: Vec<Event>,
    /// Where it is: everything from here on has been looked at.
    cursor: Option<Cursor>,
    /// Nothing at this moment or later is left.
    until: Option<OffsetDateTime>,
    /// How many records the next step looks at.
    step: i64,
    time_is_up: Instant,
}

impl Store {
    /// One page of events, newest first. Pages do not shift when events are added: a page begins after the last
    /// event of the one before, wherever that stands now. A search that takes longer than two seconds gives back what
    /// it has.
    ///
    /// # Errors
    /// Postgres is away, or takes longer than fifteen seconds for one step.
    pub async fn audit_page(
        &self,
        filter: &Filter,
        limit: u32,
        after: Option<&Cursor>,
    ) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, MAX_PAGE) as usize;
        let mut transaction = self.pool.begin().await?;
        prepare(&mut transaction).await?;
        let mut search = Search {
            filter,
            wanted: limit + 1,
            events: Vec::new(),
            cursor: after.cloned(),
            until: filter.until,
            step: match filter.user {
                Some(_) => FIRST_STEP_OF_A_USER,
                None => FIRST_STEP,
            },
            time_is_up: Instant::now() + BUDGET,
        };
        let is_whole = search.run(&mut transaction).await?;
        transaction.commit().await?;
        let Search {
            mut events, cursor, ..
        } = search;
        if events.len() > limit {
            events.truncate(limit);
            let next_cursor = events.last().map(Cursor::after);
            return Ok(Page {
                events,
                next_cursor,
                searched_to: None,
            });
        }
        let next_cursor = cursor.filter(|_| !is_whole);
        let searched_to = next_cursor.as_ref().map(|cursor| cursor.occurred_at);
        Ok(Page {
            events,
            next_cursor,
            searched_to,
        })
    }

    /// All records of a request, or the one of that id, oldest first.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn audit_request(&self, request_id: Uuid) -> Result<Vec<Event>, StoreError> {
        let filter = Filter {
            request_id: Some(request_id),
            ..Filter::default()
        };
        let mut page = self.audit_page(&filter, MAX_PAGE, None).await?;
        page.events.reverse();
        Ok(page.events)
    }
}

impl Search<'_> {
    /// Goes down until there is enough or nothing is left; false when the time was up before.
    async fn run(&mut self, connection: &mut PgConnection) -> Result<bool, StoreError> {
        let mut days = days(connection).await?;
        if let Some(id) = self.filter.request_id {
            let day = day_of(id);
            days.retain(|known| Some(known.day) == day);
        }
        let passes_hours =
            self.filter.names_a_sort() && self.filter.user.is_none() && !self.filter.is_indexed();
        let mut most = if self.filter.job_id.is_some() {
            days.len()
        } else {
            1
        };
        let mut opened = 0;
        loop {
            let mut since = self.filter.since;
            let mut is_last_hour = true;
            if passes_hours {
                let Some((from, until, is_last)) = self.hours(connection).await? else {
                    return Ok(true);
                };
                since = Some(since.map_or(from, |since| since.max(from)));
                is_last_hour = is_last;
                self.until = Some(until);
            }
            let Some(stretch) = stretch(&days, since, self.upper(), most) else {
                if is_last_hour {
                    return Ok(true);
                }
                self.until = since;
                continue;
            };
            if !self.look(connection, &stretch).await? {
                return Ok(false);
            }
            if self.events.len() >= self.wanted || (stretch.is_last && is_last_hour) {
                return Ok(true);
            }
            if Instant::now() >= self.time_is_up {
                self.cursor = Some(Cursor::at(stretch.from));
                return Ok(false);
            }
            self.until = Some(stretch.from);
            opened += stretch.days.len();
            most = self.next(most, opened);
        }
    }

    /// How many partitions the next stretch has: as many as are likely to hold what is missing. To open one costs more than
    /// to find that it holds little.
    fn next(&self, most: usize, opened: usize) -> usize {
        let missing = self.wanted.saturating_sub(self.events.len());
        let likely = (missing * opened)
            .checked_div(self.events.len())
            .map_or(usize::MAX, |likely| likely + likely / 4 + 1);
        likely.min(most.saturating_mul(FASTER))
    }

    /// Nothing from this moment on is left.
    fn upper(&self) -> Option<OffsetDateTime> {
        let cursor = self.cursor.as_ref();
        let cursor = cursor.map(|cursor| cursor.occurred_at.saturating_add(time::Duration::MICROSECOND));
        [self.until, cursor].into_iter().flatten().min()
    }

    /// The next hours in which records of the sort occurred, enough of them for a page: from, until, and whether they
    /// are the last.
    async fn hours(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<(OffsetDateTime, OffsetDateTime, bool)>, StoreError> {
        let upper = self.upper();
        let hours = sqlx::query!(
            r#"SELECT hour AS "hour!", sum(records)::bigint AS "records!" FROM audit_counts
               WHERE ($1::timestamptz IS NULL OR hour < $1)
                 AND ($2::timestamptz IS NULL OR hour > $2 - interval '1 hour')
                 AND ($3::text IS NULL OR feature = $3)
                 AND ($4::text IS NULL OR model = $4)
                 AND ($5::text IS NULL OR instance_id = $5)
                 AND ($6::text IS NULL OR outcome = $6)
                 AND ($7::text IS NULL OR reason = $7)
                 AND ($8::text IS NULL OR kind = $8)
               GROUP BY hour ORDER BY hour DESC LIMIT $9"#,
            upper,
            self.filter.since,
            self.filter.feature.as_deref(),
            self.filter.model.as_deref(),
            self.filter.instance.as_deref(),
            self.filter.outcome.map(Outcome::as_str),
            self.filter.reason.as_deref(),
            self.filter.kind.map(AuditKind::as_str),
            HOURS,
        )
        .fetch_all(connection)
        .await?;
        let Some(newest) = hours.first() else {
            return Ok(None);
        };
        let end = newest.hour.saturating_add(HOUR);
        let until = upper.map_or(end, |upper| upper.min(end));
        let is_all = (hours.len() as i64) < HOURS;
        let needed = (self.wanted - self.events.len().min(self.wanted)) as i64;
        let mut records = 0;
        // The newest hour may have been looked at in part, so it does not count.
        for (at, hour) in hours.iter().enumerate() {
            records += if at == 0 { 0 } else { hour.records };
            if records >= needed {
                return Ok(Some((hour.hour, until, is_all && at + 1 == hours.len())));
            }
        }
        let oldest = hours.last().map_or(newest.hour, |hour| hour.hour);
        Ok(Some((oldest, until, is_all)))
    }

    /// Looks through a stretch; false when the time was up before its end.
    async fn look(&mut self, connection: &mut PgConnection, stretch: &Stretch) -> Result<bool, StoreError> {
        let mut step = (!self.filter.is_indexed()).then_some(self.step);
        loop {
            let edge = self.step(connection, stretch, step).await?;
            if self.events.len() >= self.wanted {
                return Ok(true);
            }
            let Some(edge) = edge else { return Ok(true) };
            self.cursor = Some(edge);
            self.step = self.step.saturating_mul(4).min(LARGEST_STEP);
            step = Some(self.step);
            if Instant::now() >= self.time_is_up {
                return Ok(false);
            }
        }
    }

    /// Looks at the next `step` records of a stretch: adds what is looked for, and returns the last one that it looked at
    /// unless there are fewer.
    async fn step(
        &mut self,
        connection: &mut PgConnection,
        stretch: &Stretch,
        step: Option<i64>,
    ) -> Result<Option<Cursor>, StoreError> {
        let (filter, after) = (self.filter, self.cursor.as_ref());
        let left = self.wanted.saturating_sub(self.events.len());
        let rows = matching!(
            query!(),
            filter,
            stretch,
            Some(stretch.from),
            self.until,
            r#"SELECT request_id AS "request_id!", kind AS "kind!", occurred_at AS "occurred_at!",
                      recorded_at AS "recorded_at!", broker AS "broker!", auth AS "auth!", instance_id, user_id, token_id,
                      client, address, route AS "route!", feature, lane, model, prompt_id, prompt_version,
                      config_revision AS "config_revision!", stream AS "stream!", body_bytes AS "body_bytes!",
                      correlation_id, trace_id, job_id, details, outcome, reason, worker, attempts, queue_wait_us,
                      first_byte_us, duration_us, input_tokens, output_tokens, seq, prompt_sha256, answer_sha256,
                      nth AS "nth!", matches AS "matches!"
               FROM (SELECT *, row_number() OVER (ORDER BY occurred_at DESC, request_id DESC, kind DESC) AS nth"#,
            "AND ($19::timestamptz IS NULL OR (occurred_at, request_id, kind) < ($19, $20::uuid, $21::text))
             ORDER BY occurred_at DESC, request_id DESC, kind DESC
             LIMIT $22) AS looked
             CROSS JOIN LATERAL (SELECT COALESCE(",
            ", false) AS matches) AS judged
             WHERE matches OR nth = $22
             ORDER BY occurred_at DESC, request_id DESC, kind DESC
             LIMIT $23",
            after.map(|cursor| cursor.occurred_at),
            after.map(|cursor| cursor.request_id),
            after.map(|cursor| cursor.kind.as_str()),
            step,
            i64::try_from(left).unwrap_or(i64::MAX)
        )
        .fetch_all(connection)
        .await?;
        let mut edge = None;
        for row in rows {
            if Some(row.nth) == step {
                edge = Some(Cursor {
                    occurred_at: row.occurred_at,
                    request_id: row.request_id,
                    kind: row.kind.clone(),
                });
            }
            if row.matches {
                self.events.push(event!(row));
            }
        }
        Ok(edge)
    }
}
