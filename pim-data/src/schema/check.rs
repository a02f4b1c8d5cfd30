//! What is wrong with a schema is said when it is built, before a database is touched.

use std::collections::BTreeSet;

use super::name::Names;
use super::word::is_keyword;
use super::{COLUMNS_MAX, NUMBER_FIRST, Schema, SchemaBuilder, SchemaError, entity_step};
use crate::entity::{STANDARD, Table};
use crate::migration::Migration;

/// What answers and periods have beside a row's columns, and what a server keeps for itself.
const TAKEN: [&str; 10] =
    ["n", "history_seq", "valid_from", "valid_to", "ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// What a serde form has by these names is filled from what every row has.
const MEMBERS: [&str; 4] = ["id", "version", "created_at", "updated_at"];

impl SchemaBuilder {
    /// Checks names and numbers.
    ///
    /// # Errors
    /// [`SchemaError`] for a number used twice or reserved, a name that is none or a keyword, an index or a reference to what is not
    /// there, or too many columns.
    pub fn build(self) -> Result<Schema, SchemaError> {
        if let Some(number) = self.own.iter().find(|number| **number < NUMBER_FIRST) {
            return Err(SchemaError::Reserved(*number));
        }
        for steps in [&self.schema.shard, &self.schema.control] {
            let mut seen = BTreeSet::new();
            if let Some(twice) = steps.iter().find(|step| !seen.insert(step.version())) {
                return Err(SchemaError::Version(twice.version()));
            }
        }
        let mut names = BTreeSet::new();
        for table in self.schema.tables() {
            check_name(table.name, table.name.to_owned())?;
            if !names.insert(table.name) {
                return Err(SchemaError::Identifier(table.name.to_owned()));
            }
            check_columns(table)?;
            check_fields(table)?;
            check_uses(table)?;
        }
        for control in [false, true] {
            self.check_references(control)?;
            self.check_names(control)?;
        }
        Ok(self.schema)
    }

    /// A table is made by its migration, when what it refers to has to be there.
    fn check_references(&self, control: bool) -> Result<(), SchemaError> {
        let numbers = &self.numbers[usize::from(control)];
        for table in self.schema.tables_of(control) {
            let is_earlier = |entity: &str| entity == table.name || numbers.get(entity) < numbers.get(table.name);
            let is_there = |entity: &str| numbers.contains_key(entity) && is_earlier(entity);
            if let Some((column, entity)) = table.references.iter().find(|(_, entity)| !is_there(entity)) {
                let (table, column) = (table.name.to_owned(), (*column).to_owned());
                return Err(SchemaError::Reference { table, column, entity: (*entity).to_owned() });
            }
        }
        Ok(())
    }

    fn check_names(&self, control: bool) -> Result<(), SchemaError> {
        let tables = self.schema.tables_of(control);
        let is_entity = |step: &Migration| tables.iter().any(|table| entity_step(step.version(), table) == *step);
        let mut names = Names::made_by(self.schema.migrations_of(control).iter().filter(|step| !is_entity(step)));
        match tables.iter().find(|table| !names.take(table)) {
            Some(table) => Err(SchemaError::Identifier(table.name.to_owned())),
            None => Ok(()),
        }
    }
}

fn check_name(name: &str, told: String) -> Result<(), SchemaError> {
    if !is_identifier(name) {
        return Err(SchemaError::Identifier(told));
    }
    if is_keyword(name) { Err(SchemaError::Keyword(told)) } else { Ok(()) }
}

fn check_columns(table: &Table) -> Result<(), SchemaError> {
    if table.columns.len() > COLUMNS_MAX {
        return Err(SchemaError::Columns { table: table.name.to_owned() });
    }
    let mut columns: BTreeSet<&str> = STANDARD.iter().copied().chain(TAKEN).collect();
    for column in table.columns {
        let told = format!("{}.{}", table.name, column.name());
        check_name(column.name(), told.clone())?;
        if !columns.insert(column.name()) {
            return Err(SchemaError::Identifier(told));
        }
    }
    Ok(())
}

/// A member that is filled from two places makes no entity.
fn check_fields(table: &Table) -> Result<(), SchemaError> {
    let mut members: BTreeSet<&str> = table.columns.iter().map(|column| column.name()).chain(MEMBERS).collect();
    let mut fields = [table.home_field, table.facility_field].into_iter().flatten();
    match fields.find(|field| !members.insert(field)) {
        Some(field) => Err(SchemaError::Twice { table: table.name.to_owned(), field: field.to_owned() }),
        None => Ok(()),
    }
}

/// Indexes and references are over columns that are there.
fn check_uses(table: &Table) -> Result<(), SchemaError> {
    let is_there = |name: &str| STANDARD.contains(&name) || table.columns.iter().any(|column| column.name() == name);
    let indexed = table.indexes.iter().flat_map(|index| index.iter());
    let mut used = indexed.chain(table.references.iter().map(|(column, _)| column));
    let no_column = |column: &str| SchemaError::NoColumn { table: table.name.to_owned(), column: column.to_owned() };
    if table.indexes.iter().any(|index| index.is_empty()) {
        return Err(no_column(""));
    }
    match used.find(|column| !is_there(column)) {
        Some(column) => Err(no_column(column)),
        None => Ok(()),
    }
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|first| first.is_ascii_lowercase());
    starts && name.len() <= 48 && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
