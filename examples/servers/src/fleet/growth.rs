//! One more shard's servers, and one fewer, while the others serve.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use super::backup::group_of;
use super::{Fleet, FleetError, SHARDS_MAX, at, secret_of, server_name, shards_in};
use crate::guard::{Guard, SOME_SERVERS};

impl Fleet {
    /// Starts a primary with a synchronous standby for one more shard, and provides their secrets; returns the shard's number.
    /// Nobody uses them until a map is published that names them. When that does not succeed, or this process ends meanwhile,
    /// no server is left behind, nor what it archived.
    ///
    /// # Errors
    /// When there are as many as there may be, or a server does not become ready.
    pub fn add(&mut self) -> Result<u16, FleetError> {
        let _until_it_counts = self.lock()?;
        let shard = shards_in(&self.folder);
        if shard >= SHARDS_MAX {
            return Err(FleetError::Shards { shards: shard + 1 });
        }
        // Segments of both would have the same names.
        let archive = self.archive();
        let log = archive.as_ref().map(|archive| archive.join(group_of(Some(shard))));
        if let Some(folder) = log.clone().filter(|folder| folder.exists()) {
            return Err(FleetError::Archived { folder });
        }
        let guard = self.guard_of(shard, log.as_deref())?;
        self.forget_secrets_of(shard)?;
        self.create_shard(shard)?;
        if let Some(archive) = &archive {
            self.archive_group(Some(shard), archive)?;
        }
        self.link_secrets_of(shard)?;
        guard.disarm().map_err(at(self.folder.clone()))?;
        self.shards = shard + 1;
        Ok(shard)
    }

    /// Stops the servers of the last shard and removes them with their secrets; returns the shard's number. Whether a map still
    /// names them is for the caller to know.
    ///
    /// # Errors
    /// When it is the only one, another one is the last by now, or something is left.
    pub fn take_away(&mut self) -> Result<u16, FleetError> {
        let _until_it_is_gone = self.lock()?;
        let (found, known) = (shards_in(&self.folder), self.shards);
        if found != known {
            return Err(FleetError::Changed { found, known });
        }
        let Some(shard) = self.shards.checked_sub(1).filter(|shard| *shard > 0) else {
            return Err(FleetError::Shards { shards: 0 });
        };
        // Secrets first: with them the shard counts.
        self.forget_secrets_of(shard)?;
        // Backups need what they archived.
        drop(self.guard_of(shard, None)?);
        let left = ['a', 'b'].map(|letter| self.folder.join(server_name(shard, letter)));
        if let Some(folder) = left.into_iter().find(|folder| folder.exists()) {
            return Err(FleetError::Exists { folder });
        }
        self.shards = shard;
        Ok(shard)
    }

    /// For the servers of a shard, and for what they archive if it is told where.
    fn guard_of(&self, shard: u16, log: Option<&Path>) -> Result<Guard, FleetError> {
        // Both of its servers' folders begin so, and no other's.
        let both = self.folder.join(server_name(shard, 'a').trim_end_matches('a'));
        let arguments: Vec<&OsStr> = [both.as_os_str()].into_iter().chain(log.map(Path::as_os_str)).collect();
        Guard::arm(SOME_SERVERS, &arguments).map_err(at(both.clone()))
    }

    fn forget_secrets_of(&self, shard: u16) -> Result<(), FleetError> {
        let name = secret_of(shard);
        let links = [name.clone(), format!("{name}-standby")].map(|name| self.service_secrets().join(name));
        let ends = ["", "-owner", "-standby", "-standby-owner"];
        let secrets = ends.map(|end| self.secrets().join(format!("{name}{end}")));
        links.into_iter().chain(secrets).try_for_each(|path| match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FleetError::Path { path, source }),
            _ => Ok(()),
        })
    }
}
