use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::json;

use super::*;

const ROLE: &str = r#"{"id":"a","created":1,"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
const TEXT: &str =
    r#"{"id":"a","created":1,"choices":[{"index":0,"delta":{"content":"hel"},"finish_reason":null}]}"#;

fn take(received: &mut Received, lines: &[&str]) -> String {
    String::from_utf8(received.take(lines.join("\n").into(), None).to_vec()).expect("it is text")
}

#[test]
fn a_first_attempts_chunks_pass_as_they_are() {
    let mut received = Received::default();
    assert_eq!(take(&mut received, &[ROLE, TEXT]), format!("{ROLE}\n{TEXT}"));
    assert_eq!(received.have().expect("something").text, "hel");
    assert!(received.can_continue());
}

#[test]
fn a_later_attempt_keeps_the_identity_and_says_no_role_again() {
    let mut received = Received::default();
    take(&mut received, &[ROLE, TEXT]);
    received.begin_attempt();
    let second =
        r#"{"id":"b","created":9,"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}"#;
    let out = take(&mut received, &[&ROLE.replace("\"a\"", "\"b\""), second]);
    let chunk: Value = serde_json::from_str(&out).expect("one chunk");
    assert_eq!(
        (chunk["id"].as_str(), chunk["created"].as_i64()),
        (Some("a"), Some(1))
    );
    assert_eq!(received.have().expect("something").text, "hello");
}

#[test]
fn tool_calls_and_further_choices_are_not_continued() {
    for line in [
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}"#,
        r#"{"choices":[{"index":1,"delta":{"content":"x"}}]}"#,
        r#"{"choices":[{"index":0,"text":"x","logprobs":{"tokens":[]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"reasoning":"hm"}}]}"#,
    ] {
        let mut received = Received::default();
        take(&mut received, &[line]);
        assert!(!received.can_continue(), "{line}");
    }
}

const MORE: &str = r#"{"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}]}"#;
const HELD: &str = r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}"#;

fn take_ids(received: &mut Received, lines: &[&str], prompt: &[u32], after: u32, ids: &[&[u32]]) {
    let tokens = Tokens {
        prompt: prompt.to_vec(),
        after,
        lines: ids.iter().map(|ids| ids.len() as u32).collect(),
        ids: ids.concat(),
    };
    received.take(lines.join("\n").into(), Some(&tokens));
}

#[test]
fn ids_are_known_with_the_text_that_they_came_with() {
    let mut received = Received::default();
    take_ids(&mut received, &[ROLE], &[1, 2], 0, &[&[]]);
    take_ids(&mut received, &[TEXT, MORE], &[], 0, &[&[5], &[6, 7]]);
    take_ids(&mut received, &[HELD], &[], 0, &[&[8]]);
    let have = received.have().expect("something");
    assert_eq!((&*have.text, &have.pieces[..]), ("hello", &[3, 2][..]));
    assert_eq!(have.prompt_token_ids, Some(vec![1, 2]));
    assert_eq!((have.token_ids, have.covered), (Some(vec![5, 6, 7, 8]), 3));
}

#[test]
fn a_later_attempt_says_after_which_ids_it_goes_on() {
    let mut received = Received::default();
    take_ids(&mut received, &[TEXT, MORE], &[1], 0, &[&[5], &[6, 7]]);
    received.begin_attempt();
    take_ids(&mut received, &[MORE], &[1], 2, &[&[9]]);
    let have = received.have().expect("something");
    assert_eq!((have.token_ids, have.covered), (Some(vec![5, 6, 9]), 3));
}

#[test]
fn text_without_ids_leaves_all_of_them_unknown() {
    let mut received = Received::default();
    take_ids(&mut received, &[TEXT], &[1], 0, &[&[5]]);
    take(&mut received, &[MORE]);
    take_ids(&mut received, &[MORE], &[], 0, &[&[6]]);
    let have = received.have().expect("something");
    assert_eq!(
        (have.prompt_token_ids, have.token_ids, have.covered),
        (None, None, 0)
    );
}

/// A line of a frame: the event, what it says, and its token ids.
fn line() -> impl Strategy<Value = (String, String, Vec<u32>)> {
    let ids = || prop::collection::vec(any::<u32>(), 0..3);
    let words = || "[a-z\\\\\"\u{e4}\u{1f600} ]{0,4}";
    let chat =
        |text: &str| json!({"id": "a", "created": 1, "choices": [{"index": 0, "delta": {"content": text}}]});
    let completion =
        |text: &str| json!({"id": "b", "choices": [{"index": 0, "text": text, "finish_reason": null}]});
    let other = select(vec![
        ROLE,
        HELD,
        r#"{"choices":[],"usage":{"completion_tokens":7}}"#,
        "{",
        "7",
    ]);
    prop_oneof![
        4 => (words(), ids()).prop_map(move |(text, ids)| (chat(&text).to_string(), text, ids)),
        4 => (words(), ids()).prop_map(move |(text, ids)| (completion(&text).to_string(), text, ids)),
        1 => (other, ids()).prop_map(|(line, ids)| (line.to_owned(), String::new(), ids)),
    ]
}

