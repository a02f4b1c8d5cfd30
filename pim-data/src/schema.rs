//! What the databases of a cluster hold: infrastructure, entities, and the tables of other crates' parts.

mod name;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::entity::{Calls, Entity, STANDARD, Table, create_entity, routine, scope_view};
use crate::migration::Migration;
use crate::relocation::MovedTable;
use crate::scope::SCOPE_TABLE;
use name::Names;

const INFRASTRUCTURE: &str = include_str!("../migrations/sqlite/0001_shard.sql");
const INFRASTRUCTURE_POSTGRES: &str = include_str!("../migrations/postgres/0001_shard.sql");
const MOVE_IDEMPOTENCY: &str = include_str!("../migrations/sqlite/0030_move_idempotency.sql");
const MOVE_IDEMPOTENCY_POSTGRES: &str = include_str!("../migrations/postgres/0030_move_idempotency.sql");
const MOVE: &str = include_str!("../migrations/sqlite/0031_move.sql");
const MOVE_POSTGRES: &str = include_str!("../migrations/postgres/0031_move.sql");
const RETENTION: &str = include_str!("../migrations/sqlite/0040_retention.sql");
const RETENTION_POSTGRES: &str = include_str!("../migrations/postgres/0040_retention.sql");
const TERM: &str = include_str!("../migrations/sqlite/0045_term.sql");
const TERM_POSTGRES: &str = include_str!("../migrations/postgres/0045_term.sql");
const DEGRADED: &str = include_str!("../migrations/sqlite/0046_degraded.sql");
const DEGRADED_POSTGRES: &str = include_str!("../migrations/postgres/0046_degraded.sql");
const OWNED: &str = include_str!("../migrations/sqlite/0047_owned_records.sql");
const OWNED_POSTGRES: &str = include_str!("../migrations/postgres/0047_owned_records.sql");
const ENTER: &str = include_str!("../migrations/postgres/enter.sql");

/// The entities of a program, those of the shards and those of the control database.
///
/// Made by [`Schema::builder`].
#[derive(Clone, Debug)]
pub struct Schema {
    shard: Vec<Migration>,
    control: Vec<Migration>,
    shard_tables: Vec<&'static Table>,
    control_tables: Vec<&'static Table>,
    /// Tables of other crates that go with a bucket.
    moved: Vec<MovedTable>,
    /// The functions of each entity on a server, by table.
    calls: BTreeMap<&'static str, Calls>,
    extensions: Vec<Arc<dyn Any + Send + Sync>>,
}

/// Functions of a server's database, made anew whenever their text is another.
#[derive(Clone, Debug)]
pub(crate) struct Routine {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// A schema that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// Two migrations have the same number.
    #[error("migration {0} is there twice")]
    Version(u32),
    /// A table's name or column is no plain lower-case identifier, or is taken: by the infrastructure, by a table of another crate,
    /// or by what another entity brings (`<name>_row`, `<name>_history`, `<name>_past` and indexes). `pim_`, `pg_` and `sqlite_` begin
    /// no entity's name.
    #[error("`{0}` is not a free lower-case identifier: give it another name")]
    Identifier(String),
    /// A table has more columns than a server's function takes arguments.
    #[error("`{table}` has more than {COLUMNS_MAX} columns of its own: keep some together in one of kind `Json`")]
    Columns {
        /// Which table.
        table: String,
    },
}

/// Most columns of an entity, beside those that every row has.
pub const COLUMNS_MAX: usize = 64;

