//! How much each way carries when many ask at once, and what an answer costs.

use std::time::Duration;

use super::check::Shape;
use super::cpu::Process;
use super::load::{Load, Target, run};
use super::report::Row;
use super::target::{Servers, Way};
use super::{GENERATOR, MODEL, Options};

/// One window for each kind of request, way and concurrency.
pub(super) fn measure(
    options: &Options,
    servers: &Servers,
    code: Option<&Target>,
    progress: &impl Fn(&str),
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for concurrency in &options.concurrency {
        for (request, shape) in [("unary", Shape::Chat), ("stream", Shape::ChatStream)] {
            for Way { over, target } in servers.ways(options, shape, options.tokens)? {
                progress(&format!("throughput: {request}, {over}, {concurrency} at a time"));
                rows.push(window(
                    options,
                    ("throughput", request, &over),
                    &target,
                    *concurrency,
                )?);
            }
        }
        if let Some(target) = code {
            progress(&format!(
                "throughput: code completion, broker, {concurrency} at a time"
            ));
            rows.push(window(
                options,
                ("throughput", "code completion", "broker"),
                target,
                *concurrency,
            )?);
        }
    }
    Ok(rows)
}

/// One window on one way; its name is that of its scenario and kind of request.
pub(super) fn window(
    options: &Options,
    (scenario, request, over): (&'static str, &'static str, &str),
    target: &Target,
    concurrency: usize,
) -> anyhow::Result<Row> {
    let load = Load {
        concurrency,
        threads: options.threads.min(concurrency),
        warm_up: Duration::from_secs(options.warm_up),
        window: Duration::from_secs(options.seconds),
    };
    let processes = taking_part(options, over);
    let measured = run(target, load, &processes)?;
    let system = |name: &str| serves(options, over, name);
    Ok(Row::new((scenario, request, over), concurrency, measured, system))
}

/// The processes whose CPU time and memory matter on this way: the system, the model server, this generator.
pub(super) fn taking_part(options: &Options, over: &str) -> Vec<Process> {
    let others = options
        .pids
        .iter()
        .filter(|process| process.name == MODEL || serves(options, over, &process.name));
    let generator = Process {
        name: GENERATOR.to_owned(),
        pid: std::process::id(),
    };
    others.cloned().chain([generator]).collect()
}

/// Whether this process is part of the system that stands between client and model server on this way.
pub(super) fn serves(options: &Options, over: &str, process: &str) -> bool {
    match over {
        "direct" => false,
        "broker" => {
            process != GENERATOR && process != MODEL && !options.peers.iter().any(|peer| peer.name == process)
        }
        peer => process == peer,
    }
}
