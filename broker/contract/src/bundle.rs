//! Several messages of a worker to one owner that travel as one, and their answers. Under load a message's own way
//! through NATS costs more than what it says.
//!
//! Wire of a bundle: version (one byte), then of each entry kind (one byte), token (u32, little endian), request (16
//! bytes), for an early frame its job (16 bytes), length (u32) and payload. Of its answers: version, then of each token,
//! length and payload.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use uuid::Uuid;

const VERSION: u8 = 1;
/// Bytes of an entry before its job, if it names one, and its payload's length.
const START: usize = 1 + 4 + 16;
const JOB: usize = 16;
const LENGTH: usize = 4;
/// Bytes of an entry beside its payload, at most.
const ENTRY: usize = START + JOB + LENGTH;
/// Bytes of an answer beside its payload.
const ANSWER: usize = 4 + 4;
/// A payload up to this size is copied out of its bundle, so that whoever keeps it does not keep its neighbours.
const COPIED: usize = 4096;
/// Bytes that a bundle of one entry has beside its payload, at most.
pub const OVERHEAD: usize = 1 + ENTRY;

const CLAIM: u8 = 1;
const FRAME: u8 = 2;
const EARLY_FRAME: u8 = 3;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A [`crate::claim::ClaimRequest`], answered by a [`crate::claim::ClaimReply`].
    Claim,
    /// A [`crate::frame::ReplyFrame`], answered by a [`crate::frame::FrameAnswer`].
    Frame,
    /// The same of this job, sent before the answer to its claim is known. It follows the claim, and only an owner that
    /// has let this very job proceed takes it: two jobs may take themselves for a request's first attempt.
    EarlyFrame(Uuid),
}

/// One message of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Names its answer; 0 wants none.
    pub token: u32,
    /// The request it is about.
    pub request_id: Uuid,
    /// Its bytes.
    pub payload: Bytes,
}

/// The answer to the entry with this token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The entry's token.
    pub token: u32,
    /// Its bytes.
    pub payload: Bytes,
}

/// Why bytes are no bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It ends within an entry.
    #[error("the bundle is cut short")]
    Short,
    /// Written by a newer program.
    #[error("bundle version {0} is unknown; this program knows 1")]
    Version(u8),
    /// A kind nobody knows.
    #[error("bundle entry kind {0} is unknown")]
    Kind(u8),
}

/// The bytes of a bundle.
///
/// # Panics
/// Never: NATS takes no payload near 4 GiB.
#[must_use]
pub fn encode(entries: &[Entry]) -> Bytes {
    let size = entries.iter().map(|entry| ENTRY + entry.payload.len());
    let mut bytes = begin(size.sum());
    for entry in entries {
        bytes.put_u8(match entry.kind {
            Kind::Claim => CLAIM,
            Kind::Frame => FRAME,
            Kind::EarlyFrame(_) => EARLY_FRAME,
        });
        bytes.put_u32_le(entry.token);
        bytes.put_slice(entry.request_id.as_bytes());
        if let Kind::EarlyFrame(job) = entry.kind {
            bytes.put_slice(job.as_bytes());
        }
        put(&mut bytes, &entry.payload);
    }
    bytes.freeze()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// Not a bundle of a known version.
pub fn decode(bytes: &Bytes) -> Result<Vec<Entry>, BundleError> {
    let mut rest = after_version(bytes)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        if rest.len() < START {
            return Err(BundleError::Short);
        }
        let kind = rest.get_u8();
        let token = rest.get_u32_le();
        let request_id = take_id(&mut rest)?;
        let kind = match kind {
            CLAIM => Kind::Claim,
            FRAME => Kind::Frame,
            EARLY_FRAME => Kind::EarlyFrame(take_id(&mut rest)?),
            other => return Err(BundleError::Kind(other)),
        };
        entries.push(Entry {
            kind,
            token,
            request_id,
            payload: take(&mut rest)?,
        });
    }
    Ok(entries)
}

/// The bytes of a bundle's answers.
///
/// # Panics
/// As [`encode`].
#[must_use]
pub fn encode_answers(answers: &[Answer]) -> Bytes {
    let size = answers.iter().map(|answer| ANSWER + answer.payload.len());
    let mut bytes = begin(size.sum());
    for answer in answers {
        bytes.put_u32_le(answer.token);
        put(&mut bytes, &answer.payload);
    }
    bytes.freeze()
}

