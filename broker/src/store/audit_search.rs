//! Searches of the audit log, page by page, newest first.
//!
//! A search goes down in time. It opens the partitions that hold records of the time it is at (`audit_days`), passes
//! over hours in which nothing of the sort occurred (`audit_counts`), and looks at records in steps when no index knows
//! its filters. What it has not reached when its time is up the next page goes on with, so no search is too slow.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use duo_contract::audit::{AuditKind, Outcome};
use serde::Serialize;
use sqlx::PgConnection;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

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

/// What to search for; everything named must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Filter {
    /// This feature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<String>,
    /// This model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// This GitLab user id, or the id of an API token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// This GitLab instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// This client program, as its headers say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Not before.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub since: Option<OffsetDateTime>,
    /// Before.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub until: Option<OffsetDateTime>,
    /// Terminal records with this outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Terminal records with this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// This request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Uuid>,
    /// Requests about this job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<Uuid>,
    /// This correlation id, `X-Request-ID` of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// This trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Records of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<AuditKind>,
    /// With this text somewhere in what is told of the request, in capitals or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q: Option<String>,
}

impl Filter {
    /// Does no more than the sorts that are counted decide, beside the time?
    pub(super) fn is_of_sorts(&self) -> bool {
        let others = [
            &self.user,
            &self.client,
            &self.correlation_id,
            &self.trace_id,
            &self.q,
        ];
        others.iter().all(|other| other.is_none()) && self.request_id.is_none() && self.job_id.is_none()
    }

    /// Is there a sort to look for?
    fn names_a_sort(&self) -> bool {
        let sorts = [&self.feature, &self.model, &self.instance, &self.reason];
        sorts.iter().any(|sort| sort.is_some()) || self.outcome.is_some() || self.kind.is_some()
    }

    /// Is every record that an index finds one that is looked for?
    fn is_indexed(&self) -> bool {
        let others = [&self.client, &self.correlation_id, &self.trace_id, &self.q];
        let few = self.request_id.is_some() || self.job_id.is_some();
        few || (!self.names_a_sort() && others.iter().all(|other| other.is_none()))
    }
}

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

/// A place between two events; opaque to clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Cursor {
    occurred_at: OffsetDateTime,
    request_id: Uuid,
    kind: String,
}

impl Cursor {
    /// Reads a cursor that an earlier page gave.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = plain.splitn(3, '.');
        let micros: i128 = parts.next()?.parse().ok()?;
        let request_id = Uuid::try_parse(parts.next()?).ok()?;
        let kind = parts.next()?;
        Some(Self {
            occurred_at: OffsetDateTime::from_unix_timestamp_nanos(micros.checked_mul(1000)?).ok()?,
            request_id,
            kind: kind.to_owned(),
        })
    }

    /// Before everything that occurred from this moment on.
    fn at(moment: OffsetDateTime) -> Self {
        Self {
            occurred_at: moment,
            request_id: Uuid::nil(),
            kind: String::new(),
        }
    }

    fn after(event: &Event) -> Self {
        Self {
            occurred_at: event.occurred_at,
            request_id: event.request_id,
            kind: event.kind.clone(),
        }
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.occurred_at.unix_timestamp_nanos() / 1000;
        let plain = format!("{micros}.{}.{}", self.request_id.simple(), self.kind);
        f.write_str(&URL_SAFE_NO_PAD.encode(plain))
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A partition, and when its records occurred.
#[derive(Debug, Clone, Copy)]
pub(super) struct Day {
    pub(super) day: Date,
    first_hour: OffsetDateTime,
    last_hour: OffsetDateTime,
}

impl Day {
    fn end(&self) -> OffsetDateTime {
        self.last_hour.saturating_add(HOUR)
    }
}

/// Partitions in which records of a time lie.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stretch {
    pub(super) days: Vec<Date>,
    /// Records of the stretch occurred at this moment or later; every later one up to where the search is, is in it.
    pub(super) from: OffsetDateTime,
    /// Nothing is left below it.
    pub(super) is_last: bool,
}

impl Stretch {
    /// The first of its partitions.
    pub(super) fn first(&self) -> Option<Date> {
        self.days.iter().min().copied()
    }

    /// The last.
    pub(super) fn last(&self) -> Option<Date> {
        self.days.iter().max().copied()
    }

    /// Its partitions, where those from the first to the last are more. PostgreSQL plans a query of a span faster, since it
    /// compares each partition with each day of a list.
    pub(super) fn only(&self) -> Option<&[Date]> {
        let (first, last) = (self.first()?, self.last()?);
        let span = usize::try_from((last - first).whole_days()).ok()?;
        (span >= self.days.len()).then_some(&self.days[..])
    }
}

