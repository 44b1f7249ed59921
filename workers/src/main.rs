//! `duo-worker`: the start-up checklist.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use duo_process::config::{CONFIG_EXIT_CODE, Effective, Env};
use duo_process::shutdown::Shutdown;
use duo_process::{runtime, telemetry};
use duo_workers::config::Config;
use duo_workers::{check, startup};
use tokio::net::TcpListener;

/// A sixth of the time was the C library's allocator, whose threads share arenas.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves GitLab Duo requests from the queue with the model servers beside it.
///
/// A worker pulls from NATS only what its model servers have room for, calls
/// them, and streams the answers back to the brokers. Start one per GPU node;
/// it needs no database and no port that others can reach.
#[derive(Parser)]
#[command(name = "duo-worker", version, after_help = SETTINGS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pull and serve until SIGTERM, then finish what runs and leave.
    Run(Run),
    /// Say in words what is wrong with this installation; exit 0 if nothing is.
    Check(Check),
}

#[derive(Args)]
struct Run {
    /// Print the effective settings, secrets redacted, and exit.
    #[arg(long)]
    check_config: bool,
}

#[derive(Args)]
struct Check {
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

const SETTINGS: &str = "\
Settings (environment):
  DUO_NATS_URL                nats://HOST:4222, several with commas (required)
  DUO_NATS_CREDENTIALS_FILE   credentials file of the worker's account
  DUO_NATS_CA_FILE            private certificate authority of NATS
  DUO_SEAL_KEYS_FILE          keys of request bodies, the brokers' own file (required)
  DUO_WORKER_FILE             the model servers beside this worker, YAML (required)
  DUO_WORKER_NAME             unique name [default: the host's and four digits]
  DUO_ADMIN_LISTEN            /metrics, /livez, /readyz [default: 127.0.0.1:9091]
  DUO_MODEL_CA_FILE           private certificate authority of model servers
  DUO_MODEL_IDLE_TIMEOUT      longest silence inside an answer [default: 30s]
  DUO_MODEL_FIRST_TIMEOUT     longest wait for an answer's first data
  DUO_DRAIN_GRACE             time for running requests after SIGTERM [default: 25s]
  DUO_LOG, DUO_LOG_FORMAT     filter [default: info]; human or json [default: human]

The worker file:
  servers:
    - name: local
      url: http://127.0.0.1:8000/v1
      slots: 8                  # requests the server takes at once, or auto: as many as
                                # its own queue metrics allow (vLLM, SGLang), between
                                # slots_min [default: 4] and slots_max [default: 256]
      kind: vllm                # vllm (default), llama or openai
      api_key_env: VLLM_KEY     # or api_key_file: PATH
      models:
        - model: mistral        # the name configured in the broker
          served_as: Mistral-7B # the name sent to the server [default: model]
          tools: false          # true where the server turns the model's tool calls into
                                # data (vLLM: --enable-auto-tool-choice and a parser)
";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (config, effective) = match Config::read(Env::from_process()) {
        Ok(read) => read,
        Err(error) => {
            say_error(&error.to_string());
            return ExitCode::from(CONFIG_EXIT_CODE);
        }
    };
    if let Command::Run(Run { check_config: true }) = cli.command {
        return print_effective(&effective);
    }
    if let Err(error) = telemetry::init(&config.log, config.log_format) {
        say_error(&error.to_string());
        return ExitCode::from(CONFIG_EXIT_CODE);
    }
    // Fails only when a provider is already installed, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match runtime::build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say_error(&format!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match cli.command {
        Command::Run(_) => match runtime.block_on(run(config)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the worker ended");
                ExitCode::FAILURE
            }
        },
        Command::Check(Check { json }) => runtime.block_on(report(config, json)),
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.listen_to_signals();
    let admin = TcpListener::bind(config.admin_listen)
        .await
        .with_context(|| format!("cannot listen on DUO_ADMIN_LISTEN={}", config.admin_listen))?;
    let grace = config.drain_grace;
    let worker = startup::build(config).await?;
    duo_workers::run(worker, admin, grace, shutdown).await
}

#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
async fn report(config: Config, json: bool) -> ExitCode {
    let findings = check::check(config).await;
    if json {
        println!(
            "{}",
            serde_json::to_string(&findings).expect("findings are plain data")
        );
    } else {
        for finding in &findings {
            println!(
                "{} {}: {}",
                if finding.ok { "ok   " } else { "WRONG" },
                finding.subject,
                finding.text
            );
        }
    }
    if findings.iter().all(|finding| finding.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[expect(clippy::print_stdout, reason = "the settings are what the command is for")]
fn print_effective(effective: &Effective) -> ExitCode {
    print!("{effective}");
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "the log is not there yet")]
fn say_error(text: &str) {
    eprintln!("{text}");
}
