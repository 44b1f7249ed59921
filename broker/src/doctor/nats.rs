//! Is NATS there, new enough, with JetStream and our streams?

use std::time::Duration;

use duo_contract::subject::{
    AUDIT_STREAM, CONFIG_BUCKET, DEAD_STREAM, IDENTITY_BUCKET, LIVE_STREAM, WORKERS_BUCKET,
};
use duo_process::nats::Nats;

use super::{Finding, Settings, chain, fail, ok, warn};

/// Largest message that the API needs: bodies of 4 MiB and their envelope.
const LEAST_PAYLOAD: usize = 8 << 20;
/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn examine(settings: &Settings, findings: &mut Vec<Finding>) {
    let nats = match tokio::time::timeout(TIMEOUT, Nats::connect(&settings.nats)).await {
        Ok(Ok(nats)) => nats,
        Ok(Err(error)) => {
            findings.push(fail(
                "nats",
                chain(&error),
                "check that it runs, and DUO_NATS_URL",
            ));
            return;
        }
        Err(_) => {
            findings.push(fail(
                "nats",
                "does not answer in time",
                "check that it runs, and DUO_NATS_URL",
            ));
            return;
        }
    };
    let server = nats.client().server_info();
    findings.push(version(&server.version));
    findings.push(if server.max_payload >= LEAST_PAYLOAD {
        ok("nats max_payload", format!("{} bytes", server.max_payload))
    } else {
        fail(
            "nats max_payload",
            format!("{} bytes", server.max_payload),
            "set max_payload: 8MB in the server's configuration",
        )
    });
    jetstream(&nats, findings).await;
}

async fn jetstream(nats: &Nats, findings: &mut Vec<Finding>) {
    let context = nats.jetstream();
    match tokio::time::timeout(TIMEOUT, context.query_account()).await {
        Ok(Ok(account)) => findings.push(ok("jetstream", format!("{} streams", account.streams))),
        Ok(Err(error)) => {
            let remedy =
                "add a `jetstream` block to the server's configuration, and check this user's rights";
            findings.push(fail("jetstream", chain(&error), remedy));
            return;
        }
        Err(_) => {
            findings.push(fail(
                "jetstream",
                "does not answer in time",
                "see the server's log",
            ));
            return;
        }
    }
    let buckets = [CONFIG_BUCKET, IDENTITY_BUCKET, WORKERS_BUCKET].map(|bucket| format!("KV_{bucket}"));
    let streams = [LIVE_STREAM, AUDIT_STREAM, DEAD_STREAM].map(str::to_owned);
    let mut missing = Vec::new();
    for stream in streams.into_iter().chain(buckets) {
        let there = tokio::time::timeout(TIMEOUT, context.get_stream(&stream)).await;
        if !matches!(there, Ok(Ok(_))) {
            missing.push(stream);
        }
    }
    findings.push(if missing.is_empty() {
        ok("streams", "all are there")
    } else {
        warn(
            "streams",
            format!("missing: {}", missing.join(", ")),
            "start a broker, which creates them; if one runs, check its log and its rights",
        )
    });
}

/// Least versions: 2.12.12, and 2.14.3 in the 2.14 line, which had faults of its own before.
fn version(text: &str) -> Finding {
    let found = format!("version {text}");
    match numbers(text) {
        Some((2, 13, _)) => fail("nats", found, "use 2.14.3 or newer; 2.13 was never released"),
        Some((2, 14, patch)) if patch < 3 => fail("nats", found, "use 2.14.3 or newer in the 2.14 line"),
        Some(version) if version >= (2, 12, 12) => ok("nats", found),
        _ => fail("nats", found, "use 2.12.12 or newer"),
    }
}

fn numbers(text: &str) -> Option<(u32, u32, u32)> {
    let plain = text.split(['-', '+']).next()?;
    let mut parts = plain.split('.').map(str::parse);
    match (parts.next()?, parts.next()?, parts.next()?) {
        (Ok(major), Ok(minor), Ok(patch)) => Some((major, minor, patch)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn versions_with_known_faults_are_refused() {
        for (text, verdict) in [
            ("2.12.11", Verdict::Fail),
            ("2.12.12", Verdict::Ok),
            ("2.14.2", Verdict::Fail),
            ("2.14.3", Verdict::Ok),
            ("2.15.1", Verdict::Ok),
            ("3.0.0-beta.1", Verdict::Ok),
            ("2.9.25", Verdict::Fail),
            ("nonsense", Verdict::Fail),
        ] {
            assert_eq!(version(text).verdict, verdict, "{text}");
        }
    }
}
