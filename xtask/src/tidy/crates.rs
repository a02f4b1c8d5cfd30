//! The crate graph: who may know whom, and that every crate has opted in to the lints.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;
use crate::shell::{cargo, output_of, root};

/// What each package of ours may depend on, outside its own tests.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("pim-core", &[]),
    ("pim-data", &["pim-core"]),
    ("pim-events", &["pim-core", "pim-data"]),
    ("pim-telemetry", &["pim-core"]),
    ("pim-lab", &["pim-core", "pim-data", "pim-events", "pim-telemetry"]),
    ("pim-lending", &["pim-core", "pim-data", "pim-events", "pim-telemetry"]),
    ("pim-servers", &[]),
    ("pim-testkit", &["pim-core", "pim-data", "pim-events", "pim-telemetry", "pim-lab", "pim-servers"]),
    ("xtask", &["pim-servers"]),
];
const FEATURES_MAX: usize = 6;

/// Checks every package of the workspace.
pub(super) fn check(findings: &mut Vec<Finding>) -> Result<()> {
    let text = output_of(&mut cargo(&["metadata", "--no-deps", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata is no JSON")?;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        check_package(package, findings)?;
    }
    Ok(())
}

fn check_package(package: &Value, findings: &mut Vec<Finding>) -> Result<()> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some((_, allowed)) = MAY_KNOW.iter().find(|(known, _)| *known == name) else {
        findings.push(Finding::new(name, "is not in the crate graph of xtask/src/tidy/crates.rs"));
        return Ok(());
    };
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        let other = dependency["name"].as_str().unwrap_or_default();
        let ours = dependency["path"].is_string();
        let for_tests = dependency["kind"].as_str() == Some("dev");
        if ours && !for_tests && !allowed.contains(&other) {
            findings.push(Finding::new(name, format!("may not know {other}")));
        }
    }
    let features = package["features"].as_object().map_or(0, serde_json::Map::len);
    if features > FEATURES_MAX {
        findings.push(Finding::new(name, format!("has {features} features, at most {FEATURES_MAX}")));
    }
    let manifest = package["manifest_path"].as_str().unwrap_or_default();
    let text = std::fs::read_to_string(manifest).with_context(|| format!("cannot read {manifest}"))?;
    let table: toml::Table = text.parse().with_context(|| format!("{manifest} is no TOML"))?;
    let opted_in = table.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
    if opted_in != Some(true) {
        let place = manifest.strip_prefix(&root().display().to_string()).unwrap_or(manifest);
        findings.push(Finding::new(place.trim_start_matches('/'), "does not opt in to the workspace's lints"));
    }
    Ok(())
}
