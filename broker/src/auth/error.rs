//! Why a caller is refused.

/// Why a caller is refused. The texts are the ones GitLab's own gateway answers, so they keep its capitals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There is no `Authorization` header.
    #[error("No authorization header presented")]
    NoAuthorization,
    /// It is not one `Bearer` token.
    #[error("Invalid authorization header")]
    InvalidAuthorization,
    /// It is no API token of ours, and `X-Gitlab-Authentication-Type` does not say `oidc`.
    #[error("Invalid authentication token type - only OIDC is supported")]
    UnsupportedType,
    /// The GitLab token is not good.
    #[error("Forbidden by auth provider")]
    Forbidden(Forbidden),
    /// The token is good, and this header does not fit it, is missing, repeated or over-long.
    #[error("Header mismatch '{0}'")]
    HeaderMismatch(&'static str),
    /// No API token has this secret: mistyped, revoked, or long expired.
    #[error("Invalid API token")]
    UnknownApiToken,
    /// The API token's time is over.
    #[error("API token expired")]
    ExpiredApiToken,
}

/// What is wrong with a GitLab token; for log and metrics, the client is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    /// It is no JWT, or its claims have the wrong types.
    MalformedToken,
    /// It is signed by anything but RS256.
    UnsupportedAlgorithm,
    /// `aud`, `exp` or `sub` is missing.
    MissingClaim,
    /// Its `iss` is no configured issuer.
    UnknownIssuer,
    /// Its `aud` does not hold the issuer's audience.
    WrongAudience,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// The issuer's keys could not be fetched so far.
    KeysUnavailable,
    /// None of the issuer's keys verifies it.
    BadSignature,
}

impl AuthError {
    /// Every reason, for metrics that start at zero.
    pub const REASONS: [&'static str; 15] = [
        "no_authorization",
        "invalid_authorization",
        "unsupported_token_type",
        "malformed_token",
        "unsupported_algorithm",
        "missing_claim",
        "unknown_issuer",
        "wrong_audience",
        "expired",
        "not_yet_valid",
        "keys_unavailable",
        "bad_signature",
        "header_mismatch",
        "unknown_api_token",
        "expired_api_token",
    ];

    /// The reason in one snake_case word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            AuthError::NoAuthorization => "no_authorization",
            AuthError::InvalidAuthorization => "invalid_authorization",
            AuthError::UnsupportedType => "unsupported_token_type",
            AuthError::Forbidden(why) => why.as_str(),
            AuthError::HeaderMismatch(_) => "header_mismatch",
            AuthError::UnknownApiToken => "unknown_api_token",
            AuthError::ExpiredApiToken => "expired_api_token",
        }
    }
}

impl From<Forbidden> for AuthError {
    fn from(why: Forbidden) -> Self {
        AuthError::Forbidden(why)
    }
}

impl Forbidden {
    fn as_str(self) -> &'static str {
        match self {
            Forbidden::MalformedToken => "malformed_token",
            Forbidden::UnsupportedAlgorithm => "unsupported_algorithm",
            Forbidden::MissingClaim => "missing_claim",
            Forbidden::UnknownIssuer => "unknown_issuer",
            Forbidden::WrongAudience => "wrong_audience",
            Forbidden::Expired => "expired",
            Forbidden::NotYetValid => "not_yet_valid",
            Forbidden::KeysUnavailable => "keys_unavailable",
            Forbidden::BadSignature => "bad_signature",
        }
    }
}
