use proptest::prelude::*;

use super::*;

const WHOLE: End = End { cut: false };
const CUT: End = End { cut: true };

fn documents() -> Vec<String> {
    ["CNT-IDX-12", "CNT-IDX-7"].map(str::to_owned).to_vec()
}

fn format(id: &str, text: &str, end: End) -> Result<String, Unusable> {
    whole(Formatter::new(id, documents()), text.to_owned(), end)
}

/// The same, as a stream that comes in pieces.
fn flow(id: &str, pieces: &[&str], end: End) -> Result<String, Unusable> {
    let mut formatter = Formatter::new(id, documents());
    let shown: String = pieces.iter().map(|piece| formatter.push(piece)).collect();
    Ok(shown + &formatter.finish(end)?)
}

const IDENTIFIER: &str = r#"{"ResourceIdentifierType": "iid", "ResourceIdentifier": "42"}"#;
const IDENTIFIED: &str = r#"{"ResourceIdentifierType":"iid","ResourceIdentifier":"42"}"#;
const REVIEW: &str = "<review>\n<comment file=\"a.rb\" old_line=\"\" new_line=\"3\">\nIt leaks.\n<from>\n  a\n</from>\n\
                      <to>\n  b\n</to>\n</comment>\n</review>";
const REVIEW_OF_A_REVIEW: &str = "<review>\n<comment file=\"a.rs\" old_line=\"\" new_line=\"3\">\nName it.\n<from>\n  \
                                  x(\"<review>\");\n</from>\n<to>\n  x(OPEN);\n</to>\n</comment>\n<comment file=\"b\" \
                                  old_line=\"1\" new_line=\"\">\nSo is `</review>`.\n</comment>\n</review>";
const FIXED: &str = "<analysis>\nWhy.\n</analysis>\n<fixed_code>\n<old_code>\n\n  a\n</old_code>\n<new_code>\n\n  b\n\
                     </new_code>\n</fixed_code>";
const CATEGORY: &str =
    r#"{"category": "Status", "detailed_category": "State", "labels": ["a"], "language": "en"}"#;

