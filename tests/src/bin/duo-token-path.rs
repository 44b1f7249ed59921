//! `duo-token-path`: what the last leg of a token costs, from worker to broker, on two ways.

use clap::Parser as _;
use duo_system_tests::token_path::{Options, run};

fn main() -> anyhow::Result<()> {
    run(&Options::parse())
}
