//! Forward-only migrations, applied in order in one transaction, guarded by the writer's lock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::backend::{Db, DbError, Engine, Row, SqlPair, Statement};
use crate::retry::Backoff;
use crate::schema::Routine;

/// How long a step waits for a lock on a server: everybody who wants the same table waits behind it.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '2s'";

/// How often a migration gives way to whoever holds such a lock, or waits for one of its own: for some six minutes.
const GIVES_WAY: Backoff =
    Backoff { pause_first: Duration::from_millis(100), pause_max: Duration::from_secs(2), attempts_max: 120 };

/// One step of a schema. Applied once, never changed afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    version: u32,
    name: &'static str,
    sqlite: String,
    postgres: Option<String>,
}

impl Migration {
    /// A step written by hand. Versions: below 1000 pim-data, below 10000 pim-events, then the embedding program's.
    #[must_use]
    pub fn new(version: u32, name: &'static str, sqlite: impl Into<String>) -> Self {
        Self { version, name, sqlite: sqlite.into(), postgres: None }
    }

    /// The same step for PostgreSQL; without it the program runs on the embedded engine alone.
    ///
    /// Whole numbers are `bigint`, UUIDs `uuid`, bytes `bytea`, JSON `jsonb`. Tables are granted to the role `pim_app`, of
    /// which every login role of the program is a member. A unit's part registers the function that writes it:
    /// `SELECT pim_register_part('outbox', 'pim_outbox_append')`, see [`UnitPart::call`](crate::unit::UnitPart::call).
    #[must_use]
    pub fn with_postgres(mut self, text: impl Into<String>) -> Self {
        self.postgres = Some(text.into());
        self
    }

    fn text(&self, engine: Engine) -> Result<&str, MigrateError> {
        match engine {
            Engine::Sqlite => Ok(&self.sqlite),
            Engine::Postgres => {
                self.postgres.as_deref().ok_or(MigrateError::NoText { version: self.version, name: self.name })
            }
        }
    }

    /// For whichever engine.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.sqlite.as_str()).chain(self.postgres.as_deref())
    }

    /// Its number.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }
}

/// A schema that cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The database has steps that this program does not know, at its end or in between.
    #[error("database {file} has migration {found}, this program knows others up to {known}: use a newer program")]
    Newer {
        /// Which database.
        file: String,
        /// Its newest step that is not known here.
        found: u32,
        /// Our newest step.
        known: u32,
    },
    /// The database lacks steps of this program, and this program may not apply them.
    #[error(
        "database {file} has schema version {found}, this program needs {known}: migrate with the owner's connection"
    )]
    Older {
        /// Which database.
        file: String,
        /// Its newest step.
        found: u32,
        /// Our newest step.
        known: u32,
    },
    /// A step was not written for this engine.
    #[error("migration {version} ({name}) has no text for PostgreSQL")]
    NoText {
        /// Which step.
        version: u32,
        /// Its name.
        name: &'static str,
    },
    /// A generated function of a server's database cannot be made.
    #[error("the functions `{name}` cannot be made")]
    Routine {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: Box<DbError>,
    },
    /// The database lacks generated functions of this program, and this program may not make them.
    #[error(
        "database {file} lacks the functions `{name}`: start a program of this release with the owner's connection first"
    )]
    NoRoutine {
        /// Which database.
        file: String,
        /// Which.
        name: String,
    },
    /// A step, or the declaration that it was generated from, was changed after it had been applied.
    #[error(
        "migration {version} ({name}) is not the one that was applied: another build wrote this data, so choose a new \
         place for yours; whoever changes a released step adds a new one instead, and a released table of an entity stays as it is"
    )]
    Edited {
        /// Which step.
        version: u32,
        /// Its name.
        name: &'static str,
    },
    /// A step failed; the database is as it was before the run.
    #[error("migration {version} ({name}) failed")]
    Step {
        /// Which step.
        version: u32,
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<DbError>,
    },
    /// The list of applied steps cannot be read.
    #[error("the list of applied migrations cannot be read")]
    Ledger(#[source] DbError),
}

const LEDGER: &str = "CREATE TABLE IF NOT EXISTS pim_migration (version INTEGER PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL, applied_at INTEGER NOT NULL DEFAULT (unixepoch()))";
const IS_KEPT: SqlPair = SqlPair::of(
    "SELECT to_regclass('public.pim_migration') IS NOT NULL",
    "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'pim_migration'",
);
const APPLIED: SqlPair = SqlPair::same("SELECT version, digest FROM pim_migration ORDER BY version");
const RECORD: SqlPair = SqlPair::same("INSERT INTO pim_migration (version, name, digest) VALUES (?, ?, ?)");
const KNOWN: SqlPair = SqlPair::postgres("SELECT 1 FROM pim_routine WHERE name = ? AND digest = ?");
const MADE: SqlPair = SqlPair::postgres(
    "INSERT INTO pim_routine (name, digest) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET digest = excluded.digest",
);
const NAMES: SqlPair = SqlPair::postgres("SELECT name FROM pim_routine");

