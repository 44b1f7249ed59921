//! Recomputes the audit log's hash tree and finds what was altered, left out or put in.
//!
//! Three things have to agree: records with tiles, tiles with the roots of checkpoints, checkpoints with their
//! signatures, and the table of checkpoints with a file of them that is kept elsewhere. Where a record and its tile
//! differ, the next checkpoint says which of them is the false one.

pub mod export;
mod offline;
mod report;

use std::collections::{HashMap, VecDeque};
use std::iter::Peekable;
use std::ops::Range;
use std::pin::pin;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::note::{Checkpoint, VerifyingKeys};
use super::tree::{Hash, TILE, Tile, Tree, full_tiles};
use crate::store::audit_retention::DroppedRecords;
use crate::store::audit_tree::Leaves;
use crate::store::{Store, StoreError};

pub use self::offline::verify_export;
pub use self::report::{Place, Problem, Report};

/// Records that are read at once; whole tiles.
const BATCH: u64 = 65_536;
/// Such batches that are read at the same time: PostgreSQL has most of the work.
const AHEAD: usize = 2;
/// Checkpoints that are read at once.
const PAGE: u32 = 4096;

/// What to verify, and by what.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// From this record on; what is before counts as its tiles say.
    pub from: u64,
    /// Before this one, and on to the next checkpoint; all that there are if absent.
    pub to: Option<u64>,
    /// What proves signatures; without it they are not looked at.
    pub keys: Option<VerifyingKeys>,
    /// Checkpoints that were kept elsewhere.
    pub file: Vec<Checkpoint>,
    /// An export of some records only, between which others lie.
    pub is_selection: bool,
}

