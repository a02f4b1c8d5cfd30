//! `cargo xtask test`: everything that this machine can run, and one line for each suite that it cannot.

mod built;
mod drill;
mod forgotten;

use std::thread;

use anyhow::{Error, Result, anyhow};
use clap::{Args, ValueEnum};
use pim_servers::programs::Programs;
use pim_servers::shared::{POSTGRES_VARIABLE, REQUIRE_VARIABLE, docker_answers};
use pim_servers::small_disk::SmallDisk;

use self::built::{Built, Profile};
use crate::exit::Failure;
use crate::mutants;
use crate::shell::{cargo, must};

/// What suites may need; `cargo xtask test` refuses what none needs yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Server {
    /// PostgreSQL 15 or later: its programs here. What shares a server uses that of `LAB_TEST_POSTGRES_DSN`, else a container,
    /// else one of these programs.
    Postgres,
    /// Redis 7 or later.
    Redis,
    /// Apache Kafka.
    Kafka,
    /// A Docker engine.
    Docker,
    /// A disk that may be filled up: who runs the tests may mount one.
    Disk,
    /// A certified OIDC provider.
    Oidc,
}

/// What a run may not do without.
#[derive(Args, Debug)]
pub(crate) struct RequireArgs {
    /// Servers whose suites must run; without one of them the run fails instead of saying so.
    #[arg(long, value_delimiter = ',')]
    require: Vec<Server>,
}

/// Arguments of `cargo xtask test`.
#[derive(Args, Debug)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    required: RequireArgs,
    #[command(flatten)]
    drill: drill::DrillArgs,
    /// Where the rows of the crash suites are.
    #[arg(long, value_enum, default_value = "files", requires = "crash", conflicts_with_all = ["failovers", "pairs", "moves"])]
    engine: drill::Engine,
    /// Builds what a harness runs with optimisations, as whoever measures a pause wants it.
    #[arg(long, requires = "drill")]
    release: bool,
    /// Applies the source patches of `examples/testkit/mutants.toml`, all or those of an area or name, in a scratch worktree
    /// and prints which test caught each.
    #[arg(long, value_name = "AREA|NAME", num_args = 0..=1, default_missing_value = "all", conflicts_with = "drill")]
    mutants: Option<String>,
    /// Runs only the tests whose name contains this.
    #[arg(conflicts_with = "drill")]
    filter: Option<String>,
}

/// A suite that needs more than a newcomer has. It is no part of the workspace's tests, so it is run apart from them.
struct Suite {
    server: Server,
    what: &'static str,
    /// Why it cannot run here.
    lacks: fn() -> Result<(), String>,
    /// The folder of its package.
    package: &'static str,
    of: Of,
    flags: &'static [&'static str],
    /// What the names of its tests contain one of, unless somebody asked for others; all of them where there is nothing.
    tests: &'static [&'static str],
}

/// Which programs a suite is among, and so when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// [`Built::of_workspace`].
    Workspace,
    /// The same; it starts none of the lab's programs and mostly waits, so the next ones are built meanwhile.
    WorkspaceMeanwhile,
    /// [`Built::on_servers`].
    Servers,
}

