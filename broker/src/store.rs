//! The connection pool, and every SQL statement of the program: named functions, one file per table.
//!
//! Nothing outside of `store/` writes SQL. Statements are checked by the compiler against `broker/.sqlx`, which
//! `tests/prepare-queries` writes. The pool connects when it is first used, so that a broker starts and serves
//! while Postgres is away; whoever needs Postgres then gets [`StoreError::Unavailable`] and may try again.

pub mod api_tokens;
pub mod audit_bodies;
pub mod audit_events;
pub mod audit_export;
pub mod audit_facets;
pub mod audit_forwards;
pub mod audit_generate;
pub mod audit_holds;
pub mod audit_keys;
pub mod audit_late_ends;
mod audit_matching;
pub mod audit_open;
pub mod audit_reads;
pub mod audit_rejects;
pub mod audit_retention;
pub mod audit_search;
pub mod audit_tree;
pub mod batches;
pub mod change;
pub mod change_records;
pub mod config_outbox;
pub mod config_revision;
pub mod documentation;
pub mod features;
pub mod files;
pub mod gitlab_sync;
pub mod issuers;
pub mod jobs;
pub mod models;
pub mod prompts;
pub mod snapshot;
pub mod support_levels;
pub mod webhooks;

use std::str::FromStr as _;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult};
use sqlx::{PgConnection, PgPool};

/// The schema, compiled in.
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// PostgreSQL compiles a statement when its plan looks dear, and a plan over hundreds of partitions does, however little
/// it reads: compiling took four seconds where the statement takes twenty milliseconds.
async fn without_jit(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("SET jit = off").execute(connection).await?;
    Ok(())
}

/// How the pool behaves.
#[derive(Debug, Clone, Copy)]
pub struct PoolConfig {
    /// Connections at most; the broker's own tasks (audit, checkpoints, retention, two that forward records, sweeper,
    /// relay, four of jobs, batches, webhooks) may want one each, the rest is for reading and changing.
    pub max_connections: u32,
    /// How long a caller waits for a connection, connecting included.
    pub acquire_timeout: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            max_connections: 15,
            acquire_timeout: Duration::from_secs(5),
        }
    }
}

/// Postgres. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
}

/// Why a statement did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not a database URL; the text is not shown, since it may hold a password.
    #[error("the database URL cannot be read; write postgres://USER:PASSWORD@HOST:5432/DATABASE")]
    Url(#[source] sqlx::Error),
    /// Postgres cannot be reached or cannot work now; the same call may succeed later.
    #[error("PostgreSQL is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Postgres refuses the statement or a value in it; trying again changes nothing.
    #[error("PostgreSQL refuses the statement")]
    Refused(#[source] sqlx::Error),
    /// A row holds what no version of this program writes.
    #[error("the database holds an unreadable {what}: {problem}")]
    Corrupt {
        /// Which row.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such row.
    #[error("{0}")]
    NotFound(String),
    /// The change contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// A statement changed another number of rows than it must.
    #[error("a statement changed {actual} rows instead of {expected}")]
    RowCount {
        /// Rows it had to change.
        expected: u64,
        /// Rows it changed.
        actual: u64,
    },
    /// The migrations cannot be applied.
    #[error("the migrations cannot be applied")]
    Migrate(#[source] sqlx::migrate::MigrateError),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let passing = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(database) => database.code().is_some_and(|code| passes_by_itself(&code)),
            _ => false,
        };
        if passing {
            StoreError::Unavailable(error)
        } else {
            StoreError::Refused(error)
        }
    }
}

/// Classes of SQLSTATE that say nothing about the statement: connection, serialization and deadlock, resources,
/// operator intervention (shutdown among them), system; and a lock that did not come in time. Read-only is what a
/// standby says in the middle of a failover.
fn passes_by_itself(code: &str) -> bool {
    ["08", "40", "53", "57", "58"]
        .iter()
        .any(|class| code.starts_with(class))
        || matches!(code, "55P03" | "25006" | "28000" | "28P01" | "3D000")
}

/// What `statement` gives, within a time that somebody can wait for: a Postgres that hangs answers nothing at all.
///
/// # Errors
/// [`StoreError::Unavailable`] after that time, and those of the statement.
pub async fn in_time<T>(
    within: Duration,
    statement: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(within, statement)
        .await
        .unwrap_or(Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)))
}

/// One migration, as `migrate` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationStatus {
    /// Its number.
    pub version: i64,
    /// Its name.
    pub description: String,
    /// Is it in the database?
    pub applied: bool,
}

