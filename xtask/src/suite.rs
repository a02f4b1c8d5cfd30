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
    /// How many times the crash suite kills the process.
    #[arg(long, value_name = "KILLS")]
    crash: Option<u32>,
    /// Applies each source patch of `examples/testkit/mutants` in a scratch worktree and prints which test caught it.
    #[arg(long, value_name = "AREA", num_args = 0..=1, default_missing_value = "all")]
    mutants: Option<String>,
    /// Runs only the tests whose name contains this.
    filter: Option<String>,
}

/// Suites that need a server, and the variable that says where it is.
const SUITES: &[(Server, &str, &str)] =
    &[(Server::Postgres, "foreign key hashes against a live PostgreSQL", "LAB_TEST_POSTGRES_DSN")];

/// Runs the suites.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    if let Some(area) = &args.mutants {
        return mutants::run(area);
    }
    let missing = report_suites();
    if let Some(server) = args.require.iter().find(|server| missing.contains(server)) {
        return Err(Failure::Precondition.because(format!("{server:?} is required, but its suites cannot run here")));
    }
    // The end-to-end suites start the built programs, so these come first.
    must(&mut cargo(&["build", "--locked", "-p", "pim-lab", "--examples"]))?;
    if let Some(kills) = args.crash {
        let mut test = cargo(&["test", "--locked", "-p", "pim-testkit", "--test", "it", "--", "--nocapture", "crash"]);
        return must(test.env("LAB_TEST_CRASH_KILLS", kills.to_string()));
    }
    let mut test = cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
    if let Some(filter) = &args.filter {
        test.arg("--").arg(filter);
    }
    must(&mut test)
}

fn report_suites() -> Vec<Server> {
    let mut missing = Vec::new();
    for (server, suite, variable) in SUITES {
        if std::env::var_os(variable).is_none() {
            eprintln!("not run: {suite}: {variable} is not set");
            missing.push(*server);
        }
    }
    missing
}
