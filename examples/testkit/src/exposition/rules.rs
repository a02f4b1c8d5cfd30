//! What holds between the lines of a family.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Family, Form, Sample};

/// Whether a sample may stand below its family.
pub(super) fn belongs(sample: &Sample, family: &Family, form: Form) -> Result<()> {
    let suffixes: &[&str] = match (family.kind.as_str(), form) {
        ("counter", Form::Open) => &["_total"],
        ("counter", Form::Plain) | ("gauge", _) => &[""],
        ("histogram", _) => &["_bucket", "_sum", "_count"],
        _ => bail!("a sample of a family without a type"),
    };
    let suffix = sample.name.strip_prefix(family.name.as_str()).context("a sample of another family")?;
    ensure!(suffixes.contains(&suffix), "a sample of another family, or of another kind");
    let is_counter = family.kind == "counter" || suffix == "_bucket" || suffix == "_count";
    ensure!(!is_counter || (sample.value.is_finite() && sample.value >= 0.0), "a count below zero, or none");
    ensure!((suffix == "_bucket") == sample.label("le").is_some(), "only buckets have a bound, and each has one");
    let may_have_one = matches!(suffix, "_bucket" | "_total");
    ensure!(may_have_one || sample.example.is_none(), "an example where none may be");
    Ok(())
}

/// The rules over all samples of a family.
pub(super) fn check(family: &Family) -> Result<()> {
    ensure!(!family.kind.is_empty(), "it has no type");
    let mut seen = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        labels.sort();
        ensure!(seen.insert((sample.name.clone(), labels), ()).is_none(), "a series twice: {sample:?}");
    }
    if family.kind == "histogram" {
        let mut by_labels: BTreeMap<Vec<(String, String)>, Vec<&Sample>> = BTreeMap::new();
        for sample in &family.samples {
            let labels = sample.labels.iter().filter(|(name, _)| name != "le").cloned().collect();
            by_labels.entry(labels).or_default().push(sample);
        }
        for (labels, samples) in by_labels {
            histogram(&samples).with_context(|| format!("of {labels:?}"))?;
        }
    }
    Ok(())
}

/// Buckets rise, in bounds and in counts, to one without bound that counts all; an example lies within its bucket.
fn histogram(samples: &[&Sample]) -> Result<()> {
    let (mut bound, mut counted) = (f64::NEG_INFINITY, 0.0);
    for bucket in samples.iter().filter(|sample| sample.name.ends_with("_bucket")) {
        let text = bucket.label("le").context("a bucket without a bound")?;
        let le = if text == "+Inf" { f64::INFINITY } else { text.parse().context("a bound that is no number")? };
        ensure!(le > bound && bucket.value >= counted, "buckets do not rise at {text}");
        if let Some(example) = &bucket.example {
            ensure!(example.value > bound && example.value <= le, "an example outside of its bucket {text}");
            ensure!(bucket.value > counted, "an example of a bucket that counted nothing: {text}");
        }
        (bound, counted) = (le, bucket.value);
    }
    ensure!(bound.is_infinite(), "no bucket without bound");
    let one = |suffix: &str| samples.iter().find(|sample| sample.name.ends_with(suffix)).map(|sample| sample.value);
    ensure!(one("_count") == Some(counted), "the count is not that of the last bucket");
    let sum = one("_sum").context("no sum")?;
    ensure!(sum.is_finite() && (counted > 0.0 || sum == 0.0), "a sum of nothing");
    Ok(())
}
