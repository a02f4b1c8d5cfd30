//! Base backups of all servers of a lab, the archive of their logs behind them, and whether both are whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::behind::{check_archive, end_of, start_of};
use super::{Fleet, FleetError, Instant, SHARDS_MAX, at, random, server_name, shards_in};
use crate::local::{LocalError, LocalServer, RecoveryError, number_of};
use crate::programs::{Programs, ProgramsError};

const FORMAT: u32 = 1;
const MANIFEST: &str = "servers.conf";
const SECRET: &str = "secret";
const ARCHIVE: &str = "archive";
const UNSHARDED: &str = super::UNSHARDED;

/// A backup of servers that was not made, is not whole, or was not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The servers of the lab.
    #[error(transparent)]
    Fleet(FleetError),
    /// A server did not recover.
    #[error(transparent)]
    Recovery(RecoveryError),
    /// A disk is full.
    #[error("the disk of {} is full: free some of it, and try again", folder.display())]
    Full {
        /// What was being written.
        folder: PathBuf,
    },
    /// There is no whole backup.
    #[error("{} holds no whole backup of servers", folder.display())]
    Absent {
        /// Where.
        folder: PathBuf,
    },
    /// Its place is taken.
    #[error("{} is there already: choose another place", folder.display())]
    Taken {
        /// Where.
        folder: PathBuf,
    },
    /// It is of another version of PostgreSQL.
    #[error("the backup is of PostgreSQL {found}, the programs here are of {known}: only the same can restore it")]
    Version {
        /// Its version.
        found: u32,
        /// That of the programs.
        known: u32,
    },
    /// A file of a base backup is another, or is missing.
    #[error("the base backup {} is damaged: {why}", folder.display())]
    Damaged {
        /// Which one.
        folder: PathBuf,
        /// What the server's own program said.
        why: String,
    },
    /// A segment of an archive is not there, or cannot be read.
    #[error("segment {segment} of the archive {} is {what}", folder.display())]
    Segment {
        /// Of which server.
        folder: PathBuf,
        /// Which one.
        segment: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is no archive behind the base backup.
    #[error("the archive {} is not there: without it there is nothing but the base backup itself", folder.display())]
    NoArchive {
        /// Where it was.
        folder: PathBuf,
    },
    /// A server's last commits are not in its archive.
    #[error("{group}: {why}")]
    Unfinished {
        /// Of which shard, or of what is not sharded.
        group: String,
        /// Why.
        why: Box<BackupError>,
    },
    /// The wanted instant is before the base backup was whole.
    #[error("{target} is before the end of the base backup, {first}: take an older one")]
    TooEarly {
        /// What was asked for.
        target: Instant,
        /// The first instant that can be had.
        first: Instant,
    },
}

impl From<LocalError> for BackupError {
    fn from(error: LocalError) -> Self {
        match error {
            LocalError::Program { folder, why, .. } if is_full(&why) => Self::Full { folder },
            LocalError::Folder { folder, source } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::Full { folder }
            }
            error => Self::Fleet(error.into()),
        }
    }
}

impl From<FleetError> for BackupError {
    fn from(error: FleetError) -> Self {
        match error {
            FleetError::Server(error) => error.into(),
            FleetError::Path { path, source } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::Full { folder: path }
            }
            error => Self::Fleet(error),
        }
    }
}

impl From<RecoveryError> for BackupError {
    fn from(error: RecoveryError) -> Self {
        match error {
            RecoveryError::Server(error) => error.into(),
            error => Self::Recovery(error),
        }
    }
}

impl From<ProgramsError> for BackupError {
    fn from(error: ProgramsError) -> Self {
        Self::Fleet(error.into())
    }
}

fn is_full(why: &str) -> bool {
    why.contains("No space left on device")
}

