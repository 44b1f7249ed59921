//! Audit records as files: JSON lines, CSV, OCSF and Parquet, with a manifest of what is in them.

mod csv;
mod ocsf;
mod parquet;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};
use uuid::Uuid;

use self::parquet::Parquet;
use super::manifest::{LogState, Manifest};
use crate::store::audit_events::Event;
use crate::store::audit_export::Sample;
use crate::store::audit_search::Filter;
use crate::store::{Store, StoreError};

/// Batches of events on their way.
const AHEAD: usize = 4;

/// What an export is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line, every column of the record.
    Ndjson,
    /// Comma-separated, every column of the record, for spreadsheets.
    Csv,
    /// A JSON object a line, in the Open Cybersecurity Schema Framework's class API Activity.
    Ocsf,
    /// Apache Parquet, every column of the record with its type.
    Parquet,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 4] = [Format::Ndjson, Format::Csv, Format::Ocsf, Format::Parquet];

    /// The format's name in queries.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Ndjson => "ndjson",
            Format::Csv => "csv",
            Format::Ocsf => "ocsf",
            Format::Parquet => "parquet",
        }
    }

    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Ndjson | Format::Ocsf => "application/x-ndjson",
            Format::Csv => "text/csv; charset=utf-8",
            Format::Parquet => "application/vnd.apache.parquet",
        }
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Format::ALL.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| "has to be ndjson, csv, ocsf or parquet".to_owned())
    }
}

fn line(value: &impl Serialize, out: &mut Vec<u8>) {
    // Nothing of a record fails to be JSON, and a vector takes everything.
    if serde_json::to_writer(&mut *out, value).is_ok() {
        out.push(b'\n');
    }
}

