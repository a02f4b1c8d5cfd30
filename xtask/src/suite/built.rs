//! The programs that cargo makes of tests. Suites run these instead of asking cargo again: each other choice of packages and
//! features would build most dependencies anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use serde_json::Value as Json;

use crate::shell::{cargo, must, output_of};

/// Everything that somebody needs who has no servers.
const WORKSPACE: &[&str] = &["--workspace"];
/// What keeps its rows on servers; its examples are the lab's programs, which suites start.
const ON_SERVERS: &[&str] = &[
    "-p",
    "pim-servers",
    "-p",
    "pim-data",
    "-p",
    "pim-events",
    "-p",
    "pim-lab",
    "-p",
    "pim-testkit",
    "--all-features",
    "--lib",
    "--test",
    "it",
    "--examples",
];

/// Programs of one choice of features.
#[derive(Debug)]
pub(super) struct Built(Vec<Program>);

#[derive(Debug, PartialEq, Eq)]
struct Program {
    /// The folder of its package, where its tests expect to run.
    folder: PathBuf,
    path: PathBuf,
}

impl Built {
    /// Builds the tests of the whole workspace, and all examples.
    pub(super) fn of_workspace() -> Result<Self> {
        Self::build(WORKSPACE)
    }

    /// Builds the tests that need servers, and the lab's programs with all their features.
    pub(super) fn on_servers() -> Result<Self> {
        Self::build(ON_SERVERS)
    }

    fn build(choice: &[&str]) -> Result<Self> {
        let mut build = cargo(&["test", "--locked", "--no-run", "--message-format", "json-render-diagnostics"]);
        let told = output_of(build.args(choice).stderr(Stdio::inherit()))?;
        Ok(Self(told.lines().filter_map(Program::told).collect()))
    }

    /// Runs the tests of a package, each program of it even when one before it failed.
    pub(super) fn run(&self, package: &str, arguments: &[&str], setting: Option<(&str, String)>) -> Result<()> {
        let of_package = self.0.iter().filter(|program| program.folder.ends_with(package));
        let outcomes: Vec<_> =
            of_package.map(|program| must(program.command(arguments).envs(setting.clone()))).collect();
        anyhow::ensure!(!outcomes.is_empty(), "nothing was built of {package}");
        outcomes.into_iter().collect()
    }
}

impl Program {
    /// Of a line that cargo writes about something that it has built.
    fn told(line: &str) -> Option<Self> {
        let told: Json = serde_json::from_str(line).ok()?;
        told["profile"]["test"].as_bool().filter(|is_test| *is_test)?;
        let folder = Path::new(told["manifest_path"].as_str()?).parent()?;
        Some(Self { folder: folder.to_path_buf(), path: told["executable"].as_str()?.into() })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).args(arguments);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_tests_are_told_from_everything_else() {
        let line = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/pim-data/Cargo.toml","profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let program = Program { folder: "/w/pim-data".into(), path: "/w/target/it-1".into() };
        assert_eq!(Program::told(&line(true, r#""/w/target/it-1""#)), Some(program));
        for other in
            [line(false, r#""/w/target/services""#), line(true, "null"), r#"{"reason":"build-finished"}"#.to_owned()]
        {
            assert_eq!(Program::told(&other), None, "{other}");
        }
    }
}
