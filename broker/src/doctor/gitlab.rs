//! Do the GitLab instances answer, with keys that can check their tokens?

use std::path::Path;
use std::time::Duration;

use duo_contract::snapshot::Issuer;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use reqwest::header::DATE;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::{Finding, Settings, chain, clock_finding, fail, ok, warn};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

pub(super) async fn examine(settings: &Settings, issuers: &[Issuer], findings: &mut Vec<Finding>) {
    if issuers.is_empty() {
        let remedy =
            "add the GitLab instance to `issuers` of the configuration file, unless only API tokens are used";
        findings.push(warn("gitlab", "no instance is configured", remedy));
        return;
    }
    let client = match client(settings.gitlab_ca_file.as_deref()) {
        Ok(client) => client,
        Err(problem) => {
            findings.push(fail("gitlab", problem, "check DUO_GITLAB_CA_FILE"));
            return;
        }
    };
    for issuer in issuers {
        if let Err(problem) = examine_issuer(&client, issuer, findings).await {
            let remedy = "check the URL, that this machine may reach it, and DUO_GITLAB_CA_FILE";
            findings.push(fail("gitlab", format!("{}: {problem}", issuer.url), remedy));
        }
    }
}

async fn examine_issuer(
    client: &reqwest::Client,
    issuer: &Issuer,
    findings: &mut Vec<Finding>,
) -> Result<(), String> {
    let base = issuer.url.trim_end_matches('/');
    let url = format!("{base}/.well-known/openid-configuration");
    let response = answer(client, &url).await?;
    let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok());
    let discovery: Discovery = response
        .json()
        .await
        .map_err(|error| format!("{url}: {}", chain(&error)))?;
    if discovery.issuer.trim_end_matches('/') != base {
        let remedy = "write the issuer's URL as the instance writes it";
        let found = format!("{base} calls itself {}", discovery.issuer);
        findings.push(warn("gitlab", found, remedy));
    }
    let response = answer(client, &discovery.jwks_uri).await?;
    let keys: JwkSet = response
        .json()
        .await
        .map_err(|error| format!("{}: {}", discovery.jwks_uri, chain(&error)))?;
    let usable = keys.keys.iter().filter(|key| {
        matches!(key.algorithm, AlgorithmParameters::RSA(_)) && DecodingKey::from_jwk(key).is_ok()
    });
    let found = format!(
        "{base}: {} of {} keys can check RS256",
        usable.clone().count(),
        keys.keys.len()
    );
    findings.push(if usable.count() > 0 {
        ok("gitlab", found)
    } else {
        fail("gitlab", found, "the instance needs an RSA signing key")
    });
    if let Some(date) = date {
        // The header tells whole seconds.
        findings.push(clock_finding("gitlab clock", date, time::Duration::seconds(1)));
    }
    Ok(())
}

async fn answer(client: &reqwest::Client, url: &str) -> Result<reqwest::Response, String> {
    let sent = client.get(url).send().await;
    sent.and_then(reqwest::Response::error_for_status)
        .map_err(|error| chain(&error.without_url()))
        .map_err(|problem| format!("{url}: {problem}"))
}

fn client(ca_file: Option<&Path>) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder().timeout(TIMEOUT);
    if let Some(path) = ca_file {
        let pem = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let authorities = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| chain(&error))?;
        builder = builder.tls_certs_merge(authorities);
    }
    builder.build().map_err(|error| chain(&error))
}