/// What the client gets of lines that come in frames cut at `cuts`, the last of them of a second attempt.
fn told(
    lines: &[(String, String, Vec<u32>)],
    second: usize,
    cuts: &[usize],
    ids: Option<u32>,
) -> (Received, String) {
    let mut received = Received::default();
    let mut shown = String::new();
    let mut from = 0;
    for to in (0..=lines.len()).filter(|at| *at == second || *at == lines.len() || cuts.contains(at)) {
        let frame = &lines[from..to];
        let tokens = ids.map(|after| Tokens {
            // The first frame of an attempt tells them.
            prompt: if from == 0 || from == second {
                vec![1, 2]
            } else {
                Vec::new()
            },
            after: if from == 0 { 0 } else { after },
            lines: frame.iter().map(|(_, _, ids)| ids.len() as u32).collect(),
            ids: frame.iter().flat_map(|(_, _, ids)| ids.clone()).collect(),
        });
        let text: Vec<&str> = frame.iter().map(|(line, _, _)| &**line).collect();
        let out = received.take(text.join("\n").into(), tokens.as_ref().filter(|_| from < to));
        for line in std::str::from_utf8(&out).expect("it is text").lines() {
            shown.push_str(line);
            shown.push('\n');
        }
        from = to;
        if to == second {
            received.begin_attempt();
        }
    }
    (received, shown)
}

proptest! {
    #[test]
    fn it_makes_no_difference_which_lines_come_in_one_frame(
        lines in prop::collection::vec(line(), 1..12),
        second in any::<Index>(),
        cuts in prop::collection::vec(0usize..12, 0..6),
        ids in prop::option::of(0u32..9),
    ) {
        let second = second.index(lines.len() + 1);
        let (whole, shown) = told(&lines, second, &[], ids);
        let (cut, shown_cut) = told(&lines, second, &cuts, ids);
        prop_assert_eq!(whole.have(), cut.have());
        prop_assert_eq!(shown, shown_cut);
        let facts = |received: &Received| (received.tokens(), received.earlier_tokens(), received.can_continue());
        prop_assert_eq!(facts(&whole), facts(&cut));
    }

    #[test]
    fn what_a_successor_is_told_is_what_the_client_has(
        lines in prop::collection::vec(line(), 1..12),
        second in any::<Index>(),
        ids in prop::option::of(0u32..9),
    ) {
        let (received, _) = told(&lines, second.index(lines.len() + 1), &[], ids);
        let have = received.have().expect("something");
        let text: String = lines.iter().map(|(_, text, _)| &**text).collect();
        let bytes: u32 = have.pieces.iter().sum();
        prop_assert_eq!((&have.text, bytes as usize), (&text, text.len()));
        prop_assert!(have.covered <= have.token_ids.map_or(0, |ids| ids.len()));
    }

    #[test]
    fn nothing_that_comes_is_a_panic(
        frames in prop::collection::vec(
            (
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..60),
                    prop::collection::vec(line().prop_map(|(line, _, _)| line), 0..4)
                        .prop_map(|lines| lines.join("\n").into_bytes()),
                ],
                prop::option::of((
                    prop::collection::vec(any::<u32>(), 0..3),
                    any::<u32>(),
                    prop::collection::vec(any::<u32>(), 0..4),
                    prop::collection::vec(any::<u32>(), 0..4),
                )),
                any::<bool>(),
            ),
            0..5
        ),
        said in prop::option::of(prop_oneof![any::<u64>(), Just(u64::MAX)]),
    ) {
        let mut received = Received::default();
        for (lines, tokens, begins) in frames {
            let tokens = tokens.map(|(prompt, after, lines, ids)| Tokens { prompt, after, lines, ids });
            let _shown = received.take(lines.into(), tokens.as_ref());
            if begins {
                received.begin_attempt();
            }
        }
        let mut summary = Summary {
            worker: String::new(),
            finish_reason: None,
            input_tokens: None,
            output_tokens: said,
            model_first_us: 0,
            model_total_us: 0,
            model_calls: 1,
        };
        received.sum_usage(&mut summary);
        prop_assert!(summary.output_tokens >= said);
        prop_assert_eq!(received.have().is_none(), received.is_empty());
    }
}