/// Verifies the log in the database; `progress` is told how many records of how many are done.
///
/// # Errors
/// The database cannot be read, or has no tiles for what is before `from`.
pub async fn verify(
    store: &Store,
    options: Options,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, StoreError> {
    loop {
        let dropped = store.dropped_records().await?.unwrap_or_default();
        let report = once(store, &options, &dropped, &mut progress).await?;
        // What was dropped while this was reading would be taken for lost.
        if report.is_good() || store.dropped_records().await?.unwrap_or_default() == dropped {
            return Ok(report);
        }
    }
}

async fn once(
    store: &Store,
    options: &Options,
    dropped: &DroppedRecords,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, StoreError> {
    // Others write and sign meanwhile: what is read first is under what is read later.
    let newest = store.newest_checkpoint_id().await?;
    let covered = store.last_checkpoint_size().await?;
    let size = store.audit_size().await?;
    let there = store.audit_records_end().await?.min(size);
    let start = options.from.min(there) / TILE * TILE;
    let mut checkpoints = Checkpoints::new(store, options, (start, newest));
    let end = match options.to {
        Some(to) => checkpoints.end(to, there).await?,
        None => there,
    };
    let tree = store.audit_tree(start).await?;
    let mut walk = Walk {
        dropped,
        report: Report::new(start, end),
        options,
        records: tree.clone(),
        tiles: tree,
        doubts: Vec::new(),
        covered: covered.min(end),
    };
    walk.check(&mut checkpoints).await?;
    let step = usize::try_from(BATCH).unwrap_or(usize::MAX);
    let mut batches = pin!(
        stream::iter((start..end).step_by(step))
            .map(|first| batch(store, first..end.min(first + BATCH)))
            .buffered(AHEAD)
    );
    while let Some((leaves, tiles)) = batches.try_next().await? {
        let first = leaves.first;
        let mut emitted = Vec::new();
        walk.gaps(&leaves);
        for (seq, leaf) in (first..).zip(&leaves.hashes) {
            let tile = tiles.get(&(seq / TILE));
            walk.tile(seq, tile.is_some());
            let kept = tile
                .and_then(|tile| tile.get(usize::try_from(seq % TILE).ok()?))
                .copied();
            walk.step(seq, *leaf, kept, &mut emitted);
            walk.check(&mut checkpoints).await?;
        }
        walk.upper_tiles(store, &emitted).await?;
        progress(walk.tiles.size() - start, end - start);
    }
    let wanted = options.to.unwrap_or(size).min(size);
    if wanted > there {
        let (from, to) = (there, wanted - 1);
        walk.report.add(Problem::Missing { from, to });
    }
    if options.to.is_none() {
        walk.beyond(&mut checkpoints).await?;
        for record in store.unnumbered_records().await? {
            let record = format!("{} {}", record.request_id, record.kind);
            walk.report.add(Problem::Unnumbered { record });
        }
    }
    walk.settle(|seq| Problem::Altered { seq, record: None });
    let mut report = walk.report;
    if report.dropped > 0 {
        report.dropped_by = Some(dropped.said_by);
        // It decides about others, so it is looked at wherever it is.
        if !(start..end).contains(&dropped.said_by) && is_altered(store, dropped.said_by).await? {
            let seq = dropped.said_by;
            report.add(Problem::Altered { seq, record: None });
        }
    }
    report.unsigned = size.saturating_sub(covered);
    for problem in &mut report.problems {
        if let Problem::Altered { seq, record } = problem {
            let name = store.record_name(*seq).await?;
            *record = name.map(|name| format!("{} {}", name.request_id, name.kind));
        }
    }
    Ok(report)
}

/// The leaves of some records, and the tiles over them.
async fn batch(store: &Store, range: Range<u64>) -> Result<(Leaves, HashMap<u64, Vec<Hash>>), StoreError> {
    let numbers = range.start / TILE..range.end.div_ceil(TILE);
    tokio::try_join!(store.audit_leaves(range), store.audit_tiles(0, numbers))
}

/// Whether a record differs from its hash in the tree, as far as that is kept.
async fn is_altered(store: &Store, seq: u64) -> Result<bool, StoreError> {
    let (_, leaf) = store.audit_record_bytes(seq).await?;
    let number = seq / TILE;
    let tiles = store.audit_tiles(0, number..number + 1).await?;
    let kept = tiles
        .get(&number)
        .and_then(|tile| tile.get(usize::try_from(seq % TILE).ok()?));
    Ok(kept.is_some_and(|kept| *kept != leaf))
}

/// What is known while the records go by.
struct Walk<'a> {
    report: Report,
    options: &'a Options,
    /// Records whose tiles stand for them.
    dropped: &'a DroppedRecords,
    /// The tree by the records, and where there is none by its tile.
    records: Tree,
    /// The tree by the tiles, and where there is none by the records.
    tiles: Tree,
    /// Records that differ from their tiles, until a checkpoint decides.
    doubts: Vec<u64>,
    /// Records under the newest checkpoint, as far as they are looked at: these have tiles.
    covered: u64,
}

impl Walk<'_> {
    fn gaps(&mut self, leaves: &Leaves) {
        for seq in &leaves.twice {
            self.report.add(Problem::Twice { seq: *seq });
        }
        for (seq, leaf) in (leaves.first..).zip(&leaves.hashes) {
            match leaf {
                Some(_) => {}
                None if self.dropped.contains(seq) => self.report.dropped += 1,
                None => self.report.missing(seq),
            }
        }
    }

    /// Every record below the last full tile of the newest checkpoint has a tile.
    fn tile(&mut self, seq: u64, is_there: bool) {
        if seq.is_multiple_of(TILE) && !is_there && seq / TILE < full_tiles(self.covered, 0) {
            let (level, number) = (0, seq / TILE);
            self.report.add(Problem::TileMissing { level, number });
        }
    }

    fn step(&mut self, seq: u64, leaf: Option<Hash>, kept: Option<Hash>, emitted: &mut Vec<(Tile, Tile)>) {
        let by_record = leaf.or(kept).unwrap_or_default();
        let by_tile = kept.unwrap_or(by_record);
        self.report.records += u64::from(leaf.is_some());
        if by_record != by_tile {
            self.doubts.push(seq);
        }
        let (mut of_records, mut of_tiles) = (Vec::new(), Vec::new());
        self.records.append(by_record, &mut of_records);
        self.tiles.append(by_tile, &mut of_tiles);
        let above = of_records.into_iter().zip(of_tiles);
        emitted.extend(above.filter(|(tile, _)| tile.level > 0));
    }

    /// Compares kept tiles over tiles with what the records and the tiles below give.
    async fn upper_tiles(&mut self, store: &Store, emitted: &[(Tile, Tile)]) -> Result<(), StoreError> {
        for (of_records, of_tiles) in emitted {
            let (level, number) = (of_tiles.level, of_tiles.number);
            let kept = store.audit_tiles(level, number..number + 1).await?;
            match kept.get(&number) {
                Some(kept) if *kept == of_records.hashes || *kept == of_tiles.hashes => {}
                Some(_) => self.report.add(Problem::TileAltered { level, number }),
                None if number < full_tiles(self.covered, level) => {
                    self.report.add(Problem::TileMissing { level, number });
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Looks at all checkpoints of the size that the tree has now.
    async fn check(&mut self, checkpoints: &mut Checkpoints<'_>) -> Result<(), StoreError> {
        let size = self.tiles.size();
        while let Some((place, checkpoint)) = checkpoints.next_up_to(size).await? {
            let Ok(checkpoint) = checkpoint else {
                self.report.add(Problem::Checkpoint { size, place });
                continue;
            };
            self.signature(place, &checkpoint);
            if checkpoint.size != size {
                // The walk began behind it.
                continue;
            }
            self.report.roots += 1;
            if self.tiles.root() == checkpoint.root {
                if !self.doubts.is_empty() {
                    self.settle(|seq| Problem::Altered { seq, record: None });
                    self.records = self.tiles.clone();
                }
            } else if self.records.root() == checkpoint.root {
                self.settle(|seq| Problem::TileAltered {
                    level: 0,
                    number: seq / TILE,
                });
                self.tiles = self.records.clone();
            } else {
                self.report.add(Problem::Root { size, place });
            }
        }
        for size in checkpoints.unlisted.drain(..) {
            self.report.add(Problem::NotInTable { size });
        }
        Ok(())
    }

    fn signature(&mut self, place: Place, checkpoint: &Checkpoint) {
        self.report.checkpoint(checkpoint);
        if let Some(keys) = &self.options.keys {
            self.report.signatures += 1;
            if !keys.prove(checkpoint) {
                let size = checkpoint.size;
                self.report.add(Problem::Signature { size, place });
            }
        }
    }

    /// Checkpoints of more records than there are.
    async fn beyond(&mut self, checkpoints: &mut Checkpoints<'_>) -> Result<(), StoreError> {
        let there = self.tiles.size();
        while let Some((place, checkpoint)) = checkpoints.next_up_to(u64::MAX).await? {
            let Ok(checkpoint) = checkpoint else { continue };
            self.signature(place, &checkpoint);
            let signed = checkpoint.size;
            self.report.add(Problem::Shrunk { place, signed, there });
        }
        checkpoints.unlisted.clear();
        Ok(())
    }

    fn settle(&mut self, problem: impl Fn(u64) -> Problem) {
        for seq in self.doubts.drain(..) {
            self.report.add(problem(seq));
        }
    }
}

type Found = (Place, Result<Checkpoint, StoreError>);

/// Checkpoints of the table and of the file, by size.
struct Checkpoints<'a> {
    store: &'a Store,
    /// The last one that was read of the table.
    after: (u64, i64),
    /// The id of the newest one to look at.
    newest: i64,
    table: VecDeque<(u64, Result<Checkpoint, StoreError>)>,
    is_read: bool,
    file: Peekable<std::vec::IntoIter<Checkpoint>>,
    /// Those of the table with the size at hand.
    notes: Vec<String>,
    notes_of: u64,
    /// Sizes of checkpoints that the file has and the table has not.
    unlisted: Vec<u64>,
}

impl<'a> Checkpoints<'a> {
    fn new(store: &'a Store, options: &Options, (start, newest): (u64, i64)) -> Self {
        let mut file: Vec<Checkpoint> = options.file.clone();
        file.retain(|checkpoint| checkpoint.size >= start);
        file.sort_by_key(|checkpoint| checkpoint.size);
        Self {
            store,
            after: (start, i64::MIN),
            newest,
            table: VecDeque::new(),
            is_read: false,
            file: file.into_iter().peekable(),
            notes: Vec::new(),
            notes_of: 0,
            unlisted: Vec::new(),
        }
    }

    /// Where a verification that has to reach `to` ends: at the next checkpoint, or with the records.
    async fn end(&self, to: u64, size: u64) -> Result<u64, StoreError> {
        let next = self.store.checkpoints_from((to, i64::MIN), 1).await?;
        Ok(next
            .first()
            .map_or(size, |(_, of, _)| *of)
            .min(size)
            .max(to.min(size)))
    }

    async fn fill(&mut self) -> Result<(), StoreError> {
        if self.table.is_empty() && !self.is_read {
            let page = self.store.checkpoints_from(self.after, PAGE).await?;
            self.is_read = page.len() < PAGE as usize;
            if let Some((id, size, _)) = page.last() {
                self.after = (*size, *id);
            }
            let known = page.into_iter().filter(|(id, _, _)| *id <= self.newest);
            self.table
                .extend(known.map(|(_, size, checkpoint)| (size, checkpoint)));
        }
        Ok(())
    }

    /// The next one of `size` records at most: those of the table first, so that the file's are known to be there.
    async fn next_up_to(&mut self, size: u64) -> Result<Option<Found>, StoreError> {
        self.fill().await?;
        let in_table = self.table.front().map(|(of, _)| *of).filter(|of| *of <= size);
        let in_file = self.file.peek().map(|filed| filed.size).filter(|of| *of <= size);
        if let Some(of) = in_table
            && in_file.is_none_or(|filed| of <= filed)
        {
            let Some((_, checkpoint)) = self.table.pop_front() else {
                return Ok(None);
            };
            if self.notes_of != of {
                self.notes.clear();
                self.notes_of = of;
            }
            if let Ok(checkpoint) = &checkpoint {
                self.notes.push(checkpoint.note.clone());
            }
            return Ok(Some((Place::Table, checkpoint)));
        }
        if in_file.is_none() {
            return Ok(None);
        }
        let Some(filed) = self.file.next() else {
            return Ok(None);
        };
        if self.notes_of != filed.size || !self.notes.contains(&filed.note) {
            self.unlisted.push(filed.size);
        }
        Ok(Some((Place::File, Ok(filed))))
    }
}
