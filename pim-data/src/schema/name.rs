//! Which names an entity may have: none that the infrastructure, another crate's tables or another entity bring.

use std::collections::BTreeSet;

use crate::entity::Table;
use crate::migration::Migration;

/// What begins so is our own, or an engine's.
const KEPT: [&str; 3] = ["pim_", "pg_", "sqlite_"];

/// What an entity brings beside the view of its name; its further indexes come on top.
const BROUGHT: [&str; 9] = [
    "_row",
    "_history",
    "_past",
    "_home",
    "_bucket_index",
    "_history_id",
    "_history_home",
    "_row_pkey",
    "_history_pkey",
];

/// Names of one database that somebody has.
pub(super) struct Names(BTreeSet<String>);

impl Names {
    /// Those of tables and views that steps make. A view of an entity would hide such a table from whoever asks for it.
    pub(super) fn made_by<'m>(steps: impl Iterator<Item = &'m Migration>) -> Self {
        Self(steps.flat_map(Migration::texts).flat_map(made_by).collect())
    }

    /// Whether an entity may have its name; from then on nobody else may have what it brings.
    pub(super) fn take(&mut self, table: &Table) -> bool {
        let name = table.name;
        let mut brought: Vec<_> = BROUGHT.iter().map(|behind| format!("{name}{behind}")).collect();
        brought.extend((0..table.indexes.len()).map(|number| format!("{name}_index_{number}")));
        brought.push(name.to_owned());
        !KEPT.iter().any(|kept| name.starts_with(kept)) && brought.into_iter().all(|it| self.0.insert(it))
    }
}

/// The names behind `CREATE TABLE` and `CREATE VIEW`.
fn made_by(text: &str) -> impl Iterator<Item = String> + '_ {
    const BETWEEN: [&str; 6] = ["if", "not", "exists", "or", "replace", "materialized"];
    let between = |c: char| c.is_whitespace() || matches!(c, '(' | ';' | '"');
    let mut words = text.split(between).filter(|word| !word.is_empty()).map(str::to_ascii_lowercase).peekable();
    std::iter::from_fn(move || {
        loop {
            if words.next()? != "create" {
                continue;
            }
            while words.next_if(|word| BETWEEN.contains(&word.as_str())).is_some() {}
            if words.next_if(|word| word == "table" || word == "view").is_none() {
                continue;
            }
            while words.next_if(|word| BETWEEN.contains(&word.as_str())).is_some() {}
            let name = words.next()?;
            return Some(name.strip_prefix("public.").map_or_else(|| name.clone(), str::to_owned));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_however_they_are_made() {
        let text = "CREATE TABLE one(id int);\ncreate table if not exists two (id int); CREATE INDEX no ON one (id);
            CREATE OR REPLACE VIEW public.three AS SELECT 1; CREATE MATERIALIZED VIEW \"four\" AS SELECT 1;
            CREATE FUNCTION no() RETURNS table (a int) AS $$ SELECT 1 $$";
        assert_eq!(made_by(text).collect::<Vec<_>>(), ["one", "two", "three", "four"]);
    }
}
