//! New servers from base backups and the archive behind them, all up to the same instant.

use std::iter;
use std::path::Path;

use super::backup::{BackupError, ServersBackup, group_of, groups};
use super::{Fleet, FleetError, Instant, UNSHARDED, UNSHARDED_DATABASES, at, is_made, secret_of, server_name};
use crate::guard::{Guard, SERVERS};
use crate::local::{LocalServer, Source, Stop};
use crate::programs::Programs;

/// Servers that were restored. They run, and go with the value or with this process, however that ends, until they are stopped.
#[derive(Debug)]
pub struct RestoredServers {
    /// The new ones.
    pub fleet: Fleet,
    /// The oldest of their last commits, if any had one behind its base backup: what was acknowledged since may be lost.
    pub reached: Instant,
    /// Whether the log behind the base backups was there.
    pub has_archive: bool,
    guard: Guard,
}

impl RestoredServers {
    /// Stops them. From now on they stay, also when one does not end.
    ///
    /// # Errors
    /// When one does not end.
    pub fn stop(self) -> Result<(), FleetError> {
        let stopped = self.fleet.stop();
        self.guard.disarm().map_err(at(self.fleet.folder))?;
        stopped
    }
}

impl Fleet {
    /// Makes new servers in a folder that does not exist yet from the backup in `from`, up to an instant or as far as its
    /// archive reaches. They have the names and secrets of those that were backed up, and ports of their own. When that does
    /// not succeed, nothing is left behind; nor is it later, until [`RestoredServers::stop`]. Tells each step.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn restore(
        from: &Path,
        folder: &Path,
        until: Option<Instant>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<RestoredServers, BackupError> {
        let (backup, programs) = (ServersBackup::of(from)?, Programs::find()?);
        if backup.version != programs.major() {
            return Err(BackupError::Version { found: backup.version, known: programs.major() });
        }
        let taken = || BackupError::Taken { folder: folder.to_owned() };
        if folder.exists() {
            return Err(taken());
        }
        if let Some(target) = until.filter(|target| *target < backup.finished_at) {
            return Err(BackupError::TooEarly { target, first: backup.finished_at });
        }
        let has_archive = backup.archive.is_dir();
        if until.is_some() && !has_archive {
            return Err(BackupError::NoArchive { folder: backup.archive });
        }
        // All of them before the first is put anywhere.
        ServersBackup::check(from, tell)?;
        if !is_made(folder)? {
            return Err(taken());
        }
        let guard = Guard::arm(SERVERS, &[folder.as_os_str()]).map_err(at(folder.to_owned()))?;
        let fleet =
            Self { programs, folder: folder.to_owned(), password: backup.password.clone(), shards: backup.shards };
        let reached = fleet.recover_all(from, &backup, until, tell)?;
        Ok(RestoredServers { fleet, reached, has_archive, guard })
    }

    fn recover_all(
        &self,
        from: &Path,
        backup: &ServersBackup,
        until: Option<Instant>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Instant, BackupError> {
        self.make_secrets()?;
        // Abbreviations of time zones are not known that early.
        let (until, mut reached) = (until.map(|until| until.to_string().replace('Z', "+00")), None);
        for shard in groups(self.shards) {
            let (group, name) = (group_of(shard), shard.map_or(UNSHARDED.to_owned(), |shard| server_name(shard, 'a')));
            let (base, archive) = (from.join(&group), backup.archive.join(&group));
            let archive = Some(archive.as_path()).filter(|it| it.is_dir());
            let source = Source { base: &base, archive, until: until.as_deref() };
            tell(&format!("{name}: recovering"));
            let (programs, folder) = (&self.programs, self.folder.join(&name));
            let (server, last) = LocalServer::recover(programs, &folder, &name, &self.password, source)?;
            // What a server has replayed nothing behind is as old as its base backup.
            let last = last.map_or(backup.began_at, Instant);
            reached = Some(reached.map_or(last, |reached: Instant| reached.min(last)));
            match shard {
                None => UNSHARDED_DATABASES.iter().try_for_each(|database| self.tell(&server, database))?,
                Some(shard) => {
                    self.tell(&server, &secret_of(shard))?;
                    tell(&format!("{name}: its standby"));
                    self.follow(&server, shard, &server_name(shard, 'b'))?;
                }
            }
        }
        self.finish()?;
        Ok(reached.unwrap_or(backup.began_at))
    }

    /// The names of the servers that run at present.
    ///
    /// # Errors
    /// When a server's folder cannot be read.
    pub fn running(&self) -> Result<Vec<String>, FleetError> {
        let all = self.all().collect::<Result<Vec<_>, _>>()?;
        Ok(all.iter().filter(|server| server.is_running()).map(|server| server.name().to_owned()).collect())
    }

    /// Starts servers that were stopped, as those of a lab that went down.
    ///
    /// # Errors
    /// When one does not become ready; those behind it are not started then.
    pub fn start(&self) -> Result<(), FleetError> {
        self.all().try_for_each(|server| {
            let server = server?;
            if server.is_running() { Ok(()) } else { Ok(server.start()?) }
        })
    }

    /// Stops all servers in order and leaves their data.
    ///
    /// # Errors
    /// When one does not end; the others are stopped all the same.
    pub fn stop(&self) -> Result<(), FleetError> {
        let stopped = self.all().map(|server| {
            let server = server?;
            if server.is_running() { Ok(server.stop(Stop::Fast)?) } else { Ok(()) }
        });
        stopped.collect::<Vec<_>>().into_iter().collect()
    }

    /// Primaries first: a standby that is not there yet is waited for, and one that stops sooner would be waited for too.
    fn all(&self) -> impl Iterator<Item = Result<LocalServer, FleetError>> {
        let pair = |shard| match self.pair(shard) {
            Ok((primary, standby)) => vec![Ok(primary), Ok(standby)],
            Err(error) => vec![Err(error)],
        };
        (0..self.shards).flat_map(pair).chain(iter::once_with(|| self.server_or_missing(UNSHARDED)))
    }
}
