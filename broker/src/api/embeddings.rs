//! Vectors of a repository's code, `/v1/embeddings/code_embeddings`, for GitLab's search over it. To index and to search
//! are the same work here, so the paths for either do the same.

use std::borrow::Cow;
use std::sync::LazyLock;

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_contract::name::FeatureName;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::code;
use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use crate::prompt::budget;
use crate::request::{RoutedRequest, Work};

const SCOPE: &str = "generate_embeddings_codebase";
const REFUSAL: &str = "Unauthorized to generate embeddings";
/// What GitLab's own gateway calls its engine and its one family here; nothing reads them.
const ENGINE: &str = "litellm_embedding";
const FAMILY: &str = "embedding";
/// As many texts as OpenAI's own API takes at once.
const MAX_CONTENTS: usize = 2048;

static CODE_EMBEDDINGS: LazyLock<FeatureName> =
    LazyLock::new(|| FeatureName::parse("code_embeddings").expect("a feature id"));

/// What the model server is asked.
#[derive(Serialize)]
struct Asked<'a> {
    input: &'a [Cow<'a, str>],
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<i64>,
}

/// An answer of `/v1/embeddings`, its vectors unread: they are most of its bytes, and pass through as they are.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Vec<Entry<'a>>,
}

/// What GitLab reads.
#[derive(Serialize)]
struct Predictions<'a> {
    model: Origin<'a>,
    predictions: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Origin<'a> {
    engine: &'static str,
    name: &'static str,
    identifier: &'a str,
}

#[derive(Deserialize, Serialize)]
struct Entry<'a> {
    #[serde(borrow)]
    embedding: &'a RawValue,
    index: u64,
}

/// `POST /v1/embeddings/code_embeddings`, and the same with `/index` or `/search` behind it.
pub(super) async fn code_embeddings(mut inbound: Inbound) -> Response {
    embed(&mut inbound)
        .await
        .unwrap_or_else(|error| error.respond(Shape::GitLab))
}

async fn embed(inbound: &mut Inbound) -> Result<Response, ApiError> {
    inbound.require(&[SCOPE], &CODE_EMBEDDINGS, REFUSAL)?;
    inbound.gate(&CODE_EMBEDDINGS)?;
    let body = inbound.json().await?;
    let fields = Fields::parse(&body)?;
    // Elsewhere a malformed one is overlooked, here GitLab's own gateway refuses it.
    fields.object("model_metadata")?;
    let routed = inbound.route(&CODE_EMBEDDINGS, &code::metadata_hint(&fields), false)?;
    let work = Work {
        endpoint: Endpoint::Embeddings,
        body: for_model_server(&fields, &routed)?,
        stream: false,
        prompt: None,
        supersede_key: None,
    };
    let mut reply = inbound.send(&routed, work).await?;
    let (_, body) = reply.whole().await?;
    let answer: Answer<'_> = serde_json::from_slice(&body).map_err(|_| ApiError::unreadable())?;
    let predictions = Predictions {
        model: Origin {
            engine: ENGINE,
            name: FAMILY,
            identifier: routed.model.name.as_str(),
        },
        predictions: answer.data,
    };
    Ok(Json(predictions).into_response())
}

/// The texts as the model server's endpoint takes them; each has the model's window for itself.
fn for_model_server(fields: &Fields<'_>, routed: &RoutedRequest) -> Result<Bytes, ApiError> {
    let contents = fields.texts("contents", MAX_CONTENTS)?;
    if contents.is_empty() {
        return Err(fields.required("contents"));
    }
    let most = budget::most_bytes(&routed.model);
    if contents.iter().any(|text| text.len() > most) {
        return Err(ApiError::ContextLength {
            path: "contents",
            window: routed.model.context_tokens,
        });
    }
    let dimensions = fields.integer("dimensions")?;
    if dimensions.is_some_and(|dimensions| dimensions < 1) {
        return Err(fields.invalid("dimensions", "has to be 1 or more"));
    }
    let asked = Asked {
        input: &contents,
        encoding_format: "float",
        dimensions,
    };
    Ok(serde_json::to_vec(&asked)
        .expect("texts serialise into memory")
        .into())
}
