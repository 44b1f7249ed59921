//! What the audit log costs, against a broker that was built without one.
//!
//! Both brokers have the same queue, worker and model server. They have their windows by turns, so that what else goes on at the
//! machine meets both; then requests come to each by the clock at half of what it carries.

use std::fs::File;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Url;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::super::Options;
use super::super::cpu::Process;
use super::super::load::{Measured, Target};
use super::super::pace::paced;
use super::super::programs::free_port;
use super::super::report::{Row, Spread};
use super::super::target::{Servers, address};
use super::super::throughput::window;
use super::{CONCURRENCY, until_written};

/// The program, which `./tests/bench/run audit` builds.
const PROGRAM: &str = "duo-broker-unaudited";
/// How long it may take to serve.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// Windows of each.
const TURNS: usize = 3;
/// Connections at half load.
const CONNECTIONS: usize = 64;

/// What the audit log costs.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Windows with it and without, by turns.
    pub rows: Vec<Row>,
    /// Requests a second at half load.
    pub rate: f64,
    /// Latencies at half load in microseconds, with it and without.
    pub half: [Spread; 2],
}

impl Cost {
    /// CPU time that it costs a request, in microseconds, over all processes: by the medians, since PostgreSQL cleans up when it
    /// likes.
    #[must_use]
    pub fn cpu_us(&self) -> f64 {
        let median = |first: usize| {
            let rows = self.rows.iter().skip(first).step_by(2);
            let mut costs: Vec<_> = rows.filter_map(|row| row.cpu_us).collect();
            costs.sort_by(f64::total_cmp);
            costs.get(costs.len() / 2).copied().unwrap_or_default()
        };
        median(0) - median(1)
    }

    pub(super) fn line(&self) -> String {
        let [on, off] = self.half;
        format!(
            "  The audit log costs {:.0} us of CPU a request; at {:.0} a second p50 {:.2} ms with it and {:.2} without, p99 {:.2} and {:.2}",
            self.cpu_us(),
            self.rate,
            on.p50 / 1000.0,
            off.p50 / 1000.0,
            on.p99 / 1000.0,
            off.p99 / 1000.0,
        )
    }
}

/// A broker that runs; dropped, it ends.
struct Unaudited {
    broker: Child,
    url: Url,
    ready: Url,
}

impl Unaudited {
    fn start(options: &Options) -> anyhow::Result<Self> {
        let programs = &options.programs;
        let log = File::create(programs.local.join("logs/bench-unaudited.log"))?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let operations = format!("127.0.0.1:{}", free_port()?);
        let broker = programs
            .command(PROGRAM, &["DUO_NATS_URL", "DUO_DATABASE_URL"])
            .arg("serve")
            .env("DUO_BROKER_NAME", "bench-unaudited")
            .env("DUO_LISTEN", &listen)
            .env("DUO_ADMIN_LISTEN", &operations)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{PROGRAM} cannot be started; ./tests/bench/run audit builds it"))?;
        Ok(Self {
            broker,
            url: format!("http://{listen}").parse()?,
            ready: format!("http://{operations}/readyz").parse()?,
        })
    }

    async fn ready(&mut self, servers: &Servers) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        while servers.text(&self.ready).await.is_err() {
            if let Some(status) = self.broker.try_wait()? {
                bail!("{PROGRAM} ended while starting ({status}); see .local/logs");
            }
            ensure!(Instant::now() < until, "{PROGRAM} is not ready in time");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Drop for Unaudited {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.broker.id()) {
            // One that has ended already is what is wanted.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && self.broker.try_wait().is_ok_and(|ended| ended.is_none()) {
            thread::sleep(LOOK);
        }
        let _ = self.broker.kill();
        let _ = self.broker.wait();
    }
}

/// Windows by turns, then half load by turns.
pub(super) fn measure(
    options: &Options,
    servers: &Servers,
    target: &Target,
    runtime: &Runtime,
    progress: &impl Fn(&str),
) -> anyhow::Result<Cost> {
    let mut broker = Unaudited::start(options)?;
    runtime.block_on(broker.ready(servers))?;
    // Whichever is asked, the other one has its chores.
    let mut both = options.clone();
    both.pids.push(Process {
        name: "broker-unaudited".to_owned(),
        pid: broker.broker.id(),
    });
    let unaudited = Target {
        address: address(&broker.url)?,
        ..target.clone()
    };
    let ways = [("with records", target), ("without", &unaudited)];
    let mut rows = Vec::new();
    for turn in 1..=TURNS {
        for (name, target) in ways {
            progress(&format!("audit: {name}, {turn} of {TURNS}"));
            runtime.block_on(until_written(options, servers))?;
            rows.push(window(&both, ("audit", name, "broker"), target, CONCURRENCY)?);
        }
    }
    let carried = rows
        .iter()
        .filter_map(|row| row.per_second)
        .fold(f64::MAX, f64::min);
    let (rate, span) = (carried / 2.0, Duration::from_secs(options.seconds));
    let mut halves = [Measured::default(), Measured::default()];
    for turn in 1..=TURNS {
        for ((name, target), half) in ways.iter().zip(&mut halves) {
            progress(&format!("audit: {name}, at half load, {turn} of {TURNS}"));
            runtime.block_on(until_written(options, servers))?;
            let kind = [Arc::new((*target).clone())];
            let measured = runtime.block_on(paced(kind, CONNECTIONS, rate, Instant::now(), span));
            measured.into_iter().for_each(|measured| half.add(measured));
        }
    }
    let half = halves.map(|half| {
        let whole = Spread::of(half.samples.iter().map(|sample| sample.whole).collect());
        (whole, half.wrong, half.told)
    });
    for (_, wrong, told) in &half {
        ensure!(*wrong == 0, "{wrong} wrong answers at half load: {told:?}");
    }
    Ok(Cost {
        rows,
        rate,
        half: half.map(|(whole, ..)| whole),
    })
}
