//! What a verification has found.

use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;

use super::super::note::Checkpoint;

/// Problems that a report names one by one.
const NAMED: usize = 100;

/// Where a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The table audit_checkpoints.
    Table,
    /// A file.
    File,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Table => "the table",
            Place::File => "the file",
        })
    }
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// A record differs from its hash in the tree.
    Altered {
        /// Its number.
        seq: u64,
        /// Its id and kind, as far as they can be believed.
        record: Option<String>,
    },
    /// Numbers without a record.
    Missing {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// A number that several records have.
    Twice {
        /// The number.
        seq: u64,
    },
    /// A record without a number, or with one that was never given.
    Unnumbered {
        /// Its id and kind.
        record: String,
    },
    /// A tile is not there.
    TileMissing {
        /// Its level.
        level: u8,
        /// Its number.
        number: u64,
    },
    /// A tile differs from what it is over.
    TileAltered {
        /// Its level.
        level: u8,
        /// Its number.
        number: u64,
    },
    /// The records do not give the root of a checkpoint.
    Root {
        /// Records under it.
        size: u64,
        /// Where it is.
        place: Place,
    },
    /// A checkpoint is of none of the keys.
    Signature {
        /// Records under it.
        size: u64,
        /// Where it is.
        place: Place,
    },
    /// A checkpoint is unreadable, or its columns contradict it.
    Checkpoint {
        /// Records under it, or a little less.
        size: u64,
        /// Where it is.
        place: Place,
    },
    /// The file has a checkpoint that the table has not.
    NotInTable {
        /// Records under it.
        size: u64,
    },
    /// Fewer records than were signed.
    Shrunk {
        /// Where the checkpoint is.
        place: Place,
        /// Records under it.
        signed: u64,
        /// Records that there are.
        there: u64,
    },
    /// A line of an export is no record.
    Line {
        /// Its number in the file, from 1.
        line: u64,
        /// What is wrong.
        why: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Altered { seq, record } => {
                write!(f, "record {seq} was altered")?;
                record.as_ref().map_or(Ok(()), |record| write!(f, " ({record})"))
            }
            Problem::Missing { from, to } if from == to => write!(f, "record {from} is missing"),
            Problem::Missing { from, to } => write!(f, "records {from} to {to} are missing"),
            Problem::Twice { seq } => write!(f, "the number {seq} is on more than one record"),
            Problem::Unnumbered { record } => {
                write!(f, "record {record} has no number, or one that was never given")
            }
            Problem::TileMissing { level, number } => write!(f, "tile {number} of level {level} is missing"),
            Problem::TileAltered { level, number } => write!(f, "tile {number} of level {level} was altered"),
            Problem::Root { size, place } => {
                write!(
                    f,
                    "the first {size} records do not give the root of their checkpoint in {place}"
                )
            }
            Problem::Signature { size, place } => write!(
                f,
                "the checkpoint of {size} records in {place} is signed by none of the keys"
            ),
            Problem::Checkpoint { size, place } => {
                write!(
                    f,
                    "a checkpoint at about {size} records in {place} is unreadable or was altered"
                )
            }
            Problem::NotInTable { size } => {
                write!(
                    f,
                    "the checkpoint of {size} records in the file is not in the table"
                )
            }
            Problem::Shrunk { place, signed, there } => write!(
                f,
                "a checkpoint in {place} has {signed} records, but there are only {there}: the tail was cut off, or this is an older database"
            ),
            Problem::Line { line, why } => write!(f, "line {line} is no audit record: {why}"),
        }
    }
}

/// What a verification has found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The first number that was looked at.
    pub from: u64,
    /// The number behind the last one.
    pub to: u64,
    /// Records that were there.
    pub records: u64,
    /// Checkpoints that were looked at.
    pub checkpoints: u64,
    /// Those whose root was compared with one made of the records.
    pub roots: u64,
    /// Those whose signatures were looked at.
    pub signatures: u64,
    /// Records under the largest checkpoint seen.
    pub signed: u64,
    /// When that one was signed, as it says.
    #[serde(with = "time::serde::rfc3339::option")]
    pub signed_at: Option<OffsetDateTime>,
    /// Records under no checkpoint yet.
    pub unsigned: u64,
    /// Records that were dropped when their time was over, whose tiles stand for them.
    pub dropped: u64,
    /// The number of the record that says which those are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped_by: Option<u64>,
    /// What was found, in the order of the records; the first hundred.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub further_problems: u64,
}

impl Report {
    pub(super) fn new(from: u64, to: u64) -> Self {
        Self {
            from,
            to,
            ..Self::default()
        }
    }

    /// Is everything as it was written?
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn add(&mut self, problem: Problem) {
        if self.problems.len() < NAMED {
            self.problems.push(problem);
        } else {
            self.further_problems += 1;
        }
    }

    /// Neighbours make one range.
    pub(super) fn missing(&mut self, seq: u64) {
        if let Some(Problem::Missing { to, .. }) = self.problems.last_mut()
            && *to + 1 == seq
        {
            *to = seq;
        } else {
            self.add(Problem::Missing { from: seq, to: seq });
        }
    }

    pub(super) fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        self.checkpoints += 1;
        if checkpoint.size >= self.signed {
            self.signed = checkpoint.size;
            self.signed_at = self.signed_at.max(checkpoint.at);
        }
    }
}
