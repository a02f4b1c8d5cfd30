//! The PostgreSQL server that pim-data is measured on: the one that is named, else one that is started for it and goes with it.

use std::process::Command;

use pim_servers::local::{LocalError, LocalServer, Stop};
use pim_servers::programs::Programs;
use pim_servers::shared::POSTGRES_VARIABLE;
use pim_servers::temporary::TemporaryServers;

/// What a server of our own is given before its start: connections for the part that wants most of them, and otherwise what
/// PostgreSQL has by default, as servers that are named mostly have it.
const SETTINGS: &[(&str, &str)] =
    &[("max_connections", "400"), ("shared_buffers", "128MB"), ("wal_log_hints", "off"), ("archive_mode", "off")];

/// Which server there is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// What is asked for takes none.
    Without,
    /// That of the variable.
    Named,
    /// One of our own.
    Own,
}

/// What a bench is given.
#[derive(Debug)]
pub(super) enum BenchServer {
    /// Nothing: it measures files alone.
    Without,
    /// The variable is set, and the bench reads it.
    Named,
    /// Goes with the value, or with this process.
    Own { dsn: String, _servers: TemporaryServers },
}

impl BenchServer {
    /// The server for a part of the bench, or for all of it; or why there is none, and what helps.
    pub(super) fn of(part: Option<&str>) -> Result<Self, String> {
        let is_named = std::env::var_os(POSTGRES_VARIABLE).is_some();
        match choose(part, is_named, || Programs::find().map(drop).map_err(|why| why.to_string()))? {
            Choice::Without => Ok(Self::Without),
            Choice::Named => Ok(Self::Named),
            Choice::Own => Self::start().map_err(|why| format!("data: no server of its own for PostgreSQL: {why}")),
        }
    }

    /// Has a bench measure on it.
    pub(super) fn give(&self, bench: &mut Command) {
        if matches!(self, Self::Without) {
            return;
        }
        bench.args(["--features", "postgres"]);
        if let Self::Own { dsn, .. } = self {
            bench.env(POSTGRES_VARIABLE, dsn);
        }
    }

    fn start() -> Result<Self, LocalError> {
        let servers = TemporaryServers::new()?;
        let server = servers.primary("bench")?;
        restart(&server)?;
        eprintln!("data: measured on a PostgreSQL primary of its own in {}", servers.folder().display());
        Ok(Self::Own { dsn: server.dsn(), _servers: servers })
    }
}

/// None of the settings is taken over by a server that runs.
fn restart(server: &LocalServer) -> Result<(), LocalError> {
    server.configure(SETTINGS)?;
    server.stop(Stop::Fast)?;
    server.start()
}

fn choose(part: Option<&str>, is_named: bool, programs: impl FnOnce() -> Result<(), String>) -> Result<Choice, String> {
    if part.is_some_and(|part| part.starts_with("files")) {
        return Ok(Choice::Without);
    }
    if is_named {
        return Ok(Choice::Named);
    }
    programs().map(|()| Choice::Own).map_err(|why| {
        format!(
            "data: nothing is measured on PostgreSQL: {why}; `apt-get install postgresql` installs it, or name a server's \
             superuser by {POSTGRES_VARIABLE} (postgres://user:password@host:port/postgres)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{Choice, choose};

    fn there() -> Result<(), String> {
        Ok(())
    }

    fn gone() -> Result<(), String> {
        Err("PostgreSQL's programs are gone".to_owned())
    }

    #[test]
    fn files_alone_take_no_server() {
        for part in ["files", "files-growth"] {
            assert_eq!(choose(Some(part), false, gone), Ok(Choice::Without), "{part}");
            assert_eq!(choose(Some(part), true, there), Ok(Choice::Without), "{part}");
        }
    }

    #[test]
    fn a_server_that_is_named_comes_before_one_of_our_own() {
        for part in [None, Some("server"), Some("server-growth")] {
            assert_eq!(choose(part, true, there), Ok(Choice::Named), "{part:?}");
            assert_eq!(choose(part, true, gone), Ok(Choice::Named), "{part:?}");
            assert_eq!(choose(part, false, there), Ok(Choice::Own), "{part:?}");
        }
    }

    #[test]
    fn without_either_it_is_said_what_is_missing_and_what_installs_it() {
        for part in [None, Some("server"), Some("server-growth")] {
            let why = choose(part, false, gone).expect_err("nothing is there");
            for named in ["PostgreSQL's programs are gone", "apt-get install postgresql", "LAB_TEST_POSTGRES_DSN"] {
                assert!(why.contains(named), "{named}: {why}");
            }
        }
    }
}
