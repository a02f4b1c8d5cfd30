//! What a declaration must look like, so that whoever scrapes can read all of it (OpenMetrics 1.0, 5.1 and 5.2).

use super::{Descriptor, Kind, SignalError};

/// Endings that the exposition gives to names itself.
const SUFFIXES: &[&str] = &["_total", "_created", "_bucket", "_count", "_sum", "_info"];

/// One declaration out of form would cost a program the reading of all of its metrics.
pub(super) fn check(signal: &Descriptor) -> Result<(), SignalError> {
    let name = signal.name;
    if !is_word(name) || SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
        return Err(SignalError::Name { name });
    }
    for (at, label) in signal.labels.iter().enumerate() {
        let is_twice = signal.labels[..at].iter().any(|other| other.name == label.name);
        // Both are what a histogram or a summary names its own by.
        if !is_word(label.name) || matches!(label.name, "le" | "quantile") || is_twice {
            return Err(SignalError::LabelName { name, label: label.name });
        }
    }
    if signal.kind == Kind::Histogram && !are_bounds(signal.buckets) {
        return Err(SignalError::Buckets { name });
    }
    let stem = name.strip_suffix(signal.unit).and_then(|stem| stem.strip_suffix('_'));
    if !signal.unit.is_empty() && stem.is_none_or(str::is_empty) {
        return Err(SignalError::Unit { name, unit: signal.unit });
    }
    if signal.help.contains(['\n', '\r']) {
        return Err(SignalError::Help { name });
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().all(is_inner) && text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn are_bounds(buckets: &[f64]) -> bool {
    let rises = |pair: &[f64]| pair[0] < pair[1];
    !buckets.is_empty() && buckets.iter().all(|bound| bound.is_finite()) && buckets.windows(2).all(rises)
}
