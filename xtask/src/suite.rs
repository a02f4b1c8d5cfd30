//! `cargo xtask test`: everything that this machine can run, and one line for each suite that it cannot.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::exit::Failure;
use crate::mutants;
use crate::shell::{cargo, must};

/// A server that some suites need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Server {
    /// PostgreSQL 15 or later, by `LAB_TEST_POSTGRES_DSN`.
    Postgres,
    /// Redis 7 or later.
    Redis,
    /// Apache Kafka.
    Kafka,
    /// A Docker engine.
    Docker,
    /// A certified OIDC provider.
    Oidc,
}

/// Arguments of `cargo xtask test`.
#[derive(Args, Debug)]
pub(crate) struct TestArgs {
    /// Servers whose suites must run; without one of them the run fails instead of saying so.
    #[arg(long, value_delimiter = ',')]
    require: Vec<Server>,
    /// Runs the crash suites alone: this many kills, and as many power cuts.
    #[arg(long, value_name = "TIMES")]
    crash: Option<u32>,
    /// Applies the source patches of `examples/testkit/mutants.toml`, all or those of an area or name, in a scratch worktree
    /// and prints which test caught each.
    #[arg(long, value_name = "AREA|NAME", num_args = 0..=1, default_missing_value = "all")]
    mutants: Option<String>,
    /// Runs only the tests whose name contains this.
    filter: Option<String>,
}

/// A suite that needs a server.
struct Suite {
    server: Server,
    what: &'static str,
    /// Says where the server is.
    variable: &'static str,
    /// How it is run when it is no part of the workspace's tests, because a newcomer's build has no such backend.
    apart: Option<Apart>,
}

#[derive(Clone, Copy)]
struct Apart {
    build: &'static [&'static str],
    /// What the names of its tests begin with; without it the embedded engine's would run once more.
    tests: &'static str,
}

const SUITES: &[Suite] = &[
    Suite {
        server: Server::Postgres,
        what: "foreign key hashes against a live PostgreSQL",
        variable: "LAB_TEST_POSTGRES_DSN",
        apart: None,
    },
    Suite {
        server: Server::Postgres,
        what: "the promises of pim-data on PostgreSQL",
        variable: "LAB_TEST_POSTGRES_DSN",
        apart: Some(Apart {
            build: &["-p", "pim-data", "--features", "postgres", "--lib", "--test", "it"],
            tests: "postgres::",
        }),
    },
];

/// Runs the suites.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    if let Some(area) = &args.mutants {
        return mutants::run(area);
    }
    let missing = report_suites();
    if let Some(suite) = missing.iter().find(|suite| args.require.contains(&suite.server)) {
        let refusal = format!("{:?} is required, but its suites cannot run here", suite.server);
        return Err(Failure::Precondition.because(refusal));
    }
    // The end-to-end suites start the built programs, so these come first.
    must(&mut cargo(&["build", "--locked", "-p", "pim-lab", "--examples"]))?;
    if let Some(kills) = args.crash {
        let mut test = cargo(&["test", "--locked", "-p", "pim-testkit", "--test", "it", "--", "--nocapture"]);
        test.args(["crash_loses_nothing", "power_cuts_lose_nothing"]);
        return must(test.env("LAB_TEST_CRASH_KILLS", kills.to_string()));
    }
    let mut test = cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
    if let Some(filter) = &args.filter {
        test.arg("--").arg(filter);
    }
    // Nothing is left untried because something else failed.
    let outcomes = [must(&mut test), run_apart(args.filter.as_deref())];
    outcomes.into_iter().collect()
}

/// The suites that have a build of their own, as far as their servers are there.
fn run_apart(filter: Option<&str>) -> Result<()> {
    let suites = SUITES.iter().filter(|suite| suite.is_there()).filter_map(|suite| suite.apart);
    let outcomes = suites.map(|suite| {
        let mut test = cargo(&["test", "--locked", "--no-fail-fast"]);
        must(test.args(suite.build).arg("--").arg(filter.unwrap_or(suite.tests)))
    });
    // Collected first: a failure does not keep the others from running.
    outcomes.collect::<Vec<_>>().into_iter().collect()
}

impl Suite {
    fn is_there(&self) -> bool {
        std::env::var_os(self.variable).is_some()
    }
}

/// Says which suites cannot run here, and returns them.
fn report_suites() -> Vec<&'static Suite> {
    let missing: Vec<_> = SUITES.iter().filter(|suite| !suite.is_there()).collect();
    for suite in &missing {
        eprintln!("not run: {}: {} is not set", suite.what, suite.variable);
    }
    missing
}
