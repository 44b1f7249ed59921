//! Is Postgres there, new enough, migrated, and may we use it?

use duo_contract::snapshot::{BodyPolicy, Issuer};

use super::{Finding, Settings, chain, clock_finding, fail, keys, ok, warn};
use crate::store::{PoolConfig, ServerFacts, Store};

/// Oldest version that is tested, as `server_version_num` counts.
const LEAST_VERSION: i32 = 140_000;

/// Examines Postgres and returns the configured GitLab instances, as far as they can be known.
pub(super) async fn examine(settings: &Settings, findings: &mut Vec<Finding>) -> Vec<Issuer> {
    let Some(url) = &settings.database_url else {
        findings.push(fail(
            "postgres",
            "DUO_DATABASE_URL is not set",
            "write postgres://USER:PASSWORD@HOST:5432/DATABASE",
        ));
        return Vec::new();
    };
    let connected = match Store::connect(url, PoolConfig::default()) {
        Ok(store) => store.server().await.map(|facts| (store, facts)),
        Err(error) => Err(error),
    };
    let (store, facts) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            let remedy = "check that it runs, and address, user and password in DUO_DATABASE_URL";
            findings.push(fail("postgres", chain(&error), remedy));
            return Vec::new();
        }
    };
    server(&facts, findings);
    if !migrated(&store, findings).await {
        return Vec::new();
    }
    rights(&store, findings).await;
    configured(&store, settings, findings).await
}

fn server(facts: &ServerFacts, findings: &mut Vec<Finding>) {
    let version = format!("version {}", facts.version_text);
    findings.push(if facts.version >= LEAST_VERSION {
        ok("postgres", version)
    } else {
        fail("postgres", version, "version 14 or newer is needed")
    });
    if facts.standby {
        let remedy = "name the primary in DUO_DATABASE_URL";
        findings.push(fail("postgres", "this server is a read-only standby", remedy));
    }
    if !facts.may_create {
        let remedy = "run deploy/postgres/roles.sql, or GRANT CREATE ON SCHEMA to this user: each day's audit partition is a table";
        findings.push(fail("postgres rights", "this user may not make tables", remedy));
    }
    findings.push(clock_finding("postgres clock", facts.now, time::Duration::ZERO));
}

async fn migrated(store: &Store, findings: &mut Vec<Finding>) -> bool {
    let migrations = match store.migrations().await {
        Ok(migrations) => migrations,
        Err(error) => {
            findings.push(fail(
                "migrations",
                chain(&error),
                "grant this user the rights of the tables' owner",
            ));
            return false;
        }
    };
    let missing = migrations.iter().filter(|migration| !migration.applied).count();
    if missing == 0 {
        findings.push(ok("migrations", format!("all {} are applied", migrations.len())));
        return true;
    }
    let found = format!("{missing} of {} are not applied", migrations.len());
    findings.push(fail("migrations", found, "run `duo-broker migrate`"));
    false
}

async fn rights(store: &Store, findings: &mut Vec<Finding>) {
    findings.push(match store.missing_rights().await {
        Ok(missing) if missing.is_empty() => ok("postgres rights", "all that are needed"),
        Ok(missing) => fail(
            "postgres rights",
            format!("missing: {}", missing.join(", ")),
            "GRANT them to this user",
        ),
        Err(error) => fail("postgres rights", chain(&error), "run `duo-broker migrate`"),
    });
}

async fn configured(store: &Store, settings: &Settings, findings: &mut Vec<Finding>) -> Vec<Issuer> {
    let state = match store.config_state().await {
        Ok(state) => state,
        Err(error) => {
            findings.push(fail(
                "configuration",
                chain(&error),
                "restore the database from a backup",
            ));
            return Vec::new();
        }
    };
    let active = state.features.iter().filter(|row| row.feature.active).count();
    let found = format!(
        "revision {}: {} models, {active} of {} features active",
        state.revision,
        state.models.len(),
        state.features.len()
    );
    findings.push(if state.models.is_empty() {
        warn(
            "configuration",
            found,
            "name models in a file and run `duo-broker config apply FILE`",
        )
    } else {
        ok("configuration", found)
    });
    let full = state
        .features
        .iter()
        .filter(|row| row.feature.bodies == BodyPolicy::Full);
    let full: Vec<_> = full.map(|row| row.feature.name.as_str()).collect();
    findings.extend(keys::master_key(settings, &full));
    state.issuers
}
