//! Files: their heads, and what is in them, piece by piece and sealed.

use sqlx::PgConnection;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::jobs::{Sealed, day};
use super::{Store, StoreError};

/// A file as its owner sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct FileRow {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub client: String,
    /// `batch` for what clients send, `batch_output` for what comes of it.
    pub purpose: String,
    /// As the client called it.
    pub filename: String,
    /// Its size.
    pub bytes: i64,
    /// Whole since about then.
    pub created_at: OffsetDateTime,
}

/// A file that is about to come.
#[derive(Debug, Clone)]
pub struct NewFile<'a> {
    /// A UUIDv7.
    pub id: Uuid,
    /// Whose it is.
    pub client: &'a str,
    /// See [`FileRow::purpose`].
    pub purpose: &'a str,
    /// As the client calls it.
    pub filename: &'a str,
}

/// Which files a page has.
#[derive(Debug, Clone, Default)]
pub struct FileFilter {
    /// Of this client.
    pub client: Option<String>,
    /// For this.
    pub purpose: Option<String>,
    /// Those after this one.
    pub after: Option<Uuid>,
    /// Oldest first?
    pub is_ascending: bool,
}

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Gone,
    /// There is none.
    Missing,
    /// A batch that is not over reads it.
    InUse,
}

impl Store {
    /// Bytes of a client's files.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn bytes_of_files(&self, client: &str) -> Result<u64, StoreError> {
        let bytes = sqlx::query_scalar!(
            r#"SELECT coalesce(sum(bytes), 0)::bigint AS "bytes!" FROM files WHERE client = $1"#,
            client
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    /// Begins a file that nobody sees before it is whole.
    ///
    /// # Errors
    /// Postgres is away, or refuses a value.
    pub async fn begin_file(&self, file: &NewFile<'_>) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await?;
        insert(&mut connection, file, None).await
    }

    /// One more piece of a file; it counts at once, so that what a client has on its way is bounded too.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn add_to_file(
        &self,
        id: Uuid,
        number: i32,
        sealed: &Sealed,
        bytes: usize,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        add_chunk(&mut transaction, id, number, sealed).await?;
        sqlx::query!(
            "UPDATE files SET bytes = bytes + $3 WHERE day = $1 AND id = $2",
            day(id),
            id,
            i64::try_from(bytes).unwrap_or(i64::MAX),
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The file is whole.
    ///
    /// # Errors
    /// Postgres is away, or the file is gone.
    pub async fn finish_file(&self, id: Uuid) -> Result<(), StoreError> {
        let done = sqlx::query!(
            "UPDATE files SET is_whole = true WHERE day = $1 AND id = $2",
            day(id),
            id,
        )
        .execute(&self.pool)
        .await?;
        super::expect_rows(&done, 1)
    }

    /// A whole file.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn file(&self, id: Uuid) -> Result<Option<FileRow>, StoreError> {
        let row = sqlx::query_as!(
            FileRow,
            "SELECT id, client, purpose, filename, bytes, created_at FROM files
             WHERE day = $1 AND id = $2 AND is_whole",
            day(id),
            id
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row)
    }

    /// Whole files, newest first unless asked otherwise.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn files_page(&self, filter: &FileFilter, limit: i64) -> Result<Vec<FileRow>, StoreError> {
        let rows = sqlx::query_as!(
            FileRow,
            "SELECT id, client, purpose, filename, bytes, created_at FROM files
             WHERE is_whole AND ($1::text IS NULL OR client = $1) AND ($2::text IS NULL OR purpose = $2)
               AND ($3::uuid IS NULL OR CASE WHEN $4 THEN id > $3 ELSE id < $3 END)
             ORDER BY CASE WHEN $4 THEN id END, id DESC LIMIT $5",
            filter.client.as_deref(),
            filter.purpose.as_deref(),
            filter.after,
            filter.is_ascending,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }

    /// One piece of a file.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn file_chunk(&self, id: Uuid, number: i32) -> Result<Option<Sealed>, StoreError> {
        let row = sqlx::query!(
            "SELECT key_id, sealed FROM file_chunks WHERE day = $1 AND file_id = $2 AND number = $3",
            day(id),
            id,
            number
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Sealed {
            key_id: row.key_id,
            bytes: row.sealed,
        }))
    }

    /// Removes a file with what is in it, unless a batch still reads it.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn delete_file(&self, id: Uuid) -> Result<Deleted, StoreError> {
        let mut transaction = self.pool.begin().await?;
        // A batch that is being made of it holds the row's lock until it is there.
        let held = sqlx::query_scalar!(
            "SELECT id FROM files WHERE day = $1 AND id = $2 FOR UPDATE",
            day(id),
            id
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if held.is_none() {
            return Ok(Deleted::Missing);
        }
        let is_read = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM batches WHERE ended_at IS NULL AND input_file = $1) AS "is_read!""#,
            id
        )
        .fetch_one(&mut *transaction)
        .await?;
        if is_read {
            return Ok(Deleted::InUse);
        }
        sqlx::query!(
            "DELETE FROM file_chunks WHERE day = $1 AND file_id = $2",
            day(id),
            id
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!("DELETE FROM files WHERE day = $1 AND id = $2", day(id), id)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Deleted::Gone)
    }

    /// Files whose clients left them unfinished so long ago.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn unfinished_files(
        &self,
        ago: std::time::Duration,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        let rows = sqlx::query_scalar!(
            "SELECT id FROM files WHERE NOT is_whole AND created_at < now() - make_interval(secs => $1) LIMIT $2",
            ago.as_secs_f64(),
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }

    /// Keeps what is shown of the request that the job `id` was made of.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn add_response(&self, id: Uuid, sealed: &Sealed) -> Result<(), StoreError> {
        sqlx::query!(
            "INSERT INTO responses (day, id, key_id, sealed) VALUES ($1, $2, $3, $4)",
            day(id),
            id,
            sealed.key_id,
            sealed.bytes
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// What is shown of a response's request.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn response(&self, id: Uuid) -> Result<Option<Sealed>, StoreError> {
        let row = sqlx::query!(
            "SELECT key_id, sealed FROM responses WHERE day = $1 AND id = $2",
            day(id),
            id
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Sealed {
            key_id: row.key_id,
            bytes: row.sealed,
        }))
    }

    /// Shows a response no more.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn delete_response(&self, id: Uuid) -> Result<(), StoreError> {
        sqlx::query!("DELETE FROM responses WHERE day = $1 AND id = $2", day(id), id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// The head of a file; with its size if it is whole.
pub(super) async fn insert(
    connection: &mut PgConnection,
    file: &NewFile<'_>,
    whole: Option<i64>,
) -> Result<(), StoreError> {
    let of_day: Date = day(file.id);
    sqlx::query!(
        "INSERT INTO files (day, id, client, purpose, filename, bytes, is_whole) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        of_day,
        file.id,
        file.client,
        file.purpose,
        file.filename,
        whole.unwrap_or(0),
        whole.is_some(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// One piece of a file.
pub(super) async fn add_chunk(
    connection: &mut PgConnection,
    id: Uuid,
    number: i32,
    sealed: &Sealed,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO file_chunks (day, file_id, number, key_id, sealed) VALUES ($1, $2, $3, $4, $5)",
        day(id),
        id,
        number,
        sealed.key_id,
        sealed.bytes,
    )
    .execute(connection)
    .await?;
    Ok(())
}
