//! `Idempotency-Key`, as the IETF's draft has it: a quoted string, or a bare word as most clients send it.

use http::{HeaderMap, HeaderName, StatusCode};

use super::JobsError;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest key.
const MAX_KEY: usize = 255;

/// The key of a request, if it has one.
pub(super) fn read(headers: &HeaderMap) -> Result<Option<String>, JobsError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let key = value.to_str().ok().and_then(parse);
    key.map(Some).ok_or_else(|| JobsError::Own {
        status: StatusCode::BAD_REQUEST,
        code: "invalid_idempotency_key",
        message: format!("Idempotency-Key has to be 1 to {MAX_KEY} visible characters, such as a UUID"),
        retry_after: None,
    })
}

fn parse(text: &str) -> Option<String> {
    let text = text.trim();
    let key = match text.strip_prefix('"') {
        Some(quoted) => unquote(quoted.strip_suffix('"')?)?,
        None => text.to_owned(),
    };
    let fits = !key.is_empty() && key.len() <= MAX_KEY && key.bytes().all(|b| (0x20..0x7f).contains(&b));
    fits.then_some(key)
}

/// A structured field's string: `\"` and `\\` are its only escapes.
fn unquote(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut signs = text.chars();
    while let Some(sign) = signs.next() {
        match sign {
            '\\' => out.push(signs.next().filter(|sign| matches!(sign, '"' | '\\'))?),
            '"' => return None,
            sign => out.push(sign),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_and_bare_keys_are_the_same() {
        for text in ["abc-1", "\"abc-1\"", " abc-1 "] {
            assert_eq!(parse(text).as_deref(), Some("abc-1"), "{text}");
        }
        assert_eq!(parse(r#""a\"b\\c""#).as_deref(), Some("a\"b\\c"));
        for text in ["", "\"\"", "\"a", "\"a\"b\"", "\"a\\n\"", "a\u{7f}", "ü"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(parse(&"x".repeat(255)).is_some() && parse(&"x".repeat(256)).is_none());
    }
}