/// Why an export broke off.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What makes the Parquet file.
    #[error("the Parquet file cannot be written")]
    Parquet(#[from] ::parquet::errors::ParquetError),
    /// The task that makes it.
    #[error("what makes the Parquet file ended early")]
    Stopped(#[from] JoinError),
}

/// An export that is asked for.
#[derive(Debug, Clone)]
pub struct Export {
    /// Its id, a UUIDv7; that of the record of the reading too.
    pub id: Uuid,
    /// What is asked for.
    pub filter: Filter,
    /// Some of it only.
    pub sample: Option<Sample>,
    /// How it is written.
    pub format: Format,
}

impl Export {
    /// What the record of the reading says, before anything is read.
    #[must_use]
    pub fn details(&self) -> Value {
        serde_json::json!({
            "read": "export",
            "filter": self.filter,
            "format": self.format.as_str(),
            "sample": self.sample.as_ref().map(|sample| sample.records),
        })
    }

    /// Writes the export piece by piece until `send` says that nobody takes more.
    pub async fn run<F: Future<Output = bool>>(
        &self,
        store: &Store,
        send: impl Fn(Vec<u8>) -> F,
    ) -> (Manifest, Result<(), ExportError>) {
        let mut written = Written::new();
        // What is under a checkpoint of before is in the export, if it is asked for.
        let (log, ended) = match store.last_checkpoint().await {
            Ok(checkpoint) => {
                let log = checkpoint.map(LogState::from);
                (log, self.write(store, &mut written, send).await)
            }
            Err(error) => (None, Err(error.into())),
        };
        let manifest = Manifest {
            export: self.id,
            filter: self.filter.clone(),
            format: self.format.as_str(),
            sample: self.sample.as_ref().map(|sample| sample.records),
            seed: self.sample.as_ref().map(|sample| sample.seed.clone()),
            records: written.records,
            first_seq: written.first_seq,
            last_seq: written.last_seq,
            bytes: written.bytes,
            sha256: hex::encode(written.digest.finish()),
            ended_at: duo_process::clock::now(),
            is_whole: matches!(ended, Ok(true)),
            log,
        };
        (manifest, ended.map(|_| ()))
    }

    /// Says whether all of it was taken.
    async fn write<F: Future<Output = bool>>(
        &self,
        store: &Store,
        written: &mut Written,
        send: impl Fn(Vec<u8>) -> F,
    ) -> Result<bool, ExportError> {
        let (batches, mut events) = mpsc::channel::<Vec<Event>>(AHEAD);
        let mut encoder = Encoder::new(self)?;
        let writing = async {
            let head = written.piece(encoder.head());
            let mut taken = head.is_empty() || send(head).await;
            while taken {
                let Some(batch) = events.recv().await else { break };
                written.count(&batch);
                let (next, piece) = encoder.batch(batch).await?;
                encoder = next;
                let piece = written.piece(piece);
                taken = piece.is_empty() || send(piece).await;
            }
            // Whoever reads sees by this that nobody listens any more.
            drop(events);
            Ok::<_, ExportError>((encoder, taken))
        };
        let (writing, read) = tokio::join!(writing, self.read(store, batches));
        let (encoder, taken) = writing?;
        read?;
        if !taken {
            return Ok(false);
        }
        // Only what is whole has an end.
        let end = written.piece(encoder.end().await?);
        Ok(end.is_empty() || send(end).await)
    }

    async fn read(&self, store: &Store, out: mpsc::Sender<Vec<Event>>) -> Result<(), StoreError> {
        let Some(sample) = &self.sample else {
            return store.audit_export(&self.filter, out).await;
        };
        let events = store.audit_sample(&self.filter, sample).await?;
        // Where nobody listens any more there is nothing left to do.
        let _ = out.send(events).await;
        Ok(())
    }
}

/// What has been written so far.
struct Written {
    digest: Context,
    bytes: u64,
    records: u64,
    first_seq: Option<i64>,
    last_seq: Option<i64>,
}

impl Written {
    fn new() -> Self {
        Self {
            digest: Context::new(&SHA256),
            bytes: 0,
            records: 0,
            first_seq: None,
            last_seq: None,
        }
    }

    fn piece(&mut self, piece: Vec<u8>) -> Vec<u8> {
        self.digest.update(&piece);
        self.bytes += piece.len() as u64;
        piece
    }

    fn count(&mut self, events: &[Event]) {
        for event in events {
            self.records += 1;
            if let Some(seq) = event.seq {
                self.first_seq = Some(self.first_seq.map_or(seq, |first| first.min(seq)));
                self.last_seq = Some(self.last_seq.map_or(seq, |last| last.max(seq)));
            }
        }
    }
}

/// Makes records the bytes of a format.
enum Encoder {
    Ndjson,
    Csv,
    Ocsf,
    Parquet(Box<Parquet>),
}

impl Encoder {
    fn new(export: &Export) -> Result<Self, ExportError> {
        Ok(match export.format {
            Format::Ndjson => Self::Ndjson,
            Format::Csv => Self::Csv,
            Format::Ocsf => Self::Ocsf,
            Format::Parquet => Self::Parquet(Box::new(Parquet::new(export.id)?)),
        })
    }

    /// What stands before the first record.
    fn head(&self) -> Vec<u8> {
        match self {
            Self::Csv => csv::head(),
            Self::Ndjson | Self::Ocsf | Self::Parquet(_) => Vec::new(),
        }
    }

    async fn batch(self, events: Vec<Event>) -> Result<(Self, Vec<u8>), ExportError> {
        let mut piece = Vec::new();
        match self {
            Self::Ndjson => events.iter().for_each(|event| line(event, &mut piece)),
            Self::Csv => events.iter().for_each(|event| csv::write(event, &mut piece)),
            Self::Ocsf => events
                .iter()
                .for_each(|event| line(&ocsf::activity(event), &mut piece)),
            Self::Parquet(mut parquet) => {
                if parquet.take(events) {
                    // Tens of milliseconds, in which requests are not to wait.
                    let (next, group) = spawn_blocking(move || {
                        let group = parquet.group();
                        (parquet, group)
                    })
                    .await?;
                    parquet = next;
                    piece = group?;
                }
                return Ok((Self::Parquet(parquet), piece));
            }
        }
        Ok((self, piece))
    }

    /// What stands behind the last record.
    async fn end(self) -> Result<Vec<u8>, ExportError> {
        match self {
            Self::Ndjson | Self::Csv | Self::Ocsf => Ok(Vec::new()),
            Self::Parquet(parquet) => Ok(spawn_blocking(move || parquet.end()).await??),
        }
    }
}
