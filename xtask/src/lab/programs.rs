//! The lab's programs: built when somebody needs them, unless whoever asks has seen to that.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::journal;
use crate::exit::Failure;
use crate::shell::{cargo, must, target_dir};

/// `never` takes the programs as they lie there. Suites say it: they have built everything once, and cargo would build it anew
/// with the features of one package.
pub(crate) const BUILD_VARIABLE: &str = "LAB_BUILD";
pub(crate) const NEVER: &str = "never";

const BUILD: [&str; 5] = ["build", "--quiet", "--locked", "-p", "pim-lab"];
const ON_SERVERS: [&str; 2] = ["--features", "postgres"];

/// Builds an example and says where it is.
pub(super) fn built(example: &str) -> Result<PathBuf> {
    let mut build = cargo(&BUILD);
    build.args(["--example", example]);
    if journal::process_folder().exists() {
        // As the lab that is running was built, so that nothing is built twice.
        build.args(ON_SERVERS);
    }
    run(&mut build, example, example)?;
    Ok(place_of(example))
}

/// Builds all of them, as those that keep their rows on servers.
pub(super) fn build_on_servers() -> Result<()> {
    run(cargo(&BUILD).arg("--examples").args(ON_SERVERS), "the programs", "services")
}

/// `services`, as it is built for servers.
pub(super) fn services_on_servers() -> Result<Command> {
    build_on_servers()?;
    let mut command = Command::new(place_of("services"));
    command.arg("--json");
    Ok(command)
}

fn place_of(example: &str) -> PathBuf {
    target_dir().join("debug/examples").join(example)
}

/// Builds, unless it is not to: then an example says for all of them whether somebody has.
fn run(build: &mut Command, what: &str, example: &str) -> Result<()> {
    match env::var(BUILD_VARIABLE).ok().as_deref() {
        None | Some("") => must(build).map_err(|error| refused(&format!("{what} cannot be built: {error:#}"))),
        Some(NEVER) if place_of(example).is_file() => Ok(()),
        Some(NEVER) => Err(refused(&format!("{} is not there", place_of(example).display()))),
        Some(other) => {
            Err(Failure::Usage.because(format!("{BUILD_VARIABLE} is {NEVER} or not set, and not {other:?}")))
        }
    }
}

fn refused(why: &str) -> anyhow::Error {
    Failure::Precondition.because(why.to_owned())
}