const SUITES: &[Suite] = &[
    Suite {
        server: Server::Postgres,
        what: "servers as processes: a standby takes over, and nothing is left behind",
        lacks: lacks_programs,
        package: "servers",
        of: Of::WorkspaceMeanwhile,
        flags: &["--ignored", "--skip", "a_container", "--skip", "a_full_disk"],
        tests: &[],
    },
    Suite {
        server: Server::Postgres,
        what: "promotions, step by step",
        lacks: lacks_programs,
        package: "xtask",
        of: Of::WorkspaceMeanwhile,
        flags: &["--ignored"],
        tests: &[],
    },
    Suite {
        server: Server::Disk,
        what: "backups of servers, and restoring them, on a disk that is full",
        lacks: || lacks_disk().and_then(|()| lacks_programs()),
        package: "servers",
        of: Of::WorkspaceMeanwhile,
        flags: &["--ignored"],
        tests: &["a_full_disk"],
    },
    Suite {
        server: Server::Disk,
        what: "backups of files, and restoring them, on a disk that is full",
        lacks: lacks_disk,
        package: "testkit",
        of: Of::Workspace,
        flags: &["--ignored"],
        tests: &["a_full_disk"],
    },
    Suite {
        server: Server::Docker,
        what: "servers in containers: nothing is left behind",
        lacks: lacks_engine,
        package: "servers",
        of: Of::Servers,
        flags: &["--ignored"],
        tests: &["a_container"],
    },
    Suite {
        server: Server::Postgres,
        what: "the promises of pim-data on PostgreSQL",
        lacks: lacks_postgres,
        package: "pim-data",
        of: Of::Servers,
        flags: &[],
        // Without them the embedded engine's would run once more.
        tests: &["postgres::", "cluster::group::"],
    },
    Suite {
        server: Server::Postgres,
        what: "a cluster on the servers of a lab",
        lacks: lacks_programs,
        package: "pim-data",
        of: Of::Servers,
        flags: &["--ignored", "--skip", "a_full_disk"],
        tests: &["postgres::"],
    },
    Suite {
        server: Server::Disk,
        what: "a cluster on a server whose disk is full",
        lacks: || lacks_disk().and_then(|()| lacks_programs()),
        package: "pim-data",
        of: Of::Servers,
        flags: &["--ignored"],
        tests: &["postgres::a_full_disk"],
    },
    Suite {
        server: Server::Postgres,
        what: "the promises of pim-events on PostgreSQL",
        lacks: lacks_postgres,
        package: "pim-events",
        of: Of::Servers,
        flags: &[],
        tests: &["postgres::"],
    },
    Suite {
        server: Server::Postgres,
        what: "relays on servers that are lost",
        lacks: lacks_programs,
        package: "pim-events",
        of: Of::Servers,
        flags: &["--ignored"],
        tests: &["postgres::"],
    },
    Suite {
        server: Server::Postgres,
        what: "what the lab's programs make of a map of servers",
        lacks: lacks_postgres,
        package: "examples",
        of: Of::Servers,
        flags: &[],
        tests: &["postgres::"],
    },
    Suite {
        server: Server::Postgres,
        what: "a service of one's own on PostgreSQL",
        lacks: lacks_postgres,
        package: "lending",
        of: Of::Servers,
        flags: &[],
        tests: &["postgres::"],
    },
    Suite {
        server: Server::Postgres,
        what: "the promises of the lab on PostgreSQL",
        lacks: lacks_postgres,
        package: "testkit",
        of: Of::Servers,
        flags: &[],
        tests: &["postgres::"],
    },
    Suite {
        server: Server::Postgres,
        what: "a lab of processes, and kills of service, primary and standby",
        lacks: lacks_programs,
        package: "testkit",
        of: Of::Servers,
        flags: &["--ignored", "--test-threads=1"],
        tests: &["postgres::"],
    },
];

/// A server that suites may share: named, in a container, or local.
fn lacks_postgres() -> Result<(), String> {
    if std::env::var_os(POSTGRES_VARIABLE).is_some() || docker_answers() {
        return Ok(());
    }
    lacks_programs().map_err(|why| format!("{POSTGRES_VARIABLE} is not set, no Docker engine answers, and {why}"))
}

/// Suites that kill servers have their own.
fn lacks_programs() -> Result<(), String> {
    Programs::find().map(drop).map_err(|why| why.to_string())
}

fn lacks_engine() -> Result<(), String> {
    if docker_answers() { Ok(()) } else { Err("no Docker engine answers: start `dockerd`".to_owned()) }
}

fn lacks_disk() -> Result<(), String> {
    SmallDisk::is_to_be_had().map_err(|why| format!("no disk can be mounted: {why}"))
}

/// Runs what was asked for: the suites, unless it is something else.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    if let Some(area) = &args.mutants {
        return mutants::run(area);
    }
    let suites = suites(&args.required)?;
    if args.drill.run(args.engine, if args.release { Profile::Release } else { Profile::Dev })? {
        return Ok(());
    }
    all(suites, &args.required, args.filter.as_deref())
}

/// Runs every suite.
pub(crate) fn run_all(required: &RequireArgs) -> Result<()> {
    all(suites(required)?, required, None)
}

/// Those that run, and says at both ends of the log which do not: nobody sees one line before thousands.
fn all(suites: Suites, required: &RequireArgs, filter: Option<&str>) -> Result<()> {
    let is_container_required = required.has(Server::Docker);
    let outcome = Run { there: suites.there, is_container_required, filter }.all();
    suites.not_run.iter().for_each(|line| eprintln!("{line}"));
    outcome
}

/// What can run here, and a line for each suite that cannot.
struct Suites {
    there: Vec<&'static Suite>,
    not_run: Vec<String>,
}

/// The suites that can run here, if these are all that must.
fn suites(required: &RequireArgs) -> Result<Suites> {
    let (mut there, mut not_run) = (Vec::new(), Vec::new());
    for suite in SUITES {
        match (suite.lacks)() {
            Ok(()) => there.push(suite),
            Err(why) if required.has(suite.server) => {
                let refusal = format!("{:?} is required, but cannot run here: {}: {why}", suite.server, suite.what);
                return Err(Failure::Precondition.because(refusal));
            }
            Err(why) => not_run.push(format!("not run: {}: {why}", suite.what)),
        }
    }
    if let Some(server) = required.require.iter().find(|&&server| SUITES.iter().all(|suite| suite.server != server)) {
        return Err(Failure::Usage.because(format!("{server:?} is required, but no suite needs it")));
    }
    not_run.iter().for_each(|line| eprintln!("{line}"));
    Ok(Suites { there, not_run })
}