/// What a backup of servers says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServersBackup {
    /// When the first base backup was begun.
    pub began_at: Instant,
    /// When the last one was whole: the first instant that can be restored.
    pub finished_at: Instant,
    /// How many shards there are.
    pub shards: u16,
    /// The major version of their servers.
    pub version: u32,
    /// Where the log goes on.
    pub archive: PathBuf,
    /// How many files there are.
    pub files: usize,
    /// How large they are together.
    pub bytes: u64,
    pub(super) password: String,
}

/// The folder of a server's base backup, and of its log in an archive.
pub(super) fn group_of(shard: Option<u16>) -> String {
    shard.map_or_else(|| UNSHARDED.to_owned(), |shard| format!("shard_{shard}"))
}

/// All shards, and then what is not sharded.
pub(super) fn groups(shards: u16) -> impl Iterator<Item = Option<u16>> {
    (0..shards).map(Some).chain([None])
}

impl ServersBackup {
    /// What the backup in this folder says of itself.
    ///
    /// # Errors
    /// [`BackupError::Absent`] when there is no whole one.
    pub fn of(folder: &Path) -> Result<Self, BackupError> {
        let absent = || BackupError::Absent { folder: folder.to_owned() };
        let text = fs::read_to_string(folder.join(MANIFEST)).map_err(|_| absent())?;
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        let number = |key: &str| value(key).and_then(|it| it.parse::<i64>().ok()).ok_or_else(absent);
        if number("format")? != i64::from(FORMAT) {
            return Err(absent());
        }
        let small = |number: i64| u16::try_from(number).map_err(|_| absent());
        let password = fs::read_to_string(folder.join(SECRET)).map_err(|_| absent())?;
        Ok(Self {
            began_at: Instant(number("began_at")?),
            finished_at: Instant(number("finished_at")?),
            shards: small(number("shards")?)?,
            version: u32::from(small(number("version")?)?),
            archive: PathBuf::from(value("archive").ok_or_else(absent)?),
            files: usize::try_from(number("files")?).unwrap_or(0),
            bytes: u64::try_from(number("bytes")?).unwrap_or(0),
            password,
        })
    }

    fn as_text(&self) -> String {
        let Self { began_at, finished_at, shards, version, archive, files, bytes, .. } = self;
        format!(
            "format = {FORMAT}\nbegan_at = {}\nfinished_at = {}\nshards = {shards}\nversion = {version}\narchive = {}\n\
             files = {files}\nbytes = {bytes}\n",
            began_at.0,
            finished_at.0,
            archive.display()
        )
    }

    /// Whether each file of the base backups in `folder` is the one that was backed up, and each segment behind them is there
    /// and can be read. Tells each step.
    ///
    /// # Errors
    /// [`BackupError`] naming the first that is not.
    pub fn check(folder: &Path, tell: &mut dyn FnMut(&str)) -> Result<Self, BackupError> {
        let (found, programs) = (Self::of(folder)?, Programs::find()?);
        if found.version != programs.major() {
            return Err(BackupError::Version { found: found.version, known: programs.major() });
        }
        for group in groups(found.shards).map(group_of) {
            let base = folder.join(&group);
            tell(&format!("{group}: files of the base backup"));
            ask(&programs, "pg_verifybackup", |it| it.arg("--quiet").arg(&base))
                .map_err(|why| BackupError::Damaged { folder: base.clone(), why })?;
            let archive = found.archive.join(&group);
            // One that is there has a folder for each.
            if found.archive.is_dir() {
                if !archive.is_dir() {
                    return Err(BackupError::NoArchive { folder: archive });
                }
                tell(&format!("{group}: archive"));
                check_archive(&programs, &base, &archive)?;
            }
        }
        Ok(found)
    }
}

