//! What went wrong, whoever asked, and what a client may read of it.

use std::borrow::Cow;
use std::time::Duration;

use duo_contract::failure::FailureKind;

use crate::config_file::Problem;
use crate::prompt::PromptError;
use crate::prompt::answer::Unusable;
use crate::request::ExchangeError;

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
    /// It was there and was destroyed for good.
    #[error("{0}")]
    Erased(String),
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
    pub(super) fn template() -> Self {
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
            Self::Erased(_) => "erased".into(),
            Self::Problems(_) => "invalid_value".into(),
            Self::NoRevision => "revision_required".into(),
            Self::Stale { .. } => "stale_revision".into(),
            Self::ContextLength { .. } => "context_length_exceeded".into(),
            Self::NoSigningKey => "no_signing_key".into(),
            Self::Exchange(error) => error.reason.clone(),
        }
    }

    /// The sentence that a client may read.
    pub(super) fn sentence(&self) -> Cow<'_, str> {
        match self {
            Self::Exchange(error) => public_message(error).into(),
            other => other.to_string().into(),
        }
    }

    /// After which time it is worth another try.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Exchange(error) => error.retry_after,
            _ => None,
        }
    }
}

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
pub(super) fn is_too_long(error: &ExchangeError) -> bool {
    let words = ["context length", "context size", "context_length", "context_size"];
    error.kind == FailureKind::InvalidRequest
        && error
            .upstream_error
            .as_deref()
            .is_some_and(|text| words.iter().any(|words| text.contains(words)))
}

/// Does it name a model or feature that does not exist?
pub(super) fn is_unknown(error: &ExchangeError) -> bool {
    error.reason == "unknown_model" || error.reason == "unknown_feature"
}

/// The body itself has no name.
pub(super) fn sentence_about(path: &str, problem: &str) -> String {
    match path {
        "" => problem.to_owned(),
        path => format!("{path}: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_template_is_the_clients_fault_where_the_client_filled_it() {
        let error = ApiError::template().blame_inputs();
        assert!(
            matches!(&error, ApiError::Invalid { path, .. } if path == "inputs"),
            "{error}"
        );
        assert_eq!(ApiError::Malformed.blame_inputs().reason(), "malformed_json");
    }
}
