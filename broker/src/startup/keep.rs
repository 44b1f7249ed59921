//! Keeps streams, buckets and consumers there: a server that lost its store,
//! or a person who deleted one of them, costs seconds and no restart.

use std::sync::Arc;
use std::time::Duration;

use duo_process::nats::Nats;
use duo_process::shutdown::Shutdown;
use tokio::sync::Notify;

use crate::config::QueueConfig;
use crate::routing::Routing;
use crate::topology;

/// How often everything is looked at although nothing seems wrong.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Pause after a look that failed, and least pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// Looks at each new connection, when `missing` is told of something, and
/// every now and then, until the drain begins.
pub(super) async fn topology(
    nats: Nats,
    queue: QueueConfig,
    routing: Routing,
    missing: Arc<Notify>,
    shutdown: Shutdown,
) {
    let mut connections = nats.connections();
    connections.mark_unchanged();
    let mut next = LOOK_EVERY;
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            changed = connections.changed() => if changed.is_err() { return },
            () = missing.notified() => {}
            () = tokio::time::sleep(next) => {}
        }
        if !connections.borrow_and_update().up {
            continue;
        }
        let models: Vec<_> = routing.load().models().map(|model| model.name.clone()).collect();
        next = match topology::mend(&nats, &queue, &models).await {
            Ok(()) => LOOK_EVERY,
            Err(error) => {
                tracing::warn!(%error, "the queue is not as it has to be; trying again");
                PAUSE
            }
        };
        tokio::time::sleep(PAUSE).await;
    }
}
