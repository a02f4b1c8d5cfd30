//! The tables, triggers and views that an entity's declaration stands for, on SQLite.

use std::fmt::Write as _;

use super::{Column, ColumnKind, Table};

/// What every row has beside its own columns.
pub(crate) const STANDARD: &[&str] =
    &["id", "home_key", "bucket", "facility_id", "version", "created_at", "updated_at"];

/// SQL that ties a minted id to its bucket: the three hexadecimal digits behind the version digit of a UUIDv8.
fn bucket_of(column: &str) -> String {
    let digit = |at: u8| format!("(instr('0123456789ABCDEF', substr(hex({column}), {at}, 1)) - 1)");
    format!("{} * 256 + {} * 16 + {}", digit(14), digit(15), digit(16))
}

/// Everything that one entity needs in a shard.
pub(crate) fn create_entity(table: &Table) -> String {
    let mut sql = base_table(table);
    sql.push_str(&history_table(table));
    sql.push_str(&history_triggers(table));
    sql.push_str(&ownership_triggers(table));
    sql
}

fn base_table(table: &Table) -> String {
    let name = table.name;
    let mut sql = format!(
        "CREATE TABLE {name}_row (\n  id BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),\n  \
         home_key BLOB NOT NULL CHECK (length(home_key) = 16),\n  bucket INTEGER NOT NULL,\n  facility_id BLOB,\n  \
         version INTEGER NOT NULL CHECK (version > 0),\n  created_at INTEGER NOT NULL,\n  updated_at INTEGER NOT NULL"
    );
    for column in table.columns {
        let _infallible =
            write!(sql, ",\n  {} {}{}", column.name, storage(column), if column.unique { " UNIQUE" } else { "" });
    }
    for (column, other) in table.references {
        let _infallible = write!(sql, ",\n  FOREIGN KEY ({column}) REFERENCES {other}_row (id)");
    }
    let _infallible =
        write!(sql, ",\n  CONSTRAINT {name}_bucket CHECK (bucket = {})\n) WITHOUT ROWID;\n", bucket_of("id"));
    let _infallible = writeln!(sql, "CREATE INDEX {name}_home ON {name}_row (home_key, id);");
    let _infallible = writeln!(sql, "CREATE INDEX {name}_bucket_index ON {name}_row (bucket);");
    for (number, columns) in table.indexes.iter().enumerate() {
        let _infallible = writeln!(sql, "CREATE INDEX {name}_index_{number} ON {name}_row ({});", columns.join(", "));
    }
    sql
}

fn storage(column: &Column) -> String {
    let kind = match column.kind {
        ColumnKind::Text | ColumnKind::Json => "TEXT",
        ColumnKind::Int | ColumnKind::Bool | ColumnKind::Time => "INTEGER",
        ColumnKind::Uuid => "BLOB",
    };
    if column.nullable { kind.to_owned() } else { format!("{kind} NOT NULL") }
}

fn history_table(table: &Table) -> String {
    let name = table.name;
    let mut sql = format!("CREATE TABLE {name}_history (\n  history_seq INTEGER PRIMARY KEY AUTOINCREMENT");
    for column in all_columns(table) {
        let _infallible = write!(sql, ",\n  {column}");
    }
    sql.push_str(",\n  valid_from INTEGER NOT NULL,\n  valid_to INTEGER\n);\n");
    let _infallible = writeln!(sql, "CREATE INDEX {name}_history_id ON {name}_history (id, valid_from);");
    let _infallible = writeln!(sql, "CREATE INDEX {name}_history_home ON {name}_history (home_key);");
    sql
}

/// History is written by the database itself, so that hand-typed SQL leaves a trace too.
fn history_triggers(table: &Table) -> String {
    let name = table.name;
    let columns = all_columns(table).collect::<Vec<_>>().join(", ");
    let new = all_columns(table).map(|column| format!("NEW.{column}")).collect::<Vec<_>>().join(", ");
    let wall = "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)";
    // Only the newest period can be open. It is looked up as that, so that a row of a thousand versions costs no more.
    let newest = |row: &str, what: &str| {
        format!("(SELECT {what} FROM {name}_history WHERE id = {row}.id ORDER BY valid_from DESC LIMIT 1)")
    };
    // A period begins at least one microsecond after the one before it, and not before that has ended, whatever the clock says.
    let after_last = format!("COALESCE({}, 0)", newest("NEW", "COALESCE(valid_to, valid_from + 1)"));
    let told = format!("CASE WHEN NEW.updated_at > OLD.updated_at THEN NEW.updated_at ELSE {wall} END");
    let close = |row: &str, at: &str| {
        let newest = newest(row, "history_seq");
        format!(
            "UPDATE {name}_history SET valid_to = MAX({at}, valid_from + 1)\n    \
             WHERE history_seq = {newest} AND valid_to IS NULL;"
        )
    };
    let (close_before, close_last) = (close("NEW", &told), close("OLD", wall));
    format!(
        "CREATE TRIGGER {name}_history_insert AFTER INSERT ON {name}_row BEGIN\n  \
           INSERT INTO {name}_history ({columns}, valid_from) VALUES ({new}, MAX(NEW.updated_at, {after_last}));\nEND;\n\
         CREATE TRIGGER {name}_history_update AFTER UPDATE ON {name}_row BEGIN\n  \
           {close_before}\n  \
           INSERT INTO {name}_history ({columns}, valid_from) VALUES ({new}, MAX({told}, {after_last}));\nEND;\n\
         CREATE TRIGGER {name}_history_delete AFTER DELETE ON {name}_row BEGIN\n  {close_last}\nEND;\n"
    )
}

fn ownership_triggers(table: &Table) -> String {
    let name = table.name;
    let mut sql = String::new();
    for event in ["INSERT", "UPDATE"] {
        let _infallible = write!(
            sql,
            "CREATE TRIGGER {name}_owned_{} BEFORE {event} ON {name}_row\nWHEN NOT EXISTS (SELECT 1 FROM pim_bucket_owned \
             WHERE bucket = NEW.bucket AND state IN ('owned', 'incoming'))\nBEGIN\n  \
             SELECT RAISE(ABORT, 'pim:bucket-not-owned');\nEND;\n",
            event.to_ascii_lowercase()
        );
    }
    sql
}

pub(crate) fn all_columns(table: &Table) -> impl Iterator<Item = &str> {
    STANDARD.iter().copied().chain(table.columns.iter().map(|column| column.name))
}

/// The TEMP view through which a connection sees an entity: nothing, unless a scope has been set on that connection.
pub(crate) fn scope_view(table: &Table) -> String {
    let name = table.name;
    format!(
        "CREATE TEMP VIEW {name} AS SELECT r.* FROM {name}_row r, pim_scope s WHERE s.mode = 3 OR (s.mode = 1 AND \
         r.home_key = s.own) OR (s.mode = 2 AND r.facility_id IS NOT NULL AND \
         instr(s.facilities, ',' || hex(r.facility_id) || ',') > 0);\n\
         CREATE TEMP VIEW {name}_past AS SELECT r.* FROM {name}_history r, pim_scope s WHERE s.mode = 3 OR (s.mode = 1 \
         AND r.home_key = s.own) OR (s.mode = 2 AND r.facility_id IS NOT NULL AND \
         instr(s.facilities, ',' || hex(r.facility_id) || ',') > 0);\n"
    )
}
