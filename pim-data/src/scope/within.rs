//! A reading statement of the caller's own, over tables that are not an entity's, within the scope of a permit.

mod form;

use pim_core::rbac::Scope;

use crate::backend::{SqlPair, Statement, Value};

/// By which columns the rows of a table are somebody's. UUIDs, as the engine has them.
///
/// Where one of them is not said, nobody sees a row by it; of a table that says neither, rows are for [`Scope::All`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopedTable {
    /// Its name, in double quotes where its script has them.
    pub name: &'static str,
    /// Whose record a row is: the home key, for [`Scope::Own`].
    pub home: Option<&'static str>,
    /// Where it belongs, for [`Scope::Facilities`].
    pub facility: Option<&'static str>,
}

/// A statement that cannot be held within a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScopeError {
    /// It is more than a query, or not written as it has to be.
    #[error("a statement within a scope is one SELECT, without comments, and with ? for each parameter")]
    Form,
    /// It reads a table of which is not said whose its rows are.
    #[error("{name} is none of the tables that this statement may read: name one, without its schema")]
    Table {
        /// What stands in a table's place.
        name: String,
    },
}

/// The same statement, to which `tables` have the rows alone that a scope reaches.
///
/// Each table's name stands for a query over it that has the condition, so no condition of the statement's own, and no
/// sub-select or join, sees past it. It must name these tables and no other: what it names besides is refused, and so is
/// what cannot be told. A condition that can fail, such as a division, may fail for rows that are not shown.
///
/// ```
/// use pim_core::rbac::Scope;
/// use pim_data::backend::Statement;
/// use pim_data::scope::{ScopeError, ScopedTable, within};
///
/// const BOOKS: &[ScopedTable] = &[ScopedTable { name: "at_home", home: Some("member"), facility: None }];
///
/// let most = Statement::same("SELECT member, books FROM at_home WHERE books > ? OR books = 1 ORDER BY books DESC LIMIT 10");
/// let most = within(most.bind(5_i64), BOOKS, &Scope::Own(uuid::Uuid::nil()))?; // at most one row
///
/// let other = Statement::same("SELECT * FROM at_home JOIN reminder USING (member)");
/// assert_eq!(within(other, BOOKS, &Scope::All), Err(ScopeError::Table { name: "reminder".to_owned() }));
/// # Ok::<_, ScopeError>(())
/// ```
///
/// # Errors
/// [`ScopeError`], whatever the scope is.
pub fn within(statement: Statement, tables: &[ScopedTable], scope: &Scope) -> Result<Statement, ScopeError> {
    for (engine, text) in statement.texts() {
        form::check(text, engine, tables)?;
    }
    let Some(front) = front(tables) else { return Ok(statement) };
    let binds = tables.iter().flat_map(|table| binds(table, scope)).collect();
    Ok(statement.behind(&front, binds))
}

/// Gives each table's name to what may be seen of it. On the embedded engine a name in its own query would be a circle.
fn front(tables: &[ScopedTable]) -> Option<SqlPair> {
    let of = |schema: &str, condition: fn(&ScopedTable) -> String| {
        let seen = tables.iter().map(|table| {
            let (name, condition) = (table.name, condition(table));
            format!("{name} AS NOT MATERIALIZED (SELECT * FROM {schema}{name} WHERE {condition})")
        });
        SqlPair::generated(format!("WITH {} ", seen.collect::<Vec<_>>().join(", ")))
    };
    (!tables.is_empty()).then(|| SqlPair::joined(of("", on_postgres), of("main.", on_sqlite)))
}

fn on_postgres(table: &ScopedTable) -> String {
    let facility = |column: &str| {
        format!("strpos(?, ',' || upper(replace({column}::text, '-', '')) || ',') > 0 AND {column} IS NOT NULL")
    };
    condition(table, ("true", "false"), facility)
}

fn on_sqlite(table: &ScopedTable) -> String {
    condition(table, ("1", "0"), |column| format!("instr(?, ',' || hex({column}) || ',') > 0 AND {column} IS NOT NULL"))
}

/// One text for all scopes, so that what is prepared is used again.
fn condition(table: &ScopedTable, (yes, no): (&str, &str), facility: impl Fn(&str) -> String) -> String {
    let own = table.home.map(|column| format!(" WHEN {OWN} THEN {column} = ?")).unwrap_or_default();
    let facilities = table.facility.map(|column| format!(" WHEN {FACILITIES} THEN {}", facility(column)));
    format!("CASE ? WHEN {ALL} THEN {yes}{own}{} ELSE {no} END", facilities.unwrap_or_default())
}

const OWN: i64 = 1;
const FACILITIES: i64 = 2;
const ALL: i64 = 3;

fn binds(table: &ScopedTable, scope: &Scope) -> Vec<Value> {
    let (mode, own, facilities) = match scope {
        Scope::Own(own) => (OWN, Value::from(*own), Value::Null),
        Scope::Facilities(set) => {
            let listed: String = set.iter().map(|facility| format!("{:X},", facility.as_simple())).collect();
            (FACILITIES, Value::Null, Value::Text(format!(",{listed}")))
        }
        Scope::All => (ALL, Value::Null, Value::Null),
    };
    let (own, facilities) = (table.home.map(|_| own), table.facility.map(|_| facilities));
    [Some(Value::from(mode)), own, facilities].into_iter().flatten().collect()
}
