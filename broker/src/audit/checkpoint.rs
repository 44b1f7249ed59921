//! Extends the hash tree by new records and signs what it has become.
//!
//! Every broker runs one; whoever has the database's lock works, in one transaction for tiles and checkpoint, so that
//! neither stands without the other. Nothing is signed that contradicts an earlier checkpoint, be it in the table or in
//! the broker's own file: then signing stops, [`CheckpointMetrics`] and a log line say so, and it goes on by itself once
//! the contradiction is gone (`docs/audit.md` says what an operator does).

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use duo_process::clock;
use duo_process::metrics::register;
use duo_process::shutdown::Shutdown;
use prometheus::{Gauge, IntCounter, IntGauge, Registry};
use time::OffsetDateTime;
use tokio::time::MissedTickBehavior;

use super::note::{Checkpoint, SigningKeys};
use super::tree::{Hash, TILE, Tree};
use crate::store::audit_tree::Turn;
use crate::store::{Store, StoreError};

/// How often it is looked whether a checkpoint is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// New records are signed within this time.
const SIGN_WITHIN: Duration = Duration::from_secs(10);
/// So many new records are signed at once.
const SIGN_AT: u64 = 1000;
/// A log without new records is signed again after this time, which proves that there were none.
const SIGN_IDLE: Duration = Duration::from_secs(3600);
/// How long a broker that did not sign last leaves the next turn to the one that did.
const STAND_BACK: Duration = Duration::from_secs(3);
/// Records of one turn at most; what is left is signed in the next one, at once.
const TURN: u64 = 131_072;

/// What a checkpointer works with.
#[derive(Debug)]
pub struct Parts {
    /// Where records, tiles and checkpoints are.
    pub store: Store,
    /// What signs.
    pub keys: SigningKeys,
    /// Where checkpoints are kept outside of the database.
    pub file: Option<PathBuf>,
}

/// What the checkpointer tells of itself.
#[derive(Debug, Clone)]
pub struct CheckpointMetrics {
    /// `duo_audit_tree_size`: records under the last checkpoint, whoever signed it.
    size: IntGauge,
    /// `duo_audit_checkpoint_age_seconds`: how old that one is.
    age: Gauge,
    /// `duo_audit_unsigned_records`: records under no checkpoint yet.
    unsigned: IntGauge,
    /// `duo_audit_checkpoints_total`: checkpoints that this broker signed.
    signed: IntCounter,
    /// `duo_audit_signing_stopped`: 1 while this broker refuses to sign over a contradiction.
    stopped: IntGauge,
}

impl CheckpointMetrics {
    /// Declares and registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let named = "a valid metric name";
        let gauge = |name, help| register(registry, IntGauge::new(name, help).expect(named));
        Self {
            size: gauge(
                "duo_audit_tree_size",
                "Audit records under the last signed checkpoint.",
            ),
            age: register(
                registry,
                Gauge::new(
                    "duo_audit_checkpoint_age_seconds",
                    "Age of the last signed checkpoint of the audit log.",
                )
                .expect(named),
            ),
            unsigned: gauge(
                "duo_audit_unsigned_records",
                "Audit records that are under no signed checkpoint yet.",
            ),
            signed: register(
                registry,
                IntCounter::new(
                    "duo_audit_checkpoints_total",
                    "Checkpoints of the audit log that this broker has signed.",
                )
                .expect(named),
            ),
            stopped: gauge(
                "duo_audit_signing_stopped",
                "1 while nothing is signed since the audit log contradicts an earlier checkpoint.",
            ),
        }
    }
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file of checkpoints.
    #[error("the file of checkpoints cannot be used")]
    File(#[source] std::io::Error),
    /// What is there contradicts what was signed.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
}

/// What is there contradicts what was signed, so that nothing may be signed over it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Fewer records than were signed: an older database, or a tail cut off.
    #[error("a checkpoint in {place} has {signed} records, the database only {there}: is it an older one?")]
    Shrunk {
        /// Where the checkpoint is.
        place: &'static str,
        /// Its records.
        signed: u64,
        /// Those of the database.
        there: u64,
    },
    /// Another history than was signed.
    #[error("the first {size} records do not give the root of their checkpoint in {place}")]
    Root {
        /// Where the checkpoint is.
        place: &'static str,
        /// Its records.
        size: u64,
    },
    /// A number without a record.
    #[error("there is no audit record {seq}, or there are two")]
    Record {
        /// The number.
        seq: u64,
    },
    /// A checkpoint that none of our keys has signed.
    #[error("the last checkpoint in the file is of no key in DUO_AUDIT_KEY_FILE")]
    Stranger,
}

