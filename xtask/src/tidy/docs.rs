//! Documents: lengths, the index of decisions, alerts and their runbooks, links that resolve.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Finding;

const ARCHITECTURE_LINES_MAX: usize = 300;

/// Checks every document that git knows.
pub(super) fn check(root: &Path, files: &[PathBuf], findings: &mut Vec<Finding>) -> Result<()> {
    let architecture = read(root, "ARCHITECTURE.md")?;
    let lines = architecture.lines().count();
    if lines > ARCHITECTURE_LINES_MAX {
        let rule = format!("has {lines} lines, at most {ARCHITECTURE_LINES_MAX}");
        findings.push(Finding::new("ARCHITECTURE.md", rule));
    }
    check_decisions(root, files, findings)?;
    for file in files.iter().filter(|file| file.extension().is_some_and(|ext| ext == "md")) {
        let text = read(root, file)?;
        check_links(root, file, &text, findings);
    }
    Ok(())
}

fn check_decisions(root: &Path, files: &[PathBuf], findings: &mut Vec<Finding>) -> Result<()> {
    let index = read(root, "docs/adr/README.md")?;
    for file in files.iter().filter(|file| file.starts_with("docs/adr") && !file.ends_with("README.md")) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if !index.contains(name.as_ref()) {
            findings.push(Finding::new("docs/adr/README.md", format!("does not list {name}")));
        }
    }
    Ok(())
}

fn check_links(root: &Path, file: &Path, text: &str, findings: &mut Vec<Finding>) {
    let folder = root.join(file.parent().unwrap_or(Path::new("")));
    for (number, line) in text.lines().enumerate() {
        for link in links_of(line) {
            let path = link.split('#').next().unwrap_or_default();
            let outside = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
            // rustdoc checks what it resolves itself: paths of items in the crates' READMEs.
            if outside || path.contains("::") || !path.contains(['.', '/']) {
                continue;
            }
            if !folder.join(path).exists() {
                let place = format!("{}:{}", file.display(), number + 1);
                findings.push(Finding::new(place, format!("links to {path}, which is not there")));
            }
        }
    }
}

fn links_of(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

fn read(root: &Path, file: impl AsRef<Path>) -> Result<String> {
    let file = file.as_ref();
    std::fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {}", file.display()))
}
