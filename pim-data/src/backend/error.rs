//! What can go wrong below, said the same way for either engine.

use std::fmt;
use std::sync::Arc;

use pim_core::problem::{self, IntoProblem, Problem};

use super::ColumnError;
use super::secret::SecretError;

/// What can go wrong below. The driver's own error stays inside.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The database cannot be opened or reached.
    #[error("cannot open database {place}")]
    Open {
        /// The file, or the endpoint's name.
        place: String,
        /// Why.
        #[source]
        source: Driver,
    },
    /// The endpoint's server cannot be reached.
    #[error("cannot reach the server of {place}: check that it runs, and host and port in its connection string")]
    Unreachable {
        /// The endpoint's name.
        place: String,
        /// Why.
        #[source]
        source: Driver,
    },
    /// The endpoint's server is there and gives no connection.
    #[error("the server of {place} gives no connection: {why}")]
    NotLetIn {
        /// The endpoint's name.
        place: String,
        /// Why, and what helps.
        why: NotLetIn,
    },
    /// A statement took longer than a transaction may, or was cancelled by an operator; nothing was written.
    #[error(
        "a statement on {place} was cancelled: it took longer than `transaction_max`, or an operator ended it; look for what \
         holds the locks that it waits for, make it smaller, or raise the limit"
    )]
    Cancelled {
        /// The endpoint's name.
        place: String,
    },
    /// There is no room; nothing was written.
    #[error(
        "database {place} has no room left: free disk or memory where it is; a server may also limit temporary files"
    )]
    Full {
        /// The file, or the endpoint's name.
        place: String,
    },
    /// The endpoint's connection string cannot be had.
    #[error("cannot connect to {place}")]
    Secret {
        /// The endpoint's name.
        place: String,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// A durability setting is not what it must be.
    #[error("database {place} runs with {setting} = {found}, which can lose commits or references")]
    NotDurable {
        /// The file, or the endpoint's name.
        place: String,
        /// The setting.
        setting: &'static str,
        /// Its value.
        found: String,
    },
    /// The server takes no writes: it is a standby, was made one, or is set to be read only.
    #[error(
        "database {place} takes no writes: it is a standby or read only, point its connection string to the primary"
    )]
    ReadOnly {
        /// The endpoint's name.
        place: String,
    },
    /// The server was a primary once, and another one has taken its place since.
    #[error(
        "database {place} was the primary of term {term}, and there is a newer one: rewind it, or copy it anew, \
         before it follows"
    )]
    FormerPrimary {
        /// The endpoint's name.
        place: String,
        /// The term that it holds itself for the primary of.
        term: u64,
    },
    /// No server of the shard takes writes, and none was made to before the deadline.
    #[error("no server of {place} takes writes: start its primary, or promote a standby")]
    NoPrimary {
        /// The endpoint that was the primary last.
        place: String,
    },
    /// Commits wait for a synchronous standby, and none came back before the deadline.
    #[error(
        "commits on {place} wait for a synchronous standby that is not there: start it, or take it out of \
         `synchronous_standby_names`"
    )]
    NoStandby {
        /// The primary's endpoint.
        place: String,
    },
    /// A shard that the map asks for could not be opened here: what is looked for in all of them would be missed.
    #[error("{shard} is not open in this program: why is in its log, and it is tried again")]
    NotOpen {
        /// Which shard.
        shard: String,
    },
    /// A constraint, trigger or guard refused a write; the text is ours or the engine's, without values.
    #[error("the database refused a write: {rule}")]
    Refused {
        /// What refused.
        rule: String,
        /// Whether a unique constraint did.
        unique: bool,
    },
    /// The fence refused a route; only a server says so by itself.
    #[error("the fence refused a route, the newest map is version {newest}")]
    Fence {
        /// The newest map version that the database knows of the bucket.
        newest: u64,
        /// Who owns the bucket now, if the database knows.
        owner: Option<u16>,
        /// Whether the bucket is about to leave: the map that says so comes when its outbox is empty.
        draining: bool,
    },
    /// The statement has no text for this engine.
    #[error("the statement has no text for {engine}")]
    NoText {
        /// Which engine.
        engine: &'static str,
    },
    /// Somebody else holds what this write needs for too long, or the two stood in each other's way.
    #[error("the database is locked by another writer")]
    Busy,
    /// A column does not hold what was asked for.
    #[error("a row does not have the expected form")]
    Column(#[from] ColumnError),
    /// The deadline passed while waiting for a connection of this process, or for what came before a write.
    #[error("the deadline passed before anything was written")]
    Late,
    /// The deadline passed while the server was at it: whether a write took place is not known.
    #[error("the server did not answer before the deadline")]
    Unanswered,
    /// The connection broke: whether the write under way took place is not known.
    #[error("the connection to the server broke")]
    Lost,
    /// The connection is gone.
    #[error("the connection is closed")]
    Closed,
    /// Another member of a shared transaction made the engine take all of it back. Nothing was written.
    #[error("a transaction shared with others was rolled back")]
    Undone,
    /// The commit failed, of a transaction that is shared or because the file system did; whether it happened, a retry under the
    /// same idempotency key finds out.
    #[error("the commit failed")]
    Commit(#[source] Arc<DbError>),
    /// The runtime ended in the middle of a transaction; whether it was committed is not known.
    #[error("the task that ran the transaction is gone")]
    Abandoned,
    /// Anything else that the engine says.
    #[error("the database engine failed")]
    Engine(#[source] Driver),
}

impl DbError {
    /// A short name, for logs and labels: a message names places.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Unreachable { .. } => "unreachable",
            Self::NotLetIn { .. } => "not_let_in",
            Self::Cancelled { .. } => "cancelled",
            Self::Full { .. } => "full",
            Self::Secret { .. } => "secret",
            Self::NotDurable { .. } => "not_durable",
            Self::ReadOnly { .. } => "read_only",
            Self::FormerPrimary { .. } => "former_primary",
            Self::NoPrimary { .. } => "no_primary",
            Self::NoStandby { .. } => "no_standby",
            Self::NotOpen { .. } => "not_open",
            Self::Refused { .. } => "refused",
            Self::Fence { .. } => "fence",
            Self::NoText { .. } => "no_text",
            Self::Busy => "busy",
            Self::Column(_) => "column",
            Self::Late => "late",
            Self::Unanswered => "unanswered",
            Self::Lost => "lost",
            Self::Closed => "closed",
            Self::Undone => "undone",
            Self::Commit(_) => "commit",
            Self::Abandoned => "abandoned",
            Self::Engine(_) => "engine",
        }
    }

    /// What an operator does about it, where somebody has to; without the place, so that it may be logged.
    #[must_use]
    pub fn fix(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable { .. } | Self::Lost => {
                "see whether its server runs, has room on its disk, and can be reached by its connection string"
            }
            Self::NotLetIn { why, .. } => why.fix(),
            Self::Cancelled { .. } => "look for what holds locks there, or for load; `transaction_max` is the limit",
            Self::Full { .. } => "free disk where it is; a server may also limit temporary files",
            Self::Secret { .. } => "give the program the secret that the map names",
            Self::NotDurable { .. } => "set fsync, full_page_writes and synchronous_commit on, and foreign keys",
            Self::ReadOnly { .. } => {
                "lift default_transaction_read_only, or point its connection string to the primary"
            }
            Self::FormerPrimary { .. } => "rewind it, or copy it anew, before it follows",
            Self::NoPrimary { .. } => "start its primary, or promote a standby",
            Self::NoStandby { .. } => "start the standby, or take it out of synchronous_standby_names",
            Self::Open { .. } => "look whether the file is there, is a database, and may be written by this program",
            Self::Engine(_) => "look into the log of its server",
            Self::Commit(source) => return source.fix(),
            _ => return None,
        })
    }

    /// The file's or the endpoint's name, where it is about one.
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        match self {
            Self::Open { place, .. }
            | Self::Unreachable { place, .. }
            | Self::NotLetIn { place, .. }
            | Self::Cancelled { place }
            | Self::Full { place }
            | Self::Secret { place, .. }
            | Self::NotDurable { place, .. }
            | Self::ReadOnly { place }
            | Self::FormerPrimary { place, .. }
            | Self::NoPrimary { place }
            | Self::NoStandby { place } => Some(place),
            Self::Commit(source) => source.place(),
            _ => None,
        }
    }

    /// Whether the same call may well succeed a little later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Busy
                | Self::Closed
                | Self::Undone
                | Self::Lost
                | Self::Open { .. }
                | Self::Unreachable { .. }
                | Self::NotLetIn { why: NotLetIn::TooMany | NotLetIn::Starting, .. }
                | Self::Cancelled { .. }
                | Self::Full { .. }
                | Self::ReadOnly { .. }
                | Self::FormerPrimary { .. }
                | Self::NoPrimary { .. }
                | Self::NoStandby { .. }
                | Self::NotOpen { .. }
                | Self::Fence { .. }
        )
    }

    /// Whether nothing can have been written, because there was no server, or it takes no writes. The same call may go to
    /// another server, as it is.
    #[must_use]
    pub(crate) const fn is_before_effect(&self) -> bool {
        matches!(
            self,
            Self::Closed
                | Self::Unreachable { .. }
                | Self::NotLetIn { why: NotLetIn::Starting, .. }
                | Self::ReadOnly { .. }
                | Self::FormerPrimary { .. }
        )
    }

    /// Whether it says something of the server, so that somebody should look after it.
    #[must_use]
    pub(crate) const fn speaks_of_the_server(&self) -> bool {
        self.is_before_effect() || matches!(self, Self::Lost)
    }

    /// Whether its server was not there, is not the primary, or did not answer in time: there may be one a little later.
    #[must_use]
    pub(crate) const fn is_of_an_absent_server(&self) -> bool {
        self.speaks_of_the_server()
            || matches!(self, Self::Late | Self::Unanswered | Self::NotLetIn { why: NotLetIn::TooMany, .. })
    }

    /// Whether the call itself, or what it came across, is at fault: it fails again whenever it is made, and wherever.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::NoText { .. } | Self::Column(_))
    }

    /// The error as one of a call that could not write, such as any before COMMIT: nothing is in doubt.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub(crate) fn without_effect(self) -> Self {
        match self {
            Self::Lost => Self::Closed,
            Self::Unanswered => Self::Late,
            other => other,
        }
    }

    /// Whether a write may have taken place although it failed.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Unanswered | Self::Lost | Self::Commit(_) | Self::Abandoned)
    }
}

