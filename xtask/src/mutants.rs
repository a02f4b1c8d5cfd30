//! Source patches that remove one guard each; a named test must go red for every one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::exit::Failure;
use crate::shell::{cargo, must, root, target_dir};

/// One mutant: which line to change, and which test must notice.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    area: String,
    file: PathBuf,
    find: String,
    replace: String,
    package: String,
    test: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    mutant: Vec<Mutant>,
}

/// Applies the mutants of an area one after the other and prints the table.
pub(crate) fn run(area: &str) -> Result<()> {
    let file = root().join("examples/testkit/mutants.toml");
    let text = std::fs::read_to_string(&file).context("cannot read examples/testkit/mutants.toml")?;
    let catalogue: Catalogue = toml::from_str(&text).context("examples/testkit/mutants.toml")?;
    let chosen: Vec<_> = catalogue.mutant.iter().filter(|mutant| area == "all" || mutant.area == area).collect();
    if chosen.is_empty() {
        return Err(Failure::Usage.because(format!("no mutant belongs to the area `{area}`")));
    }
    let scratch = target_dir().join("mutants");
    let worktree = Worktree::add(&scratch)?;
    let mut survivors = 0;
    println!("{:<44} {:<58} verdict", "mutant", "test");
    for mutant in chosen {
        let verdict = verdict_on(mutant, &worktree)?;
        survivors += usize::from(verdict != "caught");
        println!("{:<44} {:<58} {verdict}", mutant.name, mutant.test);
    }
    if survivors == 0 {
        return Ok(());
    }
    Err(Failure::Threshold.because(format!("{survivors} mutants were not caught")))
}

fn verdict_on(mutant: &Mutant, worktree: &Worktree) -> Result<&'static str> {
    let file = worktree.path.join(&mutant.file);
    let healthy = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", mutant.file.display()))?;
    if healthy.matches(&mutant.find).count() != 1 {
        return Ok("STALE: the patch does not fit the source any more");
    }
    if !passes(mutant, worktree)? {
        return Ok("RED WITHOUT THE MUTANT");
    }
    std::fs::write(&file, healthy.replace(&mutant.find, &mutant.replace))?;
    let compiles = test_of(mutant, worktree).arg("--no-run").status()?.success();
    let survived = compiles && passes(mutant, worktree)?;
    std::fs::write(&file, healthy)?;
    Ok(match (compiles, survived) {
        (false, _) => "STALE: the mutant does not compile",
        (true, true) => "SURVIVED",
        (true, false) => "caught",
    })
}

/// Whether the named test ran and passed; a test that does not exist has not passed.
fn passes(mutant: &Mutant, worktree: &Worktree) -> Result<bool> {
    let mut command = test_of(mutant, worktree);
    let output = command.args(["--", "--exact", &mutant.test]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && text.contains(&format!("test {} ... ok", mutant.test)))
}

fn test_of(mutant: &Mutant, worktree: &Worktree) -> Command {
    let mut command = cargo(&["test", "--locked", "-p", &mutant.package, "--tests", "--lib"]);
    command.args(["--no-fail-fast"]);
    command.current_dir(&worktree.path);
    // A directory of its own, so that a mutant's build never replaces a healthy program.
    command.env("CARGO_TARGET_DIR", worktree.path.with_extension("target"));
    command.stderr(std::process::Stdio::null());
    command.env("RUST_TEST_THREADS", "2");
    command
}

/// A scratch checkout of HEAD that goes away with the value.
struct Worktree {
    path: PathBuf,
}

impl Worktree {
    fn add(path: &Path) -> Result<Self> {
        let path = path.to_path_buf();
        let _stale = git(&["worktree", "remove", "--force"], &path).output();
        must(git(&["worktree", "add", "--detach", "--force"], &path).arg("HEAD"))?;
        Ok(Self { path })
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        let _gone = git(&["worktree", "remove", "--force"], &self.path).output();
    }
}

fn git(args: &[&str], path: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(root()).args(args).arg(path);
    command
}
