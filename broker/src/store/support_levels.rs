//! Which pairs of feature and model family go together.

use duo_contract::name::FeatureName;
use duo_contract::snapshot::{Support, SupportLevel};
use serde::Serialize;
use sqlx::PgConnection;

use super::{StoreError, expect_rows, parsed};

/// The family that stands for every family without a row of its own.
pub const ANY_FAMILY: &str = "*";

/// A level and why somebody changed it; seeded rows have no reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SupportRow {
    /// The pair and its level.
    #[serde(flatten)]
    pub support: Support,
    /// Why it was changed.
    pub reason: Option<String>,
}

/// The level of a pair: its own row's, else that of every family, else to be evaluated.
#[must_use]
pub fn level_of<'a>(
    levels: impl Iterator<Item = &'a Support> + Clone,
    feature: &FeatureName,
    family: &str,
) -> SupportLevel {
    let of = |family: &str| {
        levels
            .clone()
            .find(|support| support.feature == *feature && support.family == family)
            .map(|support| support.level)
    };
    of(family)
        .or_else(|| of(ANY_FAMILY))
        .unwrap_or(SupportLevel::ToBeEvaluated)
}

/// Reads a level's snake_case name.
#[must_use]
pub fn level(text: &str) -> Option<SupportLevel> {
    [
        SupportLevel::Supported,
        SupportLevel::ToBeEvaluated,
        SupportLevel::NotSupported,
    ]
    .into_iter()
    .find(|level| level.as_str() == text)
}

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<SupportRow>, StoreError> {
    let rows =
        sqlx::query!("SELECT feature, family, level, reason FROM support_levels ORDER BY feature, family")
            .fetch_all(connection)
            .await?;
    let levels = rows.into_iter().map(|row| {
        Ok(SupportRow {
            support: Support {
                feature: parsed("feature", &row.feature)?,
                family: row.family,
                level: level(&row.level).ok_or_else(|| StoreError::Corrupt {
                    what: format!("support level of {:?}", row.feature),
                    problem: format!("unknown level {:?}", row.level),
                })?,
            },
            reason: row.reason,
        })
    });
    levels.collect()
}

pub(super) async fn put(
    connection: &mut PgConnection,
    actor: &str,
    row: &SupportRow,
) -> Result<(), StoreError> {
    let result = sqlx::query!(
        "INSERT INTO support_levels (feature, family, level, reason, changed_by) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (feature, family) DO UPDATE
         SET level = excluded.level, reason = excluded.reason, changed_by = excluded.changed_by, changed_at = now()",
        row.support.feature.as_str(),
        row.support.family,
        row.support.level.as_str(),
        row.reason,
        actor,
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)
}
