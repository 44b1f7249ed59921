//! What is read from request headers, and how much of it.
//!
//! A header that the token is checked against must be there once. Texts for records are cut to printable ASCII of a
//! bounded length; the person's id is never cut, since two people must not become one, nor a person a service: an id
//! that is over-long, repeated or not printable is refused as a mismatch.

use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::error::AuthError;

/// Longest token read; GitLab's are about a tenth of it.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Longest id taken from a header or a claim into a record.
pub(super) const MAX_ID_BYTES: usize = 255;
/// Longest description of a client program.
const MAX_CLIENT_BYTES: usize = 128;
/// Longest version of GitLab.
const MAX_VERSION_BYTES: usize = 64;

pub(super) const REALM: Checked = Checked("X-Gitlab-Realm", HeaderName::from_static("x-gitlab-realm"));
pub(super) const INSTANCE_ID: Checked = Checked(
    "X-Gitlab-Instance-Id",
    HeaderName::from_static("x-gitlab-instance-id"),
);
pub(super) const USER_ID: Checked = Checked(
    "X-Gitlab-Global-User-Id",
    HeaderName::from_static("x-gitlab-global-user-id"),
);
const AUTHENTICATION_TYPE: HeaderName = HeaderName::from_static("x-gitlab-authentication-type");
const VERSION: HeaderName = HeaderName::from_static("x-gitlab-version");
const CLIENT: [HeaderName; 3] = [
    HeaderName::from_static("x-gitlab-client-type"),
    HeaderName::from_static("x-gitlab-client-name"),
    HeaderName::from_static("x-gitlab-client-version"),
];

/// A header that a mismatch names: as the text spells it, and as it is looked up.
pub(super) struct Checked(&'static str, HeaderName);

struct Repeated;

/// The token of the one `Authorization` header.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, AuthError> {
    let value = single(headers, &AUTHORIZATION)
        .map_err(|Repeated| AuthError::InvalidAuthorization)?
        .ok_or(AuthError::NoAuthorization)?;
    value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| (1..=MAX_TOKEN_BYTES).contains(&token.len()))
        .ok_or(AuthError::InvalidAuthorization)
}

pub(super) fn require_oidc(headers: &HeaderMap) -> Result<(), AuthError> {
    match single(headers, &AUTHENTICATION_TYPE) {
        Ok(Some(kind)) if kind.as_bytes().eq_ignore_ascii_case(b"oidc") => Ok(()),
        _ => Err(AuthError::UnsupportedType),
    }
}

/// Does the header say what the claim says?
pub(super) fn require_same(headers: &HeaderMap, header: &Checked, claim: &str) -> Result<(), AuthError> {
    match single(headers, &header.1) {
        Ok(Some(value)) if value.as_bytes() == claim.as_bytes() => Ok(()),
        _ => Err(AuthError::HeaderMismatch(header.0)),
    }
}

/// The person's id; none for calls that the instance makes itself.
pub(super) fn user_id(headers: &HeaderMap) -> Result<Option<&str>, AuthError> {
    let mismatch = || AuthError::HeaderMismatch(USER_ID.0);
    let Some(value) = single(headers, &USER_ID.1).map_err(|Repeated| mismatch())? else {
        return Ok(None);
    };
    let id = value.to_str().map_err(|_| mismatch())?.trim();
    match id.len() {
        0 => Ok(None),
        1..=MAX_ID_BYTES => Ok(Some(id)),
        _ => Err(mismatch()),
    }
}

/// The client program: type, name and version where GitLab tells them, else the user agent.
pub(super) fn client(headers: &HeaderMap) -> Option<String> {
    let mut text = String::new();
    for value in CLIENT.iter().filter_map(|name| headers.get(name)) {
        append_printable(&mut text, value, MAX_CLIENT_BYTES);
    }
    if text.is_empty() {
        append_printable(&mut text, headers.get(USER_AGENT)?, MAX_CLIENT_BYTES);
    }
    Some(text).filter(|text| !text.is_empty())
}

/// GitLab's version.
pub(super) fn gitlab_version(headers: &HeaderMap) -> Option<String> {
    let mut text = String::new();
    append_printable(&mut text, headers.get(&VERSION)?, MAX_VERSION_BYTES);
    Some(text).filter(|text| !text.is_empty())
}

fn append_printable(text: &mut String, value: &HeaderValue, limit: usize) {
    let bytes = value.as_bytes().trim_ascii();
    if bytes.is_empty() || text.len() >= limit {
        return;
    }
    if !text.is_empty() {
        text.push(' ');
    }
    let room = limit - text.len();
    text.reserve(bytes.len().min(room));
    let printable = bytes.iter().filter(|byte| matches!(byte, b' '..=b'~'));
    text.extend(printable.take(room).map(|byte| char::from(*byte)));
}

fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Repeated> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Repeated);
    }
    Ok(first)
}