/// Runs a program that only looks; what it said when it found something.
pub(super) fn ask(
    programs: &Programs,
    program: &str,
    with: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<(), String> {
    let mut command = programs.command(program);
    let output = with(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    let why = String::from_utf8_lossy(&output.stderr).trim().lines().take(3).collect::<Vec<_>>().join("; ");
    if output.status.success() { Ok(()) } else { Err(why) }
}

impl Fleet {
    /// Copies every server while it serves into a new folder, which has to be inside one that the user of the servers can
    /// get to. From the first time on the logs of all servers are archived beside the fleet's folder; what no backup beside
    /// this one needs any more is removed from there. Tells each step.
    ///
    /// # Errors
    /// [`BackupError`]; nothing is left of it then.
    pub fn back_up(&self, into: &Path, tell: &mut dyn FnMut(&str)) -> Result<ServersBackup, BackupError> {
        if into.exists() {
            return Err(BackupError::Taken { folder: into.to_owned() });
        }
        self.copy_into(into, tell).inspect_err(|_| {
            // It would keep the disk full, and the name taken.
            let _nothing_was_made = fs::remove_dir_all(into);
        })
    }

    fn copy_into(&self, into: &Path, tell: &mut dyn FnMut(&str)) -> Result<ServersBackup, BackupError> {
        let began_at = Instant::now();
        let archive = self.begin_archive()?;
        let folder = |source| BackupError::from(LocalError::Folder { folder: into.to_owned(), source });
        fs::create_dir_all(into).and_then(|()| self.programs.give(into)).map_err(folder)?;
        for shard in groups(self.shards) {
            let (server, group) = (self.primary_of(shard)?, group_of(shard));
            tell(&format!("{group}: base backup of {}", server.name()));
            let base = into.join(&group);
            server.base_backup(&base)?;
            let end = end_of(&base).ok_or(BackupError::Absent { folder: base })?;
            if !server.is_archived(&archive.join(&group), end) {
                // It is whole by itself, and the archive may go on.
                tell(&format!("{group}: the archive lacks the end of the base backup"));
            }
        }
        let (files, bytes) = size_of(into).map_err(folder)?;
        let (shards, version, password) = (self.shards, self.programs.major(), self.password.clone());
        let finished_at = Instant::now();
        let backup = ServersBackup { began_at, finished_at, shards, version, archive, files, bytes, password };
        super::write_secret(&into.join(SECRET), &self.password)?;
        super::write_secret(&into.join(MANIFEST), &backup.as_text())?;
        Ok(backup)
    }

    /// Finishes what each server's log has begun and waits until the archive has it; nothing without an archive.
    ///
    /// # Errors
    /// When a server does not run, or the archive does not take its log: the first one, when all others are done.
    pub fn close_archive(&self) -> Result<(), BackupError> {
        let Some(archive) = self.archive() else { return Ok(()) };
        let close = |shard| -> Result<(), BackupError> {
            Ok(self.primary_of(shard)?.close_segment(&archive.join(group_of(shard)))?)
        };
        let of = |shard| move |why| BackupError::Unfinished { group: group_of(shard), why: Box::new(why) };
        // What one shard has lost is no reason to lose the last commits of the others.
        let closed: Vec<_> = groups(self.shards).map(|shard| close(shard).map_err(of(shard))).collect();
        closed.into_iter().collect()
    }

    /// Where the logs are archived, if they are.
    #[must_use]
    pub fn archive(&self) -> Option<PathBuf> {
        archive_of(&self.folder)
    }

    /// Removes from the archive what is older than the oldest of these backups of this fleet.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn prune_archive(&self, backups: &[PathBuf]) -> Result<(), BackupError> {
        let Some(archive) = self.archive() else { return Ok(()) };
        let ours = |it: &&PathBuf| ServersBackup::of(it).is_ok_and(|it| it.archive == archive);
        let ours: Vec<_> = backups.iter().filter(ours).collect();
        for group in groups(self.shards).map(group_of) {
            let starts = ours.iter().filter_map(|backup| start_of(&backup.join(&group)));
            let Some(oldest) = starts.min_by_key(|it| number_of(it)) else { continue };
            let place = archive.join(&group);
            ask(&self.programs, "pg_archivecleanup", |it| it.arg(&place).arg(&oldest))
                .map_err(|why| BackupError::Segment { folder: place.clone(), segment: oldest.clone(), what: why })?;
        }
        Ok(())
    }

    fn primary_of(&self, shard: Option<u16>) -> Result<LocalServer, FleetError> {
        match shard {
            Some(shard) => Ok(self.pair(shard)?.0),
            None => self.server(UNSHARDED),
        }
    }

    /// A folder of its own for each fleet: their segments have the same names.
    fn begin_archive(&self) -> Result<PathBuf, BackupError> {
        let _until_all_do = self.lock()?;
        let archive = self.archive().map_or_else(|| self.link_archive(), Ok)?;
        // Also where somebody else began it: that may have been broken off, or a shard has come since this fleet was opened.
        for shard in groups(shards_in(&self.folder)) {
            self.archive_group(shard, &archive)?;
        }
        Ok(archive)
    }

    /// First: what a server archives is in the folder that everybody finds.
    fn link_archive(&self) -> Result<PathBuf, FleetError> {
        let archive = beside(&self.folder, ARCHIVE).join(&random()?[..8]);
        // What no server could be told must not be what all of them are to be told from now on.
        LocalServer::check_archive(&archive.join(group_of(Some(SHARDS_MAX))))?;
        fs::create_dir_all(&archive).and_then(|()| self.programs.give(&archive)).map_err(at(archive.clone()))?;
        let link = self.folder.join(ARCHIVE);
        std::os::unix::fs::symlink(&archive, &link).map_err(at(link))?;
        Ok(archive)
    }

    pub(super) fn archive_group(&self, shard: Option<u16>, archive: &Path) -> Result<(), FleetError> {
        let place = archive.join(group_of(shard));
        let names = shard
            .map_or_else(|| vec![UNSHARDED.to_owned()], |it| ['a', 'b'].map(|letter| server_name(it, letter)).into());
        for name in names {
            let server = self.server_or_missing(&name)?;
            // One that is copied anew has the settings of whom it is a copy of.
            if !server.is_missing() {
                server.archive_into(&place)?;
            }
        }
        Ok(())
    }
}

/// The folder that a fleet's archive is in.
fn archive_of(folder: &Path) -> Option<PathBuf> {
    fs::read_link(folder.join(ARCHIVE)).ok()
}

/// Leaves the archive where it is when the fleet's folder goes, if a backup beside the folder needs it.
pub(super) fn keep_needed_archive(folder: &Path) {
    let Some(archive) = archive_of(folder) else { return };
    let backups = fs::read_dir(backups_of(folder)).into_iter().flatten().flatten();
    let mut needing = backups.map(|entry| entry.path().join("servers"));
    if needing.any(|it| ServersBackup::of(&it).is_ok_and(|it| it.archive == archive)) {
        let _gone_already = fs::remove_file(folder.join(ARCHIVE));
    }
}

/// Where the backups of a lab are whose servers are in this folder: beside it, because whoever removes the one should not
/// lose the other. Each has its base backups in `servers`.
#[must_use]
pub fn backups_of(folder: &Path) -> PathBuf {
    beside(folder, "backups")
}

fn beside(folder: &Path, what: &str) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!("{name}-{what}"))
}

/// How many files there are below a folder, and how large they are.
fn size_of(folder: &Path) -> std::io::Result<(usize, u64)> {
    let (mut folders, mut files, mut bytes) = (vec![folder.to_owned()], 0, 0);
    // Ends: a tree of folders that a server made.
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let (entry, size) = {
                let entry = entry?;
                let size = entry.metadata()?;
                (entry, size)
            };
            if size.is_dir() {
                folders.push(entry.path());
            } else {
                files += 1;
                bytes += size.len();
            }
        }
    }
    Ok((files, bytes))
}
