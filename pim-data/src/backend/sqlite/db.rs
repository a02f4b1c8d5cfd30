//! A database in a file: one writer, a bounded set of readers, durability asserted at open.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::conn::{Conn, ReadGuard, Transaction};
use super::group::Line;
use crate::backend::{DbError, DbSettings, Driver, Row, Statement};

/// Between two tries to open a file that another connection holds.
const LOCKED_PAUSE: Duration = Duration::from_millis(5);

/// A database in a file. Clones share its connections.
#[derive(Clone, Debug)]
pub(crate) struct Db(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    settings: DbSettings,
    writer: Arc<AsyncMutex<Conn>>,
    line: Line,
    idle: Idle,
    slots: Arc<Semaphore>,
}

/// Reading connections that nobody uses at present; never more than there are slots.
#[derive(Clone, Debug, Default)]
pub(super) struct Idle(Arc<Mutex<Vec<Conn>>>);

impl Idle {
    pub(super) fn give_back(&self, conn: Conn) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
    }

    fn take(&self) -> Option<Conn> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

impl Db {
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Opens or creates a database and asserts that its commits are durable.
    ///
    /// # Errors
    /// [`DbError::Open`], or [`DbError::NotDurable`] when a commit would not be on disk.
    pub(crate) async fn open(path: &Path, settings: DbSettings) -> Result<Self, DbError> {
        let mut writer = connect(path, &settings, false).await?;
        assert_durable(path, &mut writer).await?;
        let slots = Arc::new(Semaphore::new(settings.readers_max.max(1)));
        let writer = Arc::new(AsyncMutex::new(writer));
        let (path, line, idle) = (path.to_path_buf(), Line::default(), Idle::default());
        Ok(Self(Arc::new(Inner { path, settings, writer, line, idle, slots })))
    }

    /// The file.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    pub(super) fn writer(&self) -> &Arc<AsyncMutex<Conn>> {
        &self.0.writer
    }

    pub(super) fn line(&self) -> &Line {
        &self.0.line
    }

    /// Begins a transaction and runs its first statements, in one hop.
    ///
    /// # Errors
    /// [`DbError`] as the engine says; the transaction is over then.
    pub(crate) async fn begin_with(&self, first: &[Statement]) -> Result<(Transaction, Vec<Vec<Row>>), DbError> {
        let writer = Arc::clone(&self.0.writer).lock_owned().await;
        Transaction::begin(writer, first).await
    }

    /// Borrows a reading connection; waits while all are in use.
    ///
    /// # Errors
    /// [`DbError::Open`] when a new connection is needed and cannot be had.
    pub(crate) async fn read(&self) -> Result<ReadGuard, DbError> {
        let slot = Arc::clone(&self.0.slots).acquire_owned().await.map_err(|_| DbError::Closed)?;
        self.lend(slot).await
    }

    /// As [`Db::read`], but waits for a free connection no longer than until `until`.
    ///
    /// # Errors
    /// [`DbError::Late`], or as [`Db::read`].
    pub(crate) async fn read_until(&self, until: Instant) -> Result<ReadGuard, DbError> {
        let slot = match Arc::clone(&self.0.slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_none_free) => {
                let waiting = timeout_at(until, Arc::clone(&self.0.slots).acquire_owned());
                waiting.await.map_err(|_| DbError::Late)?.map_err(|_| DbError::Closed)?
            }
        };
        self.lend(slot).await
    }

    async fn lend(&self, slot: OwnedSemaphorePermit) -> Result<ReadGuard, DbError> {
        let mut conn = match self.0.idle.take() {
            Some(conn) => conn,
            None => self.connect_reader().await?,
        };
        conn.clean().await?;
        Ok(ReadGuard { conn: Some(conn), home: self.0.idle.clone(), _slot: slot })
    }

    /// A reading connection of one's own, outside the bounded set.
    pub(crate) async fn connect_reader(&self) -> Result<Conn, DbError> {
        connect(&self.0.path, &self.0.settings, true).await
    }
}

/// Pages that a reading connection keeps, in KiB after the minus. There are many such connections, and the file's pages are in the
/// system's cache once for all.
const READER_CACHE: &str = "-512";

async fn connect(path: &Path, settings: &DbSettings, read_only: bool) -> Result<Conn, DbError> {
    let mut options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(settings.busy_timeout)
        .statement_cache_capacity(96)
        .disable_statement_logging();
    options = if read_only {
        options.read_only(true).pragma("cache_size", READER_CACHE)
    } else {
        options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
    };
    let opened = wait_for(&options, settings.busy_timeout).await;
    let raw =
        opened.map_err(|source| DbError::Open { place: path.display().to_string(), source: Driver::of(source) })?;
    let mut conn = Conn::new(raw, path.display().to_string());
    if let (Some(script), true) = (&settings.on_connect, read_only) {
        conn.script(script).await?;
    }
    Ok(conn)
}

/// Opens it, and again while it is locked: of two connections that bring a new database into WAL at once, the engine refuses
/// one without waiting, whatever its time-out.
async fn wait_for(options: &SqliteConnectOptions, patience: Duration) -> Result<SqliteConnection, sqlx::Error> {
    let give_up = Instant::now() + patience;
    loop {
        match options.connect().await {
            Err(sqlx::Error::Database(error)) if is_busy(error.as_ref()) && Instant::now() < give_up => {
                tokio::time::sleep(LOCKED_PAUSE).await;
            }
            opened => return opened,
        }
    }
}

/// The engine's code for a lock that another holds, in its lowest byte.
fn is_busy(error: &dyn DatabaseError) -> bool {
    error.code().and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| code & 0xff == 5)
}

async fn assert_durable(path: &Path, writer: &mut Conn) -> Result<(), DbError> {
    let asked = [
        Statement::sqlite("SELECT journal_mode FROM pragma_journal_mode"),
        Statement::sqlite("SELECT CAST(synchronous AS TEXT) FROM pragma_synchronous"),
        Statement::sqlite("SELECT CAST(foreign_keys AS TEXT) FROM pragma_foreign_keys"),
    ];
    let answers = writer.hop(&asked).await?;
    let wanted = [("journal_mode", "wal"), ("synchronous", "2"), ("foreign_keys", "1")];
    for ((setting, wanted), rows) in wanted.iter().zip(&answers) {
        let found = rows.first().and_then(|row| row.text(0).ok()).unwrap_or_default();
        if !found.eq_ignore_ascii_case(wanted) {
            return Err(DbError::NotDurable { place: path.display().to_string(), setting, found: found.to_owned() });
        }
    }
    Ok(())
}
