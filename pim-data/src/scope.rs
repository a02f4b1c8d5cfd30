//! Row-level visibility: the scope of a permit, as the one-row context that views and writes consult.

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
