//! An error to status and body: the only status codes of the API.
//!
//! What went wrong is an [`ApiError`]; how the endpoint's clients read errors
//! is a [`Shape`]. Before the first byte of an answer:
//!
//! | what | completion | other code, prompt streams | prompt, not streamed | chat | OpenAI |
//! |---|---|---|---|---|---|
//! | malformed, wrong or missing field | 422 | 422 | 422 | 422 | 400 |
//! | wrong content type | 422 | 422 | 422 | 422 | – |
//! | compressed body | 415 | 415 | 415 | 415 | 415 |
//! | body too large, too slow | 413, 408 | 413, 408 | 413, 408 | 413, 408 | 413, 408 |
//! | no or bad token | 401 | 401 | 401 | 401 | 401 |
//! | scope, role, inactive feature, unsupported pair | 403 | 403 | 403 | 403 | 403 |
//! | unknown path, prompt, feature, model | 404 | 404 | 404 | 404 | 404 |
//! | `invalid_request` of the model server | 422 | 422 | 421 with its code | `error` event | its 4xx, else 400 |
//! | `overloaded` by us | empty answer | 429 | 429 | `error` event | 429 |
//! | `overloaded` by the model server | empty answer | 429 | 421 `429: …` | `error` event | 429 |
//! | `model_unavailable` | empty answer | 503 | 421 `503: …` | `error` event | 503 |
//! | `deadline_exceeded` | empty answer | 503 | 421 `408: …` | `error` event | 503 |
//! | `cancelled` (superseded, too slow a reader) | empty answer | 503 | 421 `503: …` | `error` event | 503 |
//! | `model_server_fault` | 503 | 503 | 421 with its code, else `500: …` | `error` event | 502 |
//! | `internal` with a time to try again | 503 | 503 | 503 | `error` event | 503 |
//! | no key signs a token for an IDE | – | 500 | – | – | – |
//! | `internal` | 500 | 500 | 500 | `error` event | 500 |
//!
//! The empty answer is 200 with `choices: []`, or for a stream 200 with no
//! text: an editor takes it as nothing to suggest. An `error` event has status
//! 200; it is `retryable` when the wait should clear within five seconds. The
//! model test shows administrators the reason of every status but 200 and 421,
//! so its errors have the list form of `detail`. Audit and administration read
//! `{"error", "message"}` with the statuses of OpenAI, 422 for fields (with
//! `problems`), 428 and 409 for revisions; inference by other than language
//! models has OpenAI's statuses and `{"error": "…"}`. Where the
//! exchange refused, `X-Duo-Reason` has the reason in every shape, as OpenAI's
//! `code` has it.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use duo_contract::failure::FailureKind;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::{chat, code};
use crate::config_file::Problem;
use crate::prompt::PromptError;
use crate::prompt::answer::Unusable;
use crate::request::ExchangeError;

/// The refusal's reason, for endpoints whose clients expect a fixed text or
/// none at all.
const REASON: HeaderName = HeaderName::from_static("x-duo-reason");
/// Text of a 429 on GitLab endpoints.
const TOO_MANY: &str = "Too many requests. Please try again later.";
/// Text of a 503 on GitLab endpoints when the model server is to blame.
const FAILED: &str = "Inference failed";
/// The word for a template that broke.
const PROMPT_TEMPLATE: &str = "prompt_template";
/// What to say when the model server counts more tokens than we guessed.
/// GitLab's chat looks for the first words and explains them to the user.
const TOO_LONG: &str = "prompt is too long for the model's context window; send less text";
/// A chat client repeats its turn when told that it may; longer waits are not worth that.
const RETRYABLE_WITHIN: Duration = Duration::from_secs(5);

