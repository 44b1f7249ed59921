//! Key and identity of an instance in a folder, so that tokens outlive a restart.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use uuid::Uuid;

use super::keys::SigningKey;

/// Reads key and instance id from `folder`; what is missing is made and kept there, readable by the owner only.
///
/// # Errors
/// The folder cannot be read or written, or holds something else under these names.
pub fn load_or_create(folder: &Path) -> io::Result<(SigningKey, String)> {
    fs::create_dir_all(folder)?;
    let der = keep(&folder.join("signing-key.der"), || {
        SigningKey::generate()?.to_pkcs8()
    })?;
    let id = keep(&folder.join("instance-id"), || {
        Ok(Uuid::new_v4().to_string().into_bytes())
    })?;
    let id = String::from_utf8(id).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((SigningKey::from_pkcs8(&der)?, id.trim().to_owned()))
}

fn keep(path: &Path, make: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let content = make()?;
    // Written aside and linked into place, so that two programs started together agree on one file.
    let draft = path.with_extension(Uuid::new_v4().to_string());
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?
        .write_all(&content)?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::read(path),
    }
}