/// Signs until the shutdown begins.
pub async fn run(parts: Parts, metrics: CheckpointMetrics, shutdown: Shutdown) {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut checkpointer = Checkpointer::new(parts, metrics);
    let mut failing = false;
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            _ = tick.tick() => {}
        }
        // A turn is never cut: its transaction is short.
        match checkpointer.turn(clock::now()).await {
            Ok(_) => failing = false,
            Err(error) if !failing => {
                failing = true;
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "no checkpoint of the audit log is signed");
            }
            Err(_) => {}
        }
    }
}

/// The state of a checkpointer between its turns.
#[derive(Debug)]
pub struct Checkpointer {
    parts: Parts,
    metrics: CheckpointMetrics,
    /// The tree under the last checkpoint, when this broker signed it.
    tree: Option<Tree>,
    /// The file's last checkpoint, once it has been found to be of this log.
    proved: Option<(u64, Hash)>,
}

impl Checkpointer {
    /// One that has done nothing yet.
    #[must_use]
    pub fn new(parts: Parts, metrics: CheckpointMetrics) -> Self {
        Self {
            parts,
            metrics,
            tree: None,
            proved: None,
        }
    }

    /// Signs what is due at `now`, and returns the checkpoint if something was.
    ///
    /// # Errors
    /// Nothing was signed; the next turn begins anew.
    pub async fn turn(&mut self, now: OffsetDateTime) -> Result<Option<Checkpoint>, CheckpointError> {
        let Some(turn) = self.parts.store.begin_audit_turn().await? else {
            // Another broker works just now; whether this one may sign is found out in its own turn.
            return Ok(None);
        };
        let ended = self.attempt(turn, now).await;
        if ended.is_err() {
            self.tree = None;
            self.proved = None;
        }
        match &ended {
            Err(CheckpointError::Contradiction(_)) => self.metrics.stopped.set(1),
            Err(_) => {}
            Ok(_) => self.metrics.stopped.set(0),
        }
        ended
    }

    async fn attempt(
        &mut self,
        mut turn: Turn,
        now: OffsetDateTime,
    ) -> Result<Option<Checkpoint>, CheckpointError> {
        let last = turn.last_checkpoint().await?;
        let size = turn.size().await?;
        self.tell(last.as_ref(), size, now);
        let signed = last.as_ref().map_or(0, |last| last.size);
        if size < signed {
            let place = "the table";
            return Err(Contradiction::Shrunk {
                place,
                signed,
                there: size,
            }
            .into());
        }
        let filed = self.filed(size)?;
        if !self.is_due(last.as_ref(), size, now) {
            turn.leave().await?;
            return Ok(None);
        }
        let mut tree = self.tree_of(last.as_ref(), &mut turn).await?;
        if let Some(filed) = &filed
            && self.proved != Some((filed.size, filed.root))
        {
            prove(filed, &tree, &mut turn).await?;
        }
        let mut tiles = Vec::new();
        extend(&mut tree, size.min(signed + TURN), &mut tiles, &mut turn).await?;
        turn.insert_tiles(&tiles).await?;
        let checkpoint = self.parts.keys.sign(tree.size(), &tree.root(), now);
        turn.insert_checkpoint(&checkpoint).await?;
        turn.commit().await?;
        self.tree = Some(tree);
        self.metrics.signed.inc();
        self.tell(Some(&checkpoint), size, now);
        if let Some(file) = &self.parts.file {
            append(file, &checkpoint).map_err(CheckpointError::File)?;
            self.proved = Some((checkpoint.size, checkpoint.root));
        }
        Ok(Some(checkpoint))
    }

    fn tell(&self, last: Option<&Checkpoint>, size: u64, now: OffsetDateTime) {
        let signed = last.map_or(0, |last| last.size);
        self.metrics.size.set(signed.cast_signed());
        self.metrics
            .unsigned
            .set(size.saturating_sub(signed).cast_signed());
        if let Some(at) = last.and_then(|last| last.at) {
            self.metrics.age.set((now - at).as_seconds_f64().max(0.0));
        }
    }

    fn is_due(&self, last: Option<&Checkpoint>, size: u64, now: OffsetDateTime) -> bool {
        let Some(last) = last else { return size > 0 };
        let ours = self.tree.as_ref().is_some_and(|tree| tree.size() == last.size);
        let patience = if ours { Duration::ZERO } else { STAND_BACK };
        let age = last
            .at
            .map_or(SIGN_IDLE, |at| (now - at).try_into().unwrap_or_default());
        let new = size - last.size;
        let within = match new {
            0 => SIGN_IDLE,
            _ if new >= SIGN_AT => Duration::ZERO,
            _ => SIGN_WITHIN,
        };
        age >= within + patience
    }

