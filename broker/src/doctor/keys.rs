//! Can the keys that seal request bodies be read, by us alone?

use std::os::unix::fs::PermissionsExt as _;

use super::{Finding, Settings, fail, ok, warn};

pub(super) fn examine(settings: &Settings, findings: &mut Vec<Finding>) {
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
