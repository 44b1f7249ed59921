//! How many audit records there are of each sort: kept by the hour, written with the records (`audit_counts`), and from
//! there by the day (`audit_day_counts`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use duo_contract::audit::{AuditKind, AuditRecord, Outcome};
use serde::Serialize;
use sqlx::PgConnection;
use time::{Date, OffsetDateTime, Time};

use super::audit_events::{day_of, moment};
use super::audit_matching::matching;
use super::audit_search::{self, Day, Filter, stretch};
use super::{Store, StoreError};

/// Records are looked at one by one for so long, where a filter asks for what is not kept by the hour.
const BUDGET: Duration = Duration::from_secs(5);
/// Most values of a facet.
const MOST_VALUES: usize = 100;
const HOUR: i64 = 3600;

/// What records can be counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Facet {
    /// Kind of the record.
    Kind,
    /// How the request ended.
    Outcome,
    /// Why.
    Reason,
    /// Feature.
    Feature,
    /// Model.
    Model,
    /// GitLab instance.
    Instance,
}

impl Facet {
    /// Every facet.
    pub const ALL: [Facet; 6] = [
        Facet::Kind,
        Facet::Outcome,
        Facet::Reason,
        Facet::Feature,
        Facet::Model,
        Facet::Instance,
    ];

    /// The facet's name in queries and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Facet::Kind => "kind",
            Facet::Outcome => "outcome",
            Facet::Reason => "reason",
            Facet::Feature => "feature",
            Facet::Model => "model",
            Facet::Instance => "instance",
        }
    }
}

impl std::str::FromStr for Facet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Facet::ALL
            .into_iter()
            .find(|facet| facet.as_str() == text)
            .ok_or_else(|| {
                let known: Vec<_> = Facet::ALL.iter().map(|facet| facet.as_str()).collect();
                format!("has to be some of {}", known.join(", "))
            })
    }
}

/// How many records have a value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Count {
    /// The value; absent for records without one.
    pub value: Option<String>,
    /// How many.
    pub records: i64,
}

/// Counts, the largest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Facets {
    /// Records that the filter lets through.
    pub records: i64,
    /// By facet, by value.
    pub facets: BTreeMap<&'static str, Vec<Count>>,
    /// Counting took long: what occurred before this moment is not counted.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub counted_to: Option<OffsetDateTime>,
}

/// Records of one sort; '' is no value.
#[derive(Debug)]
struct Sort {
    kind: String,
    outcome: String,
    reason: String,
    feature: String,
    model: String,
    instance_id: String,
    records: i64,
}

impl Sort {
    fn value(&self, facet: Facet) -> &str {
        match facet {
            Facet::Kind => &self.kind,
            Facet::Outcome => &self.outcome,
            Facet::Reason => &self.reason,
            Facet::Feature => &self.feature,
            Facet::Model => &self.model,
            Facet::Instance => &self.instance_id,
        }
    }
}

