//! Drops whole partitions of records and of kept texts when their time is over, with a record of what went.

use std::ops::Range;

use serde_json::{Value, json};
use sqlx::{PgConnection, Postgres, Transaction};
use time::Date;

use super::change_records::{self, ChangeRecord};
use super::{Store, StoreError, audit_holds, audit_tree, config_revision, unsigned};
use crate::audit::tree::{Hash, TILE, Tree};

/// Stands in records where an administrator would.
const ACTOR: &str = "retention";

/// Tiles of the tree that are read at once.
const TILES: u64 = 256;

/// A partitioned table of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioned {
    /// Records, by the day of their id.
    Events,
    /// Kept texts and their keys, by the day on which they go.
    Bodies,
}

impl Partitioned {
    fn table(self) -> &'static str {
        match self {
            Partitioned::Events => "audit_events",
            Partitioned::Bodies => "audit_bodies",
        }
    }

    /// What a drop is called in the log.
    fn what(self) -> &'static str {
        match self {
            Partitioned::Events => "retention.drop_records",
            Partitioned::Bodies => "retention.drop_bodies",
        }
    }
}

/// Records that are gone by rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DroppedRecords {
    /// The number of the record that says so.
    pub said_by: u64,
    /// Their numbers, in order.
    pub numbers: Vec<Range<u64>>,
}

impl DroppedRecords {
    /// Whether the record with this number is gone by rule.
    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        let after = self.numbers.partition_point(|range| range.end <= seq);
        self.numbers.get(after).is_some_and(|range| range.contains(&seq))
    }
}

/// What became of a partition that was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It is gone.
    Gone,
    /// A legal hold covers some of it.
    Held,
    /// Another broker is at it, or was faster.
    Elsewhere,
    /// Some of its records are in no tile of the log's tree yet, without which nothing could be proved of them.
    NotInTree,
}

impl Store {
    /// The days of a table's partitions that end before `before`, the oldest first.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn due_partitions(&self, of: Partitioned, before: Date) -> Result<Vec<Date>, StoreError> {
        let days = sqlx::query_scalar!(
            r#"SELECT day AS "day!" FROM audit_partition_days($1) AS day WHERE day < $2 ORDER BY day"#,
            of.table(),
            before,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(days)
    }

    /// Records that are gone by rule, as the newest record of a drop says.
    ///
    /// # Errors
    /// Postgres is away, or that record is unreadable.
    pub async fn dropped_records(&self) -> Result<Option<DroppedRecords>, StoreError> {
        dropped(&mut *self.pool.acquire().await?).await
    }

    /// Drops a day's partition unless a hold covers some of it. Whoever waits for the table waits for two seconds at most.
    ///
    /// # Errors
    /// Postgres is away, or somebody reads the table for longer; then nothing has changed.
    pub async fn drop_partition(&self, of: Partitioned, day: Date) -> Result<Dropped, StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("SET LOCAL lock_timeout = '2s'")
            .execute(&mut *transaction)
            .await?;
        sqlx::query!("SET LOCAL statement_timeout = '60s'")
            .execute(&mut *transaction)
            .await?;
        let mine = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_xact_lock(hashtext('audit_retention')) AS "mine!""#
        )
        .fetch_one(&mut *transaction)
        .await?;
        let locked = match mine {
            true => lock(&mut transaction, of, day).await?,
            false => false,
        };
        if !locked {
            return Ok(Dropped::Elsewhere);
        }
        audit_holds::settle(&mut transaction).await?;
        if is_held(&mut transaction, of, day).await? {
            return Ok(Dropped::Held);
        }
        let what_was = match of {
            Partitioned::Events => events(&mut transaction, day).await?,
            Partitioned::Bodies => Some(bodies(&mut transaction, day).await?),
        };
        let Some(what_was) = what_was else {
            return Ok(Dropped::NotInTree);
        };
        drop_and_record(transaction, of, day, what_was).await?;
        Ok(Dropped::Gone)
    }
}

/// Keeps writers out of the partition; false when there is none.
async fn lock(connection: &mut PgConnection, of: Partitioned, day: Date) -> Result<bool, StoreError> {
    let locked = sqlx::query_scalar!(
        r#"SELECT lock_audit_partition($1, $2) AS "locked!""#,
        of.table(),
        day
    )
    .fetch_one(connection)
    .await?;
    Ok(locked)
}

