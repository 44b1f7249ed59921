//! The body that continues an answer after what the client already has.

use duo_contract::claim::Have;
use duo_contract::envelope::Endpoint;
use duo_contract::failure::{Failure, FailureKind};

use crate::config::ServerKind;

/// The members of the call that continues `body`'s answer after `have`.
///
/// # Errors
/// The server or the request cannot be continued.
pub fn continued(
    _kind: ServerKind,
    _endpoint: Endpoint,
    _body: &[u8],
    _have: &Have,
) -> Result<Vec<u8>, Failure> {
    Err(Failure::new(
        FailureKind::ModelServerFault,
        "the answer broke off and cannot be continued",
    ))
}
