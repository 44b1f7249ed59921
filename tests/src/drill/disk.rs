//! A small disk that can be filled: a tmpfs.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Bytes written at once to fill the disk.
const PIECE: usize = 64 * 1024;

/// A small disk; it goes with its value.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Disk {
    /// Makes one of a size such as `size=64m`.
    ///
    /// # Errors
    /// The system lets nobody but root mount one.
    pub(super) fn mount(size: &str) -> nix::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("duo-disk-")
            .tempdir()
            .expect("a folder");
        let path = folder.path().to_owned();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(size))?;
        Ok(Self {
            path,
            _folder: folder,
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file until there is no room.
    pub(super) fn fill(&self) -> PathBuf {
        let path = Path::join(&self.path, "filler");
        let mut file = fs::File::create(&path).expect("there is room");
        // Smaller and smaller pieces, so that not a page is left.
        let mut piece = vec![0; PIECE];
        while !piece.is_empty() {
            if file.write_all(&piece).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that is still ending holds its files.
        let _left_to_the_system = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
