//! Who may be told.

use std::collections::HashMap;

use duo_contract::seal::SealKeys;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::change_records::{self, ChangeRecord};
use super::super::{Store, StoreError, config_revision, expect_rows, parsed, unsigned};
use super::deliveries;
use super::secrets::{self, SecretRow};
use crate::webhooks::address::Cidr;
use crate::webhooks::receiver::{ReceiverName, ReceiverUrl};

/// A receiver as administrators see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Receiver {
    /// Its id, which no other receiver of the name has.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: ReceiverUrl,
    /// Networks that it may be at although they are not public.
    pub addresses: Vec<Cidr>,
    /// When it was added.
    pub created_at: OffsetDateTime,
    /// By whom.
    pub created_by: String,
    /// Since when nothing is sent to it, and why.
    pub disabled: Option<Disabled>,
    /// What signs for it, the newest first.
    pub secrets: Vec<SecretRow>,
    /// Deliveries that wait for it.
    pub pending: u64,
}

/// Why nothing is sent to a receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disabled {
    /// Since when.
    pub at: OffsetDateTime,
    /// `gone` or `administrator`.
    pub reason: String,
}

/// A receiver to be.
#[derive(Debug, Clone)]
pub struct NewReceiver {
    /// Its name.
    pub name: ReceiverName,
    /// Where it is.
    pub url: ReceiverUrl,
    /// Networks that it may be at although they are not public.
    pub addresses: Vec<Cidr>,
}

/// What is to be different of a receiver; what is absent stays.
#[derive(Debug, Clone, Default)]
pub struct ReceiverChange {
    /// Where it is.
    pub url: Option<ReceiverUrl>,
    /// Networks that it may be at although they are not public.
    pub addresses: Option<Vec<Cidr>>,
    /// Is anything sent to it?
    pub enabled: Option<bool>,
}