/// Counts records that this transaction has written. The lock on the head keeps others from these rows.
pub(super) async fn count(connection: &mut PgConnection, records: &[&AuditRecord]) -> Result<(), StoreError> {
    type Key<'a> = (OffsetDateTime, Date, [&'a str; 6]);
    let mut counts: BTreeMap<Key<'_>, i64> = BTreeMap::new();
    let mut days: BTreeMap<Date, (OffsetDateTime, OffsetDateTime)> = BTreeMap::new();
    for record in records {
        let Some(day) = day_of(record.request_id) else {
            continue;
        };
        let hour = hour_of(moment(record.occurred_at_us));
        let sort = [
            record.kind.as_str(),
            record.end.as_ref().map_or("", |end| end.outcome.as_str()),
            record
                .what
                .feature
                .as_ref()
                .map_or("", |feature| feature.as_str()),
            record.what.model.as_ref().map_or("", |model| model.as_str()),
            record.who.instance_id.as_deref().unwrap_or(""),
            record
                .end
                .as_ref()
                .and_then(|end| end.reason.as_deref())
                .unwrap_or(""),
        ];
        *counts.entry((hour, day, sort)).or_default() += 1;
        let hours = days.entry(day).or_insert((hour, hour));
        *hours = (hours.0.min(hour), hours.1.max(hour));
    }
    let sort = |at: usize| counts.keys().map(|(_, _, sort)| sort[at]).collect::<Vec<_>>();
    sqlx::query!(
        "INSERT INTO audit_counts AS known (hour, day, kind, outcome, feature, model, instance_id, reason, records)
         SELECT * FROM unnest($1::timestamptz[], $2::date[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
              $8::text[], $9::bigint[])
         ON CONFLICT (hour, day, kind, outcome, feature, model, instance_id, reason)
             DO UPDATE SET records = known.records + excluded.records",
        &counts.keys().map(|(hour, ..)| *hour).collect::<Vec<_>>(),
        &counts.keys().map(|(_, day, _)| *day).collect::<Vec<_>>(),
        &sort(0) as &[&str],
        &sort(1) as &[&str],
        &sort(2) as &[&str],
        &sort(3) as &[&str],
        &sort(4) as &[&str],
        &sort(5) as &[&str],
        &counts.values().copied().collect::<Vec<_>>(),
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO audit_days AS known (day, first_hour, last_hour)
         SELECT * FROM unnest($1::date[], $2::timestamptz[], $3::timestamptz[])
         ON CONFLICT (day) DO UPDATE
             SET first_hour = least(known.first_hour, excluded.first_hour),
                 last_hour = greatest(known.last_hour, excluded.last_hour)
             WHERE excluded.first_hour < known.first_hour OR excluded.last_hour > known.last_hour",
        &days.keys().copied().collect::<Vec<_>>(),
        &days.values().map(|hours| hours.0).collect::<Vec<_>>(),
        &days.values().map(|hours| hours.1).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The hour, of UTC, that a moment is in.
fn hour_of(moment: OffsetDateTime) -> OffsetDateTime {
    let seconds = moment.unix_timestamp();
    OffsetDateTime::from_unix_timestamp(seconds - seconds.rem_euclid(HOUR))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The first hour that begins at this moment or after it.
fn hour_from(moment: OffsetDateTime) -> OffsetDateTime {
    let hour = hour_of(moment);
    if hour == moment {
        return hour;
    }
    hour.saturating_add(time::Duration::HOUR)
}

/// The first day that begins at this moment, which is of UTC, or after it.
fn day_from(moment: OffsetDateTime) -> Date {
    let day = moment.date();
    if begin(day) == moment {
        return day;
    }
    day.next_day().unwrap_or(day)
}

fn begin(day: Date) -> OffsetDateTime {
    OffsetDateTime::new_utc(day, Time::MIDNIGHT)
}

impl Store {
    /// Counts the records that a filter lets through, by each of `by`. What the counts cannot tell is counted
    /// record by record, newest first, for five seconds at most.
    ///
    /// # Errors
    /// Postgres is away, or takes too long even so.
    pub async fn audit_facets(&self, filter: &Filter, by: &[Facet]) -> Result<Facets, StoreError> {
        let mut transaction = self.pool.begin().await?;
        // Counts and records have to be of the same moment.
        sqlx::query!("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut *transaction)
            .await?;
        audit_search::prepare(&mut transaction).await?;
        let days = audit_search::days(&mut transaction).await?;
        let mut counting = Counting {
            filter,
            days: &days,
            sorts: Vec::new(),
        };
        let counted_to = if filter.is_of_sorts() {
            counting.counts_and_edges(&mut transaction).await?;
            None
        } else {
            counting.downward(&mut transaction).await?
        };
        Ok(Facets {
            counted_to,
            ..facets(&counting.sorts, by)
        })
    }
}

/// A checked query of what a filter lets through of counted sorts, between two moments of the counts' own kind.
macro_rules! sorts {
    ($filter:expr, $since:expr, $until:expr, $from:tt) => {
        sqlx::query_as!(
            Sort,
            r#"SELECT kind AS "kind!", outcome AS "outcome!", reason AS "reason!", feature AS "feature!",
                      model AS "model!", instance_id AS "instance_id!", sum(records)::bigint AS "records!" "#
                + $from
                + " AND ($3::text IS NULL OR feature = $3)
                    AND ($4::text IS NULL OR model = $4)
                    AND ($5::text IS NULL OR instance_id = $5)
                    AND ($6::text IS NULL OR outcome = $6)
                    AND ($7::text IS NULL OR reason = $7)
                    AND ($8::text IS NULL OR kind = $8)
                    GROUP BY kind, outcome, reason, feature, model, instance_id",
            $since,
            $until,
            $filter.feature.as_deref(),
            $filter.model.as_deref(),
            $filter.instance.as_deref(),
            $filter.outcome.map(Outcome::as_str),
            $filter.reason.as_deref(),
            $filter.kind.map(AuditKind::as_str),
        )
    };
}

struct Counting<'a> {
    filter: &'a Filter,
    days: &'a [Day],
    sorts: Vec<Sort>,
}

impl Counting<'_> {
    /// Whole days and hours from the counts, what is left of an hour at both ends from the records.
    async fn counts_and_edges(&mut self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let Filter { since, until, .. } = *self.filter;
        let (first, last) = (since.map(hour_from), until.map(hour_of));
        if let (Some(first), Some(last)) = (first, last)
            && first >= last
        {
            return self.records(connection, since, until).await;
        }
        self.whole_hours(connection, first, last).await?;
        if since != first {
            self.records(connection, since, first).await?;
        }
        if until != last {
            self.records(connection, last, until).await?;
        }
        Ok(())
    }

    async fn whole_hours(
        &mut self,
        connection: &mut PgConnection,
        since: Option<OffsetDateTime>,
        until: Option<OffsetDateTime>,
    ) -> Result<(), StoreError> {
        let (first, last) = (since.map(day_from), until.map(OffsetDateTime::date));
        if let (Some(first), Some(last)) = (first, last)
            && first >= last
        {
            return self.hours(connection, since, until).await;
        }
        self.whole_days(connection, first, last).await?;
        let (from, to) = (first.map(begin), last.map(begin));
        if since != from {
            self.hours(connection, since, from).await?;
        }
        if until != to {
            self.hours(connection, to, until).await?;
        }
        Ok(())
    }

    async fn whole_days(
        &mut self,
        connection: &mut PgConnection,
        since: Option<Date>,
        until: Option<Date>,
    ) -> Result<(), StoreError> {
        let sorts = sorts!(
            self.filter,
            since,
            until,
            "FROM audit_day_counts
             WHERE ($1::date IS NULL OR occurred_on >= $1) AND ($2::date IS NULL OR occurred_on < $2)"
        );
        self.sorts.extend(sorts.fetch_all(connection).await?);
        Ok(())
    }

    async fn hours(
        &mut self,
        connection: &mut PgConnection,
        since: Option<OffsetDateTime>,
        until: Option<OffsetDateTime>,
    ) -> Result<(), StoreError> {
        let sorts = sorts!(
            self.filter,
            since,
            until,
            "FROM audit_counts
             WHERE ($1::timestamptz IS NULL OR hour >= $1) AND ($2::timestamptz IS NULL OR hour < $2)"
        );
        self.sorts.extend(sorts.fetch_all(connection).await?);
        Ok(())
    }

    /// Stretch after stretch, newest first, until the time is up: then how far it came.
    async fn downward(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Option<OffsetDateTime>, StoreError> {
        let time_is_up = Instant::now() + BUDGET;
        let Filter { since, mut until, .. } = *self.filter;
        // An index finds what is of a user, a request or a job.
        let few =
            self.filter.user.is_some() || self.filter.request_id.is_some() || self.filter.job_id.is_some();
        let mut most = if few { self.days.len() } else { 1 };
        while let Some(stretch) = stretch(self.days, since, until, most) {
            match self.records(connection, Some(stretch.from), until).await {
                Ok(()) => {}
                Err(StoreError::Unavailable(error)) if until.is_some() && was_cut_short(&error) => {
                    return Ok(until);
                }
                Err(error) => return Err(error),
            }
            if stretch.is_last {
                break;
            }
            until = Some(stretch.from);
            if Instant::now() >= time_is_up {
                return Ok(until);
            }
            most = most.saturating_mul(2);
        }
        Ok(None)
    }

    async fn records(
        &mut self,
        connection: &mut PgConnection,
        since: Option<OffsetDateTime>,
        until: Option<OffsetDateTime>,
    ) -> Result<(), StoreError> {
        let filter = self.filter;
        let Some(stretch) = stretch(self.days, since, until, self.days.len()) else {
            return Ok(());
        };
        let sorts = matching!(
            query_as!(Sort),
            filter,
            stretch,
            since,
            until,
            r#"SELECT kind AS "kind!", COALESCE(outcome, '') AS "outcome!", COALESCE(reason, '') AS "reason!",
                      COALESCE(feature, '') AS "feature!", COALESCE(model, '') AS "model!",
                      COALESCE(instance_id, '') AS "instance_id!", count(*) AS "records!""#,
            "AND",
            "GROUP BY 1, 2, 3, 4, 5, 6"
        )
        .fetch_all(connection)
        .await?;
        self.sorts.extend(sorts);
        Ok(())
    }
}

/// Did the statement take longer than it may?
fn was_cut_short(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.code().is_some_and(|code| code == "57014"))
}

fn facets(sorts: &[Sort], by: &[Facet]) -> Facets {
    let facets = by.iter().map(|facet| {
        let mut values: BTreeMap<&str, i64> = BTreeMap::new();
        for sort in sorts {
            *values.entry(sort.value(*facet)).or_default() += sort.records;
        }
        let mut counts: Vec<_> = values
            .into_iter()
            .map(|(value, records)| Count {
                value: (!value.is_empty()).then(|| value.to_owned()),
                records,
            })
            .collect();
        // Sorting is stable, so equal counts stay in the order of their values.
        counts.sort_by_key(|count| std::cmp::Reverse(count.records));
        counts.truncate(MOST_VALUES);
        (facet.as_str(), counts)
    });
    Facets {
        records: sorts.iter().map(|sort| sort.records).sum(),
        facets: facets.collect(),
        counted_to: None,
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn days_begin_where_utc_has_them() {
        let midnight = datetime!(2026-03-01 00:00 UTC);
        assert_eq!(day_from(midnight), midnight.date());
        assert_eq!(day_from(datetime!(2026-02-28 01:00 UTC)), midnight.date());
        assert_eq!(begin(midnight.date()), midnight);
    }

    #[test]
    fn hours_begin_where_utc_has_them() {
        let moment = datetime!(2026-03-01 10:59:59.999999 UTC);
        assert_eq!(hour_of(moment), datetime!(2026-03-01 10:00 UTC));
        assert_eq!(hour_from(moment), datetime!(2026-03-01 11:00 UTC));
        let whole = datetime!(2026-03-01 11:00 UTC);
        assert_eq!((hour_of(whole), hour_from(whole)), (whole, whole));
        assert_eq!(
            hour_of(datetime!(1969-12-31 23:30 UTC)),
            datetime!(1969-12-31 23:00 UTC)
        );
    }
}