/// What went wrong, whoever asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The body is no JSON.
    #[error("the body is not valid JSON")]
    Malformed,
    /// A field is missing, of the wrong type or over its limit. Never quotes the field's value.
    #[error("{}", sentence_about(path, problem))]
    Invalid {
        /// Where, with dots: `current_file.file_name`.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Every field is right, the whole makes no sense.
    #[error("{0}")]
    Senseless(&'static str),
    /// GitLab endpoints insist on JSON by name.
    #[error("the content type has to be application/json")]
    NotJson,
    /// Compressed bodies are not read.
    #[error("the body has to come as it is, without Content-Encoding")]
    Encoded,
    /// Over the limit.
    #[error("the body may have at most {0} bytes")]
    TooLarge(usize),
    /// The client broke off or took too long.
    #[error("the body did not arrive in time")]
    BodyLate,
    /// The token is missing or bad.
    #[error("{text}")]
    Stranger {
        /// The contract's text.
        text: String,
        /// One word for the record.
        reason: &'static str,
    },
    /// Scope or role is missing; the endpoint's text.
    #[error("{0}")]
    Forbidden(Cow<'static, str>),
    /// No such path, prompt, feature or model.
    #[error("{0}")]
    NotFound(Cow<'static, str>),
    /// The path exists, the method does not.
    #[error("Method Not Allowed")]
    MethodNotAllowed,
    /// What is there does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// Fields or rules that an administrator's change breaks, all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Problems(Vec<Problem>),
    /// An edit that does not say which revision it starts from.
    #[error(
        "an edit says which revision it starts from: send the ETag of what you read as If-Match, or If-Match: *"
    )]
    NoRevision,
    /// An edit of something that somebody else has changed meanwhile.
    #[error(
        "the configuration is at revision {current} by now, not {expected}; nothing was changed: read it again and \
         repeat the edit"
    )]
    Stale {
        /// What the caller had seen.
        expected: u64,
        /// The revision of the moment.
        current: u64,
    },
    /// The prompt is longer than the model's window.
    #[error(
        "{path}: the prompt is too long for the model's context window of {window} tokens; send less text"
    )]
    ContextLength {
        /// The field that holds the prompt.
        path: &'static str,
        /// The model's window in tokens.
        window: u32,
    },
    /// Nothing signs tokens for IDEs; GitLab's own text. GitLab then lets IDEs ask through it.
    #[error("Failed to generate JWT")]
    NoSigningKey,
    /// The exchange refused or failed.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

/// How an endpoint's clients read errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Code completion, which would rather have nothing than wait.
    Completion {
        /// Did the client ask for a stream?
        stream: bool,
    },
    /// The other GitLab endpoints.
    GitLab,
    /// GitLab's prompts.
    Prompt {
        /// Did the client ask for a stream?
        stream: bool,
    },
    /// GitLab's model test.
    ModelTest,
    /// GitLab's chat, whose errors are events.
    Chat,
    /// OpenAI's endpoints.
    OpenAi,
    /// Inference by models that are no language models.
    Infer,
    /// Audit and administration.
    Plain,
}

/// Why a response is a refusal: goes into its extensions for the record.
#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) Cow<'static, str>);

impl From<Unusable> for ApiError {
    fn from(unusable: Unusable) -> Self {
        Self::Exchange(unusable.into())
    }
}

impl From<Unusable> for ExchangeError {
    /// An answer of the model that is not what its feature needs.
    fn from(_: Unusable) -> Self {
        let message = "the model's answer is not in the form that this feature needs; try again, or ask your \
                       administrator to give the feature another model";
        Self::new(FailureKind::ModelServerFault, "unusable_answer", message)
    }
}

impl ApiError {
    /// An answer of the model server that nobody can read.
    pub(crate) fn unreadable() -> Self {
        let message = "the model server sent an answer that could not be read";
        Self::Exchange(ExchangeError::new(
            FailureKind::ModelServerFault,
            "unreadable_answer",
            message,
        ))
    }

