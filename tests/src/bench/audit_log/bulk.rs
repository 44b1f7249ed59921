//! What takes all records, or very many: making, exporting, verifying and dropping them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use tokio::process::Command;

use super::super::cpu::Holding;
use super::super::programs::free_port;
use super::{Door, LOOK, MILLION};
use crate::bench::Options;

/// Growth of the broker's memory during an export that counts as flat.
const FLAT_BYTES: u64 = 64 << 20;
/// How long a broker may take until it has looked for what is due.
const DUE_WITHIN: Duration = Duration::from_secs(180);

/// One thing of many records.
#[derive(Clone, Debug, Serialize)]
pub struct Bulk {
    /// How many.
    pub records: u64,
    /// How long it took.
    pub seconds: f64,
    /// Bytes that came of it.
    pub bytes: u64,
    /// The broker's memory before it and at the most, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<[u64; 2]>,
    /// CPU time a record in microseconds, by process.
    pub cpu_us: Vec<(String, f64)>,
}

impl Bulk {
    pub(super) fn line(&self, what: &str) -> String {
        let used: Vec<_> = self
            .cpu_us
            .iter()
            .map(|(name, us)| format!("{name} {us:.1}"))
            .collect();
        let memory = self
            .memory
            .map(|memory| memory.map(|bytes| bytes as f64 / 1048576.0));
        let memory = memory.map(|[before, most]| {
            format!("; memory of the broker {before:.1} MiB before, {most:.1} at the most")
        });
        format!(
            "{what}: {} records in {:.1} s{}; microseconds of CPU a record: {}",
            self.records,
            self.seconds,
            memory.unwrap_or_default(),
            used.join(", ")
        )
    }
}

/// Makes records of so many days, the last of them so many days ago.
pub(super) async fn generate(options: &Options, records: u64, days: u16, ago: u16) -> anyhow::Result<()> {
    let command = options.programs.command("duo-broker", &["DUO_DATABASE_URL"]);
    let status = Command::from(command)
        .args(["audit", "generate", "--force", "--seed", &ago.to_string()])
        .args(["--records", &records.to_string(), "--days", &days.to_string()])
        .args(["--ago", &ago.to_string(), "--users", &options.users.to_string()])
        .stdout(Stdio::null())
        .status()
        .await?;
    ensure!(status.success(), "no records could be made");
    Ok(())
}

