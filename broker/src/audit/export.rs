//! Audit records as files: JSON lines, CSV and OCSF, with a manifest of what is in them.

mod csv;
mod ocsf;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use uuid::Uuid;

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
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 3] = [Format::Ndjson, Format::Csv, Format::Ocsf];

    /// The format's name in queries.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Ndjson => "ndjson",
            Format::Csv => "csv",
            Format::Ocsf => "ocsf",
        }
    }

    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Ndjson | Format::Ocsf => "application/x-ndjson",
            Format::Csv => "text/csv; charset=utf-8",
        }
    }

    /// What stands before the first record.
    fn head(self) -> Vec<u8> {
        match self {
            Format::Ndjson | Format::Ocsf => Vec::new(),
            Format::Csv => csv::head(),
        }
    }

    fn write(self, event: &Event, out: &mut Vec<u8>) {
        match self {
            Format::Ndjson => line(event, out),
            Format::Csv => csv::write(event, out),
            Format::Ocsf => line(&ocsf::activity(event), out),
        }
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Format::ALL.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| "has to be ndjson, csv or ocsf".to_owned())
    }
}

fn line(value: &impl Serialize, out: &mut Vec<u8>) {
    // Nothing of a record fails to be JSON, and a vector takes everything.
    if serde_json::to_writer(&mut *out, value).is_ok() {
        out.push(b'\n');
    }
}

/// What an export holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Manifest {
    /// The export.
    pub export: Uuid,
    /// What was asked for.
    pub filter: Filter,
    /// How it is written.
    pub format: &'static str,
    /// How many at most, where a sample was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<u32>,
    /// The sample's seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// Records in it.
    pub records: u64,
    /// The lowest number of its records.
    pub first_seq: Option<i64>,
    /// The highest.
    pub last_seq: Option<i64>,
    /// Bytes of it.
    pub bytes: u64,
    /// SHA-256 of those bytes, lower-case hexadecimal.
    pub sha256: String,
    /// When it was at its end.
    #[serde(with = "time::serde::rfc3339")]
    pub ended_at: OffsetDateTime,
    /// Is it all that was asked for? Not where it broke off.
    pub is_whole: bool,
}

impl Manifest {
    /// The id of the record that keeps the manifest of an export.
    #[must_use]
    pub fn record_of(export: Uuid) -> Uuid {
        Uuid::from_u128(export.as_u128() ^ 1)
    }

    /// What that record says.
    #[must_use]
    pub fn details(&self) -> Value {
        serde_json::json!({"read": "export_ended", "manifest": self})
    }
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
    ) -> (Manifest, Result<(), StoreError>) {
        let (batches, mut events) = mpsc::channel::<Vec<Event>>(AHEAD);
        let writing = async move {
            let mut written = Written::new();
            let head = written.piece(self.format.head());
            let mut taken = head.is_empty() || send(head).await;
            while taken {
                let Some(batch) = events.recv().await else { break };
                let piece = written.batch(self.format, &batch);
                taken = piece.is_empty() || send(piece).await;
            }
            (written, taken)
        };
        let reading = self.read(store, batches);
        let ((written, taken), read) = tokio::join!(writing, reading);
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
            is_whole: taken && read.is_ok(),
        };
        (manifest, read)
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

    fn batch(&mut self, format: Format, events: &[Event]) -> Vec<u8> {
        let mut piece = Vec::new();
        for event in events {
            format.write(event, &mut piece);
            self.records += 1;
            if let Some(seq) = event.seq {
                self.first_seq = Some(self.first_seq.map_or(seq, |first| first.min(seq)));
                self.last_seq = Some(self.last_seq.map_or(seq, |last| last.max(seq)));
            }
        }
        self.piece(piece)
    }
}