async fn is_held(connection: &mut PgConnection, of: Partitioned, day: Date) -> Result<bool, StoreError> {
    let held = match of {
        // A record may be of anybody.
        Partitioned::Events => {
            sqlx::query_scalar!(
                r#"SELECT EXISTS (
                       SELECT FROM audit_holds
                       WHERE lifted_at IS NULL AND since < ($1::date + 1)::timestamp AT TIME ZONE 'UTC'
                         AND ("until" IS NULL OR "until" > $1::date::timestamp AT TIME ZONE 'UTC')) AS "held!""#,
                day,
            )
            .fetch_one(connection)
            .await?
        }
        Partitioned::Bodies => {
            sqlx::query_scalar!(
                r#"SELECT EXISTS (
                       SELECT FROM audit_holds AS h JOIN audit_keys AS k ON h.subject IS NULL OR h.subject = k.subject
                       WHERE k.drop_on = $1 AND k.destroyed_at IS NULL AND lifted_at IS NULL
                         AND since < (k.period + 1)::timestamp AT TIME ZONE 'UTC'
                         AND ("until" IS NULL OR "until" > k.period::timestamp AT TIME ZONE 'UTC')) AS "held!""#,
                day,
            )
            .fetch_one(connection)
            .await?
        }
    };
    Ok(held)
}

/// A part of the log and what is to be said of it when it goes.
struct Leaving {
    before: Value,
    /// Numbers that have no record any more afterwards, in this drop and those before.
    dropped: Option<Vec<[u64; 2]>>,
}

/// Count, numbers and root of a day's records, and all numbers that are gone with them; nothing where the tree lacks some.
/// Their leaves are read from the tree, which verification holds against checkpoints.
async fn events(connection: &mut PgConnection, day: Date) -> Result<Option<Leaving>, StoreError> {
    let Numbered { numbers, unnumbered } = numbered(connection, day).await?;
    if let Some(last) = numbers.last()
        && last.end > audit_tree::tiles_end(connection).await?
    {
        return Ok(None);
    }
    let mut dropped = dropped(connection).await?.unwrap_or_default().numbers;
    dropped.extend(numbers.iter().cloned());
    let records: u64 = numbers.iter().map(|range| range.end - range.start).sum();
    let before = json!({
        "records": records + unnumbered,
        "unnumbered": unnumbered,
        "first_seq": numbers.first().map(|first| first.start),
        "last_seq": numbers.last().map(|last| last.end - 1),
        "root_sha256": hex::encode(root(connection, &numbers).await?),
    });
    let dropped = joined(dropped);
    Ok(Some(Leaving {
        before,
        dropped: Some(
            dropped
                .into_iter()
                .map(|range| [range.start, range.end - 1])
                .collect(),
        ),
    }))
}

/// A day's records.
struct Numbered {
    /// The numbers that they have, in order.
    numbers: Vec<Range<u64>>,
    /// How many have none.
    unnumbered: u64,
}

/// Looks at a day's records once, however many there are.
async fn numbered(connection: &mut PgConnection, day: Date) -> Result<Numbered, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT first_seq AS first, last_seq AS last, records AS "records!" FROM audit_partition_numbers($1)"#,
        day
    )
    .fetch_all(connection)
    .await?;
    let what = "seq of an audit record";
    let mut found = Numbered {
        numbers: Vec::new(),
        unnumbered: 0,
    };
    for row in rows {
        match (row.first, row.last) {
            (Some(first), Some(last)) => {
                let (first, last): (u64, u64) = (unsigned(what, first)?, unsigned(what, last)?);
                found.numbers.push(first..last.saturating_add(1));
            }
            _ => found.unnumbered = unsigned("count of audit records", row.records)?,
        }
    }
    Ok(found)
}

/// Ranges in order, those that touch as one.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The root over the leaves with these numbers, one after the other. Some are hashed while the next ones are read.
async fn root(connection: &mut PgConnection, numbers: &[Range<u64>]) -> Result<Hash, StoreError> {
    let mut tree = Tree::default();
    let mut read = Vec::new();
    for span in numbers.iter().flat_map(spans) {
        let (hashed, next) = tokio::join!(append(tree, read), leaves(connection, span));
        (tree, read) = (hashed?, next?);
    }
    Ok(append(tree, read).await?.root())
}

/// A range in parts that lie in [`TILES`] tiles each.
fn spans(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    const SPAN: u64 = TILES * TILE;
    let (start, end) = (range.start, range.end);
    let cuts = (start / SPAN..end.div_ceil(SPAN)).map(|number| number * SPAN);
    cuts.map(move |cut| cut.max(start)..(cut + SPAN).min(end))
}

async fn leaves(connection: &mut PgConnection, span: Range<u64>) -> Result<Vec<Hash>, StoreError> {
    let tiles = audit_tree::tiles(connection, 0, span.start / TILE..span.end.div_ceil(TILE)).await?;
    let leaf = |seq: u64| {
        let number = seq / TILE;
        let leaf = tiles
            .get(&number)
            .and_then(|tile| tile.get(usize::try_from(seq % TILE).ok()?));
        leaf.copied().ok_or_else(|| StoreError::Corrupt {
            what: format!("tile 0/{number} of the audit log"),
            problem: "it is missing".into(),
        })
    };
    span.map(leaf).collect()
}

