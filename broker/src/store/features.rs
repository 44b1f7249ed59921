//! Features, their assignment and who answers for it.

use duo_contract::snapshot::{BodyPolicy, Feature};
use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{StoreError, expect_rows, parsed, unsigned};

/// A feature as the table has it: what the snapshot shows, and what only administrators see.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureRow {
    /// What brokers and workers see.
    #[serde(flatten)]
    pub feature: Feature,
    /// Its name for people.
    pub title: String,
    /// What it needs of a model.
    pub kind: FeatureKind,
    /// Unit primitives of GitLab tokens, any of which opens it.
    pub scopes: Vec<String>,
    /// Who answers for a pair that nobody has evaluated.
    pub acknowledgement: Option<Acknowledgement>,
}

/// What a feature needs of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureKind {
    /// A language model.
    Language,
    /// A model server that speaks a generic inference format.
    Generic,
    /// Whichever model the request names.
    Openai,
}

/// Somebody's word that a pair to be evaluated may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Acknowledgement {
    /// What they said.
    pub text: String,
    /// The family it stands for.
    pub family: String,
    /// Who said it.
    pub by: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// The policy's name in the table and in files.
#[must_use]
pub fn body_policy_text(policy: BodyPolicy) -> &'static str {
    match policy {
        BodyPolicy::None => "none",
        BodyPolicy::Digest => "digest",
        BodyPolicy::Full => "full",
    }
}

/// Reads a policy's name.
#[must_use]
pub fn body_policy(text: &str) -> Option<BodyPolicy> {
    [BodyPolicy::None, BodyPolicy::Digest, BodyPolicy::Full]
        .into_iter()
        .find(|policy| body_policy_text(*policy) == text)
}

fn kind(text: &str) -> Option<FeatureKind> {
    match text {
        "language" => Some(FeatureKind::Language),
        "generic" => Some(FeatureKind::Generic),
        "openai" => Some(FeatureKind::Openai),
        _ => None,
    }
}

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<FeatureRow>, StoreError> {
    let rows = sqlx::query!(
        "SELECT name, title, kind, scopes, active, model, lane, first_byte_within_ms, end_within_ms, bodies,
                acknowledgement, acknowledged_family, acknowledged_by, acknowledged_at
         FROM features ORDER BY name"
    )
    .fetch_all(connection)
    .await?;
    let features = rows.into_iter().map(|row| {
        let corrupt = |problem: &str| StoreError::Corrupt {
            what: format!("feature {:?}", row.name),
            problem: problem.to_owned(),
        };
        let acknowledgement = match (
            row.acknowledgement,
            row.acknowledged_family,
            row.acknowledged_by,
            row.acknowledged_at,
        ) {
            (Some(text), Some(family), Some(by), Some(at)) => Some(Acknowledgement { text, family, by, at }),
            _ => None,
        };
        Ok(FeatureRow {
            feature: Feature {
                name: parsed("feature", &row.name)?,
                active: row.active,
                model: row
                    .model
                    .as_deref()
                    .map(|model| parsed("model", model))
                    .transpose()?,
                lane: parsed("lane", &row.lane)?,
                first_byte_within_ms: unsigned("first_byte_within_ms", row.first_byte_within_ms)?,
                end_within_ms: unsigned("end_within_ms", row.end_within_ms)?,
                bodies: body_policy(&row.bodies).ok_or_else(|| corrupt("unknown body policy"))?,
            },
            title: row.title,
            kind: kind(&row.kind).ok_or_else(|| corrupt("unknown kind"))?,
            scopes: row.scopes,
            acknowledgement,
        })
    });
    features.collect()
}

/// Features are never added or removed by a change: migrations do that.
pub(super) async fn update(connection: &mut PgConnection, row: &FeatureRow) -> Result<(), StoreError> {
    let feature = &row.feature;
    let acknowledgement = row.acknowledgement.as_ref();
    let result = sqlx::query!(
        "UPDATE features
         SET active = $2, model = $3, lane = $4, first_byte_within_ms = $5, end_within_ms = $6, bodies = $7,
             acknowledgement = $8, acknowledged_family = $9, acknowledged_by = $10, acknowledged_at = $11
         WHERE name = $1",
        feature.name.as_str(),
        feature.active,
        feature.model.as_ref().map(|model| model.as_str()),
        feature.lane.as_str(),
        feature.first_byte_within_ms.cast_signed(),
        feature.end_within_ms.cast_signed(),
        body_policy_text(feature.bodies),
        acknowledgement.map(|a| a.text.as_str()),
        acknowledgement.map(|a| a.family.as_str()),
        acknowledgement.map(|a| a.by.as_str()),
        acknowledgement.map(|a| a.at),
    )
    .execute(connection)
    .await?;
    expect_rows(&result, 1)
}