    /// The tree under the last checkpoint, found to be what was signed.
    async fn tree_of(&self, last: Option<&Checkpoint>, turn: &mut Turn) -> Result<Tree, CheckpointError> {
        let Some(last) = last else {
            return Ok(Tree::default());
        };
        let ours = self.tree.as_ref().filter(|tree| tree.size() == last.size);
        let tree = match ours {
            Some(tree) => tree.clone(),
            None => turn.tree(last.size).await?,
        };
        if tree.root() == last.root {
            return Ok(tree);
        }
        let (place, size) = ("the table", last.size);
        Err(Contradiction::Root { place, size }.into())
    }

    /// The file's last checkpoint, if there is a file with one.
    fn filed(&self, size: u64) -> Result<Option<Checkpoint>, CheckpointError> {
        let Some(file) = &self.parts.file else {
            return Ok(None);
        };
        let Some(last) = last_of(file).map_err(CheckpointError::File)? else {
            return Ok(None);
        };
        if !self.parts.keys.verifying().prove(&last) {
            return Err(Contradiction::Stranger.into());
        }
        if last.size > size {
            let place = "the file";
            let (signed, there) = (last.size, size);
            return Err(Contradiction::Shrunk { place, signed, there }.into());
        }
        Ok(Some(last))
    }
}

/// Finds whether a checkpoint is of the log that `tree` is of.
async fn prove(filed: &Checkpoint, tree: &Tree, turn: &mut Turn) -> Result<(), CheckpointError> {
    let then = if filed.size < tree.size() {
        turn.tree(filed.size).await?
    } else {
        let mut then = tree.clone();
        extend(&mut then, filed.size, &mut Vec::new(), turn).await?;
        then
    };
    if then.root() == filed.root {
        return Ok(());
    }
    let (place, size) = ("the file", filed.size);
    Err(Contradiction::Root { place, size }.into())
}

/// Writes the tiles of a log that nobody signs, so that records can leave it and the tree still be made: whoever begins to
/// sign later signs them too. A log that is signed has its tiles by signing.
///
/// # Errors
/// The database cannot be read or written, or a record is missing.
pub async fn keep_tiles(store: &Store) -> Result<(), CheckpointError> {
    loop {
        let Some(mut turn) = store.begin_audit_turn().await? else {
            return Ok(());
        };
        let first = turn.tiles_end().await?;
        let last = (turn.size().await? / TILE * TILE).min(first + TURN);
        if turn.last_checkpoint().await?.is_some() || first >= last {
            turn.leave().await?;
            return Ok(());
        }
        let mut tree = turn.tree(first).await?;
        let mut tiles = Vec::new();
        extend(&mut tree, last, &mut tiles, &mut turn).await?;
        turn.insert_tiles(&tiles).await?;
        turn.commit().await?;
    }
}

/// Adds the records up to `size` to the tree.
async fn extend(
    tree: &mut Tree,
    size: u64,
    tiles: &mut Vec<super::tree::Tile>,
    turn: &mut Turn,
) -> Result<(), CheckpointError> {
    while tree.size() < size {
        let first = tree.size();
        let leaves = turn.leaves(first..size.min(first + TURN)).await?;
        if let Some(seq) = leaves.twice.first() {
            return Err(Contradiction::Record { seq: *seq }.into());
        }
        for (seq, leaf) in (first..).zip(leaves.hashes) {
            tree.append(leaf.ok_or(Contradiction::Record { seq })?, tiles);
        }
    }
    Ok(())
}

/// Bytes at the end of a file of checkpoints in which a whole one is.
const LAST: u64 = 16 * 1024;

/// The last whole checkpoint of a file; `None` where there is no such file, or nothing in it.
fn last_of(file: &Path) -> std::io::Result<Option<Checkpoint>> {
    let mut file = match std::fs::File::open(file) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (mut read, _) = Checkpoint::read_file(&String::from_utf8_lossy(&bytes));
    Ok(read.pop())
}

/// Appends a checkpoint to the file, on disk before this returns.
fn append(file: &Path, checkpoint: &Checkpoint) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(file)?;
    // A crash may have left half of one: two line feeds end it.
    let length = file.metadata()?.len();
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(length.saturating_sub(2)))?;
    file.read_to_end(&mut end)?;
    let torn = length > 0 && end != b"\n\n";
    let entry = checkpoint.file_entry();
    file.write_all(if torn { format!("\n\n{entry}") } else { entry }.as_bytes())?;
    file.sync_data()
}