/// Adds leaves away from the tasks that serve requests: hashing as many takes tens of milliseconds.
async fn append(mut tree: Tree, leaves: Vec<Hash>) -> Result<Tree, StoreError> {
    let added = tokio::task::spawn_blocking(move || {
        let mut above = Vec::new();
        for leaf in leaves {
            tree.append(leaf, &mut above);
            above.clear();
        }
        tree
    });
    added.await.map_err(|error| StoreError::Corrupt {
        what: "the tree over what is dropped".into(),
        problem: error.to_string(),
    })
}

/// What the newest record of a drop says; nothing where nothing was dropped.
async fn dropped(connection: &mut PgConnection) -> Result<Option<DroppedRecords>, StoreError> {
    let newest = sqlx::query!(
        r#"SELECT seq AS "seq!", details FROM audit_events
           WHERE route = 'retention.drop_records' AND seq IS NOT NULL ORDER BY seq DESC LIMIT 1"#
    )
    .fetch_optional(connection)
    .await?;
    let Some(newest) = newest else { return Ok(None) };
    let what = || format!("audit record {}", newest.seq);
    let details: Value =
        serde_json::from_str(newest.details.as_deref().unwrap_or_default()).map_err(|error| {
            StoreError::Corrupt {
                what: what(),
                problem: error.to_string(),
            }
        })?;
    let ranges: Vec<[u64; 2]> =
        serde_json::from_value(details["after"]["dropped"].clone()).map_err(|error| StoreError::Corrupt {
            what: what(),
            problem: error.to_string(),
        })?;
    Ok(Some(DroppedRecords {
        said_by: unsigned("seq of an audit record", newest.seq)?,
        numbers: ranges
            .into_iter()
            .map(|[first, last]| first..last.saturating_add(1))
            .collect(),
    }))
}

async fn bodies(connection: &mut PgConnection, day: Date) -> Result<Leaving, StoreError> {
    let facts = sqlx::query!(
        r#"SELECT count(*) FILTER (WHERE chunk = 0) AS "texts!", count(DISTINCT request_id) AS "requests!"
           FROM audit_bodies WHERE drop_on = $1"#,
        day
    )
    .fetch_one(&mut *connection)
    .await?;
    let keys = sqlx::query_scalar!(
        r#"SELECT count(*) AS "keys!" FROM audit_keys WHERE drop_on = $1"#,
        day
    )
    .fetch_one(connection)
    .await?;
    Ok(Leaving {
        before: json!({"texts": facts.texts, "requests": facts.requests, "keys": keys}),
        dropped: None,
    })
}

async fn drop_and_record(
    mut transaction: Transaction<'static, Postgres>,
    of: Partitioned,
    day: Date,
    what_was: Leaving,
) -> Result<(), StoreError> {
    let revision = config_revision::read(&mut transaction).await?;
    // In the order in which writers lock: the head first, then the table.
    sqlx::query!("SELECT size FROM audit_head FOR UPDATE")
        .fetch_one(&mut *transaction)
        .await?;
    let tables: &[&str] = match of {
        Partitioned::Events => &["audit_events"],
        Partitioned::Bodies => &["audit_bodies", "audit_keys"],
    };
    for table in tables {
        sqlx::query!("SELECT drop_audit_partition($1, $2)", *table, day)
            .fetch_one(&mut *transaction)
            .await?;
    }
    let record = ChangeRecord {
        what: of.what(),
        subject: format!("{}/{day}", of.table()),
        before: Some(what_was.before),
        after: what_was.dropped.map(|dropped| json!({"dropped": dropped})),
    };
    change_records::add(&mut transaction, ACTOR, revision, &record).await?;
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_its_tiles_are() {
        const SPAN: u64 = TILES * TILE;
        let cut = |range: Range<u64>| spans(&range).collect::<Vec<_>>();
        assert_eq!(cut(5..9), vec![Range { start: 5, end: 9 }]);
        assert_eq!(
            cut(5..2 * SPAN + 1),
            [5..SPAN, SPAN..2 * SPAN, 2 * SPAN..2 * SPAN + 1]
        );
    }

    #[test]
    fn numbers_that_touch_are_one_range() {
        let numbers = joined(vec![7..9, 0..3, 3..5, 20..21, 8..10]);
        assert_eq!(numbers, [0..5, 7..10, 20..21]);
        let dropped = DroppedRecords { said_by: 30, numbers };
        let gone: Vec<u64> = (0..25).filter(|seq| dropped.contains(*seq)).collect();
        assert_eq!(gone, [0, 1, 2, 3, 4, 7, 8, 9, 20]);
    }
}
