//! GitLab instances whose tokens are accepted.

use duo_contract::snapshot::Issuer;
use sqlx::PgConnection;

use super::{StoreError, expect_rows};

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Issuer>, StoreError> {
    let issuers = sqlx::query_as!(Issuer, "SELECT url, audience, openai FROM issuers ORDER BY url")
        .fetch_all(connection)
        .await?;
    Ok(issuers)
}

pub(super) async fn put(connection: &mut PgConnection, issuer: &Issuer) -> Result<(), StoreError> {
    let result = sqlx::query!(
        "INSERT INTO issuers (url, audience, openai) VALUES ($1, $2, $3)
         ON CONFLICT (url) DO UPDATE SET audience = excluded.audience, openai = excluded.openai",
        issuer.url,
        issuer.audience,
        issuer.openai,
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)
}

pub(super) async fn remove(connection: &mut PgConnection, issuer: &Issuer) -> Result<(), StoreError> {
    let result = sqlx::query!("DELETE FROM issuers WHERE url = $1", issuer.url)
        .execute(connection)
        .await?;
    expect_rows(&result, 1)
}
