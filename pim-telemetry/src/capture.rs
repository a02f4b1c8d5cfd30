//! Holding a live exposition to the catalogs: names and labels that nobody declared.

use std::collections::BTreeSet;

use pim_core::signal::{Catalog, Descriptor, Kind};

/// Every name, label and label value of an OpenMetrics text that no catalog declares. Empty when all is as it should be.
#[must_use]
pub fn undeclared(exposition: &str, catalogs: &[&Catalog]) -> BTreeSet<String> {
    let declared: Vec<&Descriptor> = catalogs.iter().flat_map(|catalog| catalog.descriptors.iter().copied()).collect();
    let mut found = BTreeSet::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let sample = line.split(" # ").next().unwrap_or(line);
        let name = sample.split(['{', ' ']).next().unwrap_or_default();
        let Some(signal) = declared.iter().find(|signal| names(signal, name)) else {
            found.insert(name.to_owned());
            continue;
        };
        for (label, value) in labels(sample) {
            if label == "le" && signal.kind == Kind::Histogram {
                continue;
            }
            let known = signal.labels.iter().find(|known| known.name == label);
            if !known.is_some_and(|known| known.values.contains(&value)) {
                found.insert(format!("{}{{{label}=\"{value}\"}}", signal.name));
            }
        }
    }
    found
}

fn names(signal: &Descriptor, name: &str) -> bool {
    let suffixes: &[&str] = match signal.kind {
        Kind::Counter => &["_total"],
        Kind::Gauge => &[""],
        Kind::Histogram => &["_bucket", "_sum", "_count"],
    };
    suffixes
        .iter()
        .any(|suffix| name.strip_suffix(suffix) == Some(signal.name) || (suffix.is_empty() && name == signal.name))
}

fn labels(sample: &str) -> impl Iterator<Item = (&str, &str)> {
    let inside = sample.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
    // Values here hold braces of route templates but never a quote, so a quote and comma end a pair.
    inside.split("\",").filter_map(|pair| {
        let (label, value) = pair.split_once("=\"")?;
        Some((label, value.trim_end_matches('"')))
    })
}