impl Store {
    /// Every receiver, by name.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn receivers(&self) -> Result<Vec<Receiver>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        select(&mut connection, None).await
    }

    /// The receiver with this name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or Postgres is away.
    pub async fn receiver(&self, name: &str) -> Result<Receiver, StoreError> {
        let mut connection = self.pool.acquire().await?;
        one(&mut connection, name).await
    }

    /// The receiver with this name or exactly this URL, if it is on the list; whether it is disabled is not asked.
    ///
    /// # Errors
    /// Postgres is away or refuses.
    pub async fn find_receiver(&self, name_or_url: &str) -> Result<Option<Receiver>, StoreError> {
        let name = name_or_url
            .parse::<ReceiverName>()
            .ok()
            .map(|name| name.to_string());
        let url = name_or_url.parse::<ReceiverUrl>().ok().map(|url| url.to_string());
        if name.is_none() && url.is_none() {
            return Ok(None);
        }
        let mut connection = self.pool.acquire().await?;
        let found = sqlx::query_scalar!(
            "SELECT name FROM webhook_receivers WHERE name = $1 OR url = $2",
            name,
            url,
        )
        .fetch_optional(&mut *connection)
        .await?;
        let Some(name) = found else { return Ok(None) };
        Ok(select(&mut connection, Some(&name)).await?.pop())
    }

    /// Adds a receiver and makes its first secret, which nothing can show again.
    ///
    /// # Errors
    /// The name or the URL is taken, the URL names an address that is not allowed, or Postgres is away.
    pub async fn add_receiver(
        &self,
        actor: &str,
        new: &NewReceiver,
        keys: &SealKeys,
    ) -> Result<(Receiver, SecretString), StoreError> {
        new.url
            .check(&new.addresses)
            .map_err(|error| StoreError::Conflict(error.to_string()))?;
        let mut transaction = self.pool.begin().await?;
        let id = Uuid::now_v7();
        let result = sqlx::query!(
            "INSERT INTO webhook_receivers (id, name, url, addresses, created_by) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT DO NOTHING",
            id,
            new.name.as_str(),
            new.url.as_str(),
            &texts(&new.addresses),
            actor,
        )
        .execute(&mut *transaction)
        .await?;
        if result.rows_affected() == 0 {
            return Err(StoreError::Conflict(format!(
                "there is a receiver called {:?} or with the URL {} already",
                new.name.as_str(),
                new.url
            )));
        }
        let secret = secrets::insert(&mut transaction, id, keys).await?;
        let receiver = one(&mut transaction, new.name.as_str()).await?;
        let record = ChangeRecord {
            what: "webhook.add",
            subject: receiver.name.clone(),
            before: None,
            after: Some(receiver.shown()),
        };
        record_change(&mut transaction, actor, &record).await?;
        transaction.commit().await?;
        Ok((receiver, secret.text()))
    }

    /// Changes a receiver. Disabling it drops what waits for it; enabling it sends nothing of that.
    ///
    /// # Errors
    /// There is none of the name, its URL would name an address that is not allowed, another one has the URL, or
    /// Postgres is away.
    pub async fn change_receiver(
        &self,
        actor: &str,
        name: &str,
        wanted: &ReceiverChange,
    ) -> Result<Receiver, StoreError> {
        let mut transaction = self.pool.begin().await?;
        lock(&mut transaction, name).await?;
        let before = one(&mut transaction, name).await?;
        let url = wanted.url.as_ref().unwrap_or(&before.url);
        let addresses = wanted.addresses.as_ref().unwrap_or(&before.addresses);
        url.check(addresses)
            .map_err(|error| StoreError::Conflict(error.to_string()))?;
        let taken = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM webhook_receivers WHERE url = $1 AND id <> $2) AS "taken!""#,
            url.as_str(),
            before.id,
        )
        .fetch_one(&mut *transaction)
        .await?;
        if taken {
            return Err(StoreError::Conflict(format!(
                "another receiver has the URL {url}"
            )));
        }
        let enabled = wanted.enabled.unwrap_or(before.disabled.is_none());
        let result = sqlx::query!(
            "UPDATE webhook_receivers
             SET url = $2, addresses = $3,
                 disabled_at = CASE WHEN $4 THEN NULL ELSE coalesce(disabled_at, now()) END,
                 disabled_reason = CASE WHEN $4 THEN NULL ELSE coalesce(disabled_reason, 'administrator') END
             WHERE id = $1",
            before.id,
            url.as_str(),
            &texts(addresses),
            enabled,
        )
        .execute(&mut *transaction)
        .await?;
        expect_rows(&result, 1)?;
        if !enabled {
            deliveries::drop_for_disabled(&mut transaction).await?;
        }
        let after = one(&mut transaction, name).await?;
        if before.shown() != after.shown() {
            let record = ChangeRecord {
                what: "webhook.put",
                subject: name.to_owned(),
                before: Some(before.shown()),
                after: Some(after.shown()),
            };
            record_change(&mut transaction, actor, &record).await?;
        }
        transaction.commit().await?;
        Ok(after)
    }

    /// Removes a receiver, its secrets and its deliveries.
    ///
    /// # Errors
    /// There is none of the name, or Postgres is away.
    pub async fn remove_receiver(&self, actor: &str, name: &str) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        lock(&mut transaction, name).await?;
        let before = one(&mut transaction, name).await?;
        // First what may be many: until the receiver itself goes, ends of jobs are written for it and wait for nothing.
        sqlx::query!("DELETE FROM webhook_deliveries WHERE receiver = $1", before.id)
            .execute(&mut *transaction)
            .await?;
        let result = sqlx::query!("DELETE FROM webhook_receivers WHERE id = $1", before.id)
            .execute(&mut *transaction)
            .await?;
        expect_rows(&result, 1)?;
        let mut shown = before.shown();
        shown["pending"] = before.pending.into();
        let record = ChangeRecord {
            what: "webhook.remove",
            subject: before.name,
            before: Some(shown),
            after: None,
        };
        record_change(&mut transaction, actor, &record).await?;
        transaction.commit().await?;
        Ok(())
    }
}

impl Receiver {
    /// What records of changes show of it.
    fn shown(&self) -> Value {
        let disabled = self.disabled.as_ref().map(|disabled| &disabled.reason);
        json!({
            "name": self.name, "url": self.url.as_str(), "addresses": self.addresses,
            "enabled": disabled.is_none(), "disabled_reason": disabled,
        })
    }
}

