//! A small disk, to be filled. It needs the right to mount.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

const BALLAST: &str = "ballast";
const PIECE: [u8; 4096] = [1; 4096];

/// A file system in memory, in a folder of its own. It is unmounted, and the folder removed, on drop.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// One of so many bytes.
    pub fn mount(bytes: u64) -> anyhow::Result<Self> {
        let mut number = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut number)?;
        let folder = std::env::temp_dir().join(format!("tidemill-disk-{:016x}", u64::from_ne_bytes(number)));
        std::fs::create_dir(&folder)?;
        let disk = Self(folder);
        let mut mount = Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&disk.0).output()?;
        ensure!(
            output.status.success(),
            "this row mounts a small disk, which takes root: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(disk)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Fills it to the last page.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut file = File::options().create(true).append(true).open(self.0.join(BALLAST))?;
        loop {
            match file.write_all(&PIECE) {
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                other => other?,
            }
        }
    }

    /// Makes room again.
    pub fn empty(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.0.join(BALLAST)).context("it was not filled")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: who still has a file open there loses nothing.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
        let _ = std::fs::remove_dir(&self.0);
    }
}