impl Schema {
    /// Starts with the infrastructure tables.
    pub fn builder() -> SchemaBuilder {
        let first = Migration::new(1, "shard infrastructure", INFRASTRUCTURE).with_postgres(INFRASTRUCTURE_POSTGRES);
        let idempotency = Migration::new(30, "idempotency by bucket", MOVE_IDEMPOTENCY);
        let moves = Migration::new(31, "moves of buckets", MOVE).with_postgres(MOVE_POSTGRES);
        let retention = Migration::new(40, "retention", RETENTION).with_postgres(RETENTION_POSTGRES);
        let idempotency = idempotency.with_postgres(MOVE_IDEMPOTENCY_POSTGRES);
        let term = Migration::new(45, "term of the primary", TERM).with_postgres(TERM_POSTGRES);
        let degraded = Migration::new(46, "degrading", DEGRADED).with_postgres(DEGRADED_POSTGRES);
        let owned = Migration::new(47, "records of a bucket", OWNED).with_postgres(OWNED_POSTGRES);
        SchemaBuilder(Self {
            shard: vec![first.clone(), idempotency, retention.clone(), term.clone(), degraded.clone(), owned.clone()],
            control: vec![first, moves, retention, term, degraded, owned],
            moved: Vec::new(),
            shard_tables: Vec::new(),
            control_tables: Vec::new(),
            calls: BTreeMap::new(),
            extensions: Vec::new(),
        })
    }

    /// The steps of the shards, or of the control database.
    pub(crate) fn migrations_of(&self, control: bool) -> &[Migration] {
        if control { self.control_migrations() } else { self.shard_migrations() }
    }

    pub(crate) fn shard_migrations(&self) -> &[Migration] {
        &self.shard
    }

    pub(crate) fn control_migrations(&self) -> &[Migration] {
        &self.control
    }

    /// What another crate has left here for its unit parts, such as the events that a program knows.
    #[must_use]
    pub fn extension<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.extensions.iter().find_map(|extension| extension.downcast_ref())
    }

    /// Every entity's table, those of the shards first.
    pub fn tables(&self) -> impl Iterator<Item = &'static Table> + '_ {
        self.shard_tables.iter().chain(&self.control_tables).copied()
    }

    /// What a server's database needs beside its migrations.
    pub(crate) fn routines(&self, control: bool) -> Vec<Routine> {
        let tables = if control { &self.control_tables } else { &self.shard_tables };
        let enter = Routine { name: "enter".to_owned(), text: ENTER.to_owned() };
        let of_table = |table: &&'static Table| {
            let name = format!("{}_{}", table.name, self.calls.get(table.name)?.digest());
            Some(Routine { name, text: routine::create_routines(table) })
        };
        [enter].into_iter().chain(tables.iter().filter_map(of_table)).collect()
    }

    /// The calls of an entity's functions; `None` when the schema does not have it.
    pub(crate) fn calls(&self, table: &Table) -> Option<&Calls> {
        self.calls.get(table.name)
    }

    /// The entities of the shards, and other crates' tables that go with a bucket.
    pub(crate) fn movable(&self) -> (&[&'static Table], &[MovedTable]) {
        (&self.shard_tables, &self.moved)
    }

    /// The entities that a database holds.
    pub(crate) fn tables_of(&self, control: bool) -> &[&'static Table] {
        if control { &self.control_tables } else { &self.shard_tables }
    }

    /// Whether the shards, or the control database, have this entity.
    pub(crate) fn holds(&self, table: &Table, control: bool) -> bool {
        self.tables_of(control).iter().any(|known| known.name == table.name)
    }

    pub(crate) fn is_control(&self, table: &Table) -> bool {
        self.control_tables.iter().any(|known| known.name == table.name)
    }

    /// Run on each reading connection: the scope's context row and the views that consult it.
    pub(crate) fn on_connect(&self, control: bool) -> String {
        let tables = if control { &self.control_tables } else { &self.shard_tables };
        let mut script = SCOPE_TABLE.to_owned();
        for table in tables {
            script.push_str(&scope_view(table));
        }
        script
    }
}

/// Collects entities and migrations.
#[derive(Debug)]
#[must_use = "a builder does nothing until build()"]
pub struct SchemaBuilder(Schema);

impl SchemaBuilder {
    /// Adds an entity to the shards; `version` numbers its migration.
    pub fn entity<E: Entity>(mut self, version: u32) -> Self {
        self.0.shard.push(entity_step(version, E::TABLE));
        self.0.calls.insert(E::TABLE.name, Calls::of(E::TABLE));
        self.0.shard_tables.push(E::TABLE);
        self
    }

    /// Adds an entity to the control database; `version` numbers its migration.
    pub fn control_entity<E: Entity>(mut self, version: u32) -> Self {
        self.0.control.push(entity_step(version, E::TABLE));
        self.0.calls.insert(E::TABLE.name, Calls::of(E::TABLE));
        self.0.control_tables.push(E::TABLE);
        self
    }