/// The stretch below `until`, of `most` partitions, or of none when nothing is left.
pub(super) fn stretch(
    days: &[Day],
    since: Option<OffsetDateTime>,
    until: Option<OffsetDateTime>,
    most: usize,
) -> Option<Stretch> {
    let mut open: Vec<&Day> = days
        .iter()
        .filter(|day| until.is_none_or(|until| day.first_hour < until))
        .filter(|day| since.is_none_or(|since| day.end() > since))
        .collect();
    open.sort_by_key(|day| std::cmp::Reverse(day.end()));
    let rest = open.split_off(most.min(open.len()));
    let first = open.iter().map(|day| day.first_hour).min()?;
    // What the other partitions hold occurred before this.
    let below = rest.first().map(|day| day.end());
    // Where the others reach up to here, they are of this stretch too.
    if below.is_some_and(|below| until.is_some_and(|until| below >= until)) {
        return stretch(days, since, until, most.saturating_mul(2).max(1));
    }
    let from = below.unwrap_or(first);
    let from = since.map_or(from, |since| since.max(from));
    Some(Stretch {
        days: open.iter().map(|day| day.day).collect(),
        from,
        is_last: below.is_none_or(|below| since.is_some_and(|since| since >= below)),
    })
}

/// The partitions there are records in.
pub(super) async fn days(connection: &mut PgConnection) -> Result<Vec<Day>, StoreError> {
    let days = sqlx::query_as!(Day, "SELECT day, first_hour, last_hour FROM audit_days")
        .fetch_all(connection)
        .await?;
    Ok(days)
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

#[cfg(test)]
mod tests {
    use time::macros::{date, datetime};

    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        let cursor = Cursor {
            occurred_at: datetime!(2026-09-22 10:13:20.123456 UTC),
            request_id: Uuid::now_v7(),
            kind: "ended".into(),
        };
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        assert_eq!(Cursor::parse("nonsense"), None);
    }

    #[test]
    fn days_with_gaps_are_named() {
        let stretch = |days: &[Date]| Stretch {
            days: days.to_vec(),
            from: OffsetDateTime::UNIX_EPOCH,
            is_last: true,
        };
        let (first, next) = (date!(2026 - 1 - 1), date!(2026 - 1 - 2));
        let whole = stretch(&[next, first]);
        assert_eq!(
            (whole.first(), whole.last(), whole.only()),
            (Some(first), Some(next), None)
        );
        let gap = stretch(&[date!(2026 - 1 - 4), first, next]);
        assert_eq!(gap.only(), Some(&gap.days[..]));
    }

    #[test]
    fn a_stretch_holds_every_record_from_its_begin_on() {
        let day = |day, first_hour, last_hour| Day {
            day,
            first_hour,
            last_hour,
        };
        let days = [
            day(
                date!(2026 - 1 - 1),
                datetime!(2026-01-01 00:00 UTC),
                datetime!(2026-01-03 07:00 UTC),
            ),
            day(
                date!(2026 - 1 - 2),
                datetime!(2026-01-02 00:00 UTC),
                datetime!(2026-01-03 00:00 UTC),
            ),
            day(
                date!(2026 - 1 - 3),
                datetime!(2026-01-03 00:00 UTC),
                datetime!(2026-01-03 09:00 UTC),
            ),
        ];
        let newest = stretch(&days, None, None, 1).unwrap();
        assert_eq!(newest.days, [date!(2026 - 1 - 3)]);
        // A request of the first day ended as late as that.
        assert_eq!(newest.from, datetime!(2026-01-03 08:00 UTC));
        let next = stretch(&days, None, Some(newest.from), 1).unwrap();
        assert_eq!(next.days, [date!(2026 - 1 - 3), date!(2026 - 1 - 1)]);
        assert_eq!(
            (next.from, next.is_last),
            (datetime!(2026-01-03 01:00 UTC), false)
        );
        let last = stretch(&days, None, Some(next.from), 2);
        assert_eq!(last.map(|last| (last.days.len(), last.is_last)), Some((3, true)));
        let since = datetime!(2026-01-03 09:30 UTC);
        let only = stretch(&days, Some(since), None, 1).unwrap();
        assert_eq!((only.days.len(), only.from, only.is_last), (1, since, true));
        assert_eq!(
            stretch(&days, Some(datetime!(2026-02-01 00:00 UTC)), None, 1),
            None
        );
    }
}
