//! Search in GitLab's documentation, `/v1/search/gitlab-docs`, from whose sections chat then answers by a prompt.
//!
//! It asks no model, so it has no place in line; its record is one terminal record, *completed* without an attempt.
//! Without an index nothing is found. An index that cannot be asked is 503: GitLab tells the person that it found
//! nothing either way, and the record tells why.

use std::sync::LazyLock;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use duo_contract::failure::FailureKind;
use duo_contract::name::FeatureName;
use duo_process::clock;
use serde_json::{Value, json};

use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use crate::documentation::SearchError;
use crate::request::ExchangeError;
use crate::store::documentation::FoundSection;

const SCOPE: &str = "documentation_search";
const REFUSAL: &str = "Unauthorized to search documentations";
const MAX_QUERY: usize = 400_000;
const MAX_TEXT: usize = 100;
const PAGE_SIZE: u8 = 4;
const MAX_PAGE_SIZE: u8 = 20;
/// When to ask again while the index cannot be asked.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The feature whose people ask.
static DUO_CHAT: LazyLock<FeatureName> =
    LazyLock::new(|| FeatureName::parse("duo_chat").expect("a feature id"));

/// `POST /v1/search/gitlab-docs`.
pub(super) async fn search(mut inbound: Inbound) -> Response {
    answer(&mut inbound)
        .await
        .unwrap_or_else(|error| error.respond(Shape::GitLab))
}

async fn answer(inbound: &mut Inbound) -> Result<Response, ApiError> {
    inbound.require(&[SCOPE], &DUO_CHAT, REFUSAL)?;
    inbound.record.note(Some(&DUO_CHAT), None, false);
    inbound.api.exchange.can_record()?;
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    fields.required_text("type", MAX_TEXT)?;
    let metadata = fields.required_object("metadata")?;
    metadata.required_text("source", MAX_TEXT)?;
    let version = metadata.required_text("version", MAX_TEXT)?;
    let payload = fields.required_object("payload")?;
    let query = payload.required_text("query", MAX_QUERY)?;
    let most = page_size(&payload)?;
    inbound.record.note_work(None, query.len());
    let found = match &inbound.api.documentation {
        Some(documentation) => documentation.search(&query, &version, most).await,
        None => Ok(Vec::new()),
    };
    let found = found.map_err(|error| unavailable(&error))?;
    inbound.record.answered();
    let results: Vec<Value> = found.iter().map(result).collect();
    let body = json!({
        "response": {"results": results},
        "metadata": {"provider": "postgres", "timestamp": clock::now().unix_timestamp()},
    });
    Ok(Json(body).into_response())
}

fn page_size(payload: &Fields<'_>) -> Result<u8, ApiError> {
    let most = payload.integer("page_size")?.unwrap_or(PAGE_SIZE.into());
    u8::try_from(most)
        .ok()
        .filter(|most| (1..=MAX_PAGE_SIZE).contains(most))
        .ok_or_else(|| payload.invalid("page_size", format!("has to be between 1 and {MAX_PAGE_SIZE}")))
}

/// A section as GitLab reads it: the content goes into a prompt, title and address below the answer.
fn result(found: &FoundSection) -> Value {
    let section = &found.section;
    let content = match section.heading.as_str() {
        "" => format!("# {}\n\n{}", section.title, section.content),
        heading => format!("# {}\n\n## {heading}\n\n{}", section.title, section.content),
    };
    json!({
        "id": found.id.to_string(),
        "content": content,
        "metadata": {
            "title": section.title,
            "section": section.heading,
            "source": section.path,
            "source_type": "doc",
            "source_url": section.url,
        },
    })
}

fn unavailable(error: &SearchError) -> ApiError {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "the documentation cannot be searched"
    );
    ApiError::Exchange(ExchangeError {
        retry_after: Some(AGAIN_AFTER),
        ..ExchangeError::new(
            FailureKind::ModelUnavailable,
            "documentation_unavailable",
            "the documentation cannot be searched just now; try again",
        )
    })
}
