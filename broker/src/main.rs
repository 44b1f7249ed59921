//! The broker's program: parses the command line and hands over to `cli`.

mod cli;

use std::process::ExitCode;

/// A sixth of the time was the C library's allocator, whose threads share arenas.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
