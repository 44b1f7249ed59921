//! Which NATS servers are good enough.

use async_nats::ServerInfo;

/// Bodies up to 4 MiB are accepted, sealed and framed; the server has to take
/// that with room to spare. The local set-up and the examples set 8 MiB.
pub const MIN_MAX_PAYLOAD: usize = 5 << 20;

/// What is wrong with a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerProblem {
    /// Known faults lose or duplicate messages in older ones.
    #[error("nats-server {0} is too old: use 2.12.12 or later in the 2.12 line, or 2.14.3 or later")]
    TooOld(String),
    /// The version does not parse.
    #[error("nats-server says its version is {0:?}, which is none")]
    Version(String),
    /// Streams are switched off.
    #[error("JetStream is off on the NATS server: start it with -js or a jetstream section")]
    NoJetStream,
    /// Requests of the size that the API accepts would not fit.
    #[error("the NATS server's max_payload is {0} bytes; set max_payload: 8MB in its configuration")]
    MaxPayload(usize),
}

/// Checks version, JetStream and `max_payload`.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(info: &ServerInfo) -> Result<(), ServerProblem> {
    check_version(&info.version)?;
    if !info.jetstream {
        return Err(ServerProblem::NoJetStream);
    }
    if info.max_payload < MIN_MAX_PAYLOAD {
        return Err(ServerProblem::MaxPayload(info.max_payload));
    }
    Ok(())
}

fn check_version(version: &str) -> Result<(), ServerProblem> {
    let plain = version.trim_start_matches('v');
    let plain = plain.split(['-', '+']).next().unwrap_or(plain);
    let mut parts = plain.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(ServerProblem::Version(version.to_owned()));
    };
    let good = match (major, minor) {
        (2, 12) => patch >= 12,
        (2, 14) => patch >= 3,
        (2, minor) => minor >= 15,
        (major, _) => major > 2,
    };
    if good {
        Ok(())
    } else {
        Err(ServerProblem::TooOld(version.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_least_version() {
        for good in ["2.12.12", "2.14.3", "2.15.0", "v2.15.1-beta.1", "3.0.0"] {
            assert_eq!(check_version(good), Ok(()), "{good}");
        }
        for old in ["2.9.10", "2.10.27", "2.12.11", "2.13.0", "2.14.2"] {
            assert_eq!(
                check_version(old),
                Err(ServerProblem::TooOld(old.into())),
                "{old}"
            );
        }
        assert_eq!(check_version("dev"), Err(ServerProblem::Version("dev".into())));
    }
}