/// Every statement of this room.
pub(crate) fn pairs() -> [SqlPair; 6] {
    [IS_KEPT, APPLIED, RECORD, KNOWN, MADE, NAMES]
}

/// The lock is this ledger's own; it ends with the transaction.
const LEDGER_POSTGRES: &str = "SELECT pg_advisory_xact_lock(7460, 0);
CREATE TABLE IF NOT EXISTS pim_migration (version bigint PRIMARY KEY, name text NOT NULL, digest bytea NOT NULL, applied_at bigint NOT NULL DEFAULT (extract(epoch FROM now())::bigint));
CREATE TABLE IF NOT EXISTS pim_routine (name text PRIMARY KEY, digest bytea NOT NULL)";

/// Brings a database up to date; doing it twice changes nothing. Returns how many steps were applied.
///
/// # Errors
/// [`MigrateError`] naming the step; the database is unchanged then.
pub async fn migrate(db: &Db, migrations: &[Migration]) -> Result<usize, MigrateError> {
    migrate_telling(db, migrations, |_| {}).await
}

/// How far a migration is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// The step that begins now.
    pub(crate) version: u32,
    /// Its name.
    pub(crate) name: &'static str,
    /// Which one it is of those to be applied, from one on.
    pub(crate) step: usize,
    /// How many are applied.
    pub(crate) steps: usize,
}

/// As [`migrate`], and says before each step how far it is. A new database is made in one go, about which nothing is said.
pub(crate) async fn migrate_telling(
    db: &Db,
    migrations: &[Migration],
    tell: impl Fn(Progress),
) -> Result<usize, MigrateError> {
    let mut told = 0;
    let mut attempt = 0;
    // Ends: a bounded number of times.
    loop {
        let tell = |it: Progress| {
            if it.step > told {
                told = it.step;
                tell(it);
            }
        };
        match apply(db, migrations, tell).await {
            Err(MigrateError::Step { source, .. })
                if matches!(*source, DbError::Busy) && attempt + 1 < GIVES_WAY.attempts_max =>
            {
                tokio::time::sleep(GIVES_WAY.pause(attempt)).await;
                attempt += 1;
            }
            applied => return applied,
        }
    }
}

async fn apply(db: &Db, migrations: &[Migration], mut tell: impl FnMut(Progress)) -> Result<usize, MigrateError> {
    // One transaction for the ledger's check, so that two programs that open a new database at once do not race.
    let mut tx = db.begin().await.map_err(MigrateError::Ledger)?;
    let ledger = if db.engine() == Engine::Postgres { LEDGER_POSTGRES } else { LEDGER };
    tx.script(ledger).await.map_err(MigrateError::Ledger)?;
    let listed = tx.query(Statement::of(APPLIED)).await;
    let applied = applied(&listed.map_err(MigrateError::Ledger)?);
    let steps = pending(db, migrations, &applied)?;
    let count = steps.len();
    if count > 0 && db.engine() == Engine::Postgres {
        tx.script(LOCK_WAIT).await.map_err(MigrateError::Ledger)?;
    }
    for (index, (step, text, digest)) in steps.into_iter().enumerate() {
        if !applied.is_empty() {
            tell(Progress { version: step.version, name: step.name, step: index + 1, steps: count });
        }
        let failed = |source| MigrateError::Step { version: step.version, name: step.name, source: Box::new(source) };
        tx.script(text).await.map_err(failed)?;
        let record = Statement::of(RECORD);
        tx.query(record.bind(step.version).bind(step.name).bind(&digest)).await.map_err(failed)?;
    }
    tx.commit().await.map_err(MigrateError::Ledger)?;
    Ok(count)
}

/// How far a database is from what a program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Its newest step; zero when it has none.
    pub(crate) found: u32,
    /// The newest step that it lacks.
    pub(crate) lacks: Option<u32>,
}

/// Looks whether [`migrate`] could bring a database up to date, and changes nothing.
pub(crate) async fn survey(db: &Db, migrations: &[Migration]) -> Result<Survey, MigrateError> {
    let listed = async {
        let is_kept = db.query(Statement::of(IS_KEPT)).await?;
        if is_kept.first().map_or(Ok(0), |row| row.int(0))? == 0 {
            return Ok(Vec::new());
        }
        db.query(Statement::of(APPLIED)).await
    };
    let applied = applied(&listed.await.map_err(MigrateError::Ledger)?);
    let lacks = pending(db, migrations, &applied)?.pop().map(|(step, ..)| step.version);
    Ok(Survey { found: applied.keys().next_back().copied().unwrap_or(0), lacks })
}

