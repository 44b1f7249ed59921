//! Duo Chat, `/v2/chat/agent`.

use axum::response::Response;

use super::inbound::Inbound;

pub(super) async fn agent(_inbound: Inbound) -> Response {
    error_response("not yet", false)
}

pub(super) fn error_response(_message: &str, _retryable: bool) -> Response {
    Response::default()
}
