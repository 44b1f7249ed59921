//! Answers that are one JSON object.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{End, Unusable};

/// Places at which an object is looked for: each costs a reading of the text.
const MOST_TRIES: usize = 64;

/// The first object in `text` that has the member `key`. One whose last brace is missing counts.
fn find(text: &str, key: &str) -> Option<Map<String, Value>> {
    let places = text.match_indices('{').take(MOST_TRIES);
    let mut found = places.filter_map(|(at, _)| read(&text[at..]));
    found.find(|object| object.contains_key(key)).or_else(|| {
        let from = text.find('{')?;
        read(&format!(
            "{}}}",
            text[from..].trim_end().trim_end_matches('`').trim_end()
        ))
        .filter(|object| object.contains_key(key))
    })
}

/// The object at the beginning of `text`, whatever follows it.
fn read(text: &str) -> Option<Map<String, Value>> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next()? {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// Text that is an object from its first byte to its last.
fn exact(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

const TYPE: &str = "ResourceIdentifierType";
const IDENTIFIER: &str = "ResourceIdentifier";
const TYPES: [&str; 4] = ["current", "iid", "url", "reference"];

#[derive(Serialize)]
struct Identifier<'a> {
    #[serde(rename = "ResourceIdentifierType")]
    kind: &'a str,
    #[serde(rename = "ResourceIdentifier")]
    identifier: Value,
}

/// Which resource a question is about. GitLab writes the object's beginning
/// itself where the answer lacks it, so an answer may be what follows that.
pub(super) fn identifier(text: &str, _: End) -> Result<Cow<'_, str>, Unusable> {
    if exact(text).is_some_and(|object| is_identifier(&object)) {
        return Ok(Cow::Borrowed(text));
    }
    let continued = || find(&format!("{{\"{TYPE}\": \"{}", text.trim_start()), TYPE);
    let object = match text.contains(IDENTIFIER) {
        true => find(text, TYPE)
            .or_else(|| find(text, IDENTIFIER))
            .or_else(continued),
        false => continued(),
    };
    Ok(match object.and_then(named) {
        Some(repaired) => Cow::Owned(repaired),
        None => Cow::Borrowed(text),
    })
}

fn is_identifier(object: &Map<String, Value>) -> bool {
    let kind = object.get(TYPE).and_then(Value::as_str);
    kind.is_some_and(|kind| TYPES.contains(&kind)) && object.contains_key(IDENTIFIER)
}

fn named(object: Map<String, Value>) -> Option<String> {
    let said = object.get(TYPE).and_then(Value::as_str);
    let said = said.map(|kind| kind.trim().to_lowercase());
    let identifier = match object.get(IDENTIFIER) {
        Some(Value::String(text)) => Some(text.trim().to_owned()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let known = said.filter(|kind| TYPES.contains(&kind.as_str()));
    let kind = known.or_else(|| identifier.as_deref().map(|text| guess(text).to_owned()))?;
    let identifier = identifier.or_else(|| (kind == TYPES[0]).then(|| kind.clone()))?;
    let repaired = Identifier {
        kind: &kind,
        identifier: identifier.into(),
    };
    serde_json::to_string(&repaired).ok()
}

/// What kind of identifier a text is.
fn guess(identifier: &str) -> &'static str {
    match identifier {
        "current" => "current",
        text if text.starts_with("http://") || text.starts_with("https://") => "url",
        text if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => "iid",
        _ => "reference",
    }
}

/// What GitLab counts as invalid, without an error.
const UNKNOWN: &str = "unknown";

#[derive(Serialize)]
struct Categories {
    category: String,
    detailed_category: String,
    labels: Vec<String>,
    language: String,
}

/// What kind of question was asked.
pub(super) fn categories(text: &str, _: End) -> Result<Cow<'_, str>, Unusable> {
    let is_text = |object: &Map<String, Value>, name: &str| object.get(name).is_some_and(Value::is_string);
    let fine = |object: Map<String, Value>| {
        let lists_labels = match object.get("labels") {
            None => true,
            Some(Value::Array(labels)) => labels.iter().all(Value::is_string),
            Some(_) => false,
        };
        is_text(&object, "category") && is_text(&object, "detailed_category") && lists_labels
    };
    if exact(text).is_some_and(fine) {
        return Ok(Cow::Borrowed(text));
    }
    let object = find(text, "category").unwrap_or_default();
    let word = |name: &str| object.get(name).and_then(Value::as_str);
    let labels = match object.get("labels") {
        Some(Value::Array(labels)) => labels.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(labels)) => labels.split(',').map(str::trim).collect(),
        _ => Vec::new(),
    };
    let repaired = Categories {
        category: word("category").unwrap_or(UNKNOWN).to_owned(),
        detailed_category: word("detailed_category").unwrap_or(UNKNOWN).to_owned(),
        labels: labels
            .into_iter()
            .filter(|label| !label.is_empty())
            .map(str::to_owned)
            .collect(),
        language: word("language").unwrap_or_default().to_owned(),
    };
    serde_json::to_string(&repaired)
        .map(Cow::Owned)
        .map_err(|_| Unusable)
}

const OPEN: &str = "<temperature_rating>";
const CLOSE: &str = "</temperature_rating>";

#[derive(Serialize)]
struct Temperature {
    rating: u64,
    issues: Vec<String>,
}

/// How heated a comment is; a rating of 1 lets it pass.
pub(super) fn temperature(text: &str, _: End) -> Result<Cow<'_, str>, Unusable> {
    let inner = text.strip_prefix(OPEN).and_then(|rest| rest.strip_suffix(CLOSE));
    let rated = |object: &Map<String, Value>| {
        let rating = object.get("rating").and_then(Value::as_u64);
        let issues = object.get("issues").and_then(Value::as_array);
        rating.is_some_and(|rating| (1..=3).contains(&rating))
            && issues.is_some_and(|issues| issues.iter().all(Value::is_string))
    };
    if inner.and_then(exact).is_some_and(|object| rated(&object)) {
        return Ok(Cow::Borrowed(text));
    }
    let object = find(text, "rating").unwrap_or_default();
    let rating: Option<f64> = match object.get("rating") {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    let rating = match rating {
        Some(rating) if rating >= 2.5 => 3,
        Some(rating) if rating >= 1.5 => 2,
        _ => 1,
    };
    let issues = match object.get("issues") {
        Some(Value::Array(issues)) => issues
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        Some(Value::String(issue)) if !issue.is_empty() => vec![issue.clone()],
        _ => Vec::new(),
    };
    let repaired = Temperature { rating, issues };
    let repaired = serde_json::to_string(&repaired).map_err(|_| Unusable)?;
    Ok(Cow::Owned(format!("{OPEN}{repaired}{CLOSE}")))
}
