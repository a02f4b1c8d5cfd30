//! The one server that the tests of a process share: given, in a container, or local, in this order; in a container where that
//! is required.

use std::process::{Command, Stdio};
use std::sync::OnceLock;

#[cfg(feature = "containers")]
use crate::container::{self, Contained};
use crate::local::LocalError;
use crate::temporary::TemporaryServers;

/// Names a running PostgreSQL, by the connection string of a superuser.
pub const POSTGRES_VARIABLE: &str = "LAB_TEST_POSTGRES_DSN";
/// Names servers without which a suite fails instead of taking another: `docker`.
pub const REQUIRE_VARIABLE: &str = "LAB_TEST_REQUIRE";
/// How long a session may take to log in. A test that ends leaves connections half open while it drops its databases, and
/// PostgreSQL drops none before each session has heard of it, which such a one does not until it is given up.
pub(crate) const LOGIN_MAX: (&str, &str) = ("authentication_timeout", "5s");

/// Why there is no server.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharedError {
    /// Neither given, nor in a container, nor local.
    #[error("no PostgreSQL for tests: {POSTGRES_VARIABLE} is not set; in a container: {container}; local: {local}")]
    Nowhere {
        /// Why not in a container.
        container: String,
        /// Why not local.
        local: String,
    },
    /// A container is required.
    #[error("a container is required by {REQUIRE_VARIABLE}, and there is none: {why}")]
    NoContainer {
        /// Why not.
        why: String,
    },
}

#[derive(Debug)]
enum Held {
    Given,
    #[cfg(feature = "containers")]
    Contained(Contained),
    Local(TemporaryServers),
}

/// A PostgreSQL server for tests.
#[derive(Debug)]
pub struct PostgresServer {
    dsn: String,
    held: Held,
}

impl PostgresServer {
    /// The connection string of a superuser.
    #[must_use]
    pub fn dsn(&self) -> &str {
        &self.dsn
    }

    /// A connection string for a database of it: as somebody with a password, or else as the superuser.
    ///
    /// # Panics
    /// When the given connection string is not of the form `postgres://user@host/database`.
    #[must_use]
    pub fn dsn_of(&self, login: Option<(&str, &str)>, database: &str) -> String {
        let (_, rest) = self.dsn.split_once("://").expect("a connection string of the form postgres://…");
        let (superuser, address) = rest.split_once('@').expect("a connection string with a user");
        let address = address.split(['/', '?']).next().unwrap_or_default();
        match login {
            Some((user, password)) => format!("postgres://{user}:{password}@{address}/{database}"),
            None => format!("postgres://{superuser}@{address}/{database}"),
        }
    }

    /// Where it comes from, for people.
    #[must_use]
    pub fn origin(&self) -> String {
        match &self.held {
            Held::Given => format!("named by {POSTGRES_VARIABLE}"),
            #[cfg(feature = "containers")]
            Held::Contained(contained) => format!("a container of {}", contained.image()),
            Held::Local(servers) => format!("local processes in {}", servers.folder().display()),
        }
    }
}

/// The server, started by whoever asks first; it goes with the process, however that ends.
///
/// # Errors
/// When there is none, to everybody who asks.
pub fn postgres() -> Result<&'static PostgresServer, SharedError> {
    static SERVER: OnceLock<Result<PostgresServer, SharedError>> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let started = start();
        if let Ok(server) = &started {
            eprintln!("PostgreSQL for tests: {}", server.origin());
        }
        started
    });
    server.as_ref().map_err(Clone::clone)
}

/// Whether a Docker engine answers; a client alone is on most machines.
#[must_use]
pub fn docker_answers() -> bool {
    let mut docker = Command::new("docker");
    docker.args(["info", "--format", "{{.ServerVersion}}"]).stdin(Stdio::null()).stderr(Stdio::null());
    docker.output().is_ok_and(|output| output.status.success() && !output.stdout.trim_ascii().is_empty())
}

/// SQL that makes an owner, who may change schemas, and an application's login, who owns nothing, unless they are there.
/// For one transaction: several test programs may come to a server at the same time.
#[must_use]
pub fn roles(owner: &str, application: &str, password: &str) -> String {
    format!(
        "SELECT pg_advisory_xact_lock(7469, 0);
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pim_app') THEN
    CREATE ROLE pim_app NOLOGIN;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{owner}') THEN
    CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD '{password}';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{application}') THEN
    CREATE ROLE {application} LOGIN PASSWORD '{password}' IN ROLE pim_app;
  END IF;
END $$"
    )
}

/// Where the server may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Given,
    Container,
    /// Nothing but a container will do, whatever else is to be had.
    ContainerAlone,
}

impl Source {
    const fn of(is_given: bool, needs_container: bool) -> Self {
        match (is_given, needs_container) {
            (_, true) => Self::ContainerAlone,
            (true, false) => Self::Given,
            (false, false) => Self::Container,
        }
    }
}

fn start() -> Result<PostgresServer, SharedError> {
    let given = std::env::var(POSTGRES_VARIABLE).ok();
    let required = std::env::var(REQUIRE_VARIABLE).unwrap_or_default();
    let source = Source::of(given.is_some(), required.split(',').any(|server| server == "docker"));
    if let (Source::Given, Some(dsn)) = (source, given) {
        return Ok(PostgresServer { dsn, held: Held::Given });
    }
    contained().or_else(|container| match source {
        Source::ContainerAlone => Err(SharedError::NoContainer { why: container }),
        Source::Given | Source::Container => {
            local().map_err(|why| SharedError::Nowhere { container, local: why.to_string() })
        }
    })
}

fn local() -> Result<PostgresServer, LocalError> {
    let servers = TemporaryServers::new()?;
    let server = servers.primary("tests")?;
    server.configure(&[LOGIN_MAX])?;
    Ok(PostgresServer { dsn: server.dsn(), held: Held::Local(servers) })
}

#[cfg(feature = "containers")]
fn contained() -> Result<PostgresServer, String> {
    if !docker_answers() {
        return Err("no Docker engine answers".to_owned());
    }
    let contained = container::postgres().map_err(|why| format!("{why:#}"))?;
    Ok(PostgresServer { dsn: contained.dsn(), held: Held::Contained(contained) })
}

#[cfg(not(feature = "containers"))]
fn contained() -> Result<PostgresServer, String> {
    Err("built without the feature `containers`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::Source;

    #[test]
    fn a_server_that_is_given_is_not_taken_for_a_container_that_is_required() {
        assert_eq!(Source::of(true, true), Source::ContainerAlone);
        assert_eq!(Source::of(false, true), Source::ContainerAlone);
        assert_eq!(Source::of(true, false), Source::Given);
        assert_eq!(Source::of(false, false), Source::Container);
    }
}
