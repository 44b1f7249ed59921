//! Compares an export's file with its manifest, whatever its format.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::export::Format;
use super::super::manifest::{SignedManifest, Stated};
use super::super::note::{Checkpoint, VerifyingKeys};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// Something that is not as it was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Flaw {
    /// There are keys, and the manifest is not signed.
    NotSigned,
    /// The manifest is of none of the keys.
    Signature,
    /// The checkpoint in it is unreadable, of none of the keys, or says something else than the manifest.
    Checkpoint,
    /// The export did not come to its end.
    BrokenOff,
    /// The file has other bytes than were exported.
    Sha256 {
        /// That of the file.
        found: String,
    },
    /// The file is longer or shorter.
    Bytes {
        /// What the manifest says.
        stated: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The file has more or fewer records.
    Records {
        /// What the manifest says.
        stated: u64,
        /// Records in the file.
        found: u64,
    },
    /// The file is not of the format that the manifest says.
    Format {
        /// What is wrong.
        why: String,
    },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::NotSigned => f.write_str("the manifest is not signed"),
            Flaw::Signature => f.write_str("the manifest is signed by none of the keys, or was altered"),
            Flaw::Checkpoint => f.write_str(
                "the manifest's checkpoint is signed by none of the keys, or says something else than the manifest",
            ),
            Flaw::BrokenOff => f.write_str("the export broke off, so the file is not all that was asked for"),
            Flaw::Sha256 { found } => write!(f, "the file is not the one that was exported: its SHA-256 is {found}"),
            Flaw::Bytes { stated, found } => write!(f, "the file has {found} bytes, and {stated} were exported"),
            Flaw::Records { stated, found } => {
                write!(f, "the file has {found} records, and {stated} were exported")
            }
            Flaw::Format { why } => write!(f, "the file cannot be read: {why}"),
        }
    }
}

/// What the comparison has found.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The export.
    pub export: Uuid,
    /// Which log signed the manifest, where that was proved.
    pub signed_by: Option<String>,
    /// When the export was at its end, as the manifest says.
    #[serde(with = "time::serde::rfc3339")]
    pub ended_at: OffsetDateTime,
    /// How the file is written.
    pub format: String,
    /// Some records, between which others lie?
    pub is_selection: bool,
    /// Records in the file, as far as they can be counted.
    pub records: Option<u64>,
    /// The file's SHA-256.
    pub sha256: String,
    /// Records under the log's newest checkpoint when the export began.
    pub tree_size: Option<u64>,
    /// What is wrong.
    pub problems: Vec<Flaw>,
}

impl Comparison {
    /// Is the file what was exported?
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Looks at the manifest by itself: its signature, and the checkpoint that it has. Without keys no signature is looked at.
#[must_use]
pub fn flaws(manifest: &SignedManifest, keys: Option<&VerifyingKeys>) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    if let Some(keys) = keys
        && !manifest.is_proved_by(keys)
    {
        flaws.push(match manifest.origin {
            Some(_) => Flaw::Signature,
            None => Flaw::NotSigned,
        });
    }
    if let Some(log) = &manifest.stated.log {
        let good = Checkpoint::parse(&log.checkpoint).is_ok_and(|checkpoint| {
            checkpoint.size == log.tree_size
                && hex::encode(checkpoint.root) == log.root
                && manifest
                    .origin
                    .as_ref()
                    .is_none_or(|origin| *origin == checkpoint.origin)
                && keys.is_none_or(|keys| keys.prove(&checkpoint))
        });
        if !good {
            flaws.push(Flaw::Checkpoint);
        }
    }
    if !manifest.stated.is_whole {
        flaws.push(Flaw::BrokenOff);
    }
    flaws
}

