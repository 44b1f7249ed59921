//! `duo-sim`: the simulated model server as a program of its own.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::Context as _;
use clap::Parser;
use duo_system_tests::sim::{Settings, Sim};

/// A simulated OpenAI-compatible model server, deterministic and fast, that can fail in every way real ones do.
///
/// It prints its base URL when it is ready. Every setting below can be changed while it runs:
///
///   curl -X PATCH http://127.0.0.1:18080/control -H 'content-type: application/json' -d '{"ttft_ms": 200}'
///
/// Look and steer: GET /control (settings), GET /control/stats (counters), GET /control/last (body of the last
/// request), GET /control/running (followed requests under way), POST /control/kill (die at once), POST
/// /control/drain (refuse new requests), POST /control/unhealthy {"on": true}.
#[derive(Parser)]
#[command(name = "duo-sim", version, verbatim_doc_comment)]
struct Options {
    /// Address to listen on; port 0 picks a free one
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:18080",
        env = "DUO_SIM_LISTEN"
    )]
    listen: SocketAddr,
    /// File to write the base URL to once ready
    #[arg(long, value_name = "PATH")]
    url_file: Option<PathBuf>,
    /// Worker threads; one per core if not given
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    settings: Settings,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let threads = options
        .threads
        .unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    let sim = Sim::start_on(options.listen, threads, options.settings)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    if let Some(path) = &options.url_file {
        announce(path, &sim.url()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    writeln!(std::io::stdout(), "{}", sim.url()).context("cannot print the base URL")?;
    sim.stopped().await;
    Ok(())
}

/// Writes the URL aside and moves it into place, so that whoever waits for the file never reads half of it.
fn announce(path: &Path, url: &str) -> std::io::Result<()> {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, url)?;
    std::fs::rename(draft, path)
}
