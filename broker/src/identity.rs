//! Who may call, kept in memory from the identity bucket.

use std::sync::Arc;

use arc_swap::ArcSwap;
use duo_contract::snapshot::IdentitySnapshot;
use tokio::sync::watch;

/// The identity snapshot of the moment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Identities {
    current: Arc<ArcSwap<IdentitySnapshot>>,
    changed: watch::Receiver<u64>,
}

/// The side that stores a new snapshot.
#[derive(Debug)]
pub struct IdentitySink {
    current: Arc<ArcSwap<IdentitySnapshot>>,
    changed: watch::Sender<u64>,
}

/// An empty snapshot and the sink that fills it.
#[must_use]
pub fn identities() -> (IdentitySink, Identities) {
    let current = Arc::new(ArcSwap::from_pointee(IdentitySnapshot::default()));
    let (sender, changed) = watch::channel(0);
    (
        IdentitySink {
            current: Arc::clone(&current),
            changed: sender,
        },
        Identities { current, changed },
    )
}

impl IdentitySink {
    /// Replaces the snapshot and wakes whoever watches it.
    pub fn store(&self, snapshot: IdentitySnapshot) {
        let revision = snapshot.revision;
        self.current.store(Arc::new(snapshot));
        self.changed.send_replace(revision);
    }
}

impl Identities {
    /// The snapshot of the moment.
    #[must_use]
    pub fn load(&self) -> arc_swap::Guard<Arc<IdentitySnapshot>> {
        self.current.load()
    }

    /// Tells each new revision.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }
}
