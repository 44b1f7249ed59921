//! The product's programs as a scenario needs them beside the local set-up's: other configurations, other workers.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::cpu::Process;

/// How long workers may take to begin and to end, all of them together.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// Where the programs and the local set-up's files are.
#[derive(Args, Clone, Debug)]
pub struct Programs {
    /// Folder of the programs duo-broker and duo-worker, for scenarios that configure the broker or start workers
    #[arg(long, value_name = "DIR", default_value = "target/release")]
    pub programs: PathBuf,
    /// Folder of the local set-up
    #[arg(long, value_name = "DIR", default_value = ".local")]
    pub local: PathBuf,
}

/// Workers that run; dropped, they end.
#[derive(Debug)]
pub struct Workers {
    running: Vec<(Child, String)>,
}

impl Programs {
    /// Puts a configuration in force; the issuers stay those of the local set-up.
    ///
    /// # Errors
    /// The broker's program refuses it.
    pub fn apply(&self, config: &Value) -> anyhow::Result<()> {
        let own = fs::read_to_string(self.local.join("config.yaml"))?;
        let issuers = own
            .find("\nissuers:")
            .context("the local set-up's configuration has no issuers")?;
        let path = self.local.join("bench-config.yaml");
        let parts = config.as_object().context("a configuration is an object")?;
        // JSON is YAML too.
        let parts = parts.iter().map(|(name, value)| format!("{name}: {value}\n"));
        fs::write(&path, parts.collect::<String>() + &own[issuers..])?;
        let applied = self
            .command("duo-broker", &["DUO_NATS_URL", "DUO_DATABASE_URL"])
            .args(["config", "apply"])
            .arg(&path)
            .output()
            .context("duo-broker cannot be started")?;
        ensure!(
            applied.status.success(),
            "the configuration was refused: {}{}",
            String::from_utf8_lossy(&applied.stdout),
            String::from_utf8_lossy(&applied.stderr)
        );
        Ok(())
    }

    /// Starts `count` workers with `slots` each that serve `models` from the server at `url`, and waits until all are
    /// ready.
    ///
    /// # Errors
    /// One does not become ready.
    pub fn workers(
        &self,
        count: usize,
        slots: usize,
        models: &[String],
        url: &str,
    ) -> anyhow::Result<Workers> {
        let file = self.local.join("bench-worker.yaml");
        let served: Vec<_> = models
            .iter()
            .map(|model| json!({"model": model, "served_as": "simulated"}))
            .collect();
        let server = json!({"name": "local", "url": format!("{}/v1", url.trim_end_matches('/')), "kind": "vllm",
            "slots": slots, "models": served});
        fs::write(&file, json!({"servers": [server]}).to_string())?;
        let mut workers = Workers { running: Vec::new() };
        for number in 1..=count {
            let listen = format!("127.0.0.1:{}", free_port()?);
            let log = File::create(self.local.join(format!("logs/bench-worker-{number}.log")))?;
            let child = self
                .command("duo-worker", &["DUO_NATS_URL"])
                .arg("run")
                .env("DUO_WORKER_NAME", format!("bench-{number}"))
                .env("DUO_WORKER_FILE", &file)
                .env("DUO_ADMIN_LISTEN", &listen)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("duo-worker cannot be started")?;
            workers.running.push((child, format!("http://{listen}/readyz")));
        }
        Ok(workers)
    }

    /// One of the programs with the keys and these variables of ours; others it would refuse.
    pub(super) fn command(&self, program: &str, kept: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(program));
        for (name, _) in std::env::vars() {
            if name.starts_with("DUO_") && !kept.contains(&name.as_str()) {
                command.env_remove(name);
            }
        }
        command.env("DUO_SEAL_KEYS_FILE", self.local.join("seal-keys"));
        command
    }
}

impl Workers {
    /// Their processes; each is called `worker` and its number.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let running = self.running.iter().enumerate();
        running
            .map(|(index, (child, _))| Process {
                name: format!("worker-{}", index + 1),
                pid: child.id(),
            })
            .collect()
    }

    /// Waits until all say that they are ready.
    ///
    /// # Errors
    /// One has ended, or does not in time.
    pub async fn ready(&mut self, http: &reqwest::Client) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        for (number, (child, url)) in self.running.iter_mut().enumerate() {
            loop {
                let answer = http.get(url.as_str()).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    break;
                }
                if let Some(status) = child.try_wait()? {
                    bail!(
                        "worker {} ended while starting ({status}); see .local/logs",
                        number + 1
                    );
                }
                ensure!(
                    Instant::now() < until,
                    "worker {} is not ready in time",
                    number + 1
                );
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (child, _) in &self.running {
            if let Ok(pid) = i32::try_from(child.id()) {
                // One that has ended already is what is wanted.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
        let until = Instant::now() + PATIENCE;
        for (child, _) in &mut self.running {
            while Instant::now() < until && child.try_wait().is_ok_and(|ended| ended.is_none()) {
                thread::sleep(PAUSE);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(super) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
