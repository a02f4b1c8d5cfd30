//! Row-level visibility: the scope of a permit, as the one-row context that views and writes consult.

use std::fmt::Write as _;

use pim_core::rbac::Scope;

use crate::backend::{SqlPair, Statement, Value};

/// Made on each reading connection. Without its one row the views show nothing; without the table they do not exist.
pub(crate) const SCOPE_TABLE: &str = "PRAGMA temp_store = MEMORY;
CREATE TEMP TABLE pim_scope (only INTEGER PRIMARY KEY CHECK (only = 1), mode INTEGER NOT NULL, own BLOB, facilities TEXT);
INSERT INTO pim_scope VALUES (1, 0, NULL, NULL);
";

const SET: SqlPair = SqlPair::sqlite("UPDATE temp.pim_scope SET mode = ?, own = ?, facilities = ?");
const CLEAR: SqlPair = SqlPair::sqlite("UPDATE temp.pim_scope SET mode = 0, own = NULL, facilities = NULL");

/// The condition that a write puts beside its own; binds by [`binds`].
pub(crate) const WRITE_PREDICATE: &str = "(SELECT CASE mode WHEN 3 THEN 1 WHEN 1 THEN home_key = own WHEN 2 THEN \
     facility_id IS NOT NULL AND instr(facilities, ',' || hex(facility_id) || ',') > 0 ELSE 0 END \
     FROM (SELECT ? AS mode, ? AS own, ? AS facilities))";

/// Mode, own record and facilities of a scope.
pub(crate) fn binds(scope: &Scope) -> [Value; 3] {
    match scope {
        Scope::Own(own) => [Value::Int(1), Value::from(*own), Value::Null],
        Scope::Facilities(facilities) => {
            let mut list = String::from(",");
            for facility in facilities.iter() {
                let _infallible = write!(list, "{:X},", facility.as_simple());
            }
            [Value::Int(2), Value::Null, Value::Text(list)]
        }
        Scope::All => [Value::Int(3), Value::Null, Value::Null],
    }
}

/// Lets a connection see what the scope reaches.
pub(crate) fn set(scope: &Scope) -> Statement {
    Statement::of(SET).bind_all(binds(scope))
}

/// Lets a connection see nothing.
pub(crate) fn clear() -> Statement {
    Statement::of(CLEAR)
}
