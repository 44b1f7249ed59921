//! Every decoder of what crosses NATS, fed with what no program of ours would write: it says no, and never panics.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use bytes::Bytes;
use duo_contract::audit::AuditRecord;
use duo_contract::bundle::{self, Entry, Kind};
use duo_contract::cancel::Order;
use duo_contract::claim::{ClaimReply, ClaimRequest};
use duo_contract::dead::DeadLetter;
use duo_contract::envelope::RequestEnvelope;
use duo_contract::frame::{FrameAnswer, FrameKind, ReplyFrame};
use duo_contract::name::{FeatureName, ModelName};
use duo_contract::presence::Presence;
use duo_contract::seal::SealKeys;
use duo_contract::snapshot::{ConfigSnapshot, IdentitySnapshot};
use duo_contract::subject;
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

/// Good bytes of every kind of message.
fn good() -> Vec<Vec<u8>> {
    let frame = |kind| {
        let frame = ReplyFrame {
            attempt: 1,
            number: 2,
            kind,
        };
        frame.encode()
    };
    let chunk = frame(FrameKind::Chunk(Bytes::from_static(b"{\"choices\":[]}")));
    let done = {
        let mut bytes = vec![1, 3, 1, 0, 0, 0, 2, 0, 0, 0];
        let summary = br#"{"worker":"w","finish_reason":"stop","output_tokens":3}"#;
        bytes.extend_from_slice(&u32::try_from(summary.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(summary);
        bytes.extend_from_slice(b"{}");
        bytes
    };
    let entry = |kind, payload: &Bytes| Entry {
        kind,
        token: 7,
        request_id: Uuid::nil(),
        payload: payload.clone(),
    };
    let entries = [
        entry(Kind::Frame, &chunk),
        entry(Kind::EarlyFrame(Uuid::nil()), &chunk),
        entry(
            Kind::Claim,
            &Bytes::from_static(include_bytes!("../fixtures/claim_request_v1.json")),
        ),
    ];
    let answer = bundle::Answer {
        token: 7,
        payload: chunk.clone(),
    };
    let sealed = |head: &[u8]| {
        let head = head.trim_ascii();
        let mut bytes = vec![1];
        bytes.extend_from_slice(&u32::try_from(head.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(head);
        bytes.extend_from_slice(&[7; 64]);
        bytes
    };
    let mut good = vec![
        chunk.to_vec(),
        frame(FrameKind::Heartbeat).to_vec(),
        done,
        bundle::encode(&entries).to_vec(),
        bundle::encode_answers(&[answer]).to_vec(),
        sealed(include_bytes!("../fixtures/request_head_v1.json")),
        sealed(include_bytes!("../fixtures/dead_head_v1.json")),
        include_bytes!("../fixtures/claim_request_v1.json").to_vec(),
    ];
    for lines in [
        include_str!("../fixtures/claim_replies_v1.jsonl"),
        include_str!("../fixtures/claim_reply_with_tokens_v1.jsonl"),
        include_str!("../fixtures/orders_v1.jsonl"),
    ] {
        good.extend(lines.lines().map(|line| line.as_bytes().to_vec()));
    }
    good
}

/// Bytes, and good ones with some of them changed, cut or doubled.
fn foreign() -> impl Strategy<Value = Vec<u8>> {
    let changed = (
        proptest::sample::select(good()),
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        any::<prop::sample::Index>(),
        0..4_u8,
    );
    let changed = changed.prop_map(|(mut bytes, changes, at, how)| {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let at = at.index(bytes.len());
        match how {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_within(at..),
            2 => drop(bytes.drain(..at)),
            _ => {}
        }
        bytes
    });
    prop_oneof![vec(any::<u8>(), 0..300), changed]
}

/// Reads `bytes` as everything that there is.
fn read(bytes: &[u8], keys: &SealKeys) {
    let shared = Bytes::copy_from_slice(bytes);
    if let Ok(frame) = ReplyFrame::decode(&shared) {
        assert_eq!(ReplyFrame::decode(&frame.encode()).unwrap(), frame);
    }
    if let Ok(entries) = bundle::decode(&shared) {
        assert_eq!(bundle::decode(&bundle::encode(&entries)), Ok(entries));
    }
    if let Ok(answers) = bundle::decode_answers(&shared) {
        assert_eq!(
            bundle::decode_answers(&bundle::encode_answers(&answers)),
            Ok(answers)
        );
    }
    let _ = RequestEnvelope::decode_head(bytes);
    assert!(
        RequestEnvelope::decode(bytes, "k", keys).is_err(),
        "nobody sealed it"
    );
    let _ = DeadLetter::decode_head(bytes);
    let _ = DeadLetter::decode(bytes, Some("k"), keys);
    let _ = DeadLetter::decode(bytes, None, keys);
    let _ = keys.open("k", b"", bytes);
    let _ = ClaimRequest::decode(bytes);
    let _ = ClaimReply::decode(bytes);
    let _ = FrameAnswer::decode(bytes);
    let _ = Order::decode(bytes);
    let _ = Presence::decode(bytes);
    let _ = AuditRecord::decode(bytes);
    let _ = ConfigSnapshot::decode(bytes);
    let _ = IdentitySnapshot::decode(bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = SealKeys::parse(&text);
    let _ = subject::request_of_question(&text);
    for name in [
        FeatureName::parse(&text).map(|name| name.to_string()),
        ModelName::parse(&text).map(|name| name.to_string()),
    ] {
        assert!(
            name.is_err() || name.is_ok_and(|name| name == text),
            "a name is what it was read from"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_comes_by_nats_is_refused_and_never_panics(bytes in foreign()) {
        read(&bytes, &SealKeys::generate("k"));
    }

    #[test]
    fn a_subject_names_a_request_or_none(text in "duo\\.questions\\.[a-z0-9-]{0,20}\\.[0-9a-f-]{0,40}|\\PC{0,60}") {
        if let Some(id) = subject::request_of_question(&text) {
            prop_assert!(text.to_lowercase().contains(&id.simple().to_string()) || text.contains(&id.to_string()));
        }
    }

    #[test]
    fn keys_are_read_or_refused(text in "([a-z0-9-]{0,6}:?[A-Za-z0-9+/=]{0,50}\n?){0,4}") {
        let _ = SealKeys::parse(&text);
    }
}
