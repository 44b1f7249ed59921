//! What the last leg of a token costs, from worker to broker: as frames over NATS, as it is, and over a connection that
//! the worker opens to the broker. `docs/adr/0008` is what came of it.
//!
//! Processes as in an installation: some that make frames as a worker does, one that reads them as a broker does, and
//! nats-server. The frames are the product's; model server, client and what lies between them and the frames
//! are left out, so that what is left is the leg.

mod broker;
mod measure;
mod wire;
mod worker;

use std::time::Duration;

use clap::{Parser, ValueEnum};

/// The subject token of the broker.
const BROKER: &str = "b";
/// What the subjects of single frames begin with; the request's id follows.
const SINGLE: &str = "frames";
/// Frames that travel in one message or in one write at most, as in the product.
const BATCH: usize = 256;
/// Frames that wait for a connection, and messages that wait in a subscription, as in the product.
const WAITING: usize = 16_384;

/// Measures the last leg of the token path on each way in turn.
///
/// Processes on this machine make frames as workers do, one reads them as a broker does, and nats-server is between
/// them where it has a part. It takes about two minutes a round:
///
///   duo-token-path --nats-server .tools/nats-server-2.15.1
#[derive(Debug, Parser)]
#[command(name = "duo-token-path", version, verbatim_doc_comment)]
pub struct Options {
    /// Streams at once, each with a token every 50 ms; one number after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "500,2000")]
    streams: Vec<usize>,
    /// Answers at once that come in one frame of 16 chunks, the next when the last is confirmed; 0 for none
    #[arg(long, value_name = "N", default_value_t = 32)]
    burst: usize,
    /// Workers that share streams and answers
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,
    /// How long each of the measurements takes
    #[arg(long, value_name = "S", default_value_t = 8)]
    seconds: u64,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// The nats-server program
    #[arg(long, value_name = "PROGRAM", default_value = "nats-server")]
    nats_server: String,
    /// Which of the processes this is
    #[arg(long, hide = true)]
    part: Option<Part>,
    /// Which way it uses
    #[arg(long, hide = true, default_value = "nothing")]
    over: Over,
    /// The broker's or nats-server's address
    #[arg(long, hide = true, default_value = "")]
    at: String,
}

/// A way from worker to broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    /// Frames are made and thrown away: what making them takes.
    Nothing,
    /// Core NATS, a message for each frame.
    Nats,
    /// Core NATS, frames that are ready together in one message, as in the product.
    Bundles,
    /// One TCP connection for each worker, kept, that carries the frames of all requests.
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Worker,
    Broker,
}

/// Measures everything, or is one of the processes that do.
///
/// # Errors
/// A process could not be started, or failed.
pub fn run(options: &Options) -> anyhow::Result<()> {
    // As both programs are started.
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match options.part {
        None => measure::all(options),
        Some(Part::Broker) => runtime()?.block_on(broker::run(options.over, &options.at)),
        Some(Part::Worker) => runtime()?.block_on(worker::run(options)),
    }
}

async fn connect(at: &str) -> anyhow::Result<async_nats::Client> {
    let options = async_nats::ConnectOptions::new()
        .ping_interval(Duration::from_secs(1))
        .subscription_capacity(WAITING)
        .client_capacity(WAITING);
    Ok(options.connect(format!("nats://{at}")).await?)
}

#[expect(clippy::print_stdout, reason = "the program's output")]
fn say(line: &str) {
    println!("{line}");
}
