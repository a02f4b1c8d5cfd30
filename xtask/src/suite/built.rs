//! The programs that cargo makes of tests. Suites run these instead of asking cargo again: each other choice of packages and
//! features would build most dependencies anew.

use std::process::Command;

use anyhow::Result;

use crate::artifacts::Artifact;
use crate::shell::must;

/// What keeps its rows on servers, and what starts these.
const ON_SERVERS: [&str; 6] = ["pim-servers", "pim-data", "pim-events", "pim-lab", "pim-lending", "pim-testkit"];

/// How programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// Quickly.
    Dev,
    /// With optimisations.
    Release,
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
        let profile: &[&str] = if profile == Profile::Release { &["--release"] } else { &[] };
        let built = Artifact::build(&[arguments, profile].concat())?;
        Artifact::example(&built, "services")?;
        Ok(Self(built))
    }

    /// Runs the tests of a package, each program of it even when one before it failed.
    pub(super) fn run(&self, package: &str, arguments: &[&str], setting: Option<(&str, String)>) -> Result<()> {
        let of_package = self.0.iter().filter(|it| it.is_test && it.folder.ends_with(package));
        let run = |it: &Artifact| {
            // Where cargo would run them.
            must(Command::new(&it.path).current_dir(&it.folder).args(arguments).envs(setting.clone()))
        };
        let outcomes: Vec<_> = of_package.map(run).collect();
        anyhow::ensure!(!outcomes.is_empty(), "no tests of {package} were built");
        outcomes.into_iter().collect()
    }
}
