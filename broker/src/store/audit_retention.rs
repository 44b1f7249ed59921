//! Drops whole partitions of records and of kept texts when their time is over, with a record of what went.

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sqlx::{PgConnection, Postgres, Transaction};
use time::Date;

use super::change_records::{self, ChangeRecord};
use super::{Store, StoreError, audit_holds, config_revision};
use crate::audit::subtree::{Subtree, leaf};

/// Stands in records where an administrator would.
const ACTOR: &str = "retention";

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
            Partitioned::Bodies => bodies(&mut transaction, day).await?,
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

/// Count, numbers and root of a day's records.
async fn events(connection: &mut PgConnection, day: Date) -> Result<Value, StoreError> {
    let facts = sqlx::query!(
        r#"SELECT count(*) AS "count!", min(seq) AS first, max(seq) AS last FROM audit_events WHERE day = $1"#,
        day
    )
    .fetch_one(&mut *connection)
    .await?;
    Ok(json!({
        "records": facts.count,
        "first_seq": facts.first,
        "last_seq": facts.last,
        "root_sha256": hex::encode(root(connection, day).await?),
        "leaves": "row text, by seq and then id",
    }))
}

/// The root over a day's records. This is the seam to the log's own tree: what stands here as a leaf's bytes is to be the
/// record's canonical form as soon as there is one.
async fn root(connection: &mut PgConnection, day: Date) -> Result<crate::audit::subtree::Hash, StoreError> {
    let mut rows = sqlx::query_scalar!(
        r#"SELECT e::text AS "row!" FROM audit_events AS e WHERE day = $1 ORDER BY seq NULLS FIRST, request_id, kind"#,
        day,
    )
    .fetch(connection);
    let mut tree = Subtree::default();
    while let Some(row) = rows.next().await {
        tree.push(leaf(row?.as_bytes()));
    }
    Ok(tree.root())
}

async fn bodies(connection: &mut PgConnection, day: Date) -> Result<Value, StoreError> {
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
    Ok(json!({"texts": facts.texts, "requests": facts.requests, "keys": keys}))
}

async fn drop_and_record(
    mut transaction: Transaction<'static, Postgres>,
    of: Partitioned,
    day: Date,
    what_was: Value,
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
        what: "retention.drop",
        subject: format!("{}/{day}", of.table()),
        before: Some(what_was),
        after: None,
    };
    change_records::add(&mut transaction, ACTOR, revision, &record).await?;
    transaction.commit().await?;
    Ok(())
}
