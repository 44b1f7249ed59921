//! Bounded waiting for something outside of this process.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

/// Longest that anything in a system test may take. The longest answer of `llama-server` takes half of it on
/// two shared cores (24 s for 7 500 tokens, asked directly).
pub const PATIENCE: Duration = Duration::from_secs(50);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(15);

/// Looks again and again until `look` finds what it wants, for at most `max`.
///
/// # Panics
/// It did not in time; the message holds what the last look saw.
pub async fn until<T>(what: &str, max: Duration, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match look().await {
            Ok(found) => return found,
            Err(seen) if began.elapsed() >= max => {
                panic!("{what}: not within {max:?}; the last look saw: {seen}")
            }
            Err(_) => {}
        }
    }
}

/// Bounds a future by [`PATIENCE`].
///
/// # Panics
/// It took longer.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}
