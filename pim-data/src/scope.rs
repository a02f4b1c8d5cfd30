//! Row-level visibility: the scope of a permit, as the one-row context that views and writes consult, and as a condition that is
//! put before a statement over tables that have no views ([`within()`]).

mod within;

pub use within::{ScopeError, ScopedTable, within};

use pim_core::identity::FACILITIES_MAX;
use pim_core::rbac::Scope;

use crate::backend::Value;

/// Made on each reading connection. Without its one row the views show nothing; without the table they do not exist.
pub(crate) const SCOPE_TABLE: &str = "PRAGMA temp_store = MEMORY;
CREATE TEMP TABLE pim_scope (only INTEGER PRIMARY KEY CHECK (only = 1), mode INTEGER NOT NULL, own BLOB, facilities TEXT);
INSERT INTO pim_scope VALUES (1, 0, NULL, NULL);
";

/// The condition that every read and write by our own statements carries, with its binds, over the base table.
///
/// It says the same as the views; a TEMP table would have to be written twice for each read (measured: four times the
/// latency of the read itself).
pub(crate) fn predicate(scope: &Scope) -> (&'static str, Vec<Value>) {
    match scope {
        Scope::All => ("1 = 1", Vec::new()),
        Scope::Own(own) => ("home_key = ?", vec![Value::from(*own)]),
        Scope::Facilities(facilities) => {
            let mut list: Vec<_> = facilities.iter().map(|facility| Value::from(*facility)).collect();
            // Three shapes only, so that prepared statements are used again.
            let (text, width) = match list.len() {
                0 => return ("1 = 0", Vec::new()),
                1 => ("facility_id = ?", 1),
                2..=4 => ("facility_id IN (?, ?, ?, ?)", 4),
                _ => ("facility_id IN (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", FACILITIES_MAX),
            };
            list.resize(width, list[0].clone());
            (text, list)
        }
    }
}

/// The same scope as a server's policies read it, which say what [`predicate`] says: `all`, `own ID`, or `facilities ID,ID`.
pub(crate) fn setting(scope: &Scope) -> String {
    match scope {
        Scope::All => "all".to_owned(),
        Scope::Own(own) => format!("own {}", own.as_hyphenated()),
        Scope::Facilities(facilities) => {
            let listed: Vec<_> = facilities.iter().map(|facility| facility.as_hyphenated().to_string()).collect();
            format!("facilities {}", listed.join(","))
        }
    }
}

/// One scope of each shape that statements have.
pub(crate) fn shapes() -> [Scope; 5] {
    let facilities = |count: usize| Scope::Facilities(vec![uuid::Uuid::nil(); count].into());
    [Scope::All, Scope::Own(uuid::Uuid::nil()), facilities(1), facilities(4), facilities(FACILITIES_MAX)]
}
