//! Servers that go away with the value, or with the process, however it ends.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::guard::Guard;
use crate::local::{LocalError, LocalServer};
use crate::programs::Programs;

/// What nobody else needs to know about servers that only this machine can reach, for as long as a test runs.
const PASSWORD: &str = "only-for-tests";

/// Stops every server below a folder and removes it. A process is only told when it is one of that folder.
const CLEAN_UP: &str = r#"
running() {
    for file in "$1"/*/data/postmaster.pid; do
        [ -f "$file" ] && read -r pid <"$file" && grep -qF "$1" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
    done
}
for pid in $(running "$1"); do kill -CONT "$pid"; kill -QUIT "$pid"; done
tries=0
while [ -n "$(running "$1")" ] && [ "$tries" -lt 100 ]; do
    tries=$((tries + 1))
    [ "$tries" -eq 60 ] && for pid in $(running "$1"); do kill -KILL "$pid"; done
    sleep 0.05
done
rm -rf "$1"
"#;

/// A folder with servers.
#[derive(Debug)]
pub struct TemporaryServers {
    programs: Programs,
    folder: PathBuf,
    _guard: Guard,
}

impl TemporaryServers {
    /// An empty folder; starts nothing.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, or there can be no folder.
    pub fn new() -> Result<Self, LocalError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let programs = Programs::find()?;
        let folder = std::env::temp_dir().join(format!("pim-servers-{}-{number}", std::process::id()));
        let made = make(&programs, &folder).map_err(|source| LocalError::Folder { folder: folder.clone(), source })?;
        Ok(Self { programs, folder, _guard: made })
    }

    /// Where their data is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a primary.
    ///
    /// # Errors
    /// When it cannot be made or does not become ready.
    pub fn primary(&self, name: &str) -> Result<LocalServer, LocalError> {
        LocalServer::create(&self.programs, &self.folder.join(name), name, PASSWORD)
    }

    /// Starts a standby that streams from a primary and returns when it does.
    ///
    /// # Errors
    /// When it cannot be copied, does not become ready, or does not stream.
    pub fn standby(&self, primary: &LocalServer, name: &str) -> Result<LocalServer, LocalError> {
        primary.standby(&self.folder.join(name), name)
    }
}

fn make(programs: &Programs, folder: &Path) -> io::Result<Guard> {
    fs::create_dir(folder)?;
    programs.give(folder)?;
    Guard::arm(CLEAN_UP, folder.as_os_str())
}
