//! What a model server may send, whatever it is: read or refused, never a panic, and never without an end.

use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_workers::model_server::facts::{Facts, numbers};
use duo_workers::model_server::fold::{Fold, streamed};
use duo_workers::model_server::sse::EventReader;
use proptest::collection::vec;
use proptest::prelude::*;

const ENDPOINTS: [Endpoint; 3] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Embeddings,
];

/// Streams and answers of servers that there are.
const GOOD: [&str; 6] = [
    "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\ndata: [DONE]\n\n",
    "data: {\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\r\n\r\n",
    ": ping\n\nevent: error\ndata: {\"error\":{\"message\":\"m\",\"code\":500}}\n\n",
    "{\"choices\":[{\"index\":0,\"message\":{\"content\":\"a\",\"tool_calls\":[{\"index\":0,\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},\"finish_reason\":\"stop\",\"token_ids\":[1,2]}],\"prompt_token_ids\":[1,2,3]}",
    "{\"object\":\"list\",\"data\":[{\"index\":0,\"embedding\":[0.1,0.2]}],\"usage\":{\"prompt_tokens\":1}}",
    "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":false,\"n\":1,\"max_tokens\":5}",
];

fn foreign() -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..5);
    let changed = (
        proptest::sample::select(&GOOD[..]),
        changes,
        any::<prop::sample::Index>(),
        0..3_u8,
    );
    let changed = changed.prop_map(|(text, changes, at, how)| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let at = at.index(bytes.len());
        match how {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_within(at..),
            _ => {}
        }
        bytes
    });
    prop_oneof![vec(any::<u8>(), 0..400), changed]
}

/// The events of a stream that comes in these pieces.
fn events(bytes: &[u8], cut: usize) -> Vec<Bytes> {
    let mut reader = EventReader::default();
    let mut events = Vec::new();
    let (first, second) = bytes.split_at(cut);
    for piece in [first, second] {
        reader
            .push(Bytes::copy_from_slice(piece), &mut events)
            .expect("far below the limit");
    }
    reader.finish(&mut events);
    events
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_stream_of_anything_is_read_alike_however_it_is_cut(bytes in foreign(), cut in any::<prop::sample::Index>()) {
        let cut = if bytes.is_empty() { 0 } else { cut.index(bytes.len()) };
        let events = events(&bytes, cut);
        prop_assert_eq!(&events, &self::events(&bytes, 0));
        prop_assert!(events.iter().map(Bytes::len).sum::<usize>() <= bytes.len());
        let mut facts = Facts::default();
        for endpoint in ENDPOINTS {
            let mut fold = Fold::new(endpoint);
            let mut fine = true;
            for event in &events {
                let _ = facts.event(event);
                fine = fine && fold.push(event).is_ok();
            }
            let _ = fold.finish();
        }
    }

    #[test]
    fn an_answer_of_anything_is_read_or_refused(bytes in foreign()) {
        for endpoint in ENDPOINTS {
            let _ = Facts::whole(endpoint, &bytes);
            if let Some(asked) = streamed(endpoint, &bytes) {
                let asked: serde_json::Value = serde_json::from_slice(&asked).expect("still an object");
                prop_assert_eq!(&asked["stream"], &serde_json::Value::Bool(true));
            }
        }
        let _ = numbers(&String::from_utf8_lossy(&bytes)).count();
    }
}
