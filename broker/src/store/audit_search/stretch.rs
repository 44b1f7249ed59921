//! Which partitions hold the records of a time.

use sqlx::PgConnection;
use time::{Date, OffsetDateTime};

use super::HOUR;
use crate::store::StoreError;

/// A partition, and when its records occurred.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Day {
    pub(in crate::store) day: Date,
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
pub(in crate::store) struct Stretch {
    pub(in crate::store) days: Vec<Date>,
    /// Records of the stretch occurred at this moment or later; every later one up to where the search is, is in it.
    pub(in crate::store) from: OffsetDateTime,
    /// Nothing is left below it.
    pub(in crate::store) is_last: bool,
}

impl Stretch {
    /// The first of its partitions.
    pub(in crate::store) fn first(&self) -> Option<Date> {
        self.days.iter().min().copied()
    }

    /// The last.
    pub(in crate::store) fn last(&self) -> Option<Date> {
        self.days.iter().max().copied()
    }

    /// Its partitions, where those from the first to the last are more. PostgreSQL plans a query of a span faster, since it
    /// compares each partition with each day of a list.
    pub(in crate::store) fn only(&self) -> Option<&[Date]> {
        let (first, last) = (self.first()?, self.last()?);
        let span = usize::try_from((last - first).whole_days()).ok()?;
        (span >= self.days.len()).then_some(&self.days[..])
    }
}

/// The stretch below `until`, of `most` partitions, or of none when nothing is left.
pub(in crate::store) fn stretch(
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
pub(in crate::store) async fn days(connection: &mut PgConnection) -> Result<Vec<Day>, StoreError> {
    let days = sqlx::query_as!(Day, "SELECT day, first_hour, last_hour FROM audit_days")
        .fetch_all(connection)
        .await?;
    Ok(days)
}

#[cfg(test)]
mod tests {
    use time::macros::{date, datetime};

    use super::*;

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
