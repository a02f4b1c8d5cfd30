//! The rules of the repository as checks: budgets, docs, names, the crate graph, the index of decisions, patches that fit.

mod crates;
mod docs;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::exit::Failure;
use crate::mutants;
use crate::shell::{output_of, root};

/// One broken rule, with its place and the fix.
#[derive(Debug)]
pub(crate) struct Finding {
    place: String,
    rule: String,
}

impl Finding {
    pub(crate) fn new(place: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { place: place.into(), rule: rule.into() }
    }
}

/// Runs every check and prints every finding.
pub(crate) fn run() -> Result<()> {
    let root = root();
    let files = tracked(&root)?;
    let mut findings = Vec::new();
    let mut lengths = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|ext| ext == "rs")) {
        let text =
            std::fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        lengths.extend(source::check(file, &text, &mut findings));
    }
    source::check_median(&mut lengths, &mut findings);
    crates::check(&mut findings)?;
    docs::check(&root, &files, &mut findings)?;
    let sources: Vec<_> =
        files.into_iter().filter(|file| file.extension().is_some_and(|ext| ext == "rs" || ext == "sql")).collect();
    findings.extend(mutants::unfit(&sources)?.into_iter().map(|rule| Finding::new(mutants::CATALOGUE, rule)));
    for finding in &findings {
        println!("{}: {}", finding.place, finding.rule);
    }
    if findings.is_empty() {
        println!("tidy: {} source files, no finding", lengths.len());
        return Ok(());
    }
    Err(Failure::Threshold.because(format!("tidy: {} findings", findings.len())))
}

fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = std::process::Command::new("git");
    let listed = output_of(git.current_dir(root).args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    Ok(listed.lines().map(PathBuf::from).filter(|file| root.join(file).is_file()).collect())
}
