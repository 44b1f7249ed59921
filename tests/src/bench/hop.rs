//! What the way through the queue adds to one request when nothing else is under way.
//!
//! All ways take turns in short blocks, so that whatever else the machine does meets each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Options;
use super::check::Shape;
use super::load::{Client, Measured};
use super::report::Row;
use super::target::{Servers, Way};

/// Requests of one kind in a row, of which the first few wake up what slept.
const BLOCK: usize = 40;
const WAKING: usize = 4;
/// A way so slow that its block lasts longer gives its turn away, but not before some of its requests counted.
const LONGEST_BLOCK: Duration = Duration::from_millis(200);
const LEAST_COUNTED: usize = 4;
/// After so many wrong answers there is nothing to be measured.
const TOO_MANY_WRONG: u64 = 20;

/// One kind of request on one way, and what came of it.
struct Lane {
    request: &'static str,
    over: String,
    client: Client,
    measured: Measured,
}

/// Takes turns among unary and stream on every way until the time is over.
pub(super) async fn measure(options: &Options, servers: &Servers) -> anyhow::Result<Vec<Row>> {
    let mut lanes = Vec::new();
    for (request, shape) in [("unary", Shape::Chat), ("stream", Shape::ChatStream)] {
        for Way { over, target } in servers.ways(options, shape, options.tokens)? {
            lanes.push(Lane {
                request,
                over,
                client: Client::new(Arc::new(target), 0),
                measured: Measured::default(),
            });
        }
    }
    let warm = Instant::now() + Duration::from_secs(options.warm_up);
    // Each kind gets as long as in the other scenarios.
    let end = warm + Duration::from_secs(options.seconds) * u32::try_from(lanes.len())?;
    while Instant::now() < end && lanes.iter().all(|lane| lane.measured.wrong < TOO_MANY_WRONG) {
        for lane in &mut lanes {
            lane.block(Instant::now() >= warm).await;
        }
    }
    let row = |lane: Lane| Row::new(("hop", lane.request, &lane.over), 1, lane.measured, |_| false);
    Ok(lanes.into_iter().map(row).collect())
}

impl Lane {
    async fn block(&mut self, counts: bool) {
        let began = Instant::now();
        for number in 0..BLOCK {
            if number >= WAKING + LEAST_COUNTED && began.elapsed() > LONGEST_BLOCK {
                break;
            }
            match self.client.ask(Instant::now()).await {
                Ok(sample) if counts && number >= WAKING => self.measured.samples.push(sample),
                Ok(_) => {}
                Err(problem) => self.measured.tell(problem),
            }
        }
    }
}
