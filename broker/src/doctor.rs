//! Looks for what is wrong with an installation and says what to do, one finding per check.
//!
//! It changes nothing, and a check that cannot run because an earlier one failed is left out.

mod gitlab;
mod keys;
mod nats;
mod postgres;

use std::path::PathBuf;

use duo_process::nats::NatsConfig;
use secrecy::SecretString;
use serde::Serialize;

/// What to examine.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Postgres.
    pub database_url: Option<SecretString>,
    /// NATS.
    pub nats: NatsConfig,
    /// The file with the keys that seal request bodies.
    pub seal_key_file: Option<PathBuf>,
    /// The file with the master keys of prompts and answers.
    pub master_key_file: Option<PathBuf>,
    /// The file with the keys that sign tokens for IDEs.
    pub signing_keys_file: Option<PathBuf>,
    /// Private certificate authorities for GitLab.
    pub gitlab_ca_file: Option<PathBuf>,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not for long or not for everybody.
    Warn,
    /// It does not work.
    Fail,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it went.
    pub verdict: Verdict,
    /// What was checked.
    pub check: &'static str,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{verdict}  {}: {}", self.check, self.found)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

/// Runs every check.
pub async fn examine(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let issuers = postgres::examine(settings, &mut findings).await;
    nats::examine(settings, &mut findings).await;
    keys::examine(settings, &mut findings);
    gitlab::examine(settings, &issuers, &mut findings).await;
    findings
}

fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Ok,
        check,
        found: found.into(),
        remedy: None,
    }
}

fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Warn,
        check,
        found: found.into(),
        remedy: Some(remedy.into()),
    }
}

fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        verdict: Verdict::Fail,
        check,
        found: found.into(),
        remedy: Some(remedy.into()),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Compares a clock with ours: tokens and audit records need them together.
fn clock_finding(check: &'static str, theirs: time::OffsetDateTime, exact_to: time::Duration) -> Finding {
    let skew = (duo_process::clock::now() - theirs).abs();
    let seconds = format!("{:.1} s apart", skew.as_seconds_f64());
    let remedy = "let both machines follow a time server";
    if skew > time::Duration::seconds(30) {
        fail(check, seconds, remedy)
    } else if skew > time::Duration::seconds(1) + exact_to {
        warn(check, seconds, remedy)
    } else {
        ok(check, "agrees with this machine's")
    }
}
