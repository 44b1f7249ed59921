//! Forms as `multipart/form-data`, read as they come: a file in one is never whole in memory.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use memchr::memmem;

use crate::api::error::ApiError;

/// Longest boundary, as RFC 2046 has it.
const MAX_BOUNDARY: usize = 70;
/// Bytes of the headers of one part.
const MAX_HEAD: usize = 8 << 10;
/// Parts of one form.
const MAX_PARTS: usize = 16;

/// The boundary that a request's headers name.
pub(super) fn boundary(headers: &HeaderMap) -> Result<String, ApiError> {
    let problem = || {
        ApiError::invalid(
            "",
            "the content type has to be multipart/form-data with a boundary",
        )
    };
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let (kind, rest) = value
        .and_then(|value| value.split_once(';'))
        .ok_or_else(problem)?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return Err(problem());
    }
    let boundary = parameter(rest, "boundary").ok_or_else(problem)?;
    match (1..=MAX_BOUNDARY).contains(&boundary.len()) {
        true => Ok(boundary),
        false => Err(problem()),
    }
}

/// A parameter of a header, which may stand in quotes.
fn parameter(text: &str, name: &str) -> Option<String> {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([';', ' ', '\t']);
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim_end().to_owned(), &after[end..])
            }
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = next;
    }
}

/// The text up to the closing quote, and what comes after.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut signs = text.char_indices();
    while let Some((at, sign)) = signs.next() {
        match sign {
            '"' => return Some((value, &text[at + 1..])),
            // Browsers escape quotes only; a backslash of a Windows path stays one.
            '\\' => match signs.next()? {
                (_, '"') => value.push('"'),
                (_, '\\') => value.push('\\'),
                (_, other) => value.extend(['\\', other]),
            },
            sign => value.push(sign),
        }
    }
    None
}

/// What stands above a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) filename: Option<String>,
}

/// A form on its way in.
pub(super) struct Multipart {
    body: Body,
    /// How long each piece of the body may take.
    within: Duration,
    held: BytesMut,
    delimiter: Vec<u8>,
    /// Is what is held inside of a part?
    is_inside: bool,
    parts: usize,
}

impl Multipart {
    pub(super) fn new(body: Body, boundary: &str, within: Duration) -> Self {
        Self {
            body,
            within,
            // The first delimiter has no line before it; then it is like every other.
            held: BytesMut::from(&b"\r\n"[..]),
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            is_inside: true,
            parts: 0,
        }
    }

    /// More of the body; false at its end.
    async fn load(&mut self) -> Result<bool, ApiError> {
        loop {
            let frame = tokio::time::timeout(self.within, self.body.frame()).await;
            match frame {
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.held.extend_from_slice(&bytes);
                        return Ok(true);
                    }
                }
                Ok(None) => return Ok(false),
                Ok(Some(Err(_))) | Err(_) => return Err(ApiError::BodyLate),
            }
        }
    }

    async fn must_load(&mut self) -> Result<(), ApiError> {
        match self.load().await? {
            true => Ok(()),
            false => Err(wrong("the form is cut off")),
        }
    }

    /// The next part, past what is left of the one before; `None` behind the last.
    pub(super) async fn part(&mut self) -> Result<Option<Part>, ApiError> {
        while self.piece().await?.is_some() {}
        loop {
            if self.held.starts_with(b"--") {
                return Ok(None);
            }
            if self.held.len() >= 2 {
                break;
            }
            self.must_load().await?;
        }
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(wrong("the form has too many parts"));
        }
        // Blanks may stand behind a delimiter, before the end of its line.
        let end = loop {
            match memmem::find(&self.held, b"\r\n\r\n") {
                Some(end) => break end,
                None if self.held.len() > MAX_HEAD => return Err(wrong("a part's headers are too long")),
                None => self.must_load().await?,
            }
        };
        let head = self.held.split_to(end + 4);
        self.is_inside = true;
        let head = std::str::from_utf8(&head).map_err(|_| wrong("a part's headers are not UTF-8"))?;
        head.split("\r\n")
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"))
            .and_then(|(_, value)| {
                let (_, parameters) = value.split_once(';')?;
                Some(Part {
                    name: parameter(parameters, "name")?,
                    filename: parameter(parameters, "filename"),
                })
            })
            .map(Some)
            .ok_or_else(|| wrong("a part has no name"))
    }

    /// More of the part; `None` at its end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        while self.is_inside {
            if let Some(end) = memmem::find(&self.held, &self.delimiter) {
                let piece = self.held.split_to(end).freeze();
                let _ = self.held.split_to(self.delimiter.len());
                self.is_inside = false;
                if piece.is_empty() {
                    break;
                }
                return Ok(Some(piece));
            }
            // The delimiter may have begun at the end of what is here.
            let sure = self.held.len().saturating_sub(self.delimiter.len());
            if sure > 0 {
                return Ok(Some(self.held.split_to(sure).freeze()));
            }
            self.must_load().await?;
        }
        Ok(None)
    }

    /// The part as a text of at most `most` bytes.
    pub(super) async fn text(&mut self, most: usize) -> Result<String, ApiError> {
        let mut text = Vec::new();
        while let Some(piece) = self.piece().await? {
            text.extend_from_slice(&piece);
            if text.len() > most {
                return Err(wrong("a field is too long"));
            }
        }
        String::from_utf8(text).map_err(|_| wrong("a field is not UTF-8"))
    }
}

fn wrong(problem: &str) -> ApiError {
    ApiError::invalid("", problem)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const FORM: &str = "--b-1\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b-1\r\n\
        content-type: application/jsonl\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a;\\\"b.jsonl\"\r\n\r\n\
        {\"a\": \"\r\n--b-\"}\r\n\n\r\n--b-1--\r\n";

    fn form(text: &str, size: usize) -> Multipart {
        let pieces: Vec<_> = text.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
        let body = Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>)));
        Multipart::new(body, "b-1", Duration::from_secs(5))
    }

    #[tokio::test]
    async fn a_form_is_read_alike_however_it_is_cut() {
        for size in 1..FORM.len() {
            let mut form = form(FORM, size);
            let first = form.part().await.expect("reads").expect("a part");
            assert_eq!((first.name.as_str(), first.filename), ("purpose", None));
            assert_eq!(form.text(9).await.expect("text"), "batch");
            let second = form.part().await.expect("reads").expect("a part");
            assert_eq!(second.name, "file");
            assert_eq!(second.filename.as_deref(), Some("a;\"b.jsonl"));
            assert_eq!(form.text(99).await.expect("text"), "{\"a\": \"\r\n--b-\"}\r\n\n");
            assert_eq!(form.part().await.expect("reads"), None);
        }
    }

    #[tokio::test]
    async fn a_form_that_is_cut_off_is_an_error_and_no_end() {
        for end in [10, 60, 90, FORM.len() - 6] {
            let mut form = form(&FORM[..end], 7);
            let read = async {
                while form.part().await?.is_some() {}
                Ok::<_, ApiError>(())
            };
            assert!(read.await.is_err(), "{end}");
        }
    }

    #[test]
    fn the_boundary_may_stand_in_quotes() {
        for (value, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            (
                "Multipart/Form-Data; charset=utf-8; boundary=\"a b\"",
                Some("a b"),
            ),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("application/json; boundary=abc", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().expect("a value"));
            assert_eq!(boundary(&headers).ok().as_deref(), expected, "{value}");
        }
    }
}
