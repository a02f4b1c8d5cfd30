//! Why a unit of work did not commit.

use pim_core::problem::{self, IntoProblem, Problem};
use pim_core::shard::{MapVersion, ShardId};

use super::part::PartError;
use crate::backend::{ColumnError, DbError};
use crate::cluster::DirectoryError;
use crate::entity::DecodeError;
use crate::idempotency::StoredAnswer;

/// Why a unit did not commit. Unless said otherwise, nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// An equal submission was answered before: this is its answer, not a failure.
    #[error("the request was answered before")]
    Replay(StoredAnswer),
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another body")]
    IdempotencyMismatch,
    /// Somebody else wrote to the home key since it was loaded: run the unit again.
    #[error("the home key was written since it was loaded")]
    Conflict,
    /// The row has a newer version than the one to be changed.
    #[error("{entity} has a newer version")]
    Stale {
        /// What.
        entity: &'static str,
    },
    /// The shard knows a newer map: refresh and run the unit again.
    #[error("shard {shard} refused a stale route, it knows map version {newest}")]
    Fence {
        /// Which shard.
        shard: ShardId,
        /// The newest map that it knows.
        newest: MapVersion,
        /// Whether the bucket is about to leave: that map is yet to come.
        draining: bool,
    },
    /// A row with this id or unique value exists.
    #[error("{entity} exists already")]
    AlreadyExists {
        /// What.
        entity: &'static str,
    },
    /// A row that is referred to does not exist.
    #[error("a row that is referred to does not exist")]
    MissingReference,
    /// The permit does not speak of this, or does not reach it.
    #[error("the permit does not reach this {entity}")]
    Denied {
        /// What.
        entity: &'static str,
    },
    /// The schema of the shards, or that of the control database, does not have this entity.
    #[error("{entity} is not an entity of {place}: add it to the schema's builder")]
    UnknownEntity {
        /// What.
        entity: &'static str,
        /// `the shards` or `the control database`.
        place: &'static str,
    },
    /// A changed row was not loaded in this unit.
    #[error("{entity} was not loaded in this unit: load it before it is changed")]
    NotLoaded {
        /// What.
        entity: &'static str,
    },
    /// A row of another home key, or an id that names another bucket.
    #[error("{entity} does not live with the home key of this unit")]
    WrongHome {
        /// What.
        entity: &'static str,
    },
    /// A row that refers to one of another bucket: it could not move without that one.
    #[error("{entity}.{column} names a row of another bucket: rows refer to rows of their own home key")]
    ReferenceElsewhere {
        /// What refers.
        entity: &'static str,
        /// By which column.
        column: &'static str,
    },
    /// Rows without an event.
    #[error("a write appends at least one event")]
    NoEvent,
    /// Too many rows in one unit.
    #[error("a unit takes at most {most} rows")]
    TooLarge {
        /// The bound.
        most: usize,
    },
    /// The map names a shard that could not be opened here.
    #[error("shard {0} is not open in this program: why is in its log, and it is tried again")]
    UnknownShard(ShardId),
    /// The deadline passed before anything was committed, or sent to be.
    #[error("the deadline passed while waiting for the shard")]
    Deadline,
    /// The server did not say whether it committed, and there is no idempotency record that could tell.
    #[error("whether the unit was committed is not known")]
    Unknown(#[source] DbError),
    /// A part refused.
    #[error(transparent)]
    Part(#[from] PartError),
    /// Another crate's part refused what it was given, such as an event; [`UnitError::given`] makes it.
    #[error("a part of the unit refused what it was given")]
    Given {
        /// That crate's word for it.
        code: &'static str,
        /// What it refused.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An entity and its table do not fit.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A newer map of the data directory cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The database failed.
    #[error(transparent)]
    Database(DbError),
}

impl From<DbError> for UnitError {
    fn from(error: DbError) -> Self {
        if matches!(error, DbError::Late) { Self::Deadline } else { Self::Database(error) }
    }
}

impl From<ColumnError> for UnitError {
    fn from(error: ColumnError) -> Self {
        Self::Database(error.into())
    }
}

impl UnitError {
    /// For crates with parts of their own: their error as one of a unit, so that one function may use both. The code is logged
    /// where it comes to a 500, and begins with the crate's own word, such as `append.`.
    #[must_use]
    pub fn given(code: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Given { code, source: Box::new(error) }
    }

    /// What it is, as one word for logs; stable.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Replay(_) => "unit.replay",
            Self::IdempotencyMismatch => "unit.idempotency_mismatch",
            Self::Conflict => "unit.conflict",
            Self::Stale { .. } => "unit.stale",
            Self::Fence { .. } => "unit.fence",
            Self::AlreadyExists { .. } => "unit.already_exists",
            Self::MissingReference => "unit.missing_reference",
            Self::Denied { .. } => "unit.denied",
            Self::UnknownEntity { .. } => "unit.unknown_entity",
            Self::NotLoaded { .. } => "unit.not_loaded",
            Self::WrongHome { .. } => "unit.wrong_home",
            Self::ReferenceElsewhere { .. } => "unit.reference_elsewhere",
            Self::NoEvent => "unit.no_event",
            Self::TooLarge { .. } => "unit.too_large",
            Self::UnknownShard(_) => "unit.unknown_shard",
            Self::Deadline => "unit.deadline",
            Self::Unknown(_) => "unit.unknown",
            Self::Part(_) => "unit.part",
            Self::Given { code, .. } => code,
            Self::Decode(error) => error.code(),
            Self::Directory(_) => "unit.directory",
            Self::Database(error) => error.code(),
        }
    }

    /// Whether running the unit again, from its load, may well succeed.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Conflict | Self::Fence { .. } | Self::UnknownShard(_) => true,
            Self::Database(error) => error.is_retryable(),
            _ => false,
        }
    }
}

