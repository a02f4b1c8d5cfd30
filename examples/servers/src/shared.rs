//! The one server that the tests of a process share: given, in a container, or local, in this order.

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

fn start() -> Result<PostgresServer, SharedError> {
    if let Ok(dsn) = std::env::var(POSTGRES_VARIABLE) {
        return Ok(PostgresServer { dsn, held: Held::Given });
    }
    let container = match contained() {
        Ok(server) => return Ok(server),
        Err(why) => why,
    };
    if std::env::var(REQUIRE_VARIABLE).is_ok_and(|servers| servers.split(',').any(|server| server == "docker")) {
        return Err(SharedError::NoContainer { why: container });
    }
    local().map_err(|why| SharedError::Nowhere { container, local: why.to_string() })
}

fn local() -> Result<PostgresServer, LocalError> {
    let servers = TemporaryServers::new()?;
    let server = servers.primary("tests")?;
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
