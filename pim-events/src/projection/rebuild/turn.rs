//! Whose turn it is: of two rebuilds of one read model, each would empty the place that the other fills.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use pim_data::backend::{Db, ServerSettings, SqlPair, Statement, Transaction};

use super::RebuildError;
use super::green::plain;
use crate::projection::ReadStore;
use crate::projection::store::Server;

/// Longest rebuild; a server counts in milliseconds and would not count much further.
const TURN_MAX: Duration = Duration::from_secs(20 * 24 * 60 * 60);

/// The lock is this one's own; it ends with the session, however that ends.
const TAKE: SqlPair = SqlPair::postgres("SELECT 1 WHERE pg_try_advisory_xact_lock(7472, hashtext(?))");
const STILL: SqlPair = SqlPair::same("SELECT 1");

/// It ends when this is dropped.
pub(super) enum Turn {
    /// A locked file beside the new tables.
    File(#[expect(dead_code, reason = "it is locked for as long as it is open")] File),
    /// A session that holds a lock of the server's.
    Session { lock: Transaction, _pool: Db },
}

impl Turn {
    pub(super) async fn take(live: &ReadStore, name: &'static str, folder: &Path) -> Result<Self, RebuildError> {
        match &live.server {
            Some(server) => Self::on_server(server, name).await,
            None => Self::in_folder(name, folder),
        }
    }

    fn in_folder(name: &'static str, folder: &Path) -> Result<Self, RebuildError> {
        let path = folder.join(format!("rebuild-{}.lock", plain(name)));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(RebuildError::Folder)?;
        match file.try_lock() {
            Ok(()) => Ok(Self::File(file)),
            Err(TryLockError::WouldBlock) => Err(RebuildError::Running { name }),
            Err(TryLockError::Error(error)) => Err(RebuildError::Folder(error)),
        }
    }

    async fn on_server(server: &Server, name: &'static str) -> Result<Self, RebuildError> {
        let settings = ServerSettings { connections_max: 1, transaction_max: TURN_MAX, ..server.settings };
        let pool = Server { settings, ..server.clone() }.connect().await?;
        let (lock, answers) = pool.begin_with(&[Statement::of(TAKE).bind(name)]).await?;
        if answers.iter().all(Vec::is_empty) {
            lock.rollback().await?;
            return Err(RebuildError::Running { name });
        }
        Ok(Self::Session { lock, _pool: pool })
    }

    /// Makes sure that the session has not been lost, and the lock with it.
    pub(super) async fn is_kept(&mut self) -> Result<(), RebuildError> {
        if let Self::Session { lock, .. } = self {
            lock.query(Statement::of(STILL)).await?;
        }
        Ok(())
    }

    /// Gives the next one its turn before this comes back.
    pub(super) async fn end(self) {
        if let Self::Session { lock, .. } = self {
            // Where it cannot be said, the session has ended.
            let _ended = lock.rollback().await;
        }
    }
}
