//! What holds for every endpoint that asks a model: sizes, encodings, marks, and fields that nobody knows.

use serde_json::json;
use sqlx::Row as _;

use crate::bodies::{each, metadata};
use crate::case::{Ask, Case, case, story};

/// The largest body that is read.
pub(crate) const MAX_BODY: usize = 4 << 20;
/// The largest body of code that Rails forwards.
const RAILS_CODE: usize = 600_000;
/// A chat with files attached.
const CHAT_WITH_FILES: usize = 2 << 20;

/// Every case of these.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, ask) in each() {
        let padded = |size: usize| ask.clone().text(padded(&ask, size));
        cases.extend([
            case(
                format!("{name}: what nobody knows is passed over"),
                ask.clone().with("/nobody_knows_me", json!({"a": [1, null, "x"]})),
            )
            .good(),
            case(
                format!("{name}: model data is a hint, its endpoint is never called"),
                ask.clone()
                    .with("/model_metadata", metadata("martian", "custom_openai/martian")),
            )
            .good(),
            case(format!("{name}: {RAILS_CODE} bytes are read"), padded(RAILS_CODE)).good(),
            case(
                format!("{name}: {CHAT_WITH_FILES} bytes are read"),
                padded(CHAT_WITH_FILES),
            )
            .good(),
            case(format!("{name}: {MAX_BODY} bytes are read"), padded(MAX_BODY)).good(),
            case(format!("{name}: one byte more is 413"), padded(MAX_BODY + 1))
                .detail(413, &format!("the body may have at most {MAX_BODY} bytes")),
            case(
                format!("{name}: a compressed body is told so"),
                ask.clone().header("content-encoding", "gzip"),
            )
            .status(415),
            case(
                format!("{name}: broken JSON is told so"),
                ask.clone().text("{\"a\": "),
            )
            .status(422),
            case(
                format!("{name}: a body that is no object is told so"),
                ask.clone().text("[]"),
            )
            .names("object"),
            case(
                format!("{name}: a body without a type is told so"),
                ask.clone().typed(None),
            )
            .status(422),
            case(
                format!("{name}: a type with a blank in front is read"),
                ask.clone().typed(Some(" application/json")),
            )
            .good(),
            case(
                format!("{name}: GET is 405"),
                crate::case::bare(http::Method::GET, ask.path()),
            )
            .detail(405, "Method Not Allowed"),
        ]);
    }
    cases.extend(deadlines());
    cases
}

/// The same body with so many bytes.
pub(crate) fn padded(ask: &Ask, size: usize) -> String {
    let body = ask.body("").to_string();
    let room = size - body.len();
    format!("{body}{}", " ".repeat(room))
}

/// A client's patience for a feature, in milliseconds, and which of ours has to be below it.
fn deadlines() -> Vec<Case> {
    let rows = [
        (
            "code_completion",
            "end_within_ms",
            3_000,
            "the health check of completions",
        ),
        (
            "categorize_question",
            "end_within_ms",
            15_000,
            "GitLab's patience for a category",
        ),
        (
            "code_generation",
            "first_byte_within_ms",
            55_000,
            "Workhorse's patience for the first byte",
        ),
        (
            "duo_chat",
            "first_byte_within_ms",
            60_000,
            "GitLab's patience for a chat's first byte",
        ),
        (
            "review_merge_request",
            "first_byte_within_ms",
            60_000,
            "GitLab's patience for a prompt",
        ),
        (
            "git_suggestions",
            "first_byte_within_ms",
            60_000,
            "GitLab's patience for a prompt in a web request",
        ),
    ];
    rows.into_iter()
        .map(|(feature, column, patience, whose)| {
            let name = format!("{feature} gives up within {whose}, {patience} ms");
            story(name, move |cluster| async move {
                let sql = "SELECT first_byte_within_ms::bigint, end_within_ms::bigint FROM features WHERE name = $1";
                let row = sqlx::query(sql).bind(feature).fetch_one(cluster.database.pool()).await;
                let within: i64 = row.expect("a feature").get(column);
                assert!(within <= patience, "{within}");
            })
        })
        .collect()
}
