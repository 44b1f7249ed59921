//! Forms as `multipart/form-data`, read as they come: a file in one is never whole in memory.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, header};

use crate::api::error::ApiError;

/// Parts of one form.
const MAX_PARTS: usize = 16;

/// The boundary that a request's headers name.
pub(super) fn boundary(headers: &HeaderMap) -> Result<String, ApiError> {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| multer::parse_boundary(value).ok())
        .filter(|boundary| !boundary.is_empty())
        .ok_or_else(|| {
            let problem = "the content type has to be multipart/form-data with a boundary";
            ApiError::invalid("", problem)
        })
}

/// What stands above a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) filename: Option<String>,
}

/// A form on its way in.
pub(super) struct Multipart {
    form: multer::Multipart<'static>,
    part: Option<multer::Field<'static>>,
    parts: usize,
}

/// A piece of the body did not come.
#[derive(Debug, thiserror::Error)]
#[error("the body was not received in time")]
struct Late;

impl Multipart {
    /// Each piece of the body may take `within`.
    pub(super) fn new(body: Body, boundary: &str, within: Duration) -> Self {
        let pieces = stream::unfold(body.into_data_stream(), move |mut body| async move {
            match tokio::time::timeout(within, body.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(piece))) => Some((Ok(piece), body)),
                Ok(Some(Err(_))) | Err(_) => Some((Err(Late), body)),
            }
        });
        Self {
            form: multer::Multipart::new(pieces, boundary),
            part: None,
            parts: 0,
        }
    }

    /// The next part, past what is left of the one before; `None` behind the last.
    pub(super) async fn part(&mut self) -> Result<Option<Part>, ApiError> {
        // The form gives the next part only once this one is let go of.
        self.part = None;
        let Some(part) = self.form.next_field().await.map_err(problem)? else {
            return Ok(None);
        };
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(wrong("the form has too many parts"));
        }
        let name = part.name().ok_or_else(|| wrong("a part has no name"))?.to_owned();
        let filename = part.file_name().map(str::to_owned);
        self.part = Some(part);
        Ok(Some(Part { name, filename }))
    }

    /// More of the part; `None` at its end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        match &mut self.part {
            Some(part) => part.chunk().await.map_err(problem),
            None => Ok(None),
        }
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

fn problem(error: multer::Error) -> ApiError {
    match error {
        multer::Error::StreamReadFailed(_) => ApiError::BodyLate,
        error => wrong(&format!("the form cannot be read: {error}")),
    }
}

fn wrong(problem: &str) -> ApiError {
    ApiError::invalid("", problem)
}

#[cfg(test)]
mod tests {
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