    /// A field's problem.
    pub(crate) fn invalid(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.into(),
            problem: problem.into(),
        }
    }

    /// A template broke although its inputs are all there.
    fn template() -> Self {
        Self::Exchange(ExchangeError::new(
            FailureKind::Internal,
            PROMPT_TEMPLATE,
            "internal error",
        ))
    }

    /// The same error where the inputs of a template came from the client as
    /// they are: then it is the client that gave one of another type.
    pub(crate) fn blame_inputs(self) -> Self {
        match self {
            Self::Exchange(error) if error.reason == PROMPT_TEMPLATE => Self::invalid(
                "inputs",
                "the prompt cannot be made of these; one has another type than the prompt needs",
            ),
            other => other,
        }
    }

    /// The same error with the name that an endpoint has for its prompt.
    pub(crate) fn prompt_at(self, path: &'static str) -> Self {
        match self {
            Self::ContextLength { window, .. } => Self::ContextLength { path, window },
            other => other,
        }
    }

    /// The response in the shape the endpoint's clients read.
    pub(crate) fn respond(&self, shape: Shape) -> Response {
        let mut response = match shape {
            Shape::Completion { stream } if self.is_nothing_to_suggest() => code::nothing(stream),
            Shape::Chat if self.is_event() => chat::error_response(&self.sentence(), self.retryable()),
            Shape::Completion { .. } | Shape::GitLab | Shape::Chat => gitlab(self, self.status(), None),
            Shape::Prompt { stream: false } | Shape::ModelTest => match self.upstream_code() {
                Some(code) => detail(StatusCode::MISDIRECTED_REQUEST, &phrase(code)),
                None => gitlab(self, self.status(), Some(shape)),
            },
            Shape::Prompt { stream: true } => gitlab(self, self.status(), None),
            Shape::OpenAi => openai(self),
            Shape::Infer => infer(self),
            Shape::Plain => plain(self),
        };
        if let Some(after) = self.retry_after()
            && (response.status() == StatusCode::TOO_MANY_REQUESTS
                || response.status() == StatusCode::SERVICE_UNAVAILABLE)
        {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        let reason = self.reason();
        if let Self::Exchange(_) = self
            && let Ok(value) = HeaderValue::from_str(&reason)
        {
            response.headers_mut().insert(REASON, value);
        }
        response.extensions_mut().insert(Refused(reason));
        response
    }

    /// One snake_case word for the record.
    pub(crate) fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::Malformed => "malformed_json".into(),
            Self::Invalid { .. } => "invalid_field".into(),
            Self::Senseless(_) => "invalid_request".into(),
            Self::NotJson => "content_type".into(),
            Self::Encoded => "content_encoding".into(),
            Self::TooLarge(_) => "body_too_large".into(),
            Self::BodyLate => "body_late".into(),
            Self::Stranger { reason, .. } => (*reason).into(),
            Self::Forbidden(_) => "forbidden".into(),
            Self::NotFound(_) => "not_found".into(),
            Self::MethodNotAllowed => "method_not_allowed".into(),
            Self::Conflict(_) => "conflict".into(),
            Self::Problems(_) => "invalid_value".into(),
            Self::NoRevision => "revision_required".into(),
            Self::Stale { .. } => "stale_revision".into(),
            Self::ContextLength { .. } => "context_length_exceeded".into(),
            Self::NoSigningKey => "no_signing_key".into(),
            Self::Exchange(error) => error.reason.clone(),
        }
    }

    /// The status on GitLab's code endpoints, which the other shapes start from.
    fn status(&self) -> StatusCode {
        match self {
            Self::Malformed
            | Self::Invalid { .. }
            | Self::Problems(_)
            | Self::NotJson
            | Self::ContextLength { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NoRevision => StatusCode::PRECONDITION_REQUIRED,
            Self::Senseless(_) => StatusCode::BAD_REQUEST,
            Self::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyLate => StatusCode::REQUEST_TIMEOUT,
            Self::Stranger { .. } => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict(_) | Self::Stale { .. } => StatusCode::CONFLICT,
            Self::NoSigningKey => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Exchange(error) if is_unknown(error) => StatusCode::NOT_FOUND,
            Self::Exchange(error) => match error.kind {
                FailureKind::InvalidRequest => StatusCode::UNPROCESSABLE_ENTITY,
                FailureKind::FeatureInactive | FailureKind::Unsupported | FailureKind::Unauthorized => {
                    StatusCode::FORBIDDEN
                }
                FailureKind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
                FailureKind::ModelUnavailable
                | FailureKind::DeadlineExceeded
                | FailureKind::Cancelled
                | FailureKind::ModelServerFault => StatusCode::SERVICE_UNAVAILABLE,
                FailureKind::Internal if error.retry_after.is_some() => StatusCode::SERVICE_UNAVAILABLE,
                FailureKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// Is an empty answer the gentle one for someone who types?
    fn is_nothing_to_suggest(&self) -> bool {
        let Self::Exchange(error) = self else { return false };
        match error.kind {
            FailureKind::Overloaded
            | FailureKind::ModelUnavailable
            | FailureKind::DeadlineExceeded
            | FailureKind::Cancelled => true,
            FailureKind::InvalidRequest
            | FailureKind::FeatureInactive
            | FailureKind::Unsupported
            | FailureKind::Unauthorized
            | FailureKind::ModelServerFault
            | FailureKind::Internal => false,
        }
    }

    /// Does a chat client get it as an event?
    fn is_event(&self) -> bool {
        let Self::Exchange(error) = self else { return false };
        match error.kind {
            FailureKind::FeatureInactive | FailureKind::Unsupported | FailureKind::Unauthorized => false,
            FailureKind::InvalidRequest
            | FailureKind::Overloaded
            | FailureKind::ModelUnavailable
            | FailureKind::DeadlineExceeded
            | FailureKind::ModelServerFault
            | FailureKind::Cancelled
            | FailureKind::Internal => !is_unknown(error),
        }
    }

    /// The sentence that a client may read.
    fn sentence(&self) -> Cow<'_, str> {
        match self {
            Self::Exchange(error) => public_message(error).into(),
            other => other.to_string().into(),
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::Exchange(error) if is_retryable(error))
    }

    /// The code a GitLab prompt answers for the model server, by 421.
    fn upstream_code(&self) -> Option<StatusCode> {
        let Self::Exchange(error) = self else { return None };
        let upstream = error
            .upstream_status
            .and_then(|code| StatusCode::from_u16(code).ok());
        match error.kind {
            FailureKind::InvalidRequest | FailureKind::Overloaded => upstream,
            FailureKind::ModelUnavailable => Some(upstream.unwrap_or(StatusCode::SERVICE_UNAVAILABLE)),
            FailureKind::Cancelled => Some(StatusCode::SERVICE_UNAVAILABLE),
            FailureKind::DeadlineExceeded => Some(StatusCode::REQUEST_TIMEOUT),
            FailureKind::ModelServerFault => Some(upstream.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)),
            FailureKind::FeatureInactive
            | FailureKind::Unsupported
            | FailureKind::Unauthorized
            | FailureKind::Internal => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Exchange(error) => error.retry_after,
            _ => None,
        }
    }

    /// Status, type, code and field as OpenAI's clients know them.
    fn openai_terms(&self) -> (StatusCode, &'static str, Cow<'static, str>, Option<&str>) {
        const INVALID: &str = "invalid_request_error";
        const RATE_LIMIT: &str = "rate_limit_exceeded";
        let status = self.status();
        match self {
            Self::Malformed | Self::NotJson => {
                (StatusCode::BAD_REQUEST, INVALID, "invalid_json".into(), None)
            }
            Self::Invalid { path, .. } => (
                StatusCode::BAD_REQUEST,
                INVALID,
                "invalid_value".into(),
                Some(path.as_str()).filter(|path| !path.is_empty()),
            ),
            Self::ContextLength { path, .. } => {
                (StatusCode::BAD_REQUEST, INVALID, self.reason(), Some(*path))
            }
            Self::Stranger { .. } => (status, INVALID, "invalid_api_key".into(), None),
            Self::Forbidden(_) => (status, INVALID, "permission_denied".into(), None),
            Self::Senseless(_)
            | Self::Encoded
            | Self::TooLarge(_)
            | Self::BodyLate
            | Self::NotFound(_)
            | Self::MethodNotAllowed
            | Self::Problems(_)
            | Self::NoRevision
            | Self::Stale { .. }
            | Self::Conflict(_) => (status, INVALID, self.reason(), None),
            Self::NoSigningKey => (status, "server_error", self.reason(), None),
            Self::Exchange(error) if error.reason == "unknown_model" => (
                StatusCode::NOT_FOUND,
                INVALID,
                "model_not_found".into(),
                Some("model"),
            ),
            Self::Exchange(error) if is_unknown(error) => (status, INVALID, self.reason(), None),
            Self::Exchange(error) => {
                let (status, kind) = match error.kind {
                    FailureKind::InvalidRequest => (upstream_client_error(error), INVALID),
                    FailureKind::FeatureInactive | FailureKind::Unsupported | FailureKind::Unauthorized => {
                        (status, INVALID)
                    }
                    FailureKind::Overloaded if error.reason == error.kind.as_str() => {
                        return (status, RATE_LIMIT, RATE_LIMIT.into(), None);
                    }
                    FailureKind::Overloaded => (status, RATE_LIMIT),
                    FailureKind::ModelServerFault => (StatusCode::BAD_GATEWAY, "server_error"),
                    FailureKind::ModelUnavailable
                    | FailureKind::DeadlineExceeded
                    | FailureKind::Cancelled
                    | FailureKind::Internal => (status, "server_error"),
                };
                (status, kind, self.reason(), None)
            }
        }
    }
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        match error {
            PromptError::Unknown(id) => Self::NotFound(format!("Prompt '{id}' not found").into()),
            PromptError::MissingInput(name) => Self::invalid(format!("inputs.{name}"), "is required"),
            PromptError::TooLong { window } => Self::ContextLength {
                path: "inputs",
                window,
            },
            PromptError::Template { id, .. } => {
                // The engine's words may quote an input, so they stay out of the log too.
                tracing::error!(prompt = id, "prompt template could not be rendered");
                Self::template()
            }
        }
    }
}

