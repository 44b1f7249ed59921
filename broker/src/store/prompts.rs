//! Prompt templates that replace the built-in ones.

use duo_contract::snapshot::PromptOverride;
use sqlx::PgConnection;

use super::{StoreError, expect_rows};

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<PromptOverride>, StoreError> {
    let prompts = sqlx::query_as!(
        PromptOverride,
        "SELECT id, family, text FROM prompts ORDER BY id, family"
    )
    .fetch_all(connection)
    .await?;
    Ok(prompts)
}

pub(super) async fn put(connection: &mut PgConnection, prompt: &PromptOverride) -> Result<(), StoreError> {
    let result = sqlx::query!(
        "INSERT INTO prompts (id, family, text) VALUES ($1, $2, $3)
         ON CONFLICT (id, family) DO UPDATE SET text = excluded.text, changed_at = now()",
        prompt.id,
        prompt.family,
        prompt.text,
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)
}

pub(super) async fn remove(connection: &mut PgConnection, prompt: &PromptOverride) -> Result<(), StoreError> {
    let result = sqlx::query!(
        "DELETE FROM prompts WHERE id = $1 AND family = $2",
        prompt.id,
        prompt.family
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)
}
