//! Answers to requests that will not be served, in vLLM's shapes.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};

/// Why a request was refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
    kind: &'static str,
    param: Option<String>,
    retry_after: Option<u64>,
}

#[derive(Serialize)]
struct Wrapped {
    error: ErrorObject,
}

/// Fields in the order in which vLLM writes them.
#[derive(Serialize)]
struct ErrorObject {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: u16,
}

impl Refusal {
    /// The request parses but asks for something impossible; `param` names the field.
    pub(crate) fn bad(param: &str, message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message).about(param)
    }

    /// The body is not what the endpoint takes.
    pub(crate) fn invalid(location: &str, kind: &str, what: &str) -> Self {
        let message =
            format!("1 validation error:\n  {{'type': '{kind}', 'loc': '{location}', 'msg': '{what}'}}");
        Self::new(StatusCode::BAD_REQUEST, "Bad Request", message).about(location)
    }

    /// The prompt alone fills the context.
    pub(crate) fn long_prompt(context: usize) -> Self {
        let over = context + 1;
        Self::bad(
            "input_tokens",
            format!(
                "This model's maximum context length is {context} tokens. However, your prompt contains at least \
                 {over} input tokens, which exceeds this limit even without any output tokens. Please reduce the \
                 length of the input prompt. (parameter=input_tokens, value={over})"
            ),
        )
    }

    /// The request names a model that is not served.
    pub(crate) fn unknown_model(model: &str, served: &[String]) -> Self {
        let served = served.join(", ");
        let message = format!("The model `{model}` does not exist. Valid aliases: {served}.");
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message).about("model")
    }

    /// A fault of the server's own, with the status that the settings ask for.
    pub(crate) fn fault(status: u16, retry_after: Option<u64>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let refusal = Self::new(status, "InternalServerError", "simulated failure".to_owned());
        Self {
            retry_after,
            ..refusal
        }
    }

    /// The engine died while it worked on this request.
    pub(crate) fn engine_dead() -> Self {
        let message =
            "EngineCore encountered an issue. See stack trace (above) for the root cause.".to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
    }

    /// The server finishes what it has and takes nothing new.
    pub(crate) fn draining() -> Self {
        let message = "cannot schedule new futures after shutdown".to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
    }

    /// The key is missing or wrong.
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", String::new())
    }

    /// The refusal as an event in mid-stream, spaced as vLLM spaces it there.
    pub(crate) fn event(&self) -> String {
        let text = |text: &str| Value::from(text).to_string();
        let (message, kind) = (text(&self.message), text(self.kind));
        let param = self.param.as_deref().map_or_else(|| "null".to_owned(), text);
        let code = self.status.as_u16();
        format!(
            "data: {{\"error\": {{\"message\": {message}, \"type\": {kind}, \"param\": {param}, \"code\": {code}}}}}\n\n"
        )
    }

    fn new(status: StatusCode, kind: &'static str, message: String) -> Self {
        Self {
            status,
            message,
            kind,
            param: None,
            retry_after: None,
        }
    }

    fn about(self, param: &str) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..self
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = if self.status == StatusCode::UNAUTHORIZED {
            (self.status, axum::Json(json!({"error": "Unauthorized"}))).into_response()
        } else {
            let (message, param) = (self.message, self.param);
            let error = ErrorObject {
                message,
                kind: self.kind,
                param,
                code: self.status.as_u16(),
            };
            (self.status, axum::Json(Wrapped { error })).into_response()
        };
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
