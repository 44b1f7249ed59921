//! The index of the documentation: sections of Markdown pages and the words in them, one set for each version.

use serde::Serialize;
use serde_json::json;
use sqlx::{Postgres, Transaction};
use time::OffsetDateTime;

use super::change_records::{self, ChangeRecord};
use super::{Store, StoreError, config_revision, expect_rows, unsigned};

/// A section as it is indexed and found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionRow {
    /// The page's path below the indexed folder.
    pub path: String,
    /// Where a person reads it.
    pub url: String,
    /// The page's title.
    pub title: String,
    /// The section's own heading; empty before the first.
    pub heading: String,
    /// Its Markdown.
    pub content: String,
}

/// A section that a question found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSection {
    /// Its number, another one each time an index is built.
    pub id: i64,
    /// The section.
    pub section: SectionRow,
}

/// An index that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IndexRow {
    /// The version it is for; empty where none was given.
    pub version: String,
    /// How many pages it was made of.
    pub pages: u64,
    /// How many sections they have.
    pub sections: u64,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub built_at: OffsetDateTime,
}

/// What to look for, of which nothing can be an error: every word is made of letters and digits.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The words; one that is not there does no harm, all of them in one section is best.
    pub words: &'a [&'a str],
    /// The version that is asked for; where it has no index the nearest that has answers.
    pub version: &'a str,
    /// The first two numbers of the version.
    pub release: &'a str,
    /// Sections at most.
    pub most: u8,
}

/// An index being built, which replaces the earlier one of its version; dropping it undoes it.
#[derive(Debug)]
pub struct NewIndex {
    transaction: Transaction<'static, Postgres>,
    actor: String,
    version: String,
    sections: u64,
}

impl Store {
    /// Begins an index of `version` by `actor`. Until it is committed, the earlier one answers.
    ///
    /// # Errors
    /// Postgres is away, or another index is being built.
    pub async fn begin_index(&self, actor: &str, version: &str) -> Result<NewIndex, StoreError> {
        let mut transaction = self.pool.begin().await?;
        take_turn(&mut transaction).await?;
        sqlx::query!("DELETE FROM documentation_versions WHERE version = $1", version)
            .execute(&mut *transaction)
            .await?;
        sqlx::query!(
            "INSERT INTO documentation_versions (version, pages, sections) VALUES ($1, 0, 0)",
            version
        )
        .execute(&mut *transaction)
        .await?;
        Ok(NewIndex {
            transaction,
            actor: actor.to_owned(),
            version: version.to_owned(),
            sections: 0,
        })
    }

    /// Removes the index of `version`.
    ///
    /// # Errors
    /// Postgres is away, there is none, or one is being built.
    pub async fn drop_index(&self, actor: &str, version: &str) -> Result<IndexRow, StoreError> {
        let mut transaction = self.pool.begin().await?;
        take_turn(&mut transaction).await?;
        let gone = sqlx::query!(
            "DELETE FROM documentation_versions WHERE version = $1 RETURNING pages, sections, built_at",
            version
        )
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or_else(|| StoreError::NotFound(format!("there is no index of version {version:?}")))?;
        let gone = IndexRow {
            version: version.to_owned(),
            pages: unsigned("count of pages", gone.pages)?,
            sections: unsigned("count of sections", gone.sections)?,
            built_at: gone.built_at,
        };
        let record = ChangeRecord {
            what: "docs.drop",
            subject: version.to_owned(),
            before: Some(json!({"pages": gone.pages, "sections": gone.sections})),
            after: None,
        };
        let revision = config_revision::read(&mut transaction).await?;
        change_records::add(&mut transaction, actor, revision, &record).await?;
        transaction.commit().await?;
        Ok(gone)
    }