/// May a chat client repeat its turn?
pub(crate) fn is_retryable(error: &ExchangeError) -> bool {
    error.kind == FailureKind::Overloaded && error.retry_after.is_some_and(|after| after <= RETRYABLE_WITHIN)
}

/// The sentence of an exchange error that a client may read.
pub(crate) fn public_message(error: &ExchangeError) -> &str {
    match error.kind {
        FailureKind::Internal => "internal error",
        FailureKind::InvalidRequest if is_too_long(error) => TOO_LONG,
        FailureKind::InvalidRequest
        | FailureKind::FeatureInactive
        | FailureKind::Unsupported
        | FailureKind::Unauthorized
        | FailureKind::Overloaded
        | FailureKind::ModelUnavailable
        | FailureKind::DeadlineExceeded
        | FailureKind::ModelServerFault
        | FailureKind::Cancelled => &error.message,
    }
}

/// Did the model server refuse a prompt that its window does not hold? Each
/// server has its own words: vLLM and OpenAI "maximum context length",
/// llama.cpp "exceeds the available context size", SGLang "context length".
fn is_too_long(error: &ExchangeError) -> bool {
    let words = ["context length", "context size", "context_length", "context_size"];
    error.kind == FailureKind::InvalidRequest
        && error
            .upstream_error
            .as_deref()
            .is_some_and(|text| words.iter().any(|words| text.contains(words)))
}

