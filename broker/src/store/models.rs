//! Models that exist.

use duo_contract::snapshot::Model;
use sqlx::PgConnection;

use super::{StoreError, expect_rows, parsed, unsigned};

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Model>, StoreError> {
    let rows =
        sqlx::query!("SELECT name, family, context_tokens, max_output_tokens FROM models ORDER BY name")
            .fetch_all(connection)
            .await?;
    let models = rows.into_iter().map(|row| {
        Ok(Model {
            name: parsed("model", &row.name)?,
            family: row.family,
            context_tokens: unsigned("context_tokens", row.context_tokens)?,
            max_output_tokens: unsigned("max_output_tokens", row.max_output_tokens)?,
        })
    });
    models.collect()
}

pub(super) async fn put(connection: &mut PgConnection, model: &Model) -> Result<(), StoreError> {
    let result = sqlx::query!(
        "INSERT INTO models (name, family, context_tokens, max_output_tokens) VALUES ($1, $2, $3, $4)
         ON CONFLICT (name) DO UPDATE
         SET family = excluded.family, context_tokens = excluded.context_tokens,
             max_output_tokens = excluded.max_output_tokens",
        model.name.as_str(),
        model.family,
        i64::from(model.context_tokens),
        i64::from(model.max_output_tokens),
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)
}

pub(super) async fn remove(connection: &mut PgConnection, model: &Model) -> Result<(), StoreError> {
    let result = sqlx::query!("DELETE FROM models WHERE name = $1", model.name.as_str())
        .execute(connection)
        .await?;
    expect_rows(&result, 1)
}