impl Store {
    /// Makes a pool that connects when it is first used.
    ///
    /// # Errors
    /// [`StoreError::Url`] only.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(url: &SecretString, pool: PoolConfig) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url.expose_secret())
            .map_err(StoreError::Url)?
            .application_name("duo-broker");
        let pool = PgPoolOptions::new()
            .max_connections(pool.max_connections)
            .acquire_timeout(pool.acquire_timeout)
            .after_connect(|connection, _| Box::pin(without_jit(connection)))
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    /// Asks Postgres for an answer.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] as a rule.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query!("SELECT 1 AS one").fetch_one(&self.pool).await?;
        Ok(())
    }

    /// Applies what is missing, one process at a time, and returns what it found missing.
    ///
    /// # Errors
    /// Postgres is away, a migration fails, or an applied one differs from this program's.
    pub async fn migrate(&self) -> Result<Vec<MigrationStatus>, StoreError> {
        let missing = self
            .migrations()
            .await?
            .into_iter()
            .filter(|m| !m.applied)
            .collect();
        MIGRATIONS.run(&self.pool).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => error.into(),
            other => StoreError::Migrate(other),
        })?;
        Ok(missing)
    }

    /// Every migration that this program knows, in order.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn migrations(&self) -> Result<Vec<MigrationStatus>, StoreError> {
        // Unchecked by the compiler: the table is the migration runner's, and is missing before its first run.
        let there: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(&self.pool)
            .await?;
        let applied: Vec<i64> = if there {
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
                .fetch_all(&self.pool)
                .await?
        } else {
            Vec::new()
        };
        let status = MIGRATIONS.iter().map(|migration| MigrationStatus {
            version: migration.version,
            description: migration.description.to_string(),
            applied: applied.contains(&migration.version),
        });
        Ok(status.collect())
    }

    /// What `doctor` wants to know of the server.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn server(&self) -> Result<ServerFacts, StoreError> {
        let row = sqlx::query!(
            r#"SELECT current_setting('server_version_num')::int AS "version!",
                      current_setting('server_version') AS "version_text!",
                      clock_timestamp() AS "now!",
                      has_schema_privilege(current_schema(), 'CREATE')
                          OR coalesce((SELECT bool_and(prosecdef AND has_function_privilege(oid, 'EXECUTE'))
                                       FROM pg_proc
                                       WHERE pronamespace = current_schema()::regnamespace
                                         AND proname IN ('create_audit_partition', 'create_job_partitions')),
                                      false) AS "may_create!",
                      pg_is_in_recovery() AS "standby!""#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(ServerFacts {
            version: row.version,
            version_text: row.version_text,
            now: row.now,
            may_create: row.may_create,
            standby: row.standby,
        })
    }

    /// The rights that are missing on this program's tables, such as `INSERT on audit_events`.
    ///
    /// # Errors
    /// Postgres is away or refuses, for one since a table is missing.
    pub async fn missing_rights(&self) -> Result<Vec<String>, StoreError> {
        let missing = sqlx::query_scalar!(
            r#"SELECT needed.what || ' on ' || needed.of AS "missing!"
               FROM (SELECT what, of
                     FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS what,
                          unnest(ARRAY['models', 'features', 'support_levels', 'prompts', 'issuers', 'config_outbox',
                                       'job_keys', 'job_owners', 'files', 'file_chunks', 'responses',
                                       'webhook_receivers', 'webhook_secrets', 'webhook_deliveries']) AS of
                     UNION ALL
                     SELECT what, of
                     FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS what,
                          unnest(ARRAY['config_revision', 'api_tokens', 'gitlab_sync', 'jobs', 'batches', 'audit_counts',
                                       'audit_days', 'audit_keys', 'audit_holds', 'audit_forwards']) AS of
                     UNION ALL
                     SELECT what, 'audit_head' FROM unnest(ARRAY['SELECT', 'UPDATE']) AS what
                     UNION ALL
                     SELECT 'SELECT', of FROM unnest(ARRAY['documentation_versions', 'documentation_sections',
                                                 'audit_day_counts']) AS of
                     UNION ALL
                     SELECT what, of
                     FROM unnest(ARRAY['SELECT', 'INSERT']) AS what,
                          unnest(ARRAY['change_records', 'audit_events', 'audit_late_ends', 'audit_rejects',
                                       'audit_bodies',
                                       'audit_tiles', 'audit_checkpoints',
                                       'job_inputs', 'job_results',
                                       'webhook_attempts']) AS of
                    ) AS needed
               WHERE NOT has_table_privilege(needed.of, needed.what)"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(missing)
    }
}

/// What a PostgreSQL server says of itself.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Such as 150004.
    pub version: i32,
    /// Such as `15.4 (Debian 15.4-1)`.
    pub version_text: String,
    /// Its clock.
    pub now: time::OffsetDateTime,
    /// May this user make tables, which every day's partition is, or do the functions that make these work for it?
    pub may_create: bool,
    /// Is it read-only?
    pub standby: bool,
}

/// Refuses a statement that changed another number of rows than `expected`; an update that hit nothing is an error.
///
/// # Errors
/// [`StoreError::RowCount`].
pub fn expect_rows(result: &PgQueryResult, expected: u64) -> Result<(), StoreError> {
    let actual = result.rows_affected();
    if actual == expected {
        Ok(())
    } else {
        Err(StoreError::RowCount { expected, actual })
    }
}

/// Parses what a column holds.
fn parsed<T>(what: &str, text: &str) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|problem: T::Err| StoreError::Corrupt {
        what: format!("{what} {text:?}"),
        problem: problem.to_string(),
    })
}

/// Reads a column that is a count or a span, never negative.
fn unsigned<T: TryFrom<i64>>(what: &str, number: i64) -> Result<T, StoreError> {
    T::try_from(number).map_err(|_| StoreError::Corrupt {
        what: what.to_owned(),
        problem: format!("{number} is out of range"),
    })
}