/// OpenAI's error object, also the event that ends a failed stream.
pub(crate) fn openai_object(error: &ApiError) -> Value {
    if let Some(object) = upstream_object(error) {
        return object;
    }
    let (_, kind, code, param) = error.openai_terms();
    json!({"error": {"message": error.sentence(), "type": kind, "param": param, "code": code}})
}

/// The model server's own error object, for what the client did wrong.
fn upstream_object(error: &ApiError) -> Option<Value> {
    let ApiError::Exchange(error) = error else {
        return None;
    };
    if error.kind != FailureKind::InvalidRequest {
        return None;
    }
    let object: Map<String, Value> = serde_json::from_str(error.upstream_error.as_deref()?).ok()?;
    let mut object = match object.contains_key("error") {
        true => Value::Object(object),
        false => json!({ "error": object }),
    };
    if is_too_long(error)
        && let Some(Value::Object(error)) = object.get_mut("error")
    {
        error.insert("code".to_owned(), "context_length_exceeded".into());
    }
    Some(object)
}

fn upstream_client_error(error: &ExchangeError) -> StatusCode {
    let upstream = error
        .upstream_status
        .and_then(|code| StatusCode::from_u16(code).ok());
    upstream
        .filter(|code| code.is_client_error() && *code != StatusCode::UNAUTHORIZED)
        .unwrap_or(StatusCode::BAD_REQUEST)
}

