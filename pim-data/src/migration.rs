//! Forward-only migrations, applied in order in one transaction, guarded by the writer's lock.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::backend::{Db, DbError, Row, Statement};

/// One step of a schema. Applied once, never changed afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    version: u32,
    name: &'static str,
    sqlite: String,
}

impl Migration {
    /// A step written by hand. Versions: below 1000 pim-data, below 10000 pim-events, then the embedding program's.
    #[must_use]
    pub fn new(version: u32, name: &'static str, sqlite: impl Into<String>) -> Self {
        Self { version, name, sqlite: sqlite.into() }
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
    /// The database has steps that this program does not know.
    #[error("database {file} has schema version {found}, this program knows up to {known}: use a newer program")]
    Newer {
        /// Which database.
        file: String,
        /// Its newest step.
        found: u32,
        /// Our newest step.
        known: u32,
    },
    /// A step, or the declaration that it was generated from, was changed after it had been applied.
    #[error("migration {version} ({name}) is not the one that was applied: add a new step instead of changing it")]
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
        source: DbError,
    },
    /// The list of applied steps cannot be read.
    #[error("the list of applied migrations cannot be read")]
    Ledger(#[source] DbError),
}

const LEDGER: &str = "CREATE TABLE IF NOT EXISTS pim_migration (version INTEGER PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL, applied_at INTEGER NOT NULL DEFAULT (unixepoch()))";

/// Brings a database up to date; doing it twice changes nothing. Returns how many steps were applied.
///
/// # Errors
/// [`MigrateError`] naming the step; the database is unchanged then.
pub async fn migrate(db: &Db, migrations: &[Migration]) -> Result<usize, MigrateError> {
    let mut steps: Vec<_> = migrations.iter().collect();
    steps.sort_by_key(|step| step.version);
    // One transaction for the ledger's check, so that two programs that open a new database at once do not race.
    let mut tx = db.begin().await.map_err(MigrateError::Ledger)?;
    tx.script(LEDGER).await.map_err(MigrateError::Ledger)?;
    let listed = tx.query(Statement::sqlite("SELECT version, digest FROM pim_migration ORDER BY version")).await;
    let listed = listed.map_err(MigrateError::Ledger)?;
    let entry = |row: &Row| Some((u32::try_from(row.int(0).ok()?).ok()?, row.digest(1).ok()?));
    let applied: BTreeMap<u32, [u8; 32]> = listed.iter().filter_map(entry).collect();
    let known = steps.last().map_or(0, |step| step.version);
    if let Some(&found) = applied.keys().next_back().filter(|&&found| found > known) {
        let file = db.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(MigrateError::Newer { file, found, known });
    }
    let mut count = 0;
    for step in steps {
        let digest: [u8; 32] = Sha256::digest(step.sqlite.as_bytes()).into();
        match applied.get(&step.version) {
            Some(before) if *before == digest => continue,
            Some(_) => return Err(MigrateError::Edited { version: step.version, name: step.name }),
            None => {}
        }
        let failed = |source| MigrateError::Step { version: step.version, name: step.name, source };
        tx.script(&step.sqlite).await.map_err(failed)?;
        let record = Statement::sqlite("INSERT INTO pim_migration (version, name, digest) VALUES (?, ?, ?)");
        tx.query(record.bind(step.version).bind(step.name).bind(&digest)).await.map_err(failed)?;
        count += 1;
    }
    tx.commit().await.map_err(MigrateError::Ledger)?;
    Ok(count)
}
