//! Can the keys that seal request bodies and sign tokens be read, by us alone?

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{Finding, Settings, chain, fail, ok, warn};
use crate::audit::keys::MasterKeys;
use crate::auth::direct::SigningKeys;

pub(super) fn examine(settings: &Settings, findings: &mut Vec<Finding>) {
    seal_keys(settings, findings);
    findings.extend(settings.signing_keys_file.as_deref().map(signing_keys));
}

/// The keys that sign tokens for IDEs; having none is no fault.
fn signing_keys(path: &Path) -> Finding {
    const CHECK: &str = "signing keys";
    let shown = path.display();
    let read = std::fs::metadata(path).and_then(|metadata| Ok((metadata, std::fs::read_to_string(path)?)));
    let (metadata, text) = match read {
        Ok(read) => read,
        Err(error) => {
            let found = format!("cannot read {shown}: {error}");
            return fail(CHECK, found, "check path and owner");
        }
    };
    match SigningKeys::parse(&text) {
        Err(error) => fail(
            CHECK,
            format!("{shown}: {}", chain(&error)),
            "leave nothing but RSA private keys in the file, the newest on top",
        ),
        Ok(_) if metadata.permissions().mode() & 0o007 != 0 => warn(
            CHECK,
            format!("{shown} may be read by everybody on this machine"),
            format!("chmod 640 {shown}"),
        ),
        Ok(keys) => ok(CHECK, format!("{shown}: {}", keys.describe())),
    }
}

/// The master keys of prompts and answers, which some features are to keep; where none does, having none is no fault.
pub(super) fn master_key(settings: &Settings, full: &[&str]) -> Option<Finding> {
    const CHECK: &str = "master key";
    let Some(path) = &settings.master_key_file else {
        let found = format!(
            "DUO_AUDIT_MASTER_KEY_FILE is not set, and {} keep prompts and answers",
            full.join(", ")
        );
        let remedy = "name a file with a line of base64 of 32 random bytes; brokers do not start without it";
        return (!full.is_empty()).then(|| fail(CHECK, found, remedy));
    };
    let shown = path.display();
    let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode());
    Some(match (MasterKeys::read(path), mode) {
        (Err(error), _) => fail(
            CHECK,
            format!("{shown}: {}", chain(&error)),
            "leave nothing but lines of base64 of 32 random bytes in the file, the newest on top",
        ),
        (Ok(_), Ok(mode)) if mode & 0o007 != 0 => warn(
            CHECK,
            format!("{shown} may be read by everybody on this machine"),
            format!("chmod 640 {shown}"),
        ),
        (Ok(keys), _) => ok(CHECK, format!("{shown}: {} wraps", keys.first())),
    })
}

fn seal_keys(settings: &Settings, findings: &mut Vec<Finding>) {
    let Some(path) = &settings.seal_key_file else {
        findings.push(fail(
            "seal key",
            "DUO_SEAL_KEYS_FILE is not set",
            "name the file that brokers and workers share",
        ));
        return;
    };
    let shown = path.display();
    let read = std::fs::metadata(path).and_then(|metadata| Ok((metadata, std::fs::read(path)?)));
    findings.push(match read {
        Err(error) => fail(
            "seal key",
            format!("cannot read {shown}: {error}"),
            "check path and owner",
        ),
        Ok((_, content)) if content.is_empty() => {
            fail("seal key", format!("{shown} is empty"), "write a key to it")
        }
        Ok((metadata, _)) if metadata.permissions().mode() & 0o007 != 0 => warn(
            "seal key",
            format!("{shown} may be read by everybody on this machine"),
            format!("chmod 640 {shown}"),
        ),
        Ok(_) => ok("seal key", format!("{shown} can be read")),
    });
}
