//! A database in a file: one writer, a bounded set of readers, durability asserted at open.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::conn::{Conn, ReadGuard, Transaction};
use super::group::Line;
use super::{ColumnError, Row, Statement};

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct DbSettings {
    /// Most reading connections at once; opened when first needed.
    pub readers_max: usize,
    /// How long a writer waits for one in another process.
    pub busy_timeout: Duration,
    /// Run on every connection when it is opened, for example to make TEMP views.
    pub on_connect: Option<Arc<str>>,
}

impl Default for DbSettings {
    fn default() -> Self {
        Self { readers_max: 4, busy_timeout: Duration::from_secs(5), on_connect: None }
    }
}

/// What can go wrong below. The driver's own error stays inside.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The file cannot be opened.
    #[error("cannot open database {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Driver,
    },
    /// A durability setting is not what it must be.
    #[error("database {} runs with {setting} = {found}, which can lose commits or references", path.display())]
    NotDurable {
        /// Which file.
        path: PathBuf,
        /// The setting.
        setting: &'static str,
        /// Its value.
        found: String,
    },
    /// A constraint, trigger or guard refused a write; the text is ours or the engine's, without values.
    #[error("the database refused a write: {rule}")]
    Refused {
        /// What refused.
        rule: String,
        /// Whether a unique constraint did.
        unique: bool,
    },
    /// Somebody else holds the writer for too long.
    #[error("the database is locked by another writer")]
    Busy,
    /// A column does not hold what was asked for.
    #[error("a row does not have the expected form")]
    Column(#[from] ColumnError),
    /// The deadline passed while waiting for a connection of this process.
    #[error("the deadline passed while waiting for a connection")]
    Late,
    /// The connection is gone.
    #[error("the connection is closed")]
    Closed,
    /// Another member of a shared transaction made the engine take all of it back. Nothing was written.
    #[error("a transaction shared with others was rolled back")]
    Undone,
    /// The commit of a shared transaction failed; whether it happened, a retry under the same idempotency key finds out.
    #[error("the commit shared with others failed")]
    Commit(#[source] Arc<DbError>),
    /// The runtime ended in the middle of a transaction; whether it was committed is not known.
    #[error("the task that ran the transaction is gone")]
    Abandoned,
    /// Anything else that the engine says.
    #[error("the database engine failed")]
    Engine(#[source] Driver),
}

impl DbError {
    /// Whether the same call may well succeed a little later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy | Self::Closed | Self::Undone)
    }
}

/// The driver's error, opaque.
pub struct Driver(sqlx::Error);

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Driver {}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        let Some(refusal) = error.as_database_error() else { return Self::Engine(Driver(error)) };
        let code = refusal.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
        // The low byte is the primary result code: 5 busy, 6 locked, 19 constraint.
        match code & 0xff {
            5 | 6 => Self::Busy,
            19 => Self::Refused { rule: refusal.message().to_owned(), unique: refusal.is_unique_violation() },
            _ => Self::Engine(Driver(error)),
        }
    }
}

/// A database in a file. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Db(Arc<Inner>);

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
    /// Opens or creates a database and asserts that its commits are durable.
    ///
    /// # Errors
    /// [`DbError::Open`], or [`DbError::NotDurable`] when a commit would not be on disk.
    pub async fn open(path: &Path, settings: DbSettings) -> Result<Self, DbError> {
        let mut writer = connect(path, &settings, false).await?;
        assert_durable(path, &mut writer).await?;
        let slots = Arc::new(Semaphore::new(settings.readers_max.max(1)));
        let writer = Arc::new(AsyncMutex::new(writer));
        let (path, line, idle) = (path.to_path_buf(), Line::default(), Idle::default());
        Ok(Self(Arc::new(Inner { path, settings, writer, line, idle, slots })))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    pub(super) fn writer(&self) -> &Arc<AsyncMutex<Conn>> {
        &self.0.writer
    }

    pub(super) fn line(&self) -> &Line {
        &self.0.line
    }

    /// Waits for the writer and begins a transaction.
    ///
    /// # Errors
    /// [`DbError::Busy`] when a writer in another process does not end in time.
    pub async fn begin(&self) -> Result<Transaction, DbError> {
        Ok(self.begin_with(&[]).await?.0)
    }

    /// Begins a transaction and runs its first statements, in one hop.
    ///
    /// # Errors
    /// [`DbError`] as the engine says; the transaction is over then.
    pub async fn begin_with(&self, first: &[Statement]) -> Result<(Transaction, Vec<Vec<Row>>), DbError> {
        let writer = Arc::clone(&self.0.writer).lock_owned().await;
        Transaction::begin(writer, first).await
    }

    /// Borrows a reading connection; waits while all are in use.
    ///
    /// # Errors
    /// [`DbError::Open`] when a new connection is needed and cannot be had.
    pub async fn read(&self) -> Result<ReadGuard, DbError> {
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

    /// Runs one reading statement.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn query(&self, statement: Statement) -> Result<Vec<Row>, DbError> {
        self.read().await?.query(statement).await
    }
}

async fn connect(path: &Path, settings: &DbSettings, read_only: bool) -> Result<Conn, DbError> {
    let mut options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(settings.busy_timeout)
        .statement_cache_capacity(96)
        .disable_statement_logging();
    options = if read_only {
        options.read_only(true)
    } else {
        options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
    };
    let opened = options.connect().await;
    let raw = opened.map_err(|source| DbError::Open { path: path.to_path_buf(), source: Driver(source) })?;
    let mut conn = Conn::new(raw);
    if let (Some(script), true) = (&settings.on_connect, read_only) {
        conn.script(script).await?;
    }
    Ok(conn)
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
            return Err(DbError::NotDurable { path: path.to_path_buf(), setting, found: found.to_owned() });
        }
    }
    Ok(())
}
