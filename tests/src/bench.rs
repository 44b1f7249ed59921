//! Benchmarks: what the queue adds, and what it carries, beside other gateways.
//!
//! The same requests go to the simulated model server directly, through the broker and through each peer, in one
//! run, and every byte of every answer is checked. It measures whatever runs at the addresses it is given;
//! `tests/bench/run` starts all of it. It shares the machine with what it measures, so it is written to cost little.

pub mod audit;
pub mod audit_log;
pub mod check;
pub mod cpu;
mod hop;
pub mod http;
mod jobs;
pub mod load;
pub mod pace;
mod peer;
pub mod programs;
pub mod prompts;
pub mod report;
pub mod scale;
pub mod soak;
pub mod stages;
mod streams;
pub mod target;
#[cfg(test)]
mod tests;
mod throughput;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use reqwest::Url;
use tokio::runtime::Builder;

use self::cpu::Process;
pub use self::peer::Peer;
use self::programs::Programs;
use self::report::{Machine, Report};
use self::target::Servers;

/// The generator's own name among the processes.
const GENERATOR: &str = "generator";
/// The model server's.
const MODEL: &str = "model";

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Latency added over direct, one request at a time
    Hop,
    /// Answers a second and CPU time an answer, many at a time
    Throughput,
    /// Many slow streams at once: missing tokens, stalls, memory
    Streams,
    /// Cost by the size of a request's body
    Prompts,
    /// Cost by the number of workers, and what an idle one costs
    Workers,
    /// Cost by the number of configured models, and what they cost idle
    Models,
    /// Cost of the audit log, and how fast its writer is
    Audit,
    /// The audit log with many records: pages, counts, export, verification, new records, a day that is dropped
    AuditLog,
    /// How fast jobs are accepted, and how many a second come to their end
    Jobs,
    /// Minutes of mixed load: memory, descriptors and threads that grow
    Soak,
    /// hop and throughput
    All,
}

/// How to measure, and whom.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    pub scenario: Scenario,
    /// The simulated model server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:18080")]
    pub direct: Url,
    /// The broker; without it only the model server is measured
    #[arg(long, value_name = "URL", env = "DUO_URL")]
    pub broker: Option<Url>,
    /// API token for the broker's OpenAI endpoints
    #[arg(long, value_name = "TOKEN", env = "DUO_CLIENT_TOKEN", hide_env_values = true)]
    pub client_token: Option<String>,
    /// GitLab's token for code completions; without it they are not measured
    #[arg(long, value_name = "JWT", env = "DUO_GITLAB_JWT", hide_env_values = true)]
    pub jwt: Option<String>,
    /// The model's name at the broker
    #[arg(long, value_name = "NAME", default_value = "mistral")]
    pub model: String,
    /// Seconds that each measurement takes
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Seconds before each measurement that do not count
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    pub warm_up: u64,
    /// Requests under way at once in the throughput scenario; several with commas, measured one after the other
    #[arg(long, value_name = "N", default_value = "32,128", value_delimiter = ',')]
    pub concurrency: Vec<usize>,
    /// Streams open at once in the streams scenario; several with commas
    #[arg(
        long,
        value_name = "N",
        default_value = "500,2000,5000",
        value_delimiter = ','
    )]
    pub streams: Vec<usize>,
    /// KiB of a body in the prompts scenario; several with commas
    #[arg(
        long,
        value_name = "KIB",
        default_value = "1,4,16,64,256,1024",
        value_delimiter = ','
    )]
    pub sizes: Vec<usize>,
    /// Workers in the workers scenario; several with commas
    #[arg(long, value_name = "N", default_value = "1,4,16,64", value_delimiter = ',')]
    pub workers: Vec<usize>,
    /// Models in the models scenario; several with commas
    #[arg(long, value_name = "N", default_value = "1,20,200", value_delimiter = ',')]
    pub models: Vec<usize>,
    /// Requests a second in the soak scenario
    #[arg(long, value_name = "N", default_value_t = 300.0)]
    pub rate: f64,
    /// Records in the audit-log scenario
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000_000))]
    pub records: u64,
    /// They are there already, made today by `duo-broker audit generate` with these --records, --days and --users
    #[arg(long)]
    pub made: bool,
    /// Days over which they occurred
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=390))]
    pub days: u16,
    /// People that they are of
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub users: u64,
    /// API token with the auditor role for the audit-log scenario
    #[arg(long, value_name = "TOKEN", env = "DUO_AUDITOR_TOKEN", hide_env_values = true)]
    pub auditor_token: Option<String>,
    /// The broker's database for the same
    #[arg(long, value_name = "URL", env = "DUO_DATABASE_URL", hide_env_values = true)]
    pub database: Option<String>,
    /// The broker's NATS for the same
    #[arg(long, value_name = "URL", env = "DUO_NATS_URL")]
    pub nats: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented where it is defined")]
    pub programs: Programs,
    /// Milliseconds between two tokens in the streams scenario
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub pace_ms: u64,
    /// Another gateway in front of the same model server; repeat it. Its name is its --pid's too
    #[arg(long = "peer", value_name = "NAME=URL")]
    pub peers: Vec<Peer>,
    /// Bearer token sent to the peers
    #[arg(
        long,
        value_name = "TOKEN",
        env = "DUO_BENCH_PEER_KEY",
        hide_env_values = true
    )]
    pub peer_key: Option<String>,
    /// Tokens of an answer, one chunk each in a stream
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub tokens: usize,
    /// Threads of this load generator
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// A process whose CPU time is counted; repeat it. "model" is the model server, a peer's name is that peer, and
    /// all others are the broker's system
    #[arg(long = "pid", value_name = "NAME=PID")]
    pub pids: Vec<Process>,
    /// A page of metrics of a broker or worker, for the stages of the hop; repeat it
    #[arg(long, value_name = "URL")]
    pub metrics: Vec<Url>,
    /// Write the results here too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the throughput here, as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// Measures and reports; `progress` hears what is being measured.
