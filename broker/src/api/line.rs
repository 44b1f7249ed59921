//! A line of a batch's file: read as the endpoint that it names reads a request.

use std::borrow::Cow;

use duo_contract::envelope::Endpoint;
use duo_contract::name::{FeatureName, ModelName};

use super::error::{ApiError, openai_object};
use super::fields::Fields;
use super::openai::OpenAiRequest;
use crate::caller::Caller;
use crate::jobs::work::{Form, JobWork};
use crate::request::{ModelChoice, Work};
use crate::routing::RoutingTable;

/// Longest name that a client gives a line.
const MAX_CUSTOM_ID: usize = 512;
const MAX_WORD: usize = 64;
/// A body of so many bytes has to fit into a message of the queue.
const MAX_BODY: usize = super::inbound::MAX_BODY;

/// Endpoints that a batch may be for.
pub(crate) const ENDPOINTS: [(&str, Endpoint); 3] = [
    ("/v1/chat/completions", Endpoint::ChatCompletions),
    ("/v1/completions", Endpoint::Completions),
    ("/v1/embeddings", Endpoint::Embeddings),
];

/// The endpoint of a path.
pub(crate) fn endpoint(path: &str) -> Option<Endpoint> {
    let found = ENDPOINTS.into_iter().find(|(known, _)| *known == path);
    found.map(|(_, endpoint)| endpoint)
}

/// What is wrong with a line, in OpenAI's words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LineError {
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
}

impl LineError {
    /// An error of the line as such.
    pub(crate) fn new(code: &'static str, message: impl Into<String>, param: Option<&str>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            param: param.map(str::to_owned),
        }
    }

    fn of_line(error: ApiError) -> Self {
        let param = match &error {
            ApiError::Invalid { path, .. } => Some(path.clone()),
            _ => None,
        };
        let code = match error {
            ApiError::Malformed => "invalid_json_line".into(),
            _ => "invalid_value".into(),
        };
        let message = match error {
            ApiError::Malformed => "the line is not valid JSON".to_owned(),
            error => error.to_string().replace("the body has", "the line has"),
        };
        Self {
            code,
            message,
            param: param.filter(|path| !path.is_empty()),
        }
    }

    fn of_body(error: &ApiError) -> Self {
        let object = openai_object(error);
        let text = |name: &str| object["error"][name].as_str().map(str::to_owned);
        Self {
            code: text("code").unwrap_or_default().into(),
            message: text("message").unwrap_or_default(),
            param: text("param").map(|param| format!("body.{param}")),
        }
    }
}

/// A line that is good.
#[derive(Debug)]
pub(crate) struct BatchLine<'a> {
    /// The client's own name of it.
    pub(crate) custom_id: Cow<'a, str>,
    endpoint: Endpoint,
    request: OpenAiRequest<'a>,
}

impl<'a> BatchLine<'a> {
    /// Reads a line of a batch for `path`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &'a [u8], path: &str) -> Result<Self, LineError> {
        let fields = Fields::parse(text).map_err(LineError::of_line)?;
        let of_line = LineError::of_line;
        let custom_id = fields
            .required_text("custom_id", MAX_CUSTOM_ID)
            .map_err(of_line)?;
        let method = fields.required_text("method", MAX_WORD).map_err(of_line)?;
        if method != "POST" {
            return Err(LineError::new(
                "invalid_method",
                "method: has to be POST",
                Some("method"),
            ));
        }
        let url = fields.required_text("url", MAX_WORD).map_err(of_line)?;
        let endpoint = endpoint(path).filter(|_| url == path);
        let endpoint = endpoint.ok_or_else(|| {
            let message = format!("url: has to be {path}, the endpoint of the batch");
            LineError::new("invalid_url", message, Some("url"))
        })?;
        let body = fields
            .raw("body")
            .ok_or_else(|| of_line(fields.required("body")))?;
        if body.get().len() > MAX_BODY {
            let message = format!("body: may have at most {MAX_BODY} bytes");
            return Err(LineError::new("body_too_large", message, Some("body")));
        }
        let request = OpenAiRequest::parse(body.get().as_bytes(), endpoint);
        let request = request.map_err(|error| LineError::of_body(&error))?;
        if request.stream {
            let message = "stream: answers of a batch come whole";
            return Err(LineError::new("invalid_value", message, Some("body.stream")));
        }
        Ok(Self {
            custom_id,
            endpoint,
            request,
        })
    }

    /// Would the configuration of the moment take it?
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(
        &self,
        table: &RoutingTable,
        caller: &Caller,
        feature: &FeatureName,
    ) -> Result<(), LineError> {
        let choice = ModelChoice::Named(self.request.model.clone().into_owned());
        let checked = table
            .route(caller, feature, &choice)
            .map_err(ApiError::from)
            .and_then(|routed| self.request.check_length(&routed.model));
        checked.map_err(|error| LineError::of_body(&error))
    }

    /// The model that it names.
    pub(crate) fn model(&self) -> Option<ModelName> {
        self.request.model.parse().ok()
    }

    /// What goes to the model server; its answer stays as it is.
    pub(crate) fn work(&self) -> JobWork {
        let work = Work {
            endpoint: self.endpoint,
            body: self.request.for_model_server(),
            stream: false,
            prompt: None,
            supersede_key: None,
        };
        JobWork::new(work, Form::Body)
    }
}

/// The name of a line that was found good before.
pub(crate) fn custom_id(text: &[u8]) -> String {
    let fields = Fields::parse(text).ok();
    let name = fields.and_then(|fields| {
        let name = fields.required_text("custom_id", MAX_CUSTOM_ID).ok()?;
        Some(name.into_owned())
    });
    name.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    fn wrong(text: &str) -> (String, Option<String>) {
        let error = BatchLine::parse(text.as_bytes(), CHAT).expect_err(text);
        (error.code.into_owned(), error.param)
    }

    #[test]
    fn a_wrong_line_is_told_by_its_field() {
        let with = |body: &str| {
            format!(r#"{{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{body}}}"#)
        };
        for (text, code, param) in [
            ("{", "invalid_json_line", None),
            ("[]", "invalid_value", None),
            ("{}", "invalid_value", Some("custom_id")),
            (
                r#"{"custom_id":"a","method":"GET"}"#,
                "invalid_method",
                Some("method"),
            ),
            (
                r#"{"custom_id":"a","method":"POST","url":"/v1/embeddings"}"#,
                "invalid_url",
                Some("url"),
            ),
            (&with("null"), "invalid_value", Some("body")),
            (&with("7"), "invalid_value", None),
            (&with(r#"{"messages":[{}]}"#), "invalid_value", Some("body.model")),
            (
                &with(r#"{"model":"m","messages":[{}],"stream":true}"#),
                "invalid_value",
                Some("body.stream"),
            ),
        ] {
            let expected = (code.to_owned(), param.map(str::to_owned));
            assert_eq!(wrong(text), expected, "{text}");
        }
        let good = with(r#"{"model":"m","messages":[{"role":"user"}],"odd":[1.50]}"#);
        let line = BatchLine::parse(good.as_bytes(), CHAT).expect("it is good");
        assert_eq!(&*line.custom_id, "a");
        assert_eq!(custom_id(good.as_bytes()), "a");
        let body = line.work().work().body;
        assert_eq!(&body[..], br#"{"messages":[{"role":"user"}],"odd":[1.50]}"#);
    }
}
