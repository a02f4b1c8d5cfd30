//! A disk that is soon full, for tests of what happens then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system of a few kilobytes in memory, mounted on a folder for as long as the value lives.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one on a folder, which is made where it is missing. Everybody may write to it.
    ///
    /// # Errors
    /// When this process may not mount, as most may not.
    pub fn mount(folder: &Path, kilobytes: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={kilobytes}k,mode=777"), "tmpfs"]).arg(folder);
        let output = mount.stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(Self(folder.to_owned()));
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// Why this process cannot have one, if it cannot.
    ///
    /// # Errors
    /// What the system said.
    pub fn is_to_be_had() -> io::Result<()> {
        let folder = std::env::temp_dir().join(format!("pim-small-disk-{}", std::process::id()));
        let mounted = Self::mount(&folder, 64).map(drop);
        let _gone = fs::remove_dir(folder);
        mounted
    }

    /// Where it is mounted.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: somebody may still be in it.
        let _gone_already = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}
