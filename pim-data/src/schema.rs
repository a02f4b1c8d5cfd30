//! What the databases of a cluster hold: infrastructure, entities, and the tables of other crates' parts.

mod check;
mod name;
mod word;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::entity::{Calls, Entity, Table, create_entity, routine, scope_view};
use crate::migration::Migration;
use crate::relocation::MovedTable;
use crate::scope::SCOPE_TABLE;

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
    /// A program's own step has a number that is one of the crates': a later release of theirs may come with it.
    #[error("migration {0} has a number of the crates': a program's own begin at {NUMBER_FIRST}")]
    Reserved(u32),
    /// A table or column is called as a keyword of SQL on one of the engines.
    #[error("`{0}` is a keyword of SQL: give it another name")]
    Keyword(String),
    /// The home field or the facility field of a table is read already: as a standard member, as a column of its own, or as the
    /// other one.
    #[error("`{table}.{field}` is read twice: a home_field or facility_field is neither standard nor a column")]
    Twice {
        /// Which table.
        table: String,
        /// Which field.
        field: String,
    },
    /// An index, or a reference, is about a column that the table does not have.
    #[error("`{table}.{column}`, of an index or a reference, is no column")]
    NoColumn {
        /// Which table.
        table: String,
        /// What it was called.
        column: String,
    },
    /// A table refers to an entity that its database does not have, or gets later: with a number that is not below its own.
    #[error("`{table}.{column}` refers to `{entity}`: no entity of the same database with a lower number")]
    Reference {
        /// Which table.
        table: String,
        /// Its column.
        column: String,
        /// What it refers to.
        entity: String,
    },
    /// A table has more columns than a server's function takes arguments.
    #[error("`{table}` has more than {COLUMNS_MAX} columns of its own: keep some together in one of kind `Json`")]
    Columns {
        /// Which table.
        table: String,
    },
}

/// The first number of a program's own entities and migrations; those below belong to the crates, whose later releases bring more.
pub const NUMBER_FIRST: u32 = 10_000;

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
        let schema = Self {
            shard: vec![first.clone(), idempotency, retention.clone(), term.clone(), degraded.clone(), owned.clone()],
            control: vec![first, moves, retention, term, degraded, owned],
            moved: Vec::new(),
            shard_tables: Vec::new(),
            control_tables: Vec::new(),
            calls: BTreeMap::new(),
            extensions: Vec::new(),
        };
        SchemaBuilder { schema, own: Vec::new(), numbers: [BTreeMap::new(), BTreeMap::new()] }
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
pub struct SchemaBuilder {
    schema: Schema,
    /// Numbers of the program's own steps.
    own: Vec<u32>,
    /// Numbers of entities' tables, of the shards and of the control database.
    numbers: [BTreeMap<&'static str, u32>; 2],
}

impl SchemaBuilder {
    /// Adds an entity to the shards; `version` numbers its migration, from [`NUMBER_FIRST`] and above those of entities that it
    /// refers to.
    pub fn entity<E: Entity>(self, version: u32) -> Self {
        self.with_entity::<E>(version, false)
    }

    /// Adds an entity to the control database, numbered as those of the shards are.
    pub fn control_entity<E: Entity>(self, version: u32) -> Self {
        self.with_entity::<E>(version, true)
    }

    fn with_entity<E: Entity>(mut self, version: u32, control: bool) -> Self {
        let schema = &mut self.schema;
        let (steps, tables) = if control {
            (&mut schema.control, &mut schema.control_tables)
        } else {
            (&mut schema.shard, &mut schema.shard_tables)
        };
        steps.push(entity_step(version, E::TABLE));
        tables.push(E::TABLE);
        schema.calls.insert(E::TABLE.name, Calls::of(E::TABLE));
        self.numbers[usize::from(control)].insert(E::TABLE.name, version);
        self.own.push(version);
        self
    }

    /// Adds steps to shards and control database alike, such as those of pim-events. For crates: their numbers may be below
    /// [`NUMBER_FIRST`].
    pub fn everywhere(mut self, steps: &[Migration]) -> Self {
        self.schema.shard.extend_from_slice(steps);
        self.schema.control.extend_from_slice(steps);
        self
    }

    /// Adds steps to the shards alone, numbered from [`NUMBER_FIRST`].
    pub fn shard_migrations(mut self, steps: &[Migration]) -> Self {
        self.own.extend(steps.iter().map(Migration::version));
        self.schema.shard.extend_from_slice(steps);
        self
    }

    /// Adds steps to the control database alone, numbered from [`NUMBER_FIRST`].
    pub fn control_migrations(mut self, steps: &[Migration]) -> Self {
        self.own.extend(steps.iter().map(Migration::version));
        self.schema.control.extend_from_slice(steps);
        self
    }

    /// Names a table of the shards, other than an entity's, whose rows go with their bucket when it moves.
    pub fn moved(mut self, table: MovedTable) -> Self {
        self.schema.moved.push(table);
        self
    }

    /// Leaves something for the unit parts of another crate; found again by its type.
    pub fn extension<T: Any + Send + Sync>(mut self, extension: T) -> Self {
        self.schema.extensions.push(Arc::new(extension));
        self
    }
}

fn entity_step(version: u32, table: &Table) -> Migration {
    Migration::new(version, table.name, create_entity(table)).with_postgres(routine::create_entity(table))
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