/// Reads what [`encode_answers`] wrote.
///
/// # Errors
/// Not answers of a known version.
pub fn decode_answers(bytes: &Bytes) -> Result<Vec<Answer>, BundleError> {
    let mut rest = after_version(bytes)?;
    let mut answers = Vec::new();
    while !rest.is_empty() {
        if rest.len() < ANSWER {
            return Err(BundleError::Short);
        }
        answers.push(Answer {
            token: rest.get_u32_le(),
            payload: take(&mut rest)?,
        });
    }
    Ok(answers)
}

fn begin(size: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(1 + size);
    bytes.put_u8(VERSION);
    bytes
}

fn put(bytes: &mut BytesMut, payload: &Bytes) {
    bytes.put_u32_le(u32::try_from(payload.len()).expect("a payload is far below 4 GiB"));
    bytes.put_slice(payload);
}

fn after_version(bytes: &Bytes) -> Result<Bytes, BundleError> {
    match bytes.first() {
        Some(&VERSION) => Ok(bytes.slice(1..)),
        Some(&other) => Err(BundleError::Version(other)),
        None => Err(BundleError::Short),
    }
}

fn take_id(rest: &mut Bytes) -> Result<Uuid, BundleError> {
    let mut id = [0; 16];
    rest.try_copy_to_slice(&mut id).map_err(|_| BundleError::Short)?;
    Ok(Uuid::from_bytes(id))
}

fn take(rest: &mut Bytes) -> Result<Bytes, BundleError> {
    let length = rest.try_get_u32_le().map_err(|_| BundleError::Short)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if rest.len() < length {
        return Err(BundleError::Short);
    }
    let payload = rest.split_to(length);
    Ok(match length {
        0..=COPIED => Bytes::copy_from_slice(&payload),
        _ => payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let payload = proptest::collection::vec(any::<u8>(), 0..COPIED * 2);
        let early = any::<u128>().prop_map(|job| Kind::EarlyFrame(Uuid::from_u128(job)));
        let kind = prop_oneof![Just(Kind::Claim), Just(Kind::Frame), early];
        let entry = (kind, any::<u32>(), any::<u128>(), payload);
        let entry = entry.prop_map(|(kind, token, request, payload)| Entry {
            kind,
            token,
            request_id: Uuid::from_u128(request),
            payload: payload.into(),
        });
        proptest::collection::vec(entry, 0..5)
    }

    proptest! {
        #[test]
        fn a_bundle_reads_back_and_its_beginnings_do_not_pass_for_it(entries in entries(), cut in any::<prop::sample::Index>()) {
            let bytes = encode(&entries);
            prop_assert_eq!(decode(&bytes), Ok(entries.clone()));
            let short = bytes.slice(..cut.index(bytes.len()));
            prop_assert!(decode(&short).is_ok_and(|fewer| fewer.len() < entries.len()) || decode(&short) == Err(BundleError::Short));
        }

        #[test]
        fn answers_read_back(entries in entries()) {
            let answers: Vec<_> = entries
                .into_iter()
                .map(|Entry { token, payload, .. }| Answer { token, payload })
                .collect();
            prop_assert_eq!(decode_answers(&encode_answers(&answers)), Ok(answers));
        }
    }

    #[test]
    fn one_entry_costs_what_is_declared() {
        let entry = Entry {
            kind: Kind::EarlyFrame(Uuid::nil()),
            token: 1,
            request_id: Uuid::nil(),
            payload: Bytes::from_static(b"abc"),
        };
        assert_eq!(encode(&[entry]).len(), OVERHEAD + 3);
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        assert_eq!(decode(&Bytes::new()), Err(BundleError::Short));
        assert_eq!(decode(&Bytes::from_static(&[9])), Err(BundleError::Version(9)));
        let mut unknown = vec![VERSION, 7];
        unknown.extend([0; ENTRY - 1]);
        assert_eq!(decode(&unknown.into()), Err(BundleError::Kind(7)));
        assert_eq!(
            decode_answers(&Bytes::from_static(&[VERSION, 1])),
            Err(BundleError::Short)
        );
    }
}