impl IntoProblem for DbError {
    fn into_problem(self) -> Problem {
        match self {
            Self::Late | Self::Unanswered => Problem::of(problem::DEADLINE_EXCEEDED),
            error if error.is_retryable() || error.is_ambiguous() => {
                Problem::of(problem::UNAVAILABLE).retry_after_secs(1)
            }
            error => Problem::of(problem::INTERNAL).because(error.code()),
        }
    }
}

/// Why a server gives no connection, and what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotLetIn {
    /// User or password is wrong.
    #[error("it refuses the login, check user and password in the connection string, and the server's pg_hba.conf")]
    Login,
    /// It has no such database.
    #[error("it has no such database, check the connection string or create it")]
    NoSuchDatabase,
    /// The login may not connect to this database.
    #[error("the login may not connect to this database, grant it CONNECT")]
    MayNotConnect,
    /// All of its connections are in use.
    #[error(
        "all of its connections are in use, lower `connections_max` or raise the limit of server, database or role"
    )]
    TooMany,
    /// It starts, recovers or goes down.
    #[error("it is starting, recovering or going down, wait for it")]
    Starting,
    /// The connection string asks for TLS, which this crate does not speak.
    #[error(
        "its connection string asks for TLS, which is not spoken here, leave `sslmode` out and encrypt below, as by a proxy beside the program"
    )]
    Tls,
}

