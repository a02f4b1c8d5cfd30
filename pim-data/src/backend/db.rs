//! A database, whichever engine it runs on.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::conn::{Holder, OpenTransaction, Reader, Snapshot};
#[cfg(feature = "postgres")]
use super::postgres;
use super::{
    DbError, Demand, Described, Dial, End, Member, ReadGuard, Row, Secrets, SqlPair, Statement, Transaction, sqlite,
};

/// How a database in a file is opened.
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

/// How an endpoint of a server is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Most connections of one pool; opened when first needed. A program has one for writes and one for reads of each endpoint,
    /// one connection to probe with, and two of the owner: allow a server `2 × connections_max + 3` for each program. The
    /// session of a call that was given up ends half a second later, or with its COMMIT, if that waits for a standby. Of the
    /// primary's, those who write leave one to reads, from eight on two: commits that wait for a lost standby keep theirs. Where there
    /// is only one, reads wait with them.
    pub connections_max: usize,
    /// Most calls at once that write units of one row; never more than connections for it. Units that come meanwhile wait and share the
    /// next one; units of several rows go by themselves, and are not counted. A server on few processors, or whose flushes are slow, writes more
    /// with two, one that is far away or has many processors with more.
    pub writers_max: usize,
    /// How long a unit that could go waits, while others are being written, for those that have read their row and are likely to
    /// follow: until there are as many as all that are on their way spread over `writers_max` calls, rounded down. While nobody is being
    /// written, as long again, but no longer than a call takes, and more and more rarely if nobody came. Zero never waits.
    pub gather_max: Duration,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// A connection that nobody used for this long is asked whether it is still there.
    pub idle_check_after: Duration,
    /// Longest statement, reads included, longest transaction and longest wait for a lock; a fence never waits longer for a writer.
    pub transaction_max: Duration,
    /// Longest call of those that have no deadline of a request.
    pub call_max: Duration,
    /// How often each server of a shard is asked what it is and how far it is. Lag is known no better than this.
    pub probe_every: Duration,
    /// How long a server has for the answer to that, and a replica for a read before another server is asked.
    pub probe_max: Duration,
    /// How long a read that carries a token waits for a replica to catch up before the primary is asked; zero never waits.
    pub catch_up_max: Duration,
}

impl ServerSettings {
    /// Most connections to a primary that those who write have at once.
    pub(crate) const fn writes_max(&self) -> usize {
        match self.connections_max {
            0 | 1 => 1,
            few @ 2..8 => few - 1,
            many => many - 2,
        }
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            connections_max: 8,
            writers_max: 2,
            gather_max: Duration::from_millis(5),
            connect_timeout: Duration::from_secs(5),
            idle_check_after: Duration::from_secs(10),
            transaction_max: Duration::from_secs(5),
            call_max: Duration::from_secs(30),
            probe_every: Duration::from_millis(250),
            probe_max: Duration::from_millis(750),
            catch_up_max: Duration::from_millis(50),
        }
    }
}

/// Which database engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// In the process, in a file.
    Sqlite,
    /// A server.
    Postgres,
}

/// A database. Clones share its connections.
#[derive(Clone)]
pub struct Db(Store);

#[derive(Clone)]
enum Store {
    Sqlite(sqlite::Db),
    #[cfg(feature = "postgres")]
    Postgres(postgres::Db),
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db").field("engine", &self.engine()).field("name", &self.name()).finish()
    }
}

impl Db {
    /// Opens or creates a database in a file and asserts that its commits are durable.
    ///
    /// # Errors
    /// [`DbError::Open`], or [`DbError::NotDurable`] when a commit would not be on disk.
    pub async fn open(path: &Path, settings: DbSettings) -> Result<Self, DbError> {
        sqlite::Db::open(path, settings).await.map(|db| Self(Store::Sqlite(db)))
    }

    /// A database of a PostgreSQL server whose connection string is the secret `name`. Connects once, so that what is wrong
    /// is said now.
    ///
    /// # Errors
    /// [`DbError::Secret`], [`DbError::Open`], [`DbError::NotDurable`]; [`DbError::NoText`] when this program was built
    /// without the feature `postgres`.
    pub async fn connect(name: &str, secrets: Arc<dyn Secrets>, settings: ServerSettings) -> Result<Self, DbError> {
        let db = Self::dial(name, Dial::new(secrets, settings))?;
        drop(db.read_until(Instant::now() + settings.connect_timeout).await?);
        Ok(db)
    }

    /// As [`Db::connect`], but connects when first asked.
    pub(crate) fn dial(name: &str, dial: Dial) -> Result<Self, DbError> {
        #[cfg(feature = "postgres")]
        {
            Ok(Self(Store::Postgres(postgres::Db::new(name, dial))))
        }
        #[cfg(not(feature = "postgres"))]
        {
            drop((name, dial));
            Err(DbError::NoText { engine: "PostgreSQL: build with the feature `postgres`" })
        }
    }

