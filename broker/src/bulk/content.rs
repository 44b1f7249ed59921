//! What is in files: cut into pieces that are sealed one by one, so that neither a client nor a batch ever has one whole in
//! memory.

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::{Bulk, BulkError, MAX_FILE};
use crate::store::batches::Mark;
use crate::store::files::{FileRow, NewFile};
use crate::store::jobs::Sealed;
use duo_contract::seal::SealKeys;

/// Bytes of a piece of a file that a client sends; the last one may have fewer.
const CHUNK: usize = 512 << 10;
/// Longest line that is looked at: a request's body may have as many bytes as one that is sent alone.
const MAX_LINE: usize = (4 << 20) + (64 << 10);

/// A file on its way in. What is left unfinished is removed later.
pub struct Upload {
    bulk: Bulk,
    id: Uuid,
    number: i32,
    held: BytesMut,
    size: u64,
    room: u64,
    _place: OwnedSemaphorePermit,
}

impl Bulk {
    /// Begins a file of `client`.
    ///
    /// # Errors
    /// Too many come in, the client has as much as it may, or Postgres is away.
    pub async fn receive(&self, client: &str, filename: &str) -> Result<Upload, BulkError> {
        let place = self.0.uploads.clone().try_acquire_owned();
        let place = place.map_err(|_| BulkError::Busy)?;
        let most = self.config().client_bytes;
        let there = self.store().bytes_of_files(client).await?;
        let room = most
            .checked_sub(there)
            .filter(|room| *room > 0)
            .ok_or(BulkError::OverQuota(most))?;
        let id = Uuid::now_v7();
        let head = NewFile {
            id,
            client,
            purpose: "batch",
            filename,
        };
        self.store().begin_file(&head).await?;
        Ok(Upload {
            bulk: self.clone(),
            id,
            number: 0,
            held: BytesMut::with_capacity(CHUNK),
            size: 0,
            room,
            _place: place,
        })
    }

    /// A piece of a file, opened; `None` behind its end.
    ///
    /// # Errors
    /// Postgres is away, or it was sealed with a key that is not here.
    pub async fn piece(&self, id: Uuid, number: i32) -> Result<Option<Bytes>, BulkError> {
        let Some(sealed) = self.store().file_chunk(id, number).await? else {
            return Ok(None);
        };
        let plain = self
            .keys()
            .open(&sealed.key_id, &aad(id, number), &sealed.bytes)?;
        Ok(Some(plain.into()))
    }

    /// Seals a piece of a file.
    pub(super) fn seal_piece(&self, id: Uuid, number: i32, plain: &[u8]) -> Result<Sealed, BulkError> {
        self.seal(&aad(id, number), plain)
    }

    /// Keeps what is shown of the request that a response's job was made of.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn keep_response(&self, id: Uuid, shown: &[u8]) -> Result<(), BulkError> {
        let sealed = self.seal(&response_aad(id), shown)?;
        Ok(self.store().add_response(id, &sealed).await?)
    }

    /// What was kept so.
    ///
    /// # Errors
    /// Postgres is away, or it was sealed with a key that is not here.
    pub async fn kept_response(&self, id: Uuid) -> Result<Option<Vec<u8>>, BulkError> {
        let Some(sealed) = self.store().response(id).await? else {
            return Ok(None);
        };
        let plain = self
            .keys()
            .open(&sealed.key_id, &response_aad(id), &sealed.bytes)?;
        Ok(Some(plain))
    }

    fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Sealed, BulkError> {
        let mut bytes = Vec::with_capacity(plain.len() + SealKeys::OVERHEAD);
        let key_id = self.keys().seal(aad, plain, &mut bytes)?;
        Ok(Sealed {
            key_id: key_id.into(),
            bytes,
        })
    }
}

/// A piece opens in its own place only.
fn aad(id: Uuid, number: i32) -> Vec<u8> {
    format!("file {id} {number}").into_bytes()
}

fn response_aad(id: Uuid) -> Vec<u8> {
    format!("response {id}").into_bytes()
}

