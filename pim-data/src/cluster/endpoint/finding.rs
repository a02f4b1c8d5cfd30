//! What is wrong with one server of a shard, by name.

use std::fmt;

use serde::Serialize;

use crate::backend::{DbError, NotLetIn};

pim_core::closed_enum! {
    /// What is wrong with an endpoint, and what helps.
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
        /// A primary that is set to take no writes.
        ReadOnly = "read_only",
        /// A primary whose commits wait for a synchronous standby that is not there.
        NoStandby = "no_standby",
        /// A primary that acknowledges commits alone, or did so without a standby's confirmation since.
        Degraded = "degraded",
    }
}

impl fmt::Display for EndpointFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what(), self.fix())
    }
}

impl EndpointFinding {
    /// What is wrong, as a sentence about the endpoint without its subject.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Unreachable => "does not answer",
            Self::Refused => "gives no connection",
            Self::NotDurable => "can lose commits",
            Self::OtherShard => "is of another shard or key space",
            Self::UnknownLag => "has no known lag",
            Self::FormerPrimary => "was the primary of an earlier term",
            Self::ReadOnly => "takes no writes although it is the primary",
            Self::Degraded => "acknowledges what no standby may have",
            Self::NoStandby => "waits for a synchronous standby",
        }
    }

    /// What an operator does about it.
    #[must_use]
    pub const fn fix(self) -> &'static str {
        match self {
            Self::Unreachable => {
                "start it, and check host and port of its connection string; if it does not stay up, whether its disk is full"
            }
            Self::Refused => "check login and database of its connection string, and its limits",
            Self::NotDurable => "turn on fsync, full_page_writes and synchronous_commit",
            Self::OtherShard => "give it a connection string of its own: two have been swapped",
            Self::UnknownLag => "have it follow the present primary (`primary_conninfo`), or wait while it catches up",
            Self::FormerPrimary => "rewind it, or copy it anew, before it follows",
            Self::ReadOnly => {
                "turn `default_transaction_read_only` off for server, database and login, and end the sessions that began under it"
            }
            Self::Degraded => "end that once a standby is back (`end_degrading`)",
            Self::NoStandby => "start one, or change `synchronous_standby_names`",
        }
    }

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
