//! CSV as RFC 4180 has it, which no spreadsheet takes for a formula.

use serde_json::Value;

use crate::store::audit_events::Event;

/// In this order, for ever; new ones come behind.
const COLUMNS: [&str; 36] = [
    "seq",
    "request_id",
    "kind",
    "occurred_at",
    "recorded_at",
    "broker",
    "auth",
    "instance_id",
    "user_id",
    "token_id",
    "client",
    "address",
    "route",
    "feature",
    "lane",
    "model",
    "prompt_id",
    "prompt_version",
    "config_revision",
    "stream",
    "body_bytes",
    "correlation_id",
    "trace_id",
    "job_id",
    "outcome",
    "reason",
    "worker",
    "attempts",
    "queue_wait_us",
    "first_byte_us",
    "duration_us",
    "input_tokens",
    "output_tokens",
    "details",
    "prompt_sha256",
    "answer_sha256",
];

pub(super) fn head() -> Vec<u8> {
    let mut head = COLUMNS.join(",").into_bytes();
    head.extend(b"\r\n");
    head
}

pub(super) fn write(event: &Event, out: &mut Vec<u8>) {
    let values = serde_json::to_value(event).unwrap_or_default();
    for (at, column) in COLUMNS.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        match values.get(column) {
            None | Some(Value::Null) => {}
            // Byte for byte as it was written.
            Some(_) if *column == "details" => cell(event.details.as_deref().unwrap_or_default(), out),
            Some(Value::String(text)) => cell(text, out),
            Some(other) => cell(&other.to_string(), out),
        }
    }
    out.extend(b"\r\n");
}

/// A text that begins as a formula does gets an apostrophe, which spreadsheets do not show.
fn cell(text: &str, out: &mut Vec<u8>) {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<i64>().is_err();
    let needs_quotes = text.contains([',', '"', '\n', '\r']);
    if needs_quotes {
        out.push(b'"');
    }
    if is_formula {
        out.push(b'\'');
    }
    if needs_quotes {
        out.extend(text.replace('"', "\"\"").bytes());
        out.push(b'"');
    } else {
        out.extend(text.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_and_every_cell_is_one() {
        for (text, expected) in [
            ("plain", "plain"),
            ("=1+1", "'=1+1"),
            ("+1 800", "'+1 800"),
            ("-cmd|' /C calc'!A0", "'-cmd|' /C calc'!A0"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "\"'\r=1\""),
            (
                "=HYPERLINK(\"http://x\",\"y\")",
                "\"'=HYPERLINK(\"\"http://x\"\",\"\"y\"\")\"",
            ),
            ("a,b\nc", "\"a,b\nc\""),
            ("-5", "-5"),
            ("", ""),
        ] {
            let mut out = Vec::new();
            cell(text, &mut out);
            assert_eq!(String::from_utf8(out).as_deref(), Ok(expected));
        }
    }
}
