//! What an entity's declaration stands for on PostgreSQL: tables, triggers, policies, and the functions that write and read.
//!
//! A function's name carries the digest of its text. A program finds exactly the functions that it was built with, and a
//! server that is being upgraded has those of both releases.

use sha2::{Digest as _, Sha256};

use super::{Column, ColumnKind, Table};
use crate::backend::SqlPair;
use crate::unit::BATCH_MAX;

const TABLES: &str = include_str!("../../migrations/postgres/entity.sql");
const ROUTINES: &str = include_str!("../../migrations/postgres/entity_routines.sql");
/// Reads one row in a statement of its own, which costs the server half of what a function does. The scope is set before a row
/// is looked at: the id that is looked for comes out of the same sub-select, and comparing ids is cheap and leaks nothing, so
/// that whatever the plan, it comes before the policy. Were it otherwise, the policy would show nothing.
const READ: &str = include_str!("../../migrations/postgres/entity_read.sql");
/// The same with the stored answer of a submission, for a unit that is about to change the row.
const LOAD: &str = include_str!("../../migrations/postgres/entity_load.sql");

/// Who writes where; the values are those of a unit's message.
pub(crate) const CONTEXT: &str = "ROW(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)::public.pim_context";

/// How far the key of a row has come, in the row's own snapshot.
const NUMBER: &str = "(SELECT k.n FROM public.key_head k WHERE k.key = r.home_key)";

/// The calls of one entity's functions, as statements.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    /// The members of a context; id, version, facility and scope; the row's own columns; parts, an answer's status and text, and
    /// audit records: to the key's number and a stored answer.
    pub(crate) write: SqlPair,
    /// The same for two units and more, each of these an array of theirs: to a row for each in their order.
    pub(crate) together: Vec<SqlPair>,
    /// An idempotency scope, home key, scope and id, to the stored answer, the key's number and the row.
    pub(crate) load: SqlPair,
    /// A scope and an id, to nothing and the row.
    pub(crate) read: SqlPair,
    /// A scope and an id, to the key's number and the row.
    pub(crate) read_numbered: SqlPair,
    /// `scope, home key, after, limit` to the key's number and rows; any home key when it is null.
    pub(crate) list: SqlPair,
    /// `scope, id, instant, after, limit` to periods: that of the instant, or when it is null those that begin after.
    pub(crate) history: SqlPair,
    digest: String,
}

impl Calls {
    pub(crate) fn of(table: &Table) -> Self {
        let digest = digest(table);
        let sent = SqlPair::generated_postgres;
        let call =
            |what: &str, marks: &str| sent(format!("SELECT * FROM public.pim_{what}_{}_{digest}({marks})", table.name));
        let read = fill(READ, table, &digest);
        let written = format!("{CONTEXT}{}", ", ?".repeat(4 + table.columns.len() + 4));
        Self {
            write: call("w", &written),
            together: (2..=BATCH_MAX).map(|units| call("m", &arrays(table, units))).collect(),
            load: sent(fill(LOAD, table, &digest)),
            read: sent(read.replace("{n}", "NULL::bigint")),
            read_numbered: sent(read.replace("{n}", NUMBER)),
            list: call("s", "?, ?, ?, ?"),
            history: call("h", "?, ?, ?, ?, ?"),
            digest,
        }
    }

    /// What tells these functions from those of another release.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }
}

/// What several units give the function that writes them.
fn arrays(table: &Table, units: usize) -> String {
    let of = |element: &str| vec![element; units].join(", ");
    let own = ["uuid", "bigint", "uuid", "text"].into_iter();
    let columns = table.columns.iter().map(|column| storage(column.kind));
    let kinds = own.chain(columns).chain(["jsonb", "bigint", "text", "jsonb"]);
    let arrays = kinds.map(|kind| format!(", ARRAY[{}]::{kind}[]", of("?"))).collect::<String>();
    format!("ARRAY[{}]{arrays}", of(CONTEXT))
}

/// Everything that one entity needs in a shard, except its functions.
pub(crate) fn create_entity(table: &Table) -> String {
    let mut sql = fill(TABLES, table, "");
    for (column, other) in table.references {
        sql.push_str(&format!(
            "ALTER TABLE {}_row ADD FOREIGN KEY ({column}) REFERENCES {other}_row (id);\n",
            table.name
        ));
    }
    for (number, columns) in table.indexes.iter().enumerate() {
        let (name, columns) = (table.name, columns.join(", "));
        sql.push_str(&format!("CREATE INDEX {name}_index_{number} ON {name}_row ({columns});\n"));
    }
    sql
}

/// The functions of one entity.
pub(crate) fn create_routines(table: &Table) -> String {
    fill(ROUTINES, table, &digest(table))
}

fn digest(table: &Table) -> String {
    let hash = Sha256::digest(fill(ROUTINES, table, "").as_bytes());
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The templates name what depends on the columns in braces.
fn fill(template: &str, table: &Table, digest: &str) -> String {
    let each = |make: &dyn Fn(&Column) -> String| table.columns.iter().map(make).collect::<String>();
    let constraint = |column: &Column| {
        let null = if column.nullable { "" } else { " NOT NULL" };
        let unique = if column.unique { " UNIQUE" } else { "" };
        format!(",\n  {} {}{null}{unique}", column.name, storage(column.kind))
    };
    let kept = |column: &Column| {
        format!(",\n  {} {}{}", column.name, storage(column.kind), if column.nullable { "" } else { " NOT NULL" })
    };
    template
        .replace("{table}", table.name)
        .replace("{digest}", digest)
        .replace("{columns}", &each(&constraint))
        .replace("{history_columns}", &each(&kept))
        .replace("{names}", &each(&|column| format!(", {}", column.name)))
        .replace("{new_names}", &each(&|column| format!(", NEW.{}", column.name)))
        .replace("{row_names}", &each(&|column| format!(", r.{}", column.name)))
        .replace("{given_types}", &each(&|column| format!(", given_{} {}", column.name, storage(column.kind))))
        .replace("{given_row_names}", &each(&|column| format!(", g.{}", column.name)))
        .replace("{given_arrays}", &each(&|column| format!(", given_{} {}[]", column.name, storage(column.kind))))
        .replace("{given_elements}", &each(&|column| format!(", given_{}[c.ordinality]", column.name)))
        .replace("{element_sets}", &each(&|column| format!(", {0} = given_{0}[c.ordinality]", column.name)))
        .replace("{given_names}", &each(&|column| format!(", given_{}", column.name)))
        .replace("{sets}", &each(&|column| format!(", {0} = given_{0}", column.name)))
        .replace("{typed}", &each(&|column| format!(", {} {}", column.name, storage(column.kind))))
}

const fn storage(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Text => "text",
        ColumnKind::Int | ColumnKind::Time => "bigint",
        ColumnKind::Bool => "boolean",
        ColumnKind::Uuid => "uuid",
        ColumnKind::Json => "jsonb",
    }
}
