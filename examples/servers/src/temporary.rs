//! Servers that go away with the value, or with the process, however it ends.

use std::fs;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::fleet::{Fleet, FleetError};
use crate::guard::{Guard, SERVERS};
use crate::local::{LocalError, LocalServer};
use crate::programs::Programs;

/// What nobody else needs to know about servers that only this machine can reach, for as long as a test runs.
const PASSWORD: &str = "only-for-tests";

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
        let (programs, folder) = (Programs::find()?, folder());
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

/// The servers of a lab, in a folder of their own.
#[derive(Debug)]
pub struct TemporaryFleet {
    fleet: Fleet,
    _guard: Guard,
}

impl TemporaryFleet {
    /// Starts a primary and a standby for each shard, and one server for what is not sharded.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, or a server does not become ready.
    pub fn new(shards: u16) -> Result<Self, FleetError> {
        let folder = folder();
        let (fleet, guard) = Fleet::guarded(&folder, shards)?;
        Ok(Self { fleet, _guard: guard })
    }
}

impl Deref for TemporaryFleet {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

/// One that no other test has.
fn folder() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("pim-servers-{}-{number}", std::process::id()))
}

fn make(programs: &Programs, folder: &Path) -> io::Result<Guard> {
    fs::create_dir(folder)?;
    programs.give(folder)?;
    Guard::arm(SERVERS, &[folder.as_os_str()])
}