/// Prompt id, the model's answer, what GitLab gets. `None` for what passes byte for byte.
const CASES: &[(&str, &str, Option<&str>)] = &[
    // Readers: one object, in the order in which GitLab completes it.
    ("chat/issue_reader", IDENTIFIER, None),
    (
        "chat/issue_reader",
        "```json\n{\"ResourceIdentifierType\": \"iid\", \"ResourceIdentifier\": \"42\"}\n```",
        Some(IDENTIFIED),
    ),
    (
        "chat/epic_reader",
        "Sure! {\"a\": {}} then {\"ResourceIdentifierType\": \"IID\", \"ResourceIdentifier\": 42} ok",
        Some(IDENTIFIED),
    ),
    (
        "chat/build_reader",
        "iid\", \"ResourceIdentifier\": \"42\"}",
        Some(IDENTIFIED),
    ),
    (
        "chat/build_reader",
        "{\"ResourceIdentifierType\": \"iid\", \"ResourceIdentifier\": \"42\"",
        Some(IDENTIFIED),
    ),
    (
        "chat/build_reader",
        "{\"ResourceIdentifier\": \"42\"}",
        Some(IDENTIFIED),
    ),
    (
        "chat/commit_reader",
        "{\"ResourceIdentifierType\": \"current\"}",
        Some(r#"{"ResourceIdentifierType":"current","ResourceIdentifier":"current"}"#),
    ),
    (
        "chat/commit_reader",
        "{\"ResourceIdentifierType\": \"link\", \"ResourceIdentifier\": \"https://x/-/commit/1\"}",
        Some(r#"{"ResourceIdentifierType":"url","ResourceIdentifier":"https://x/-/commit/1"}"#),
    ),
    (
        "chat/work_item_reader",
        "<think>hm</think>\n{\"ResourceIdentifierType\": \"iid\", \"ResourceIdentifier\": \"42\"}",
        Some(IDENTIFIER),
    ),
    ("chat/merge_request_reader", "I do not know.", None),
    // Documentation: the list of sources.
    (
        "chat/documentation_search",
        "Press **Save**.\n\nATTRS: CNT-IDX-7 CNT-IDX-12",
        None,
    ),
    (
        "chat/documentation_search",
        "Press it.\n\n**ATTRS:** CNT-IDX-7, CNT-IDX-99, 12.",
        Some("Press it.\n\nATTRS: CNT-IDX-7 CNT-IDX-12"),
    ),
    (
        "chat/documentation_search",
        "Press it.\nATTRS: CNT-IDX-99",
        Some("Press it."),
    ),
    (
        "chat/documentation_search",
        "Not covered. Set ATTR or ATTRS2.",
        None,
    ),
    // Question categories.
    ("categorize_question", CATEGORY, None),
    (
        "categorize_question",
        "```json\n{\"category\": \"Status\", \"detailed_category\": \"State\", \"labels\": \"a, b\"}\n```",
        Some(r#"{"category":"Status","detailed_category":"State","labels":["a","b"],"language":""}"#),
    ),
    (
        "categorize_question",
        "It is about status.",
        Some(r#"{"category":"unknown","detailed_category":"unknown","labels":[],"language":""}"#),
    ),
    // Comment temperature.
    (
        "measure_comment_temperature",
        "<temperature_rating>{\"rating\": 2, \"issues\": [\"x\"]}</temperature_rating>",
        None,
    ),
    (
        "measure_comment_temperature",
        "Rating:\n{\"rating\": \"3\", \"issues\": \"rude\"}",
        Some("<temperature_rating>{\"rating\":3,\"issues\":[\"rude\"]}</temperature_rating>"),
    ),
    (
        "measure_comment_temperature",
        "fine",
        Some("<temperature_rating>{\"rating\":1,\"issues\":[]}</temperature_rating>"),
    ),
    (
        "measure_comment_temperature",
        "<temperature_rating>{\"rating\": 3.0, \"issues\": []}</temperature_rating>",
        Some("<temperature_rating>{\"rating\":3,\"issues\":[]}</temperature_rating>"),
    ),
    // Intent of a mention.
    ("classify_code_review_mention_intent", "assistant_flow", None),
    (
        "classify_code_review_mention_intent",
        "**Code_review_request**.\n",
        Some("code_review_request"),
    ),
    (
        "classify_code_review_mention_intent",
        "assistant_flow or agentic_chat",
        Some("agentic_chat"),
    ),
    // Title.
    ("generate_session_title", "Fix the login of #12", None),
    (
        "generate_session_title",
        "Here is a title:\n\n\"Title: Fix the login.\"\nMore.",
        Some("Fix the login"),
    ),
    ("generate_session_title", "Explain C#", None),
    ("generate_session_title", "#12 needs a login", None),
    ("generate_session_title", "Rename `foo`", None),
    ("generate_session_title", "'foo' becomes 'bar'", None),
    ("generate_session_title", "## **Fix `foo`.**", Some("Fix `foo`")),
    ("generate_session_title", "**Title:** `Fix it`", Some("Fix it")),
    ("generate_session_title", "* \"Fix the", Some("Fix the")),
    // Git commands.
    (
        "glab_ask_git_command",
        "```git status```\nIt shows changes.",
        None,
    ),
    (
        "glab_ask_git_command",
        "```\ngit reset --soft HEAD~1\n```\nIt undoes.",
        None,
    ),
    (
        "glab_ask_git_command",
        "git stash keeps your changes aside.",
        None,
    ),
    (
        "glab_ask_git_command",
        "Run\n$ git add .\n`git commit -m x`\nDone.",
        Some("Run\n```\ngit add .\ngit commit -m x\n```\nDone.\n"),
    ),
    (
        "glab_ask_git_command",
        "```\ngit status",
        Some("```\ngit status\n```"),
    ),
    ("glab_ask_git_command", "I can only help with Git.", None),
    // Plain Markdown, put into a field.
    ("generate_commit_message", "Add a\n\nBecause.\n", None),
    (
        "generate_commit_message",
        "Here is the commit message:\n\n```\nAdd a\n\nBecause.\n```\n",
        Some("Add a\n\nBecause.\n"),
    ),
    ("generate_commit_message", "Commit message: Add a", None),
    (
        "generate_commit_message",
        "Greater limits for:\n\n- lines\n",
        None,
    ),
    (
        "generate_commit_message",
        "**Commit message:**\nAdd a",
        Some("Add a"),
    ),
    (
        "generate_description",
        "```markdown\n## A\n```sh\nls\n```\n```\nx\n```\nend\n```",
        Some("## A\n```sh\nls\n```\n```\nx\n```\nend\n"),
    ),
    ("summarize_review", "```ruby\nputs 1\n```\nis wrong", None),
    ("summarize_new_merge_request", "```\nIt adds.", Some("It adds.")),
    (
        "fill_in_merge_request_template",
        "Here is a list of changes",
        None,
    ),
    // Plain Markdown for a person.
    ("chat/explain_code", "```md\n# It\n```", Some("# It\n")),
    ("chat/explain_code", "```\ncode\n```\nHere is:\nx", None),
    ("chat/write_tests", "```markdown\nx\n```", None),
    (
        "chat/refactor_code",
        "<think>\nlong\n</think>\n\nDone.",
        Some("Done."),
    ),
    ("model_configuration/check", "<think>", None),
    // A review.
    ("review_merge_request", REVIEW, None),
    ("review_merge_request", REVIEW_OF_A_REVIEW, None),
    ("review_merge_request", "<review></review>", None),
    (
        "review_merge_request",
        "```xml\n<review>\n<comment new_line='3' file='a.rb'>It leaks.\n<from>```\n  a\n```</from> <to>  b</to></comment>\n<comment file=\"a.rb\">no place</comment>\n</review>\n```",
        Some(REVIEW),
    ),
    (
        "review_merge_request",
        "<comment file=\"a.rb\" old_line=\"1\" new_line=\"\">\nx\n</comment>",
        Some("<review>\n<comment file=\"a.rb\" old_line=\"1\" new_line=\"\">\nx\n</comment>\n</review>"),
    ),
    (
        "review_merge_request",
        "<review>\n<comment file=\"a\" old_line=\"1\" new_line=\"2\">\nx\n</comment>\n<summary>Fine.</summary>\n",
        Some(
            "<review>\n<comment file=\"a\" old_line=\"1\" new_line=\"2\">\nx\n</comment>\n</review>\n<summary>\nFine.\n</summary>",
        ),
    ),
    // A vulnerability's repair.
    ("resolve_vulnerability", FIXED, None),
    (
        "resolve_vulnerability",
        "<analysis>It is safe.</analysis>\n<is_false_positive>true</is_false_positive>",
        None,
    ),
    (
        "resolve_vulnerability",
        "<analysis>No.</analysis><fixed_code></fixed_code><is_false_positive>True</is_false_positive>",
        Some("<analysis>\nNo.\n</analysis>\n<is_false_positive>true</is_false_positive>"),
    ),
    (
        "resolve_vulnerability",
        "<analysis>Why.</analysis>\n```\n<old_code>\n```rb\n\n  a\n```\n</old_code><new_code>\n\n  b\n</new_code>\n```",
        Some(FIXED),
    ),
];

#[test]
fn answers_get_the_form_that_gitlab_reads() {
    for (id, answer, expected) in CASES {
        let expected = expected.unwrap_or(answer);
        assert_eq!(
            format(id, answer, WHOLE).as_deref(),
            Ok(expected),
            "{id}: {answer}"
        );
    }
}

#[test]
fn an_answer_that_would_make_gitlab_claim_something_false_is_refused() {
    for (id, answer, end) in [
        ("review_merge_request", "Looks good to me!", WHOLE),
        (
            "review_merge_request",
            "<review>\n<comment file=\"a\">x</comment>\n</review>",
            WHOLE,
        ),
        (
            "review_merge_request",
            "<review>\n<comment file=\"a\" new_line=\"1\">\nhal",
            CUT,
        ),
        (
            "resolve_vulnerability",
            "I would use a prepared statement.",
            WHOLE,
        ),
        (
            "resolve_vulnerability",
            "<fixed_code>\n<old_code>\na\n</old_code>\n</fixed_code>",
            WHOLE,
        ),
        (
            "resolve_vulnerability",
            "<fixed_code>\n<old_code>\na\n</old_code>\n<new_code>\nb\n</new_code>",
            CUT,
        ),
        (
            "resolve_vulnerability",
            "<is_false_positive>false</is_false_positive>",
            WHOLE,
        ),
        ("summarize_review", "<think>on and on", CUT),
    ] {
        assert_eq!(format(id, answer, end), Err(Unusable), "{id}: {answer}");
    }
}

#[test]
fn a_review_that_was_cut_off_keeps_its_whole_comments() {
    let cut = format!(
        "{}\n<comment file=\"b\" new_line=\"1\">\nhal",
        REVIEW.trim_end_matches("\n</review>")
    );
    assert_eq!(format("review_merge_request", &cut, CUT).as_deref(), Ok(REVIEW));
}

#[test]
fn a_stream_holds_back_no_more_than_it_must() {
    let shown = |id: &str, text: &str| Formatter::new(id, documents()).push(text).into_owned();
    assert_eq!(shown("chat/explain_code", "It is"), "It is");
    assert_eq!(shown("chat/fix_code", "```ruby"), "```ruby");
    assert_eq!(shown("chat/troubleshoot_job", "```mark"), "");
    assert_eq!(shown("chat/documentation_search", "Press it.\n\nAT"), "Press it.");
    assert_eq!(shown("generate_commit_message", "Fix "), "Fix ");
    assert_eq!(shown("chat/issue_reader", IDENTIFIER), "");
}

fn code(text: &str) -> String {
    whole(Formatter::code("python"), text.to_owned(), WHOLE).expect("text")
}

#[test]
fn fences_and_what_is_said_about_code_go_and_all_code_stays() {
    assert_eq!(code("```python\na = `1`\n\n  ```\n"), "a = `1`\n\n");
    assert_eq!(code("no fence"), "no fence");
    assert_eq!(code("a ``` b\n``"), "a ``` b\n``");
    assert_eq!(code("```"), "");
    assert_eq!(code("\n\nx = 1\n```\ny = 2\n```\n"), "\n\nx = 1\ny = 2\n");
    let said =
        "Sure! Here is the code:\n\n```python\nx = 1\n```\nIt sets x.\n```python\ny = 2\n```\nThat is all.";
    assert_eq!(code(said), "x = 1\ny = 2\n");
    let deep = "```python\ndef f():\n    \"\"\"\n    ```\n    f()\n    ```\n    \"\"\"\n```";
    assert_eq!(
        code(deep),
        "def f():\n    \"\"\"\n    ```\n    f()\n    ```\n    \"\"\"\n"
    );
    let bare = deep.trim_start_matches("```python\n").trim_end_matches("```");
    assert_eq!(code(bare), bare);
    assert_eq!(code("here is = 1\n"), "here is = 1\n");
    assert_eq!(code("<think>a\n```\n</think>\n```\nx\n```"), "x\n");
    let markdown = "# A\n```sh\nls\n```\nend\n";
    let file = whole(Formatter::code("markdown"), markdown.to_owned(), WHOLE);
    assert_eq!(file.as_deref(), Ok(markdown));
}

#[test]
fn code_is_not_held_until_the_end_of_its_line() {
    let mut formatter = Formatter::code("ruby");
    assert_eq!(formatter.push("    re"), "    re");
    assert_eq!(formatter.push("turn\n  `"), "turn\n");
    assert_eq!(formatter.push("x"), "  `x");
}

/// Models repeat blanks without end: looking at what is held again for each piece would take minutes here.
#[test]
fn a_piece_costs_no_more_than_itself_whatever_is_held() {
    let began = std::time::Instant::now();
    let formats = [
        "chat/explain_code",
        "generate_description",
        "chat/documentation_search",
        "code",
    ];
    for begun in [
        "",
        "x",
        "x\n",
        "```md\n",
        "```md\nx\n```\n",
        "Here is it:\n",
        "ATTRS",
        "```\nx\n```\n",
        "```",
    ] {
        for piece in ["\n", " ", "\u{a0}", "*"].map(|piece| piece.repeat(128)) {
            for format in formats {
                let mut formatter = match format {
                    "code" => Formatter::code("go"),
                    id => Formatter::new(id, documents()),
                };
                let mut shown = formatter.push(begun).len();
                for _ in 0..8000 {
                    shown += formatter.push(&piece).len();
                    assert!(began.elapsed().as_secs() < 40, "{format} {begun:?} {piece:?}");
                }
                shown += formatter.finish(WHOLE).expect("text").len();
                assert!(shown <= begun.len() + 8000 * piece.len());
            }
        }
    }
}

fn ids() -> impl Iterator<Item = &'static str> {
    crate::prompt::builtin::all().map(|(id, _, _)| id)
}

fn well_formed() -> impl Strategy<Value = (&'static str, String)> {
    let code = "[a-z(){};= ]{1,12}(\n[a-z(){};= ]{1,12}){0,3}";
    let words = "[A-Z][a-z]{2,8} [a-z]{2,8}( [a-z#!&]{1,8}){0,6}";
    let review = (words, code, code, 1u32..9999, 0u32..2).prop_map(|(said, old, new, line, two)| {
        let comment = format!(
            "<comment file=\"lib/a b.rs\" old_line=\"\" new_line=\"{line}\">\n{said}\n<from>\n{old}\n</from>\n<to>\n\
             {new}\n</to>\n</comment>\n"
        );
        ("review_merge_request", format!("<review>\n{}</review>", comment.repeat(1 + two as usize)))
    });
    let fixed = (code, code).prop_map(|(old, new)| {
        let pair = format!("<old_code>\nx{old}\n</old_code>\n<new_code>\n{new}\n</new_code>\n");
        (
            "resolve_vulnerability",
            format!("<summary>\ns\n</summary>\n<fixed_code>\n{pair}{pair}</fixed_code>"),
        )
    });
    let reader = ("[a-z0-9/#!-]{1,20}", 0usize..4).prop_map(|(identifier, kind)| {
        let kind = ["current", "iid", "url", "reference"][kind];
        let object =
            format!("{{\"ResourceIdentifierType\": \"{kind}\", \"ResourceIdentifier\": \"{identifier}\"}}");
        ("chat/issue_reader", object)
    });
    let sourced = (words, proptest::sample::subsequence(documents(), 1..=2)).prop_map(|(said, sources)| {
        (
            "chat/documentation_search",
            format!("{said}.\n\nATTRS: {}", sources.join(" ")),
        )
    });
    let prose = (words, words).prop_map(|(first, second)| {
        (
            "summarize_new_merge_request",
            format!("Adds {first}.\n\n- {second}\n\n```sh\n{first}\n```\n"),
        )
    });
    prop_oneof![review, fixed, reader, sourced, prose]
}

/// Text of the pieces that the formats look for.
fn broken() -> impl Strategy<Value = String> {
    let pieces = proptest::sample::select(vec![
        "<review>",
        "</review>",
        "<comment file=\"a\" new_line=\"1\">",
        "<comment ",
        ">",
        "</comment>",
        "<from>",
        "</from>",
        "<to>",
        "</to>",
        "<old_code>",
        "</old_code>",
        "<new_code>",
        "</new_code>",
        "<fixed_code>",
        "</fixed_code>",
        "{",
        "}",
        "\"ResourceIdentifierType\": ",
        "\"ResourceIdentifier\"",
        "\"category\": 1",
        "\"rating\":9",
        "ATTRS",
        "                                        \n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n",
        ":",
        "**",
        "CNT-IDX-7",
        "```",
        "```md",
        "\n",
        " ",
        "git add x",
        "$ ",
        "`",
        "Here is it",
        "Title",
        "<think>",
        "</think>",
        "ü",
        "x",
        "\r\n",
        "<summary>",
        "</summary>",
        "<is_false_positive>",
        "true",
    ]);
    proptest::collection::vec(pieces, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_well_formed_answer_passes_byte_for_byte((id, answer) in well_formed(), at in 0usize..300) {
        prop_assert_eq!(format(id, &answer, WHOLE), Ok(answer.clone()));
        let at = answer.floor_char_boundary(at);
        prop_assert_eq!(flow(id, &[&answer[..at], &answer[at..]], WHOLE), Ok(answer.clone()));
    }

    #[test]
    fn code_without_fences_passes_byte_for_byte(text in "[a-z(){}<>:=#`\\n \"]{0,80}") {
        prop_assume!(!text.contains("```") && !text.trim_start().starts_with("<think>"));
        prop_assert_eq!(code(&text), text);
    }

    #[test]
    fn no_answer_makes_a_formatter_panic_and_cuts_make_no_difference(
        answer in prop_oneof![broken(), "\\PC{0,60}"], cut in any::<bool>(), places in proptest::collection::vec(0usize..90, 0..4)
    ) {
        let mut places: Vec<usize> = places.iter().map(|at| answer.floor_char_boundary(*at)).collect();
        places.extend([0, answer.len()]);
        places.sort_unstable();
        let pieces: Vec<&str> = places.windows(2).map(|ends| &answer[ends[0]..ends[1]]).collect();
        let mut formatter = Formatter::code("go");
        let shown: String = pieces.iter().map(|piece| formatter.push(piece)).collect();
        let shown = formatter.finish(End { cut }).map(|rest| shown + &rest);
        prop_assert_eq!(shown, whole(Formatter::code("go"), answer.clone(), End { cut }));
        for id in ids() {
            prop_assert_eq!(flow(id, &pieces, End { cut }), format(id, &answer, End { cut }), "{}", id);
        }
    }

    #[test]
    fn what_was_repaired_needs_no_second_repair(answer in broken(), cut in any::<bool>()) {
        // Thoughts may stand behind thoughts; each repair takes one block.
        let answer = answer.replace("<think>", "");
        for id in ["chat/issue_reader", "categorize_question", "measure_comment_temperature", "review_merge_request",
            "resolve_vulnerability", "classify_code_review_mention_intent"] {
            if let Ok(once) = format(id, &answer, End { cut }) {
                prop_assert_eq!(format(id, &once, WHOLE), Ok(once.clone()), "{}", id);
            }
        }
    }
}