impl Upload {
    /// More of it.
    ///
    /// # Errors
    /// It is too large by now, or Postgres is away.
    pub async fn push(&mut self, mut bytes: Bytes) -> Result<(), BulkError> {
        self.size += bytes.len() as u64;
        if self.size > MAX_FILE {
            return Err(BulkError::TooLarge);
        }
        if self.size > self.room {
            return Err(BulkError::OverQuota(self.bulk.config().client_bytes));
        }
        while !bytes.is_empty() {
            let room = CHUNK - self.held.len();
            self.held
                .extend_from_slice(&bytes.split_to(room.min(bytes.len())));
            if self.held.len() == CHUNK {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), BulkError> {
        let sealed = self.bulk.seal_piece(self.id, self.number, &self.held)?;
        let store = self.bulk.store();
        store
            .add_to_file(self.id, self.number, &sealed, self.held.len())
            .await?;
        self.held.clear();
        self.number += 1;
        Ok(())
    }

    /// It is whole.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn finish(mut self) -> Result<FileRow, BulkError> {
        if !self.held.is_empty() {
            self.flush().await?;
        }
        self.bulk.store().finish_file(self.id).await?;
        let row = self.bulk.store().file(self.id).await?;
        row.ok_or(BulkError::Gone)
    }

    /// It is not wanted.
    pub async fn abandon(self) {
        // What stays is removed with what others leave unfinished.
        let _ = self.bulk.store().delete_file(self.id).await;
    }
}

/// The lines of a file that a client sent, one after the other.
pub(super) struct Lines<'a> {
    bulk: &'a Bulk,
    file: Uuid,
    /// The next piece.
    number: i32,
    held: BytesMut,
    /// Bytes of `held` that hold no line feed.
    looked: usize,
    at: Mark,
    /// Bytes of the whole file.
    size: u64,
    is_over: bool,
    /// Is the line that is being read longer than it may be?
    is_long: bool,
}

/// A line of a file.
#[derive(Debug)]
pub(super) struct Line {
    /// Its number, from 1.
    pub(super) number: u32,
    /// Where the next one begins.
    pub(super) end: Mark,
    /// Without its line feed; `None` where it is longer than it may be.
    pub(super) text: Option<Bytes>,
}

impl<'a> Lines<'a> {
    /// Lines of `file` from `from` on.
    pub(super) async fn open(bulk: &'a Bulk, file: Uuid, from: Mark) -> Result<Lines<'a>, BulkError> {
        let chunk = CHUNK as u64;
        let head = bulk.store().file(file).await?.ok_or(BulkError::Gone)?;
        let mut lines = Self {
            bulk,
            file,
            number: i32::try_from(from.byte / chunk).unwrap_or(i32::MAX),
            held: BytesMut::new(),
            looked: 0,
            at: from,
            size: head.bytes.cast_unsigned(),
            is_over: false,
            is_long: false,
        };
        let known = usize::try_from(from.byte % chunk).unwrap_or(0);
        if known > 0 {
            lines.load().await?;
            lines.held.advance(known.min(lines.held.len()));
        }
        Ok(lines)
    }

    async fn load(&mut self) -> Result<(), BulkError> {
        match self.bulk.piece(self.file, self.number).await? {
            Some(piece) => {
                self.number += 1;
                self.held.extend_from_slice(&piece);
            }
            None if self.at.byte + self.held.len() as u64 == self.size => self.is_over = true,
            None => return Err(BulkError::Gone),
        }
        Ok(())
    }

    /// The next line that is not blank.
    pub(super) async fn next(&mut self) -> Result<Option<Line>, BulkError> {
        loop {
            let found = memchr::memchr(b'\n', self.held.get(self.looked..).unwrap_or_default());
            if let Some(found) = found {
                let line = self.cut(self.looked + found, 1);
                if line
                    .text
                    .as_ref()
                    .is_none_or(|text| !text.trim_ascii().is_empty())
                {
                    return Ok(Some(line));
                }
                continue;
            }
            if self.is_over {
                let rest = self.held.len();
                let is_blank = !self.is_long && self.held.trim_ascii().is_empty();
                return Ok((!is_blank).then(|| self.cut(rest, 0)));
            }
            self.looked = self.held.len();
            if self.looked > MAX_LINE {
                self.is_long = true;
                self.at.byte += self.held.len() as u64;
                self.held.clear();
                self.looked = 0;
            }
            self.load().await?;
        }
    }

    fn cut(&mut self, length: usize, feed: usize) -> Line {
        let text = self.held.split_to(length).freeze();
        self.held.advance(feed);
        self.looked = 0;
        self.at = Mark {
            line: self.at.line + 1,
            byte: self.at.byte + (length + feed) as u64,
        };
        let is_long = std::mem::take(&mut self.is_long) || length > MAX_LINE;
        Line {
            number: self.at.line,
            end: self.at,
            text: (!is_long).then_some(text),
        }
    }
}
