//! Who asks a read model: what they may see, which is the same scope as over the shards, and what they have seen already.

use std::time::Duration;

use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::rbac::{Permit, Read};
use pim_data::backend::{ColumnError, Row, Statement};
use pim_data::consistency::{Consistency, ConsistencyToken};
use pim_events::{Projection, ReadStore, StoreError};
use tokio::time::Instant;
use uuid::Uuid;

use crate::rig::{Caller, Failure};

/// How long a caller waits for a read model that does not know yet what the caller has seen, if the request has so much time.
const PATIENCE: Duration = Duration::from_secs(1);

/// The read models, as somebody sees them.
#[derive(Debug)]
pub struct Sight<'r> {
    store: &'r ReadStore,
    permit: &'r Permit<Read>,
    /// What a read model must know, and until when they wait for it.
    demand: Option<(&'r ConsistencyToken, Instant)>,
}

impl<'r> Sight<'r> {
    /// Of somebody who may see this much, and to whom whatever a read model knows is fresh enough.
    #[must_use]
    pub const fn of(store: &'r ReadStore, permit: &'r Permit<Read>) -> Self {
        Self { store, permit, demand: None }
    }

    /// Of this caller, whose token may ask for more.
    #[must_use]
    pub fn by(mut self, caller: &'r Caller) -> Self {
        if let Consistency::ReadYourWrites(token) = &caller.consistency {
            self.demand = Some((token, caller.cx.deadline().capped(PATIENCE).instant()));
        }
        self
    }

    /// Asks the read model of a projection.
    pub(super) async fn query(&self, model: &dyn Projection, statement: Statement) -> Result<Vec<Row>, QueryError> {
        self.ask(model, self.demand, statement).await
    }

    /// Asks it about one home key; of others it need know nothing.
    pub(super) async fn query_of(
        &self,
        key: Uuid,
        model: &dyn Projection,
        statement: Statement,
    ) -> Result<Vec<Row>, QueryError> {
        let demand = self.demand.and_then(|(token, until)| Some((ConsistencyToken::of(key, token.n_of(key)?), until)));
        self.ask(model, demand.as_ref().map(|(token, until)| (token, *until)), statement).await
    }

    async fn ask(
        &self,
        model: &dyn Projection,
        demand: Option<(&ConsistencyToken, Instant)>,
        statement: Statement,
    ) -> Result<Vec<Row>, QueryError> {
        Ok(match demand {
            Some((token, until)) => self.store.select_after(self.permit, model, token, until, statement).await?,
            None => self.store.select(self.permit, model, statement).await?,
        })
    }
}

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
    /// Lines that are left out would look like lines that are not there.
    #[error("more than {most} lines: ask for a shorter span, or for one facility")]
    TooMany {
        /// As many as it may have.
        most: usize,
    },
}

impl IntoProblem for QueryError {
    fn into_problem(self) -> Problem {
        match self {
            // What is late is told how late, and what no query can be is the program's own fault, for good.
            Self::Store(error @ (StoreError::Behind { .. } | StoreError::Scope(_))) => error.into_problem(),
            Self::Store(_) => {
                Problem::of(problem::UNAVAILABLE).detail("the read models cannot be read").retry_after_secs(1)
            }
            Self::Row(_) => Problem::of(problem::INTERNAL).because("query.row"),
            Self::TooMany { .. } => Problem::of(problem::INVALID_QUERY).detail(self.to_string()),
        }
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        error.into_problem().into()
    }
}