    /// Leads to another endpoint from now on. Calls that are under way at the other one are given up.
    #[cfg_attr(not(feature = "postgres"), expect(unused_variables, reason = "the same form with the feature"))]
    pub(crate) fn turn_to(&self, name: &str, demand: Demand) {
        match &self.0 {
            Store::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.turn_to(name, demand),
        }
    }

    /// What its server must be.
    pub(crate) fn demand(&self) -> Demand {
        match &self.0 {
            Store::Sqlite(_) => Demand::default(),
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.demand(),
        }
    }

    /// Whether the transactions that begin from now on need wait for no standby, as far as the database itself agrees.
    #[cfg_attr(not(feature = "postgres"), expect(unused_variables, reason = "the same form with the feature"))]
    pub(crate) fn stand_alone(&self, alone: bool) {
        match &self.0 {
            Store::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.stand_alone(alone),
        }
    }

    /// Whether they need not at present.
    pub(crate) fn stands_alone(&self) -> bool {
        match &self.0 {
            Store::Sqlite(_) => false,
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.stands_alone(),
        }
    }

    /// Looks whether its connection string, or the address of its host, is another by now; says whether it is.
    #[cfg_attr(not(feature = "postgres"), expect(clippy::unused_async, reason = "the same form with the feature"))]
    pub(crate) async fn refresh(&self) -> bool {
        match &self.0 {
            Store::Sqlite(_) => false,
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.refresh().await,
        }
    }

    /// Has the next call to a server begin a new session.
    pub(crate) fn renew(&self) {
        match &self.0 {
            Store::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.renew(),
        }
    }

    /// Whether another connection to the server may be opened at present.
    pub(crate) fn has_room(&self) -> bool {
        match &self.0 {
            Store::Sqlite(_) => true,
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.has_room(),
        }
    }

    /// Keeps no connection to a server any more: each is closed when it comes back.
    pub(crate) fn drain(&self) {
        match &self.0 {
            Store::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.drain(),
        }
    }

    /// Calls no server any more, and gives up the calls that are under way. A file is closed when nobody has it.
    pub(crate) fn close(&self) {
        match &self.0 {
            Store::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.close(),
        }
    }

