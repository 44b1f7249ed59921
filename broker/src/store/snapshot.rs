//! Configuration and identities at one revision, read in one transaction.

use duo_contract::snapshot::{ConfigSnapshot, IdentitySnapshot, Issuer, Model, PromptOverride};
use sqlx::{Acquire as _, PgConnection};

use super::features::FeatureRow;
use super::support_levels::SupportRow;
use super::{
    Store, StoreError, api_tokens, config_revision, features, issuers, models, prompts, support_levels,
};

/// Everything that `config apply` may change, as it stands at one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigState {
    /// Counts changes.
    pub revision: u64,
    /// By name.
    pub models: Vec<Model>,
    /// By name.
    pub features: Vec<FeatureRow>,
    /// By feature and family.
    pub support_levels: Vec<SupportRow>,
    /// By id and family.
    pub prompts: Vec<PromptOverride>,
    /// By URL.
    pub issuers: Vec<Issuer>,
}

impl ConfigState {
    /// What brokers and workers see of it.
    #[must_use]
    pub fn snapshot(&self) -> ConfigSnapshot {
        ConfigSnapshot {
            revision: self.revision,
            models: self.models.clone(),
            features: self.features.iter().map(|row| row.feature.clone()).collect(),
            support_levels: self
                .support_levels
                .iter()
                .map(|row| row.support.clone())
                .collect(),
            prompts: self.prompts.clone(),
        }
    }
}

impl Store {
    /// Both snapshots at one and the same revision.
    ///
    /// # Errors
    /// Postgres is away or refuses, or a row cannot be read.
    pub async fn snapshots(&self) -> Result<(ConfigSnapshot, IdentitySnapshot), StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        freeze(&mut transaction).await?;
        let state = read_state(&mut transaction).await?;
        let tokens = api_tokens::valid(&mut transaction).await?;
        transaction.commit().await?;
        let identities = IdentitySnapshot {
            revision: state.revision,
            tokens,
            issuers: state.issuers.clone(),
        };
        Ok((state.snapshot(), identities))
    }

    /// The configuration with what only administrators see.
    ///
    /// # Errors
    /// Postgres is away or refuses, or a row cannot be read.
    pub async fn config_state(&self) -> Result<ConfigState, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        freeze(&mut transaction).await?;
        let state = read_state(&mut transaction).await?;
        transaction.commit().await?;
        Ok(state)
    }
}

/// Makes the statements that follow see one moment.
pub(super) async fn freeze(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        .execute(connection)
        .await?;
    Ok(())
}

/// Reads the tables one by one; the caller's transaction makes them one state.
pub(super) async fn read_state(connection: &mut PgConnection) -> Result<ConfigState, StoreError> {
    Ok(ConfigState {
        revision: config_revision::read(connection).await?,
        models: models::all(connection).await?,
        features: features::all(connection).await?,
        support_levels: support_levels::all(connection).await?,
        prompts: prompts::all(connection).await?,
        issuers: issuers::all(connection).await?,
    })
}
