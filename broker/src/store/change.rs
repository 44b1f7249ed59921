//! One change of configuration or tokens: a transaction that writes rows, records, the next revision and the outbox.
//!
//! It locks the revision first, so that changes happen one after the other and the rules are checked against what
//! will really be there. What the rules are is not its business: see [`crate::config_file`].

use duo_contract::snapshot::{Issuer, Model, PromptOverride};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, Postgres, Transaction};

use super::change_records::{self, ChangeRecord};
use super::features::{self, FeatureRow};
use super::snapshot::{ConfigState, read_state};
use super::support_levels::{self, SupportRow};
use super::{Store, StoreError, config_outbox, config_revision, issuers, models, prompts};

/// A change under way; dropping it undoes it.
#[derive(Debug)]
pub struct Change {
    transaction: Transaction<'static, Postgres>,
    actor: String,
    base: u64,
    records: usize,
}

/// One row put or removed.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// A model is added or gets other limits.
    PutModel(Option<Model>, Model),
    /// A model goes.
    RemoveModel(Model),
    /// A feature gets another assignment or other settings.
    PutFeature(Box<FeatureRow>, Box<FeatureRow>),
    /// A level is raised or lowered.
    PutSupport(Option<SupportRow>, SupportRow),
    /// A template is added or changed.
    PutPrompt(Option<PromptOverride>, PromptOverride),
    /// A built-in template is used again.
    RemovePrompt(PromptOverride),
    /// A GitLab instance is trusted.
    PutIssuer(Option<Issuer>, Issuer),
    /// A GitLab instance is no longer trusted.
    RemoveIssuer(Issuer),
}

impl Store {
    /// Begins a change by `actor`; whoever else wants to change something waits, ten seconds at most.
    ///
    /// # Errors
    /// Postgres is away, or another change does not end.
    pub async fn begin_change(&self, actor: &str) -> Result<Change, StoreError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("SET LOCAL lock_timeout = '10s'")
            .execute(&mut *transaction)
            .await?;
        let base = config_revision::lock(&mut transaction).await?;
        Ok(Change {
            transaction,
            actor: actor.to_owned(),
            base,
            records: 0,
        })
    }
}

impl Change {
    /// The revision it starts from, which a caller may compare with the one it has seen.
    #[must_use]
    pub fn base_revision(&self) -> u64 {
        self.base
    }

    /// Who changes.
    #[must_use]
    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// The configuration it starts from.
    ///
    /// # Errors
    /// Postgres is away or refuses, or a row cannot be read.
    pub async fn state(&mut self) -> Result<ConfigState, StoreError> {
        read_state(&mut self.transaction).await
    }

    /// Writes one row and its record.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn perform(&mut self, edit: &Edit) -> Result<(), StoreError> {
        let connection = &mut *self.transaction;
        match edit {
            Edit::PutModel(_, model) => models::put(connection, model).await?,
            Edit::RemoveModel(model) => models::remove(connection, model).await?,
            Edit::PutFeature(_, feature) => features::update(connection, feature).await?,
            Edit::PutSupport(_, row) => support_levels::put(connection, &self.actor, row).await?,
            Edit::PutPrompt(_, prompt) => prompts::put(connection, prompt).await?,
            Edit::RemovePrompt(prompt) => prompts::remove(connection, prompt).await?,
            Edit::PutIssuer(_, issuer) => issuers::put(connection, issuer).await?,
            Edit::RemoveIssuer(issuer) => issuers::remove(connection, issuer).await?,
        }
        self.record(&edit.record()).await
    }

    /// Makes it so, at the next revision; a change that changed nothing leaves the revision as it is.
    ///
    /// # Errors
    /// Postgres is away or refuses; whether the change was made is then unknown if the connection was lost.
    pub async fn commit(mut self) -> Result<u64, StoreError> {
        if self.records == 0 {
            return Ok(self.base);
        }
        let revision = config_revision::advance(&mut self.transaction, self.base).await?;
        config_outbox::add(&mut self.transaction, revision).await?;
        self.transaction.commit().await?;
        Ok(revision)
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    pub(super) async fn record(&mut self, record: &ChangeRecord) -> Result<(), StoreError> {
        change_records::add(&mut self.transaction, &self.actor, self.base + 1, record).await?;
        self.records += 1;
        Ok(())
    }
}

impl Edit {
    /// What it does and to which one, such as `feature.put` and `duo_chat`.
    #[must_use]
    pub fn name(&self) -> (&'static str, String) {
        match self {
            Edit::PutModel(_, model) => ("model.put", model.name.to_string()),
            Edit::RemoveModel(model) => ("model.remove", model.name.to_string()),
            Edit::PutFeature(_, row) => ("feature.put", row.feature.name.to_string()),
            Edit::PutSupport(_, row) => (
                "support.put",
                format!("{}/{}", row.support.feature, row.support.family),
            ),
            Edit::PutPrompt(_, prompt) => ("prompt.put", format!("{}/{}", prompt.id, prompt.family)),
            Edit::RemovePrompt(prompt) => ("prompt.remove", format!("{}/{}", prompt.id, prompt.family)),
            Edit::PutIssuer(_, issuer) => ("issuer.put", issuer.url.clone()),
            Edit::RemoveIssuer(issuer) => ("issuer.remove", issuer.url.clone()),
        }
    }

    /// Its record, with the whole row before and after.
    #[must_use]
    pub fn record(&self) -> ChangeRecord {
        let (what, subject) = self.name();
        let (before, after) = match self {
            Edit::PutModel(before, after) => (before.as_ref().map(json), Some(json(after))),
            Edit::RemoveModel(before) => (Some(json(before)), None),
            Edit::PutFeature(before, after) => (Some(json(before)), Some(json(after))),
            Edit::PutSupport(before, after) => (before.as_ref().map(json), Some(json(after))),
            Edit::PutPrompt(before, after) => (before.as_ref().map(json), Some(json(after))),
            Edit::RemovePrompt(before) => (Some(json(before)), None),
            Edit::PutIssuer(before, after) => (before.as_ref().map(json), Some(json(after))),
            Edit::RemoveIssuer(before) => (Some(json(before)), None),
        };
        ChangeRecord {
            what,
            subject,
            before,
            after,
        }
    }
}

fn json(row: &impl Serialize) -> Value {
    serde_json::to_value(row).expect("rows are plain structs with text keys")
}