/// The receiver with this name.
pub(super) async fn one(connection: &mut PgConnection, name: &str) -> Result<Receiver, StoreError> {
    let found = match name.parse::<ReceiverName>() {
        Ok(_) => select(connection, Some(name)).await?.pop(),
        // Postgres takes no text with NUL.
        Err(_) => None,
    };
    found.ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> StoreError {
    StoreError::NotFound(format!(
        "there is no receiver called {name:?}; `duo-broker webhooks list` shows them all"
    ))
}

/// Changes of one receiver come one after the other; deliveries may be written meanwhile.
pub(super) async fn lock(connection: &mut PgConnection, name: &str) -> Result<Uuid, StoreError> {
    if name.parse::<ReceiverName>().is_err() {
        return Err(unknown(name));
    }
    sqlx::query_scalar!(
        "SELECT id FROM webhook_receivers WHERE name = $1 FOR NO KEY UPDATE",
        name
    )
    .fetch_optional(connection)
    .await?
    .ok_or_else(|| unknown(name))
}

async fn select(connection: &mut PgConnection, name: Option<&str>) -> Result<Vec<Receiver>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id, name, url, addresses, created_at, created_by, disabled_at, disabled_reason,
                  (SELECT count(*) FROM webhook_deliveries
                   WHERE receiver = webhook_receivers.id AND state = 'pending') AS "pending!"
           FROM webhook_receivers
           WHERE $1::text IS NULL OR name = $1
           ORDER BY name"#,
        name,
    )
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let mut live: HashMap<Uuid, Vec<SecretRow>> = HashMap::new();
    for (receiver, secret) in secrets::live_rows(connection, &ids).await? {
        live.entry(receiver).or_default().push(secret);
    }
    let receivers = rows.into_iter().map(|row| {
        Ok(Receiver {
            id: row.id,
            name: row.name,
            url: parsed("receiver's URL", &row.url)?,
            addresses: networks(&row.addresses)?,
            created_at: row.created_at,
            created_by: row.created_by,
            disabled: row
                .disabled_at
                .zip(row.disabled_reason)
                .map(|(at, reason)| Disabled { at, reason }),
            secrets: live.remove(&row.id).unwrap_or_default(),
            pending: unsigned("count of deliveries", row.pending)?,
        })
    });
    receivers.collect()
}

/// Disables those that said that they are gone, and records it; gives the names of those that were not disabled yet.
pub(super) async fn disable_gone(
    connection: &mut PgConnection,
    actor: &str,
    ids: &[Uuid],
) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query!(
        "UPDATE webhook_receivers SET disabled_at = now(), disabled_reason = 'gone'
         WHERE id IN (SELECT id FROM webhook_receivers
                      WHERE id = ANY($1) AND disabled_at IS NULL ORDER BY id FOR NO KEY UPDATE)
         RETURNING name",
        ids,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut names = Vec::new();
    if !rows.is_empty() {
        deliveries::drop_for_disabled(connection).await?;
    }
    for row in rows {
        let record = ChangeRecord {
            what: "webhook.disable",
            subject: row.name.clone(),
            before: Some(json!({"name": row.name, "enabled": true})),
            after: Some(json!({"name": row.name, "enabled": false, "disabled_reason": "gone"})),
        };
        record_change(connection, actor, &record).await?;
        names.push(row.name);
    }
    Ok(names)
}

pub(super) async fn record_change(
    connection: &mut PgConnection,
    actor: &str,
    record: &ChangeRecord,
) -> Result<(), StoreError> {
    // Receivers are no part of the configuration, so its revision stays.
    let revision = config_revision::read(connection).await?;
    change_records::add(connection, actor, revision, record).await
}

pub(super) fn networks(texts: &[String]) -> Result<Vec<Cidr>, StoreError> {
    texts.iter().map(|text| parsed("network", text)).collect()
}

fn texts(networks: &[Cidr]) -> Vec<String> {
    networks.iter().map(Cidr::to_string).collect()
}