fn is_unknown(error: &ExchangeError) -> bool {
    error.reason == "unknown_model" || error.reason == "unknown_feature"
}

fn openai(error: &ApiError) -> Response {
    let (status, ..) = error.openai_terms();
    let mut response = (status, Json(openai_object(error))).into_response();
    challenge(&mut response);
    response
}

/// KServe's form: the sentence alone, the model server's own where the client was wrong.
fn infer(error: &ApiError) -> Response {
    let (status, ..) = error.openai_terms();
    let upstream = upstream_object(error);
    let text = upstream
        .as_ref()
        .and_then(|object| object["error"]["message"].as_str());
    let text = text.map_or_else(|| error.sentence(), Cow::Borrowed);
    let mut response = (status, Json(json!({ "error": text }))).into_response();
    challenge(&mut response);
    response
}

fn plain(error: &ApiError) -> Response {
    let (status, _, code, _) = error.openai_terms();
    let status = match error {
        ApiError::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        _ => status,
    };
    let mut body = json!({"error": code, "message": error.sentence()});
    if let Some(problems) = problems(error) {
        body["problems"] = problems;
    }
    let mut response = (status, Json(body)).into_response();
    challenge(&mut response);
    response
}

/// What is wrong, field by field.
fn problems(error: &ApiError) -> Option<Value> {
    let problem = |field: &str, message: &str| json!({"field": field, "message": message});
    match error {
        ApiError::Invalid { path, problem: words } => Some(json!([problem(path, words)])),
        ApiError::Problems(problems) => {
            let problems = problems.iter().map(|found| problem(&found.part, &found.message));
            Some(problems.collect())
        }
        _ => None,
    }
}

/// The GitLab shape; for the model test `detail` is a list wherever it may be.
fn gitlab(error: &ApiError, status: StatusCode, shape: Option<Shape>) -> Response {
    let text: Cow<'_, str> = match error {
        ApiError::Stranger { text, .. } => {
            let mut response = (status, Json(json!({ "error": text }))).into_response();
            challenge(&mut response);
            return response;
        }
        ApiError::Invalid { path, problem } => return invalid(path, problem),
        ApiError::Exchange(_) if status == StatusCode::INTERNAL_SERVER_ERROR && shape.is_none() => {
            return (status, "Internal Server Error").into_response();
        }
        ApiError::Exchange(inner) if shape != Some(Shape::ModelTest) => match inner.kind {
            FailureKind::Overloaded => TOO_MANY.into(),
            FailureKind::ModelServerFault => FAILED.into(),
            FailureKind::Internal if status == StatusCode::INTERNAL_SERVER_ERROR => {
                return (status, "Internal Server Error").into_response();
            }
            _ => public_message(inner).into(),
        },
        other => other.sentence(),
    };
    if shape == Some(Shape::ModelTest) {
        return (status, Json(json!({"detail": [{ "msg": text }]}))).into_response();
    }
    detail(status, &text)
}

/// The body itself has no name.
fn sentence_about(path: &str, problem: &str) -> String {
    match path {
        "" => problem.to_owned(),
        path => format!("{path}: {problem}"),
    }
}

fn invalid(path: &str, problem: &str) -> Response {
    let location: Vec<&str> = std::iter::once("body")
        .chain(path.split('.').filter(|part| !part.is_empty()))
        .collect();
    let entry = json!({"loc": location, "msg": sentence_about(path, problem), "type": "value_error"});
    (
        StatusCode::UNPROCESSABLE_ENTITY,
        Json(json!({ "detail": [entry] })),
    )
        .into_response()
}

fn detail(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "detail": text }))).into_response()
}

/// `503: Service Unavailable`, as GitLab's model test shows it.
fn phrase(code: StatusCode) -> String {
    format!(
        "{}: {}",
        code.as_u16(),
        code.canonical_reason().unwrap_or("Unknown")
    )
}

fn challenge(response: &mut Response<Body>) {
    if response.status() == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
}

fn whole_seconds(after: Duration) -> u64 {
    after
        .as_millis()
        .div_ceil(1000)
        .try_into()
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests;
