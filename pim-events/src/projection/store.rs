//! The read store: a database of its own for read models and for what their consumers remember.

mod after;
mod columns;
mod select;

use std::path::Path;
use std::sync::Arc;

use pim_core::clock::{Clock, Timestamp};
use pim_core::problem::{self, IntoProblem, Problem, ProblemType};
use pim_data::backend::{
    ColumnError, Db, DbError, DbSettings, Engine, Row, Secrets, ServerSettings, SqlPair, Statement, Value,
};
use pim_data::scope::ScopeError;
use uuid::Uuid;

use super::Projection;
use crate::bus::EmbeddedBus;
use crate::consumer::Head;
use crate::consumer::ledger::{LEDGER_SCHEMA, epoch_at, states, states_of};
use crate::signals::EventSignals;

/// A read model has not applied yet what the caller has seen; the same request may be sent again.
pub const READ_MODEL_BEHIND: ProblemType =
    ProblemType::new("read-model-behind", 503, "The read model does not know yet what the caller has seen");

/// Most connections that read models are queried through.
pub(crate) const READERS_MAX: usize = 16;

/// One program makes tables at a time; the lock ends with the transaction. On the embedded engine the writer is alone.
pub(super) const INSTALLING: SqlPair = SqlPair::of("SELECT pg_advisory_xact_lock(7470, 0)", "SELECT 1");
/// Whether heads know their events. They did not in stores that were made earlier, whose heads learn it as they move.
pub(super) const HEADS_KNOW: SqlPair = SqlPair::of(
    "SELECT 1 FROM information_schema.columns
     WHERE table_schema = current_schema() AND table_name = 'inbox_head' AND column_name = 'event_id'",
    "SELECT 1 FROM pragma_table_info('inbox_head') WHERE name = 'event_id'",
);
const LET_HEADS_KNOW: SqlPair =
    SqlPair::of("ALTER TABLE inbox_head ADD COLUMN event_id uuid", "ALTER TABLE inbox_head ADD COLUMN event_id BLOB");
pub(super) const HEADS: SqlPair = SqlPair::of(
    "SELECT h.consumer, h.owner_epoch, h.n, h.at FROM jsonb_array_elements_text(?) c
     JOIN inbox_head h ON h.consumer = c.value AND h.home_key = ?",
    "SELECT h.consumer, h.owner_epoch, h.n, h.at FROM json_each(?) c
     JOIN inbox_head h ON h.consumer = c.value AND h.home_key = ?",
);

/// A database of read models. Clones share it.
#[derive(Clone, Debug)]
pub struct ReadStore {
    db: Db,
    /// How to reach its server, where it is on one.
    pub(super) server: Option<Server>,
    clock: Clock,
    signals: EventSignals,
}

/// A database of a server, by the name of its connection string.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) secrets: Arc<dyn Secrets>,
    pub(super) settings: ServerSettings,
}

/// Whether somebody has read the log under a name that no read model has.
const IS_HANDLERS: &str = "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM projection_version WHERE name = ?)
    AND (EXISTS (SELECT 1 FROM projection_checkpoint WHERE consumer = ?)
      OR EXISTS (SELECT 1 FROM inbox_head WHERE consumer = ?))";

/// What went wrong with a read store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be opened.
    #[error("open the read store")]
    Open(#[source] DbError),
    /// A read model could not be made.
    #[error("make read model {name}")]
    Install {
        /// Which one.
        name: &'static str,
        /// Why.
        #[source]
        source: DbError,
    },
    /// The stored read model is of another version than the program's; rebuild it.
    #[error("read model {name} has version {stored}, the program has {known}: rebuild it")]
    Outdated {
        /// Which one.
        name: &'static str,
        /// The stored version.
        stored: u32,
        /// The program's.
        known: u32,
    },
    /// A command handler runs, or has run, under the name, and its place in the log would be the read model's.
    #[error("{name} is the name of a command handler of this store: give the read model another")]
    HandlersName {
        /// Which name.
        name: &'static str,
    },
    /// The program's version of the read model is zero, which is that of none.
    #[error("read model {name} has version 0: versions begin with 1")]
    Unversioned {
        /// Which one.
        name: &'static str,
    },
    /// It names a table or column that its database has not.
    #[error(
        "read model {name} names {table}.{column}, which is not there: correct `tables` or `scopes`, or raise its version and rebuild it where its \
         script has changed"
    )]
    Lacks {
        /// Which one.
        name: &'static str,
        /// The table.
        table: &'static str,
        /// The column; `*` where the table itself is not there.
        column: &'static str,
    },
    /// A query that cannot be held within the scope of a permit.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// The read model has not applied what the caller has seen.
    #[error("the read model of {consumer} has not applied yet what the caller has seen{}", if *held { ": events of it are held" } else { "" })]
    Behind {
        /// Whose read model.
        consumer: String,
        /// Whether it waits for an operator to release events that are held.
        held: bool,
    },
    /// It could not be read or written.
    #[error("use the read store")]
    Db(#[from] DbError),
}

