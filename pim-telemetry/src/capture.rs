//! Holding a live exposition to the catalogs: names and labels that nobody declared.

use std::collections::BTreeSet;

use pim_core::signal::{Catalog, Descriptor, Kind};

use crate::exposition::{labels, split_example};

/// The one label of an example.
const EXAMPLE_LABEL: &str = "trace_id";

/// Every name, label and label value of an exposition, in either format, that no catalog declares; of an example, everything
/// but the id of a trace. Empty when all is as it should be.
#[must_use]
pub fn undeclared(exposition: &str, catalogs: &[&Catalog]) -> BTreeSet<String> {
    let declared: Vec<&Descriptor> = catalogs.iter().flat_map(|catalog| catalog.descriptors.iter().copied()).collect();
    let mut found = BTreeSet::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let (sample, example) = split_example(line);
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
        for (label, value) in example.into_iter().flat_map(labels) {
            if label != EXAMPLE_LABEL || !is_trace(value) {
                found.insert(format!("{} # {{{label}=\"{value}\"}}", signal.name));
            }
        }
    }
    found
}

fn is_trace(value: &str) -> bool {
    value.len() == 32 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
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