/// An export over HTTP, and what the broker's memory is meanwhile.
pub(super) async fn export(door: &Door<'_>, wrong: &mut Vec<String>) -> anyhow::Result<Bulk> {
    let options = door.options;
    let part = (MILLION as f64 / options.records as f64).min(1.0);
    let until = door.since + (door.until - door.since) * part;
    let expected = door.counted(door.since, until).await?;
    let broker = options.broker.as_ref().context("this scenario needs a broker")?;
    let processes = door.processes.iter().filter(|process| process.name == "broker");
    let processes: Vec<_> = processes.cloned().collect();
    let memory = || -> anyhow::Result<u64> {
        Ok(Holding::of_all(&processes)?
            .iter()
            .map(|holding| holding.memory)
            .sum())
    };
    let (before, used, began) = (memory()?, door.used()?, Instant::now());
    let mut url = broker.join("/audit/v1/export")?;
    url.query_pairs_mut()
        .append_pair("since", &door.since.format(&Rfc3339)?)
        .append_pair("until", &until.format(&Rfc3339)?);
    let answer = door
        .servers
        .http()
        .get(url)
        .bearer_auth(door.token)
        .timeout(Duration::from_secs(3600))
        .send()
        .await?;
    let mut answer = answer.error_for_status()?;
    let (mut records, mut bytes, mut most, mut looked) = (0, 0, before, Instant::now());
    while let Some(piece) = answer.chunk().await? {
        records += piece.iter().filter(|byte| **byte == b'\n').count() as u64;
        bytes += piece.len() as u64;
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            most = most.max(memory()?);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu_us = door.used_since(used, records)?;
    if records != expected {
        wrong.push(format!("the export has {records} records of {expected}"));
    }
    if most.saturating_sub(before) > FLAT_BYTES {
        wrong.push(format!(
            "the export took {} MiB of the broker",
            (most - before) >> 20
        ));
    }
    Ok(Bulk {
        records,
        seconds,
        bytes,
        memory: Some([before, most]),
        cpu_us,
    })
}

/// `duo-broker audit verify` of the first million.
pub(super) async fn verify(door: &Door<'_>, wrong: &mut Vec<String>) -> anyhow::Result<Bulk> {
    let options = door.options;
    let wanted = options.records.min(MILLION);
    let command = options.programs.command("duo-broker", &["DUO_DATABASE_URL"]);
    let (used, began) = (door.used()?, Instant::now());
    let output = Command::from(command)
        .env("DUO_AUDIT_KEY_FILE", options.programs.local.join("audit-keys"))
        .args(["audit", "verify", "--format", "json", "--to", &wanted.to_string()])
        .output()
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let records = report["records"].as_u64().unwrap_or_default();
    if !output.status.success() || records < wanted {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        wrong.push(format!("the verification says {report} {said}"));
    }
    Ok(Bulk {
        records,
        seconds,
        bytes: 0,
        memory: None,
        cpu_us: door.used_since(used, records)?,
    })
}

/// A broker that keeps records for fewer days.
pub(super) struct Retention {
    broker: Child,
    metrics: String,
    log: PathBuf,
}

impl Retention {
    pub(super) fn start(options: &Options, days: u16) -> anyhow::Result<Self> {
        let programs = &options.programs;
        let log = programs.local.join("logs/bench-retention.log");
        let file = File::create(&log)?;
        let admin = format!("127.0.0.1:{}", free_port()?);
        let mut command = programs.command("duo-broker", &["DUO_NATS_URL", "DUO_DATABASE_URL"]);
        let signing = programs.local.join("signing-keys.pem");
        if signing.exists() {
            command.env("DUO_SIGNING_KEYS_FILE", signing);
        }
        let broker = command
            .arg("serve")
            .env("DUO_BROKER_NAME", "bench-retention")
            .env("DUO_LISTEN", format!("127.0.0.1:{}", free_port()?))
            .env("DUO_ADMIN_LISTEN", &admin)
            .env("DUO_AUDIT_FOR", format!("{days}d"))
            .env("DUO_LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("duo-broker cannot be started")?;
        Ok(Self {
            broker,
            metrics: format!("http://{admin}/metrics"),
            log,
        })
    }

    /// Waits until it has dropped something: how many seconds that took.
    pub(super) async fn dropped(mut self, door: &Door<'_>) -> anyhow::Result<f64> {
        let until = Instant::now() + DUE_WITHIN;
        let metrics = self.metrics.parse()?;
        loop {
            let page = door.servers.text(&metrics).await.unwrap_or_default();
            let count = page
                .lines()
                .find_map(|line| line.strip_prefix("duo_audit_partitions_dropped_total "));
            if count.is_some_and(|count| count != "0") {
                break;
            }
            if let Some(status) = self.broker.try_wait()? {
                bail!(
                    "the broker that drops ended ({status}); see {}",
                    self.log.display()
                );
            }
            ensure!(
                Instant::now() < until,
                "nothing was dropped; see {}",
                self.log.display()
            );
            tokio::time::sleep(LOOK).await;
        }
        let log = fs::read_to_string(&self.log)?;
        let line = log
            .lines()
            .find(|line| line.contains("dropped a partition"))
            .context("the broker does not say what it dropped")?;
        let seconds = line
            .split("\"seconds\":")
            .nth(1)
            .context("nor how long it took")?;
        let end = seconds.find([',', '}']).unwrap_or(seconds.len());
        Ok(seconds[..end].trim_matches('"').parse()?)
    }
}

impl Drop for Retention {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.broker.id()) {
            // One that has ended already is what is wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.broker.wait();
    }
}
