//! The programs that cargo makes of tests. Suites run these instead of asking cargo again: each other choice of packages and
//! features would build most dependencies anew.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, thread};

use anyhow::{Context as _, Result};

use crate::artifacts::Artifact;
use crate::lab::programs::{BUILD_VARIABLE, NEVER};
use crate::shell::{cargo, must, output_of};

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
        let number = self.number_of(package, arguments)?;
        anyhow::ensure!(number > 0, "no test of {package} is run by {}", arguments.join(" "));
        Ok(())
    }

    /// How many tests of a package these arguments choose.
    pub(super) fn number_of(&self, package: &str, arguments: &[&str]) -> Result<usize> {
        self.of_package(package).map(|it| listed_by(it, arguments)).sum()
    }

    /// The tests that these arguments have its programs run, of one package or all, each with the folder of its package.
    pub(super) fn chosen(&self, package: Option<&str>, arguments: &[&str]) -> Result<BTreeSet<Test>> {
        let mut chosen = BTreeSet::new();
        for program in self.0.iter().filter(|it| it.is_test && package.is_none_or(|name| it.folder.ends_with(name))) {
            let mut names: BTreeSet<_> = names_in(&list_of(program, arguments)?).collect();
            if !arguments.contains(&"--ignored") {
                // They are listed, and not run.
                let ignored = list_of(program, &[&["--ignored"], arguments].concat())?;
                let ignored: BTreeSet<_> = names_in(&ignored).collect();
                names.retain(|name| !ignored.contains(name));
            }
            chosen.extend(names.into_iter().map(|name| (program.folder.clone(), name)));
        }
        Ok(chosen)
    }

    /// Whether any program has a test of this name that it runs without being asked for more.
    pub(super) fn has_any(&self, name: &str) -> Result<bool> {
        for program in self.0.iter().filter(|it| it.is_test) {
            if listed_by(program, &[name])? > listed_by(program, &["--ignored", name])? {
                return Ok(true);
            }
        }
        Ok(false)
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

/// Whether an example in the documentation has this in its name, which is its place.
pub(super) fn is_of_docs(name: &str) -> Result<bool> {
    let told = output_of(cargo(&["test", "--locked", "--workspace", "--doc", "--", "--list"]).arg(name))?;
    Ok(tests_in(&told) > 0)
}

/// A test by the folder of its package and its path within.
pub(super) type Test = (PathBuf, String);

/// How many of its tests a program says that these arguments choose.
fn listed_by(program: &Artifact, arguments: &[&str]) -> Result<usize> {
    Ok(tests_in(&list_of(program, arguments)?))
}

/// What a program says that these arguments choose.
fn list_of(program: &Artifact, arguments: &[&str]) -> Result<String> {
    let mut list = Command::new(&program.path);
    list.current_dir(&program.folder).arg("--list").args(arguments).stderr(Stdio::null());
    let output = list.output().with_context(|| format!("cannot run {}", program.path.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many tests a program says that it has.
fn tests_in(list: &str) -> usize {
    names_in(list).count()
}

fn names_in(list: &str) -> impl Iterator<Item = String> {
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Run, SUITES};
    use super::*;
    use crate::exit::Failure;

    /// One with this test.
    pub(in super::super) fn this_program() -> Built {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let path = env::current_exe().expect("this test's program");
        Built(vec![Artifact { path, folder, is_test: true }])
    }

    /// Guard: whoever asks for tests that there are none of is not told that all went well.
    #[test]
    fn and_so_is_a_whole_run_of_it() {
        let built = this_program();
        let told = |there, name: &str, is_of_docs| {
            let run = Run { there, is_container_required: false, filter: Some(name) };
            run.refuse_unknown(name, &built, None, |_| Ok(is_of_docs))
        };
        told(Vec::new(), "and_so_is_a_whole_run_of_it", false).expect("this test");
        told(Vec::new(), "pim-core/src/lib.rs", true).expect("an example of the documentation");
        let ignored = "what_programs_have_to_know_is_said";
        let refused = told(Vec::new(), ignored, false).expect_err("no suite runs it here");
        assert!(Failure::Usage.is(&refused) && refused.to_string().contains(ignored), "{refused}");
        told(SUITES.iter().filter(|suite| suite.package == "xtask").collect(), ignored, false).expect("its suite");
    }

    #[test]
    fn a_name_that_no_test_has_is_refused() {
        let built = this_program();
        built.has("xtask", &["--nocapture", "a_name_that_no_test_has"]).expect("this test");
        let refused = built.has("xtask", &["--ignored", "failovers_under_lode"]).expect_err("a slip of the pen");
        assert_eq!(refused.to_string(), "no test of xtask is run by --ignored failovers_under_lode");
        assert!(built.has("pim-data", &[]).is_err(), "nothing of it was built");
        assert!(built.has_any("a_name_that_no_test_has").expect("lists"), "this test");
        assert!(!built.has_any("failovers_under_lode").expect("lists"));
        let ignored = "what_programs_have_to_know_is_said";
        built.has("xtask", &["--ignored", ignored]).expect("is one that needs servers");
        assert!(!built.has_any(ignored).expect("lists"), "it does not run by itself");
    }
}
