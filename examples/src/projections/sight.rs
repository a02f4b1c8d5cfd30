//! Row-level visibility over read models: the same scope as over the shards.

use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::Scope;
use pim_data::backend::{ColumnError, SqlPair, Statement, Value};
use pim_events::StoreError;

use crate::rig::Failure;

/// A question that a read model cannot answer now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row that is not what it must be.
    #[error("a read model's row does not have the expected form")]
    Row(#[from] ColumnError),
}

impl IntoProblem for QueryError {
    fn into_problem(self) -> Problem {
        match self {
            Self::Store(_) => {
                Problem::of(problem::UNAVAILABLE).detail("the read models cannot be read").retry_after_secs(1)
            }
            Self::Row(_) => Problem::of(problem::INTERNAL),
        }
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        error.into_problem().into()
    }
}

/// Stands for the condition that a query puts beside its own; see [`seen`].
pub(super) const SEEN: &str = "{seen}";

/// A query with its condition of visibility for each engine; binds by [`see`].
pub(super) fn seen(text: &str) -> SqlPair {
    const POSTGRES: &str = "(CASE ? WHEN 3 THEN true WHEN 1 THEN patient_id = ? WHEN 2 THEN facility_id IS NOT NULL \
         AND strpos(?, ',' || upper(replace(facility_id::text, '-', '')) || ',') > 0 ELSE false END)";
    const SQLITE: &str = "(CASE ? WHEN 3 THEN 1 WHEN 1 THEN patient_id = ? WHEN 2 THEN facility_id IS NOT NULL \
         AND instr(?, ',' || hex(facility_id) || ',') > 0 ELSE 0 END)";
    SqlPair::joined(
        SqlPair::generated_postgres(text.replace(SEEN, POSTGRES)),
        SqlPair::generated_sqlite(text.replace(SEEN, SQLITE)),
    )
}

/// Binds the scope to the three parameters of [`seen`].
pub(super) fn see(statement: Statement, scope: &Scope) -> Statement {
    let (mode, own, facilities) = match scope {
        Scope::Own(own) => (1_i64, Value::from(*own), Value::Null),
        Scope::Facilities(set) => {
            let listed: String = set.iter().map(|facility| format!("{:X},", facility.as_simple())).collect();
            (2, Value::Null, Value::Text(format!(",{listed}")))
        }
        Scope::All => (3, Value::Null, Value::Null),
    };
    statement.bind(mode).bind_all([own, facilities])
}
