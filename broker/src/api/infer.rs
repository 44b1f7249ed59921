//! Features whose models are no language models, `/v1/infer/{feature}`: suggested reviewers and value stream forecasting.
//!
//! The body is a request of KServe's inference API, second version, and reaches the model server as it is, through the
//! queue like every other; the answer and what the server says of a mistake come back as they are. Binary tensors beside
//! the JSON are not taken.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::Response;
use bytes::Bytes;
use duo_contract::envelope::Endpoint;
use duo_contract::name::FeatureName;

use super::error::{ApiError, Shape};
use super::fields::Fields;
use super::inbound::Inbound;
use super::openai;
use crate::request::{ModelChoice, Work};
use crate::routing::INFERENCE;

/// The features.
static FEATURES: LazyLock<[FeatureName; 2]> =
    LazyLock::new(|| INFERENCE.map(|name| FeatureName::parse(name).expect("a feature id")));
/// Tensors of one request.
const MAX_INPUTS: usize = 256;
/// Dimensions of one tensor.
const MAX_DIMENSIONS: usize = 16;
const MAX_NAME: usize = 255;

/// `POST /v1/infer/{feature}`.
pub(super) async fn infer(name: Result<Path<String>, PathRejection>, mut inbound: Inbound) -> Response {
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    answer(&name, &mut inbound)
        .await
        .unwrap_or_else(|error| error.respond(Shape::Infer))
}

async fn answer(name: &str, inbound: &mut Inbound) -> Result<Response, ApiError> {
    let feature = FEATURES.iter().find(|feature| feature.as_str() == name);
    let feature = feature.ok_or_else(unknown)?;
    inbound.require(
        &[feature.as_str()],
        feature,
        format!("Unauthorized to access {feature}"),
    )?;
    inbound.gate(feature)?;
    let body = without_mark(inbound.json().await?);
    check(&Fields::parse(&body)?)?;
    let routed = inbound.route(feature, &ModelChoice::Assigned, false)?;
    let work = Work {
        endpoint: Endpoint::Infer,
        body,
        stream: false,
        prompt: None,
        supersede_key: None,
    };
    let mut reply = inbound.send(&routed, work).await?;
    let (_, body) = reply.whole().await?;
    Ok(openai::json_as_it_is(body))
}

/// What every model server would refuse need not wait for one.
pub(super) fn check(fields: &Fields<'_>) -> Result<(), ApiError> {
    fields.text("id", MAX_NAME)?;
    fields.object("parameters")?;
    fields.objects("outputs", MAX_INPUTS)?;
    let inputs = fields.objects("inputs", MAX_INPUTS)?;
    if inputs.is_empty() {
        return Err(fields.required("inputs"));
    }
    for input in inputs {
        input.required_text("name", MAX_NAME)?;
        input.required_text("datatype", MAX_NAME)?;
        input.raw("shape").ok_or_else(|| input.required("shape"))?;
        input.list("shape", MAX_DIMENSIONS)?;
        input.raw("data").ok_or_else(|| input.required("data"))?;
    }
    Ok(())
}

/// Model servers do not expect a byte order mark.
fn without_mark(body: Bytes) -> Bytes {
    if body.starts_with(b"\xef\xbb\xbf") {
        body.slice(3..)
    } else {
        body
    }
}

fn unknown() -> ApiError {
    let names: Vec<&str> = FEATURES.iter().map(FeatureName::as_str).collect();
    ApiError::NotFound(format!("no such feature; there are {}", names.join(" and ")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(body: &str) -> Result<(), String> {
        let fields = Fields::parse(body.as_bytes()).expect("an object");
        check(&fields).map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_has_tensors_with_name_type_shape_and_data() {
        let good = r#"{"name":"x","datatype":"FP32","shape":[1,2],"data":[0.5,1]}"#;
        assert_eq!(checked(&format!(r#"{{"inputs":[{good}],"unknown":1}}"#)), Ok(()));
        for (body, problem) in [
            ("{}".to_owned(), "inputs: is required"),
            (r#"{"inputs":[]}"#.to_owned(), "inputs: is required"),
            (r#"{"inputs":[7]}"#.to_owned(), "inputs.0: has to be an object"),
            (
                format!(r#"{{"inputs":[{good},{{}}]}}"#),
                "inputs.1.name: is required",
            ),
            (good.replace("[1,2]", "2"), "inputs.0.shape: has to be a list"),
            (good.replace("[0.5,1]", "null"), "inputs.0.data: is required"),
            (
                good.replace("\"FP32\"", "32"),
                "inputs.0.datatype: has to be a string",
            ),
        ] {
            let body = match body.starts_with(r#"{"name""#) {
                true => format!(r#"{{"inputs":[{body}]}}"#),
                false => body,
            };
            assert_eq!(checked(&body), Err(problem.to_owned()), "{body}");
        }
    }

    #[test]
    fn a_byte_order_mark_goes_and_nothing_else() {
        assert_eq!(without_mark(Bytes::from_static(b"\xef\xbb\xbf{} ")), "{} ");
        assert_eq!(without_mark(Bytes::from_static(b" {}")), " {}");
    }
}