///
/// # Errors
/// A server is away or unfit. Wrong answers are no error but part of the report.
pub fn run(options: &Options, progress: impl Fn(&str)) -> anyhow::Result<Report> {
    anyhow::ensure!(
        options.threads > 0
            && options.tokens > 0
            && !options.concurrency.contains(&0)
            && !options.streams.contains(&0),
        "--concurrency, --streams, --threads and --tokens are at least 1"
    );
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let servers = runtime.block_on(Servers::look(options))?;
    let (mut rows, mut stages, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    if matches!(options.scenario, Scenario::Hop | Scenario::All) {
        progress("hop: one request at a time");
        rows.extend(runtime.block_on(hop::measure(options, &servers))?);
        if !options.metrics.is_empty() {
            progress("hop: its stages");
            stages = runtime.block_on(stages::measure(options, &servers, &mut rows))?;
        }
    }
    if matches!(options.scenario, Scenario::Throughput | Scenario::All) {
        let code = runtime.block_on(servers.code_completions(options))?;
        rows.extend(throughput::measure(options, &servers, code.as_ref(), &progress)?);
    }
    let mut prompts = Vec::new();
    if options.scenario == Scenario::Prompts {
        prompts = prompts::measure(options, &servers, &runtime, &progress)?;
    }
    let mut scale = Vec::new();
    if options.scenario == Scenario::Workers {
        scale = scale::workers(options, &servers, &runtime, &progress)?;
    }
    if options.scenario == Scenario::Models {
        scale = scale::models(options, &servers, &runtime, &progress)?;
    }
    let audit = (options.scenario == Scenario::Audit)
        .then(|| audit::measure(options, &servers, &runtime, &progress))
        .transpose()?;
    let audit_log = (options.scenario == Scenario::AuditLog)
        .then(|| audit_log::measure(options, &servers, &runtime, &progress))
        .transpose()?;
    let mut jobs = Vec::new();
    if options.scenario == Scenario::Jobs {
        jobs = jobs::measure(options, &servers, &runtime, &progress)?;
    }
    let mut soak = None;
    if options.scenario == Scenario::Soak {
        let code = runtime.block_on(servers.code_completions(options))?;
        soak = Some(soak::measure(options, &servers, code, &runtime, &progress)?);
    }
    if options.scenario == Scenario::Streams {
        streams = streams::measure(options, &servers, &runtime, &progress)?;
    }
    Ok(Report {
        at: Report::now(),
        machine: Machine::here(),
        seconds: options.seconds,
        threads: options.threads,
        tokens: options.tokens,
        model_server: servers.settings,
        rows,
        stages,
        prompts,
        scale,
        audit,
        audit_log,
        jobs,
        soak,
        streams,
    })
}
