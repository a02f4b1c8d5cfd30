//! What is wrong with one server of a shard, by name.

use std::fmt;

use serde::Serialize;

use crate::backend::{DbError, NotLetIn};

pim_core::closed_enum! {
    /// What is wrong with an endpoint. The text says what helps.
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum EndpointFinding {
        /// Nobody answers in time.
        Unreachable = "unreachable",
        /// It answers, and lets this program not in.
        Refused = "refused",
        /// It could lose what it acknowledges.
        NotDurable = "not_durable",
        /// It holds another shard's rows, or another system's.
        OtherShard = "other_shard",
        /// A standby of which nobody knows how far it is behind.
        UnknownLag = "unknown_lag",
        /// A primary whose place another one has taken.
        FormerPrimary = "former_primary",
        /// A primary whose commits wait for a synchronous standby that is not there.
        NoStandby = "no_standby",
        /// A primary that acknowledges commits alone, or did so without a standby's confirmation since.
        Degraded = "degraded",
    }
}

impl fmt::Display for EndpointFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "does not answer: start it, and check host and port of its connection string",
            Self::Refused => "gives no connection: check login and database of its connection string, and its limits",
            Self::NotDurable => "can lose commits: turn on fsync, full_page_writes and synchronous_commit",
            Self::OtherShard => "is of another shard or key space: connection strings have been swapped",
            Self::UnknownLag => "has no known lag: it does not follow the present primary, or is a minute behind",
            Self::FormerPrimary => "was the primary of an earlier term: rewind it, or copy it anew, before it follows",
            Self::Degraded => "acknowledges what no standby may have: end that once one is back (`end_degrading`)",
            Self::NoStandby => "waits for a synchronous standby: start one, or change `synchronous_standby_names`",
        })
    }
}

impl EndpointFinding {
    /// What a failed probe tells.
    pub(super) const fn of(error: &DbError) -> Self {
        match error {
            DbError::NotDurable { .. } => Self::NotDurable,
            DbError::FormerPrimary { .. } => Self::FormerPrimary,
            DbError::NotLetIn { why: NotLetIn::Starting, .. }
            | DbError::Unreachable { .. }
            | DbError::Late
            | DbError::Lost
            | DbError::Unanswered => Self::Unreachable,
            // A standby that has not got so far as the schema.
            DbError::Engine(_) | DbError::Column(_) => Self::UnknownLag,
            _ => Self::Refused,
        }
    }
}