impl From<ColumnError> for StoreError {
    fn from(error: ColumnError) -> Self {
        Self::Db(error.into())
    }
}

impl IntoProblem for StoreError {
    fn into_problem(self) -> Problem {
        match self {
            Self::Db(error) => error.into_problem(),
            Self::Behind { held: false, .. } => Problem::of(READ_MODEL_BEHIND).retry_after_secs(1),
            Self::Behind { held: true, .. } => Problem::of(READ_MODEL_BEHIND)
                .detail("events are held until an operator has seen to them")
                .retry_after_secs(60),
            Self::Open(_) => Problem::of(problem::INTERNAL).because("store.open"),
            Self::Scope(_) => Problem::of(problem::INTERNAL).because("store.scope"),
            Self::Install { .. }
            | Self::Outdated { .. }
            | Self::HandlersName { .. }
            | Self::Unversioned { .. }
            | Self::Lacks { .. } => Problem::of(problem::INTERNAL).because("store.read_model"),
        }
    }
}

impl ReadStore {
    /// Opens or creates a read store.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        let settings = DbSettings { readers_max: READERS_MAX, ..DbSettings::default() };
        let db = Db::open(path, settings).await.map_err(StoreError::Open)?;
        Self::prepare(db, None, clock).await
    }

    /// Opens the read store in a database of a PostgreSQL server, feature `postgres`. The secret `name` is the connection
    /// string of a login role that may create tables and schemas there; nothing but the read store lives in it.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub async fn connect(
        name: &str,
        secrets: Arc<dyn Secrets>,
        settings: ServerSettings,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        Self::open_on(Server { name: name.to_owned(), secrets, settings }, clock).await
    }

    pub(super) async fn open_on(server: Server, clock: Clock) -> Result<Self, StoreError> {
        let db = server.connect().await.map_err(StoreError::Open)?;
        Self::prepare(db, Some(server), clock).await
    }

    async fn prepare(db: Db, server: Option<Server>, clock: Clock) -> Result<Self, StoreError> {
        let mut tx = db.begin().await.map_err(StoreError::Open)?;
        tx.query(Statement::of(INSTALLING)).await.map_err(StoreError::Open)?;
        let ledger = LEDGER_SCHEMA.text(db.engine()).unwrap_or_default();
        tx.script(&ledger).await.map_err(StoreError::Open)?;
        if tx.query(Statement::of(HEADS_KNOW)).await.map_err(StoreError::Open)?.is_empty() {
            tx.query(Statement::of(LET_HEADS_KNOW)).await.map_err(StoreError::Open)?;
        }
        tx.commit().await.map_err(StoreError::Open)?;
        Ok(Self { db, server, clock, signals: EventSignals::unbound() })
    }

    /// Lets whoever consumes into this store tell `signals` what happens.
    #[must_use]
    pub fn with_signals(mut self, signals: &EventSignals) -> Self {
        self.signals = signals.clone();
        self
    }

    /// Runs one reading statement over the read models, for the program itself: it sees every row. For a caller there is
    /// [`ReadStore::select`].
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn query(&self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        Ok(self.db.query(statement).await?)
    }

    /// How far `consumer` has applied the events of a home key.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn head(&self, consumer: &str, key: Uuid) -> Result<Head, StoreError> {
        let rows = self.db.query(states(consumer, [key])).await?;
        Ok(states_of(&rows)?.remove(&key).unwrap_or_default().head)
    }

    /// How far each of `consumers` has applied the events of a home key, and when it did last; those that have applied none are left out.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn heads(&self, consumers: &[&str], key: Uuid) -> Result<Vec<(String, Head, Timestamp)>, StoreError> {
        let asked = Statement::of(HEADS).bind(Value::Json(serde_json::json!(consumers).to_string())).bind(key);
        let rows = self.db.query(asked).await?;
        let head = |row: &Row| {
            let head = Head { epoch: epoch_at(row, 1)?, n: row.count(2)? };
            Ok((row.text(0)?.to_owned(), head, row.time(3)?))
        };
        Ok(rows.iter().map(head).collect::<Result<_, DbError>>()?)
    }

    /// Lets every consumer that stands behind the end of this log go on from its end, as after a restore with an older copy of
    /// the log: what comes there next is sent again from the outboxes, and what is known is skipped by its number. Answers how
    /// many positions moved. To be done while nobody consumes.
    ///
    /// # Errors
    /// [`StoreError::Db`].
    pub async fn rebase(&self, log: &EmbeddedBus) -> Result<u64, StoreError> {
        let mut tx = self.db.begin().await?;
        let mut moved = 0;
        for (topic, partition, end) in log.ends() {
            let back = Statement::same(
                "UPDATE projection_checkpoint SET next_offset = ? WHERE topic = ? AND part = ? AND next_offset > ? RETURNING 1",
            );
            let back = back.bind(end).bind(topic).bind(partition).bind(end);
            moved += tx.query(back).await?.len() as u64;
            // Another record will have that place, and may be dead as well.
            let gone = Statement::same("DELETE FROM dead_record WHERE topic = ? AND part = ? AND pos >= ? RETURNING 1");
            tx.query(gone.bind(topic).bind(partition).bind(end)).await?;
        }
        tx.commit().await?;
        Ok(moved)
    }

    /// The database itself.
    #[must_use]
    pub const fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) const fn signals(&self) -> &EventSignals {
        &self.signals
    }

    pub(crate) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Refuses a name that is a command handler's: what it has passed in the log the read model would never see.
    pub(super) async fn refuse_handlers(&self, projection: &dyn Projection) -> Result<(), StoreError> {
        let name = projection.name();
        let rows = self.db.query(Statement::same(IS_HANDLERS).bind(name).bind(name).bind(name)).await?;
        if rows.is_empty() { Ok(()) } else { Err(StoreError::HandlersName { name }) }
    }

    /// Makes the tables of a read model, unless they are there.
    ///
    /// # Errors
    /// [`StoreError::Outdated`] when they are there in another version, [`StoreError::Lacks`] when they are not as it says,
    /// [`StoreError::HandlersName`] when a command handler has its name, and [`StoreError::Unversioned`].
    pub async fn install(&self, projection: &dyn Projection) -> Result<(), StoreError> {
        let name = projection.name();
        let failed = |source| StoreError::Install { name, source };
        let known = projection.version();
        if known == 0 {
            return Err(StoreError::Unversioned { name });
        }
        let stored = Statement::same("SELECT version FROM projection_version WHERE name = ?").bind(name);
        let mut tx = self.db.begin().await.map_err(failed)?;
        tx.query(Statement::of(INSTALLING)).await.map_err(failed)?;
        let rows = tx.query(stored).await.map_err(failed)?;
        if let Some(row) = rows.first() {
            let stored = row.count(0).map_err(|error| failed(error.into()))?;
            let stored = u32::try_from(stored).unwrap_or(u32::MAX);
            let checked = match stored == known {
                true => columns::check(projection, self.db.engine(), &mut tx).await,
                false => Err(StoreError::Outdated { name, stored, known }),
            };
            tx.rollback().await.map_err(failed)?;
            return checked;
        }
        let handlers = Statement::same(IS_HANDLERS).bind(name).bind(name).bind(name);
        if !tx.query(handlers).await.map_err(failed)?.is_empty() {
            tx.rollback().await.map_err(failed)?;
            return Err(StoreError::HandlersName { name });
        }
        tx.script(&schema_of(projection, &self.db).map_err(failed)?).await.map_err(failed)?;
        if let Err(error) = columns::check(projection, self.db.engine(), &mut tx).await {
            tx.rollback().await.map_err(failed)?;
            return Err(error);
        }
        let enter =
            Statement::same("INSERT INTO projection_version (name, version, state, at) VALUES (?, ?, 'live', ?)");
        tx.query(enter.bind(name).bind(known).bind(self.clock.now())).await.map_err(failed)?;
        tx.commit().await.map_err(failed)
    }
}

/// The script that makes the tables of a read model, for the engine of a database.
pub(super) fn schema_of(projection: &dyn Projection, db: &Db) -> Result<String, DbError> {
    let engine = if db.engine() == Engine::Postgres { "PostgreSQL" } else { "SQLite" };
    projection.schema().text(db.engine()).ok_or(DbError::NoText { engine })
}

impl Server {
    pub(super) async fn connect(&self) -> Result<Db, DbError> {
        Db::connect(&self.name, Arc::clone(&self.secrets), self.settings).await
    }
}
