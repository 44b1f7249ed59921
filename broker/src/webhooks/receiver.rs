//! What a receiver is called and where it is, parsed once.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use reqwest::Url;

use super::address::{Cidr, may_connect};

/// Longest name, in characters.
const LONGEST_NAME: usize = 64;
/// Longest URL, in bytes.
const LONGEST_URL: usize = 2048;

/// A receiver's name, which jobs and paths say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverName(String);

/// A text that is no receiver's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a receiver's name has 1 to {LONGEST_NAME} letters, digits, '.', '-' and '_'")]
pub struct ReceiverNameError;

/// Where a receiver is: http or https, without credentials and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverUrl(Url);

/// A text that is no receiver's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a receiver's URL looks like https://ci.example.com/hooks/duo: http or https, no user or password, no fragment, \
     at most {LONGEST_URL} bytes"
)]
pub struct ReceiverUrlError;

/// A URL whose own address nobody may connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not a public address and in none of the receiver's addresses; name it there if that is meant"
)]
pub struct AddressRefused(pub String);

impl ReceiverName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ReceiverName {
    type Err = ReceiverNameError;

    fn from_str(text: &str) -> Result<Self, ReceiverNameError> {
        let fits = |sign: char| sign.is_ascii_alphanumeric() || matches!(sign, '.' | '-' | '_');
        // A name of dots alone would be a step in a path.
        let is_name = (1..=LONGEST_NAME).contains(&text.len())
            && text.chars().all(fits)
            && text.chars().any(|sign| sign != '.');
        if is_name {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReceiverNameError)
        }
    }
}

impl fmt::Display for ReceiverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ReceiverUrl {
    /// As text, in its normal form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The same for the client.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Refuses a URL that names its address itself where no connection may go there. Where it has a name, what that
    /// means is only known when a connection is made.
    ///
    /// # Errors
    /// The address is not allowed.
    pub fn check(&self, named: &[Cidr]) -> Result<(), AddressRefused> {
        let host = self.0.host_str().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        match literal.parse::<IpAddr>() {
            Ok(address) if !may_connect(address, named) => Err(AddressRefused(address.to_string())),
            _ => Ok(()),
        }
    }
}

impl FromStr for ReceiverUrl {
    type Err = ReceiverUrlError;

    fn from_str(text: &str) -> Result<Self, ReceiverUrlError> {
        let url = Url::parse(text).map_err(|_| ReceiverUrlError)?;
        let fits = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
            && url.as_str().len() <= LONGEST_URL;
        if fits {
            Ok(Self(url))
        } else {
            Err(ReceiverUrlError)
        }
    }
}

impl fmt::Display for ReceiverUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_fit_for_a_path_and_never_a_url() {
        for text in ["ci", "team-a.hooks_2", "9"] {
            assert!(text.parse::<ReceiverName>().is_ok(), "{text}");
        }
        let long = "x".repeat(LONGEST_NAME + 1);
        for text in ["", ".", "..", "a b", "a/b", "http://ci", "ü", "a\0", &long] {
            assert!(text.parse::<ReceiverName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_url_is_plain_http() {
        assert_eq!(
            "HTTPS://CI.example.com:443"
                .parse::<ReceiverUrl>()
                .expect("a URL")
                .as_str(),
            "https://ci.example.com/"
        );
        for text in [
            "ci.example.com",
            "ftp://ci.example.com/",
            "https://user@ci.example.com/",
            "https://:secret@ci.example.com/",
            "https://ci.example.com/#part",
            "https:///",
            "file:///etc/passwd",
        ] {
            assert!(text.parse::<ReceiverUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_in_a_url_is_seen_in_every_spelling() {
        for text in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://169.254.169.254/latest/meta-data",
        ] {
            let url: ReceiverUrl = text.parse().expect("a URL");
            assert!(url.check(&[]).is_err(), "{text}");
        }
        let url: ReceiverUrl = "http://127.0.0.1:9/".parse().expect("a URL");
        assert_eq!(url.check(&["127.0.0.0/8".parse().expect("a network")]), Ok(()));
        let url: ReceiverUrl = "http://8.8.8.8/".parse().expect("a URL");
        assert_eq!(url.check(&[]), Ok(()));
    }
}
