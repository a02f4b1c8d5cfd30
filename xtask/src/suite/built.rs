//! The programs that cargo makes of tests. Suites run these instead of asking cargo again: each other choice of packages and
//! features would build most dependencies anew.

use std::num::NonZero;
use std::process::Command;
use std::{env, thread};

use anyhow::Result;

use crate::artifacts::Artifact;
use crate::shell::must;

/// What keeps its rows on servers, and what starts these.
const ON_SERVERS: [&str; 6] = ["pim-servers", "pim-data", "pim-events", "pim-lab", "pim-lending", "pim-testkit"];

/// How programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// As quickly as can be: what tests are built with, also where `cargo build` builds them.
    Test,
    /// As who runs a program builds it: what a harness tries for many minutes.
    Dev,
    /// With optimisations.
    Release,
}

/// How many tests run at a time, unless whoever starts them has said so: most wait for servers, and leave half of a core idle.
pub(super) fn threads() -> Option<(&'static str, String)> {
    const VARIABLE: &str = "RUST_TEST_THREADS";
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    env::var_os(VARIABLE).is_none().then(|| (VARIABLE, (2 * cores).to_string()))
}

/// Programs of one choice of features. The examples of the last such build are those that tests start.
#[derive(Debug)]
pub(super) struct Built(Vec<Artifact>);

impl Built {
    /// Builds the tests of the whole workspace, and all examples.
    pub(super) fn of_workspace(profile: Profile) -> Result<Self> {
        Self::build(&["test", "--no-run", "--workspace"], profile)
    }

    /// Builds the tests that need servers, and the lab's programs with all their features.
    pub(super) fn on_servers(profile: Profile) -> Result<Self> {
        // `cargo test` with a choice of targets would make tests of the examples too, and no programs.
        let packages = ON_SERVERS.iter().flat_map(|package| ["-p", package]);
        let build = ["build", "--all-features", "--tests", "--examples"];
        Self::build(&build.into_iter().chain(packages).collect::<Vec<_>>(), profile)
    }

    fn build(arguments: &[&str], profile: Profile) -> Result<Self> {
        let profile: &[&str] = match profile {
            Profile::Test => &["--profile", "test"],
            Profile::Dev => &["--profile", "dev"],
            Profile::Release => &["--release"],
        };
        let built = Artifact::build(&[arguments, profile].concat())?;
        Artifact::example(&built, "services")?;
        Ok(Self(built))
    }

    /// Runs the tests of a package, each program of it even when one before it failed.
    pub(super) fn run(&self, package: &str, arguments: &[&str], setting: Option<(&str, String)>) -> Result<()> {
        let of_package = self.0.iter().filter(|it| it.is_test && it.folder.ends_with(package));
        let run = |it: &Artifact| {
            // Where cargo would run them.
            must(Command::new(&it.path).current_dir(&it.folder).args(arguments).envs(setting.clone()).envs(threads()))
        };
        let outcomes: Vec<_> = of_package.map(run).collect();
        anyhow::ensure!(!outcomes.is_empty(), "no tests of {package} were built");
        outcomes.into_iter().collect()
    }
}