/// Compares `file` with its manifest.
///
/// # Errors
/// The file cannot be read.
pub fn compare(
    file: &Path,
    manifest: &SignedManifest,
    keys: Option<&VerifyingKeys>,
    mut progress: impl FnMut(u64),
) -> io::Result<Comparison> {
    let stated = &manifest.stated;
    let mut problems = flaws(manifest, keys);
    let is_proved = keys.is_some_and(|keys| manifest.is_proved_by(keys));
    let format: Result<Format, _> = stated.format.parse();
    let mut counter = Counter::new(format.as_ref().ok().copied());
    let (mut digest, mut bytes) = (Context::new(&SHA256), 0);
    let mut reader = File::open(file)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = reader.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        digest.update(&chunk[..read]);
        counter.take(&chunk[..read]);
        bytes += read as u64;
        progress(bytes);
    }
    let sha256 = hex::encode(digest.finish());
    let is_same = sha256 == stated.sha256;
    if !is_same {
        let found = sha256.clone();
        problems.push(Flaw::Sha256 { found });
    }
    if bytes != stated.bytes {
        let (stated, found) = (stated.bytes, bytes);
        problems.push(Flaw::Bytes { stated, found });
    }
    // What reads Parquet is given no bytes but those that were exported.
    let records = match format {
        Err(why) => Err(why),
        Ok(Format::Parquet) if is_same => rows(file).map(Some),
        Ok(Format::Parquet) => Ok(None),
        Ok(Format::Ndjson | Format::Csv | Format::Ocsf) => Ok(Some(counter.records())),
    };
    match &records {
        Ok(Some(found)) if *found != stated.records => problems.push(Flaw::Records {
            stated: stated.records,
            found: *found,
        }),
        Ok(_) => {}
        Err(why) => problems.push(Flaw::Format { why: why.clone() }),
    }
    Ok(comparison(
        manifest,
        is_proved,
        (records.ok().flatten(), sha256),
        problems,
    ))
}

fn comparison(
    manifest: &SignedManifest,
    is_proved: bool,
    (records, sha256): (Option<u64>, String),
    problems: Vec<Flaw>,
) -> Comparison {
    let Stated {
        export,
        ended_at,
        format,
        log,
        ..
    } = &manifest.stated;
    Comparison {
        export: *export,
        signed_by: manifest.origin.clone().filter(|_| is_proved),
        ended_at: *ended_at,
        format: format.clone(),
        is_selection: manifest.stated.is_selection(),
        records,
        sha256,
        tree_size: log.as_ref().map(|log| log.tree_size),
        problems,
    }
}

fn rows(file: &Path) -> Result<u64, String> {
    let reader = SerializedFileReader::try_from(file).map_err(|error| error.to_string())?;
    let rows = reader.metadata().file_metadata().num_rows();
    u64::try_from(rows).map_err(|error| error.to_string())
}

/// Counts the records of a text as it goes by: lines, those within quotes aside.
struct Counter {
    is_csv: bool,
    is_quoted: bool,
    lines: u64,
    is_begun: bool,
}

impl Counter {
    fn new(format: Option<Format>) -> Self {
        Self {
            is_csv: format == Some(Format::Csv),
            is_quoted: false,
            lines: 0,
            is_begun: false,
        }
    }

    fn take(&mut self, chunk: &[u8]) {
        for byte in chunk {
            match byte {
                b'"' if self.is_csv => self.is_quoted = !self.is_quoted,
                b'\n' if !self.is_quoted => self.lines += 1,
                _ => {}
            }
        }
        if let Some(last) = chunk.last() {
            self.is_begun = *last != b'\n' || self.is_quoted;
        }
    }

    fn records(&self) -> u64 {
        (self.lines + u64::from(self.is_begun)).saturating_sub(u64::from(self.is_csv))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_over_the_ends_of_chunks_and_lines_in_cells() {
        let csv = "a,b\r\n1,\"x\r\n\"\"y\"\"\n\"\r\n2,z\r\n";
        let count = |format, text: &str, size: usize| {
            let mut counter = Counter::new(Some(format));
            text.as_bytes().chunks(size).for_each(|chunk| counter.take(chunk));
            counter.records()
        };
        for size in 1..csv.len() {
            assert_eq!(count(Format::Csv, csv, size), 2, "{size}");
        }
        assert_eq!(count(Format::Csv, "a,b\r\n1,2", 3), 1);
        assert_eq!(count(Format::Ndjson, "{\"a\":1}\n{\"b\":\"\\\"\"}\n", 4), 2);
        assert_eq!(count(Format::Ndjson, "{}\n{}", 9), 2);
        assert_eq!(count(Format::Ndjson, "", 1), 0);
    }
}