    /// Every index, the one built last first.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn indexes(&self) -> Result<Vec<IndexRow>, StoreError> {
        let rows = sqlx::query!(
            "SELECT version, pages, sections, built_at FROM documentation_versions ORDER BY built_at DESC, version"
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| {
            Ok(IndexRow {
                version: row.version,
                pages: unsigned("count of pages", row.pages)?,
                sections: unsigned("count of sections", row.sections)?,
                built_at: row.built_at,
            })
        });
        rows.collect()
    }

    /// The sections that fit a question, best first; none where there is no index. Postgres gives a question up that
    /// takes longer than two seconds.
    ///
    /// # Errors
    /// Postgres is away or gave up.
    pub async fn find_sections(&self, question: Question<'_>) -> Result<Vec<FoundSection>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("SET LOCAL statement_timeout = '2s'")
            .execute(&mut *transaction)
            .await?;
        let rows = sqlx::query!(
            r#"WITH asked AS (
                   SELECT websearch_to_tsquery('english', $1) AS some_words,
                          websearch_to_tsquery('english', $2) AS all_words,
                          (SELECT version FROM documentation_versions
                           ORDER BY version = $3 DESC, version = $4 DESC, starts_with(version, $4 || '.') DESC, built_at DESC
                           LIMIT 1) AS version
               )
               SELECT section.id, section.path, section.url, section.title, section.heading, section.content
               FROM documentation_sections AS section, asked
               WHERE section.version = asked.version AND section.words @@ asked.some_words
               ORDER BY section.words @@ asked.all_words DESC, ts_rank(section.words, asked.some_words, 1) DESC, section.id
               LIMIT $5"#,
            question.words.join(" or "),
            question.words.join(" "),
            question.version,
            question.release,
            i64::from(question.most),
        )
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        let found = rows.into_iter().map(|row| FoundSection {
            id: row.id,
            section: SectionRow {
                path: row.path,
                url: row.url,
                title: row.title,
                heading: row.heading,
                content: row.content,
            },
        });
        Ok(found.collect())
    }
}

impl NewIndex {
    /// Adds sections.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn add(&mut self, sections: &[SectionRow]) -> Result<(), StoreError> {
        let column = |of: fn(&SectionRow) -> &String| sections.iter().map(of).cloned().collect::<Vec<_>>();
        let result = sqlx::query!(
            "INSERT INTO documentation_sections (version, path, url, title, heading, content)
             SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[])",
            self.version,
            &column(|section| &section.path),
            &column(|section| &section.url),
            &column(|section| &section.title),
            &column(|section| &section.heading),
            &column(|section| &section.content),
        )
        .execute(&mut *self.transaction)
        .await?;
        self.sections += sections.len() as u64;
        expect_rows(&result, sections.len() as u64)
    }

    /// Lets it answer, instead of the earlier one.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn commit(mut self, pages: u64) -> Result<(), StoreError> {
        let result = sqlx::query!(
            "UPDATE documentation_versions SET pages = $2, sections = $3 WHERE version = $1",
            self.version,
            pages.cast_signed(),
            self.sections.cast_signed(),
        )
        .execute(&mut *self.transaction)
        .await?;
        expect_rows(&result, 1)?;
        let record = ChangeRecord {
            what: "docs.index",
            subject: self.version,
            before: None,
            after: Some(json!({"pages": pages, "sections": self.sections})),
        };
        let revision = config_revision::read(&mut self.transaction).await?;
        change_records::add(&mut self.transaction, &self.actor, revision, &record).await?;
        self.transaction.commit().await?;
        Ok(())
    }
}

/// Whoever changes an index does so alone, and nobody waits for that.
async fn take_turn(transaction: &mut Transaction<'static, Postgres>) -> Result<(), StoreError> {
    let mine = sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock(hashtext('documentation_versions')) AS "mine!""#
    )
    .fetch_one(&mut **transaction)
    .await?;
    if mine {
        Ok(())
    } else {
        let text = "another index of the documentation is being built; try again when it is there";
        Err(StoreError::Conflict(text.to_owned()))
    }
}