impl NotLetIn {
    const fn fix(self) -> &'static str {
        match self {
            Self::Login => "check user and password in the connection string, and the server's pg_hba.conf",
            Self::NoSuchDatabase => "check the connection string, or create the database",
            Self::MayNotConnect => "grant the login CONNECT on the database",
            Self::TooMany => "lower `connections_max`, or raise the limit of server, database or role",
            Self::Starting => "wait for it",
            Self::Tls => {
                "leave `sslmode` out of the connection string, and encrypt below, as by a proxy beside the program"
            }
        }
    }
}

/// The driver's error, opaque. Of what a server says it shows what holds no values of rows.
pub struct Driver(Kept);

enum Kept {
    /// As it came.
    Whole(sqlx::Error),
    /// What a server said, without what may be of a row.
    #[cfg(feature = "postgres")]
    Shown(String),
}

impl Driver {
    pub(super) const fn of(error: sqlx::Error) -> Self {
        Self(Kept::Whole(error))
    }

    #[cfg(feature = "postgres")]
    pub(super) const fn shown(text: String) -> Self {
        Self(Kept::Shown(text))
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kept::Whole(error) => fmt::Debug::fmt(error, f),
            #[cfg(feature = "postgres")]
            Kept::Shown(text) => fmt::Debug::fmt(text, f),
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kept::Whole(error) => fmt::Display::fmt(error, f),
            #[cfg(feature = "postgres")]
            Kept::Shown(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Driver {}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        let Some(refusal) = error.as_database_error() else { return Self::Engine(Driver::of(error)) };
        let code = refusal.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
        // The low byte is the primary result code: 5 busy, 6 locked, 13 full, 19 constraint.
        match code & 0xff {
            5 | 6 => Self::Busy,
            13 => Self::Full { place: "file".to_owned() },
            19 => Self::Refused { rule: refusal.message().to_owned(), unique: refusal.is_unique_violation() },
            _ => Self::Engine(Driver::of(error)),
        }
    }
}
