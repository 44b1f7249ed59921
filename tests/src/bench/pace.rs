//! Requests by the clock: each at its own due moment, whatever became of those before it on its connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::load::{Client, Measured, Target};

/// So many connections of each kind, `rate` requests a second of all together, until the time is over; one result for each
/// kind.
pub async fn paced(
    kinds: impl IntoIterator<Item = Arc<Target>>,
    connections: usize,
    rate: f64,
    began: Instant,
    whole: Duration,
) -> Vec<Measured> {
    let kinds: Vec<_> = kinds.into_iter().collect();
    let (count, all_connections) = (kinds.len(), kinds.len() * connections);
    let period = Duration::from_secs_f64(all_connections as f64 / rate);
    let mut running = JoinSet::new();
    for (kind, target) in kinds.into_iter().enumerate() {
        for number in 0..connections {
            let client = Client::new(Arc::clone(&target), number);
            // Evenly spread, so that no two are due at once.
            let first = began + period.mul_f64((number * count + kind) as f64 / all_connections as f64);
            running.spawn(async move { (kind, one(client, first, period, began + whole).await) });
        }
    }
    let mut all = vec![Measured::default(); count];
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok((kind, measured)) => all[kind].add(measured),
            Err(error) => all[0].tell(error.to_string()),
        }
    }
    all
}

async fn one(mut client: Client, first: Instant, period: Duration, until: Instant) -> Measured {
    let mut measured = Measured::default();
    let mut due = first;
    while due < until {
        tokio::time::sleep_until(due.into()).await;
        match client.ask(due).await {
            Ok(sample) => {
                measured.samples.push(sample);
                measured.ended += 1;
            }
            Err(problem) => measured.tell(problem),
        }
        due += period;
    }
    measured
}