/// Refuses a database that [`migrate`] would change; for programs that may not.
pub(crate) async fn check(db: &Db, migrations: &[Migration]) -> Result<(), MigrateError> {
    match survey(db, migrations).await? {
        Survey { lacks: None, .. } => Ok(()),
        Survey { lacks: Some(known), found } => Err(MigrateError::Older { file: place(db), found, known }),
    }
}

/// Makes the functions of a server's database whose text is another than the one that was made last.
pub(crate) async fn make_routines(db: &Db, routines: &[Routine]) -> Result<(), MigrateError> {
    let mut tx = db.begin().await.map_err(MigrateError::Ledger)?;
    tx.script("SELECT pg_advisory_xact_lock(7460, 0)").await.map_err(MigrateError::Ledger)?;
    for routine in routines {
        let failed = |source| MigrateError::Routine { name: routine.name.clone(), source: Box::new(source) };
        let digest: [u8; 32] = Sha256::digest(routine.text.as_bytes()).into();
        let known = Statement::of(KNOWN);
        let known = tx.query(known.bind(routine.name.as_str()).bind(&digest)).await.map_err(failed)?;
        if known.is_empty() {
            tx.script(&routine.text).await.map_err(failed)?;
            let record = Statement::of(MADE).bind(routine.name.as_str()).bind(&digest);
            tx.query(record).await.map_err(failed)?;
        }
    }
    tx.commit().await.map_err(MigrateError::Ledger)
}

/// Refuses a server's database that lacks a function; for programs that may not make them.
pub(crate) async fn check_routines(db: &Db, routines: &[Routine]) -> Result<(), MigrateError> {
    let rows = db.query(Statement::of(NAMES)).await.map_err(MigrateError::Ledger)?;
    let made: BTreeSet<&str> = rows.iter().filter_map(|row| row.text(0).ok()).collect();
    match routines.iter().find(|routine| !made.contains(routine.name.as_str())) {
        None => Ok(()),
        Some(routine) => Err(MigrateError::NoRoutine { file: place(db), name: routine.name.clone() }),
    }
}

/// What an error calls a database: the file itself where it is one.
pub(crate) fn place(db: &Db) -> String {
    db.path().map_or_else(|| db.name(), |path| path.display().to_string())
}

fn applied(listed: &[Row]) -> BTreeMap<u32, [u8; 32]> {
    let entry = |row: &Row| Some((u32::try_from(row.int(0).ok()?).ok()?, row.digest(1).ok()?));
    listed.iter().filter_map(entry).collect()
}

/// A step, with its text for one engine and that text's digest.
type Step<'m> = (&'m Migration, &'m str, [u8; 32]);

/// The steps that are not applied yet, in order.
fn pending<'m>(
    db: &Db,
    migrations: &'m [Migration],
    applied: &BTreeMap<u32, [u8; 32]>,
) -> Result<Vec<Step<'m>>, MigrateError> {
    let mut steps: Vec<_> = migrations.iter().collect();
    steps.sort_by_key(|step| step.version);
    let known = steps.last().map_or(0, |step| step.version);
    // Also one between those that are known: a newer release of a library numbers its steps below the program's own.
    if let Some(&found) = applied.keys().rfind(|&&found| steps.iter().all(|step| step.version != found)) {
        return Err(MigrateError::Newer { file: place(db), found, known });
    }
    let mut pending = Vec::new();
    for step in steps {
        let text = step.text(db.engine())?;
        let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        match applied.get(&step.version) {
            Some(before) if *before == digest => {}
            Some(_) => return Err(MigrateError::Edited { version: step.version, name: step.name }),
            None => pending.push((step, text, digest)),
        }
    }
    Ok(pending)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::backend::DbSettings;

    #[tokio::test]
    async fn an_upgrade_says_how_far_it_is_and_a_new_database_says_nothing() {
        let path = std::env::temp_dir().join(format!("pim-migration-{}.db", uuid::Uuid::new_v4()));
        let db = Db::open(&path, DbSettings::default()).await.expect("opens");
        let step = |version, name| Migration::new(version, name, format!("CREATE TABLE t{version} (a INTEGER)"));
        let steps = [step(1, "one"), step(2, "two"), step(3, "three")];
        let told = RefCell::new(Vec::new());
        let tell = |it: Progress| told.borrow_mut().push((it.version, it.name, it.step, it.steps));
        assert_eq!(migrate_telling(&db, &steps[..1], tell).await.expect("applies"), 1);
        assert_eq!(*told.borrow(), []);
        assert_eq!(migrate_telling(&db, &steps, tell).await.expect("applies"), 2);
        assert_eq!(*told.borrow(), [(2, "two", 1, 2), (3, "three", 2, 2)]);
        drop(db);
        let _gone = std::fs::remove_file(path);
    }
}