impl IntoProblem for UnitError {
    fn into_problem(self) -> Problem {
        let code = self.code();
        match self {
            Self::IdempotencyMismatch => Problem::of(problem::IDEMPOTENCY_MISMATCH),
            Self::Conflict => Problem::of(problem::CONFLICT).retry_after_secs(1),
            Self::Stale { .. } => Problem::of(problem::STALE_VERSION),
            Self::AlreadyExists { entity } => Problem::of(problem::ALREADY_EXISTS).with("entity", entity),
            Self::MissingReference => {
                Problem::of(problem::INVALID_BODY).detail("a record that the body refers to does not exist")
            }
            Self::ReferenceElsewhere { column, .. } => Problem::of(problem::INVALID_BODY)
                .detail("a record that the body refers to belongs to another home key")
                .with("column", column),
            Self::Denied { entity } => Problem::of(problem::FORBIDDEN).with("entity", entity),
            Self::WrongHome { .. } => Problem::of(problem::WRONG_BUCKET),
            Self::TooLarge { most } => Problem::of(problem::INVALID_BODY).with("rows_max", most),
            Self::Fence { .. } | Self::UnknownShard(_) => Problem::of(problem::UNAVAILABLE).retry_after_secs(1),
            Self::Deadline => Problem::of(problem::DEADLINE_EXCEEDED),
            Self::Unknown(_) => Problem::of(problem::UNAVAILABLE).retry_after_secs(1),
            Self::Database(error) => error.into_problem(),
            Self::Replay(_)
            | Self::UnknownEntity { .. }
            | Self::NotLoaded { .. }
            | Self::NoEvent
            | Self::Part(_)
            | Self::Given { .. }
            | Self::Decode(_)
            | Self::Directory(_) => Problem::of(problem::INTERNAL).because(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::ReadError;

    /// Guard: what comes to a 500 says for the log what it was.
    #[test]
    fn what_is_a_500_has_a_cause() {
        let entity = "thing";
        let member = || DecodeError::Member { table: entity, member: "note" };
        for (error, cause) in [
            (UnitError::NoEvent, "unit.no_event"),
            (UnitError::NotLoaded { entity }, "unit.not_loaded"),
            (UnitError::UnknownEntity { entity, place: "the shards" }, "unit.unknown_entity"),
            (UnitError::Part(PartError("too much")), "unit.part"),
            (UnitError::given("append.unknown_type", PartError("unknown")), "append.unknown_type"),
            (UnitError::Decode(member()), "entity.member"),
            (UnitError::Database(DbError::Refused { rule: "none".to_owned(), unique: false }), "refused"),
        ] {
            let problem = error.into_problem();
            assert_eq!((problem.kind(), problem.cause()), (problem::INTERNAL, Some(cause)));
        }
        for (error, cause) in [
            (ReadError::UnknownEntity { entity, place: "the shards" }, "read.unknown_entity"),
            (ReadError::Decode(member()), "entity.member"),
        ] {
            assert_eq!(error.into_problem().cause(), Some(cause));
        }
        assert_eq!(UnitError::Conflict.into_problem().cause(), None, "what a caller is told has none");
    }
}
