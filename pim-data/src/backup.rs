//! Backups of a data directory while it serves, and restoring one into a new directory.
//!
//! Every database is copied within one snapshot of its own; they are not of one instant. The order makes that harmless: what
//! is made from events is copied before the events, and these before the shards that wrote them, so nothing in a backup is
//! ahead of its source. What the copies of log and read models lack, the outboxes of the copied shards still have or send
//! again; consumers skip what they know by its number. Maps come last, and with them whatever shards they have brought meanwhile.
//!
//! A restored directory raises the epoch of every bucket: numbers that were given out after the backup are given out again,
//! and a consumer that was not restored with it must not take the new ones for the old.

mod archive;
mod maps;
mod restore;

pub use archive::{BackupReport, BackupSummary, Companion, summary_of};
pub use restore::{Restoration, RestorePoint, RestoreReport, check, restore};

use std::io;
use std::path::PathBuf;

use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::shard::ShardId;

use crate::audit::CheckpointError;
use crate::backend::DbError;
use crate::cluster::{DirectoryError, OpenError};
use crate::fence::PublishError;

/// A backup that was not made, or not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Its place is taken.
    #[error("{} is there already: choose another place", path.display())]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// Buckets are being moved, or retention removes records: rows could be in neither copy.
    #[error("buckets are being moved, or retention is at it: try again when that is over")]
    Moving,
    /// The rows are on servers, which have backups of their own.
    #[error("the databases of {name} are on a server: use its own base backup and archive")]
    Server {
        /// Which database.
        name: String,
    },
    /// There is no whole backup.
    #[error("{} holds no whole backup", path.display())]
    Absent {
        /// Where.
        path: PathBuf,
    },
    /// A file is not the one that was backed up.
    #[error("file {} of the backup is damaged", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// A disk is full.
    #[error("the disk of {} is full: free some of it, and try again", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
    },
    /// A database failed.
    #[error("database {name} cannot be copied")]
    Database {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: DbError,
    },
    /// The file system refuses.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The shards of that instant follow a map that was published after the backup, and it is nowhere to be had.
    #[error(
        "the shards follow map {version}, which the backup does not have: name the data directory that was backed up, or a \
         copy of it, whose maps/{version}.toml it is; or take a newer backup, or an earlier instant"
    )]
    Map {
        /// Its version.
        version: u64,
    },
    /// A map has brought a shard while the others were copied, and its database is not open here.
    #[error("a map has brought shard {shard} meanwhile, whose database is not open here yet: try again")]
    Brought {
        /// Which.
        shard: ShardId,
    },
    /// The worker that copies files was stopped.
    #[error("the copying was interrupted")]
    Interrupted,
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The restored directory cannot be opened.
    #[error(transparent)]
    Open(Box<OpenError>),
    /// The epochs cannot be raised.
    #[error(transparent)]
    Publish(Box<PublishError>),
    /// The audit trail cannot be read.
    #[error(transparent)]
    Audit(#[from] CheckpointError),
}

impl From<OpenError> for BackupError {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}

impl From<PublishError> for BackupError {
    fn from(error: PublishError) -> Self {
        Self::Publish(Box::new(error))
    }
}

impl IntoProblem for BackupError {
    fn into_problem(self) -> Problem {
        match self {
            Self::Taken { .. } => Problem::of(problem::ALREADY_EXISTS).detail("a backup of this name is there"),
            Self::Moving => Problem::of(problem::CONFLICT).detail("buckets are being moved, or retention is at it"),
            Self::Server { .. } => {
                Problem::of(problem::CONFLICT).detail("rows are on servers: use their base backups and archives")
            }
            Self::Full { .. } => Problem::of(problem::UNAVAILABLE).detail("the disk is full"),
            _ => Problem::of(problem::UNAVAILABLE),
        }
    }
}
