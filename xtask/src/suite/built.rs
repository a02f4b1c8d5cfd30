//! The programs that cargo makes of tests. Suites run these instead of asking cargo again: each other choice of packages and
//! features would build most dependencies anew.

use std::num::NonZero;
use std::process::{Command, Stdio};
use std::{env, thread};

use anyhow::{Context as _, Result};

use crate::artifacts::Artifact;
use crate::lab::programs::{BUILD_VARIABLE, NEVER};
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

    /// Refuses tests that there are none of: who runs no test of that name has shown nothing, and libtest says that all went well.
    pub(super) fn has(&self, package: &str, arguments: &[&str]) -> Result<()> {
        let listed = |it: &Artifact| {
            let mut list = Command::new(&it.path);
            list.current_dir(&it.folder).arg("--list").args(arguments).stderr(Stdio::null());
            let output = list.output().with_context(|| format!("cannot run {}", it.path.display()))?;
            Ok(tests_in(&String::from_utf8_lossy(&output.stdout)))
        };
        let numbers: Vec<usize> = self.of_package(package).map(listed).collect::<Result<_>>()?;
        anyhow::ensure!(numbers.iter().sum::<usize>() > 0, "no test of {package} is run by {}", arguments.join(" "));
        Ok(())
    }

    fn of_package<'a>(&'a self, package: &'a str) -> impl Iterator<Item = &'a Artifact> {
        self.0.iter().filter(move |it| it.is_test && it.folder.ends_with(package))
    }

    /// Runs the tests of a package, each program of it even when one before it failed.
    pub(super) fn run(&self, package: &str, arguments: &[&str], setting: Option<(&str, String)>) -> Result<()> {
        let run = |it: &Artifact| {
            let mut program = Command::new(&it.path);
            // Where cargo would run them.
            program.current_dir(&it.folder).args(arguments).envs(setting.clone()).envs(threads());
            must(program.env(BUILD_VARIABLE, NEVER))
        };
        let outcomes: Vec<_> = self.of_package(package).map(run).collect();
        anyhow::ensure!(!outcomes.is_empty(), "no tests of {package} were built");
        outcomes.into_iter().collect()
    }
}

/// How many tests a program says that it has.
fn tests_in(list: &str) -> usize {
    list.lines().filter(|line| line.ends_with(": test")).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_name_that_no_test_has_is_refused() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let path = env::current_exe().expect("this test's program");
        let built = Built(vec![Artifact { path, folder, is_test: true }]);
        built.has("xtask", &["--nocapture", "a_name_that_no_test_has"]).expect("this test");
        let refused = built.has("xtask", &["--ignored", "failovers_under_lode"]).expect_err("a slip of the pen");
        assert_eq!(refused.to_string(), "no test of xtask is run by --ignored failovers_under_lode");
        assert!(built.has("pim-data", &[]).is_err(), "nothing of it was built");
    }
}