impl RequireArgs {
    fn has(&self, server: Server) -> bool {
        self.require.contains(&server)
    }
}

/// The suites of a run, and which of their tests.
struct Run<'a> {
    there: Vec<&'static Suite>,
    /// A suite must not take another server for one that is required.
    is_container_required: bool,
    filter: Option<&'a str>,
}

impl Run<'_> {
    fn all(&self) -> Result<()> {
        // The end-to-end suites start the built programs, so these come first.
        let of_workspace = Built::of_workspace(Profile::Test)?;
        let mut test = cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
        test.envs(built::threads());
        if let Some(filter) = self.filter {
            test.arg("--").arg(filter);
        }
        // Nothing is left untried because something else failed.
        let mut outcomes = vec![must(&mut test)];
        outcomes.extend(self.suites(Of::Workspace, &of_workspace));
        let (meanwhile, on_servers) = thread::scope(|scope| {
            let meanwhile = scope.spawn(|| self.suites(Of::WorkspaceMeanwhile, &of_workspace));
            let is_needed = self.there.iter().any(|suite| suite.of == Of::Servers);
            let built = is_needed.then(|| Built::on_servers(Profile::Test));
            (meanwhile.join(), built.transpose())
        });
        outcomes.extend(meanwhile.map_err(|_| anyhow!("the suites beside the build were broken off"))?);
        let on_servers = on_servers?;
        outcomes.extend(on_servers.iter().flat_map(|built| self.suites(Of::Servers, built)));
        if let Some(filter) = self.filter {
            outcomes.push(self.refuse_unknown(filter, &of_workspace, on_servers.as_ref(), built::is_of_docs));
        } else {
            outcomes.push(forgotten::refuse(&of_workspace, on_servers.as_ref(), SUITES));
        }
        first_of(outcomes, |error| eprintln!("error: {error:#}"))
    }

    fn suites(&self, of: Of, built: &Built) -> Vec<Result<()>> {
        self.there.iter().filter(|suite| suite.of == of).map(|suite| suite.run(built, self)).collect()
    }

    /// Refuses a name that no test of the run has: libtest says that all went well.
    fn refuse_unknown(
        &self,
        filter: &str,
        of_workspace: &Built,
        on_servers: Option<&Built>,
        is_of_docs: impl FnOnce(&str) -> Result<bool>,
    ) -> Result<()> {
        if of_workspace.has_any(filter)? {
            return Ok(());
        }
        for suite in &self.there {
            let built = if suite.of == Of::Servers { on_servers } else { Some(of_workspace) };
            let number =
                built.map(|built| built.number_of(suite.package, &suite.arguments(Some(filter)))).transpose()?;
            if number.is_some_and(|it| it > 0) {
                return Ok(());
            }
        }
        if is_of_docs(filter)? {
            return Ok(());
        }
        Err(Failure::Usage.because(format!("no test that runs here has `{filter}` in its name")))
    }
}

/// The first failure, which ends the run. The others are told: one test that is red must not hide which are run by nobody.
fn first_of(outcomes: Vec<Result<()>>, tell: impl FnMut(Error)) -> Result<()> {
    let mut failures = outcomes.into_iter().filter_map(Result::err);
    let first = failures.next();
    failures.for_each(tell);
    first.map_or(Ok(()), Err)
}

impl Suite {
    /// What its programs are told; none but the tests of this name, where somebody asked for one.
    fn arguments<'a>(&self, filter: Option<&'a str>) -> Vec<&'a str> {
        let named = filter.map_or_else(|| self.tests.to_vec(), |filter| vec![filter]);
        self.flags.iter().copied().chain(named).filter(|it| !it.is_empty()).collect()
    }

    fn run(&self, built: &Built, run: &Run<'_>) -> Result<()> {
        eprintln!("{}:", self.what);
        let arguments = self.arguments(run.filter);
        if run.filter.is_none() {
            built.has(self.package, &arguments)?;
        }
        let setting = run.is_container_required.then(|| (REQUIRE_VARIABLE, "docker".to_owned()));
        built.run(self.package, &arguments, setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guard: what was found behind the first failure is not kept to itself.
    #[test]
    fn every_failure_of_a_run_is_told() {
        let failing = |what: &'static str| Err(anyhow!(what));
        let mut told = Vec::new();
        let outcome =
            first_of(vec![Ok(()), failing("a test"), Ok(()), failing("forgotten")], |it| told.push(it.to_string()));
        assert_eq!(outcome.expect_err("two have failed").to_string(), "a test");
        assert_eq!(told, ["forgotten"]);
        first_of(vec![Ok(())], |it| panic!("{it}")).expect("none has failed");
    }
}