    /// Adds steps to shards and control database alike, such as those of pim-events.
    pub fn everywhere(mut self, steps: &[Migration]) -> Self {
        self.0.shard.extend_from_slice(steps);
        self.0.control.extend_from_slice(steps);
        self
    }

    /// Adds steps to the shards alone.
    pub fn shard_migrations(mut self, steps: &[Migration]) -> Self {
        self.0.shard.extend_from_slice(steps);
        self
    }

    /// Adds steps to the control database alone.
    pub fn control_migrations(mut self, steps: &[Migration]) -> Self {
        self.0.control.extend_from_slice(steps);
        self
    }

    /// Names a table of the shards, other than an entity's, whose rows go with their bucket when it moves.
    pub fn moved(mut self, table: MovedTable) -> Self {
        self.0.moved.push(table);
        self
    }

    /// Leaves something for the unit parts of another crate; found again by its type.
    pub fn extension<T: Any + Send + Sync>(mut self, extension: T) -> Self {
        self.0.extensions.push(Arc::new(extension));
        self
    }

    /// Checks names and numbers.
    ///
    /// # Errors
    /// [`SchemaError`] for a number used twice, a name that is none, or too many columns.
    pub fn build(self) -> Result<Schema, SchemaError> {
        for steps in [&self.0.shard, &self.0.control] {
            let mut seen = BTreeSet::new();
            if let Some(twice) = steps.iter().find(|step| !seen.insert(step.version())) {
                return Err(SchemaError::Version(twice.version()));
            }
        }
        let mut names = BTreeSet::new();
        for table in self.0.tables() {
            if !is_identifier(table.name) || !names.insert(table.name) {
                return Err(SchemaError::Identifier(table.name.to_owned()));
            }
            if table.columns.len() > COLUMNS_MAX {
                return Err(SchemaError::Columns { table: table.name.to_owned() });
            }
            let mut columns: BTreeSet<&str> = STANDARD.iter().copied().chain(TAKEN).collect();
            let wrong = table.columns.iter().find(|it| !is_identifier(it.name()) || !columns.insert(it.name()));
            if let Some(column) = wrong {
                return Err(SchemaError::Identifier(format!("{}.{}", table.name, column.name())));
            }
        }
        for control in [false, true] {
            self.check_names(control)?;
        }
        Ok(self.0)
    }

    fn check_names(&self, control: bool) -> Result<(), SchemaError> {
        let tables = self.0.tables_of(control);
        let is_entity = |step: &Migration| tables.iter().any(|table| entity_step(step.version(), table) == *step);
        let mut names = Names::made_by(self.0.migrations_of(control).iter().filter(|step| !is_entity(step)));
        match tables.iter().find(|table| !names.take(table)) {
            Some(table) => Err(SchemaError::Identifier(table.name.to_owned())),
            None => Ok(()),
        }
    }
}

/// What answers and periods have beside a row's columns, and what a server keeps for itself.
const TAKEN: [&str; 10] =
    ["n", "history_seq", "valid_from", "valid_to", "ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

fn entity_step(version: u32, table: &Table) -> Migration {
    Migration::new(version, table.name, create_entity(table)).with_postgres(routine::create_entity(table))
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|first| first.is_ascii_lowercase());
    starts && name.len() <= 48 && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// Guard: what all programs of a database share changes with a migration alone. A release without one would be opened by
    /// programs of the release before, which put their own text back, and by those that may not make functions. Whoever changes
    /// the text adds a step, which may be empty, and writes both down here.
    #[test]
    fn shared_functions_change_with_a_migration() {
        let schema = Schema::builder().build().expect("is sound");
        for control in [false, true] {
            let newest = schema.migrations_of(control).iter().map(Migration::version).max();
            let digest = crate::audit::hex(&Sha256::digest(ENTER));
            let text = (newest, digest.as_str());
            assert_eq!(text, (Some(47), "f90ed580e348b7035644039acd22a5f3c415e022113a174d70329e99e99ae2ce"));
        }
    }
}
