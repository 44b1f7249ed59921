//! Other gateways, measured beside the broker on the same model server.

use std::str::FromStr;

use reqwest::Url;

/// A gateway that runs, `NAME=URL` on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it is called in the tables, and its process among the processes.
    pub name: String,
    /// Where it answers.
    pub url: Url,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, url) = text.split_once('=').ok_or("a peer is NAME=URL")?;
        if ["", "direct", "broker"].contains(&name) {
            return Err(format!("a peer cannot be called {name:?}"));
        }
        let url = Url::parse(url).map_err(|error| format!("{url:?} is no URL: {error}"))?;
        Ok(Self {
            name: name.to_owned(),
            url,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_name_and_an_address() {
        let peer: Peer = "smg 1.13.0=http://127.0.0.1:1".parse().unwrap();
        assert_eq!(
            (peer.name.as_str(), peer.url.as_str()),
            ("smg 1.13.0", "http://127.0.0.1:1/")
        );
        for wrong in ["smg", "direct=http://127.0.0.1:1", "smg=127.0.0.1"] {
            assert!(wrong.parse::<Peer>().is_err(), "{wrong}");
        }
    }
}