    /// Asks a server without preparing the question. For servers alone.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(clippy::unused_async, unused_variables, reason = "the same form with and without the feature")
    )]
    pub(crate) async fn ask(&self, until: Instant, script: &str) -> Result<Vec<Row>, DbError> {
        match &self.0 {
            Store::Sqlite(_) => Err(DbError::NoText { engine: "SQLite" }),
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.ask(until, script).await,
        }
    }

    /// Whether it is a clone of the other: it leads to the same place by the same connections.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Store::Sqlite(one), Store::Sqlite(other)) => one.is(other),
            #[cfg(feature = "postgres")]
            (Store::Postgres(one), Store::Postgres(other)) => one.is(other),
            #[cfg(feature = "postgres")]
            _ => false,
        }
    }

    /// Which engine it is.
    #[must_use]
    pub const fn engine(&self) -> Engine {
        match &self.0 {
            Store::Sqlite(_) => Engine::Sqlite,
            #[cfg(feature = "postgres")]
            Store::Postgres(_) => Engine::Postgres,
        }
    }

    /// Its file's name, or its endpoint's.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.0 {
            Store::Sqlite(db) => db.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.name(),
        }
    }

    /// Its file, if it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Store::Sqlite(db) => Some(db.path()),
            #[cfg(feature = "postgres")]
            Store::Postgres(_) => None,
        }
    }

    /// Begins a transaction; on the embedded engine this waits for the writer.
    ///
    /// # Errors
    /// [`DbError::Busy`] when a writer in another process does not end in time.
    pub async fn begin(&self) -> Result<Transaction, DbError> {
        Ok(self.begin_with(&[]).await?.0)
    }

    /// Begins a transaction and runs its first statements.
    ///
    /// # Errors
    /// [`DbError`] as the engine says; the transaction is over then.
    pub async fn begin_with(&self, first: &[Statement]) -> Result<(Transaction, Vec<Vec<Row>>), DbError> {
        match &self.0 {
            Store::Sqlite(db) => sqlite_transaction(db.begin_with(first).await),
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => postgres_transaction(db.begin_with(None, first).await),
        }
    }

    /// As [`Db::begin_with`]; on a server every call of the transaction ends by `until`, and its COMMIT as what it is: unanswered.
    #[cfg_attr(not(feature = "postgres"), expect(unused_variables, reason = "the same form with the feature"))]
    pub(crate) async fn begin_until(
        &self,
        until: Instant,
        first: &[Statement],
    ) -> Result<(Transaction, Vec<Vec<Row>>), DbError> {
        match &self.0 {
            Store::Sqlite(db) => sqlite_transaction(db.begin_with(first).await),
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => postgres_transaction(db.begin_with(Some(until), first).await),
        }
    }

    /// Runs one statement as a transaction: one trip on a server, unless it must be told first not to wait for a standby.
    ///
    /// # Errors
    /// [`DbError`] as the engine says; nothing has been done then, unless [`DbError::is_ambiguous`].
    pub(crate) async fn change(&self, statement: Statement) -> Result<Vec<Row>, DbError> {
        if self.engine() == Engine::Postgres && !self.stands_alone() {
            return self.query(statement).await;
        }
        let answers = self.begin().await?.commit_with(vec![statement]).await?;
        Ok(answers.into_iter().next().unwrap_or_default())
    }

    /// Lets a member take part in the next transaction that is shared by all who wait. For the embedded engine alone; units that
    /// wait for a server share a call.
    ///
    /// # Errors
    /// [`DbError::NoText`] on a server; else as the engine says.
    pub(crate) async fn share<M: Member>(&self, until: Instant, member: M) -> Result<(M, End), DbError> {
        match &self.0 {
            Store::Sqlite(db) => db.share(until, member).await,
            #[cfg(feature = "postgres")]
            Store::Postgres(_) => Err(DbError::NoText { engine: "PostgreSQL" }),
        }
    }

    /// Borrows a reading connection; waits while all are in use.
    ///
    /// # Errors
    /// [`DbError::Open`] when a new connection is needed and cannot be had.
    pub async fn read(&self) -> Result<ReadGuard, DbError> {
        match &self.0 {
            Store::Sqlite(db) => db.read().await.map(|reader| ReadGuard(Reader::Sqlite(reader))),
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.read(None).await.map(|reader| ReadGuard(Reader::Postgres(reader))),
        }
    }

    /// As [`Db::read`], but waits for a free connection no longer than until `until`; on a server its calls end by then as well.
    ///
    /// # Errors
    /// [`DbError::Late`], or as [`Db::read`].
    pub async fn read_until(&self, until: Instant) -> Result<ReadGuard, DbError> {
        match &self.0 {
            Store::Sqlite(db) => db.read_until(until).await.map(|reader| ReadGuard(Reader::Sqlite(reader))),
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.read(Some(until)).await.map(|reader| ReadGuard(Reader::Postgres(reader))),
        }
    }

    /// As [`Db::read_until`], for a call that writes: those leave some connections to whoever reads. For servers alone.
    ///
    /// # Errors
    /// [`DbError::NoText`] on the embedded engine; else as [`Db::read_until`].
    #[cfg_attr(
        not(feature = "postgres"),
        expect(clippy::unused_async, unused_variables, reason = "the same form with and without the feature")
    )]
    pub(crate) async fn write_until(&self, until: Instant) -> Result<ReadGuard, DbError> {
        match &self.0 {
            Store::Sqlite(_) => Err(DbError::NoText { engine: "SQLite" }),
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.write(until).await.map(|writer| ReadGuard(Reader::Postgres(writer))),
        }
    }

    /// Takes a snapshot and keeps it, on a connection of its own.
    pub(crate) async fn hold(&self) -> Result<Snapshot, DbError> {
        match &self.0 {
            Store::Sqlite(db) => {
                let mut conn = db.connect_reader().await?;
                // A deferred transaction takes its snapshot with its first read.
                let first = [Statement::sqlite("BEGIN"), Statement::sqlite("SELECT 1 FROM pim_identity")];
                conn.hop(&first).await?;
                Ok(Snapshot(Holder::Sqlite(conn)))
            }
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.hold().await.map(|reader| Snapshot(Holder::Postgres(reader))),
        }
    }

    /// Runs one reading statement. On a server it may write, as a transaction by itself.
    ///
    /// # Errors
    /// [`DbError`] as the engine says.
    pub async fn query(&self, statement: Statement) -> Result<Vec<Row>, DbError> {
        self.read().await?.query(statement).await
    }

    /// Prepares a statement without running it: whether this database understands it, and what it would answer with.
    ///
    /// # Errors
    /// [`DbError::NoText`] when it is not meant for this engine; else as the engine says, for example of a missing table.
    pub async fn describe(&self, sql: &SqlPair) -> Result<Vec<Described>, DbError> {
        match &self.0 {
            Store::Sqlite(db) => db.connect_reader().await?.describe(sql).await,
            #[cfg(feature = "postgres")]
            Store::Postgres(db) => db.read(None).await?.describe(sql).await,
        }
    }
}

type Begun<T, R> = Result<(T, R), DbError>;

fn sqlite_transaction<R>(begun: Begun<sqlite::Transaction, R>) -> Begun<Transaction, R> {
    begun.map(|(tx, rows)| (Transaction(OpenTransaction::Sqlite(tx)), rows))
}

#[cfg(feature = "postgres")]
fn postgres_transaction<R>(begun: Begun<postgres::Transaction, R>) -> Begun<Transaction, R> {
    begun.map(|(tx, rows)| (Transaction(OpenTransaction::Postgres(tx)), rows))
}
