//! The lab's programs: built when somebody needs them, unless whoever asks has seen to that.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::journal;
use crate::artifacts::Artifact;
use crate::exit::Failure;
use crate::shell::{is_target_dir_named, target_dir};

/// `never` takes the programs as they lie there. Suites say it: they have built everything once, and cargo would build it anew
/// with the features of one package.
pub(crate) const BUILD_VARIABLE: &str = "LAB_BUILD";
pub(crate) const NEVER: &str = "never";

const BUILD: [&str; 4] = ["build", "--quiet", "-p", "pim-lab"];
const ON_SERVERS: [&str; 2] = ["--features", "postgres"];

/// Builds an example and says where it is.
pub(super) fn built(example: &str) -> Result<PathBuf> {
    // As the lab that is running was built, so that nothing is built twice.
    let features = if journal::process_folder().exists() { &ON_SERVERS[..] } else { &[] };
    run(&[&BUILD[..], &["--example", example], features].concat(), example, example)
}

/// Builds all of them, as those that keep their rows on servers, and says in which folder they are.
pub(super) fn build_on_servers() -> Result<PathBuf> {
    let services = run(&[&BUILD[..], &["--examples"], &ON_SERVERS].concat(), "the programs", "services")?;
    Ok(services.parent().context("a program has a folder")?.to_path_buf())
}

/// `services`, as it is built for servers.
pub(super) fn services_on_servers() -> Result<Command> {
    let mut command = Command::new(build_on_servers()?.join("services"));
    command.arg("--json");
    Ok(command)
}

/// Builds, unless it is not to, and says where an example is: cargo alone knows, which has settings of its own for that.
fn run(build: &[&str], what: &str, example: &str) -> Result<PathBuf> {
    match env::var(BUILD_VARIABLE).ok().as_deref() {
        None | Some("") => {
            eprintln!("$ cargo {}", build.join(" "));
            let built = Artifact::build(build).and_then(|built| Ok(Artifact::example(&built, example)?.path.clone()));
            built.map_err(|error| refused(&format!("{what} cannot be built: {error:#}")))
        }
        Some(NEVER) => {
            let places: Vec<_> = folders().into_iter().map(|folder| folder.join(example)).collect();
            let shown: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
            let found = places.into_iter().find(|place| place.is_file());
            found.ok_or_else(|| refused(&format!("{} is not there", shown.join(", nor "))))
        }
        Some(other) => {
            Err(Failure::Usage.because(format!("{BUILD_VARIABLE} is {NEVER} or not set, and not {other:?}")))
        }
    }
}

/// Where examples lie that somebody has built: in the place that the environment names, which cargo itself heeds first, else
/// beside this program, as cargo's own settings may name another, else in the usual one.
fn folders() -> Vec<PathBuf> {
    let usual = target_dir().join("debug/examples");
    if is_target_dir_named() {
        return vec![usual];
    }
    let beside = env::current_exe().ok().and_then(|program| examples_beside(&program));
    beside.filter(|beside| *beside != usual).into_iter().chain([usual.clone()]).collect()
}

fn examples_beside(program: &Path) -> Option<PathBuf> {
    Some(program.parent()?.join("examples"))
}

fn refused(why: &str) -> anyhow::Error {
    Failure::Precondition.because(why.to_owned())
}
