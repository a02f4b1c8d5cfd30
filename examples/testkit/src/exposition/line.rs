//! One line: names, quoted labels, values.

use anyhow::{Context as _, Result, bail, ensure};

use super::{Example, Sample};

/// Characters that the names and values of an example's labels may have together.
const EXAMPLE_CHARS_MAX: usize = 128;

/// A metric's name.
pub(super) fn metric_name(name: &str) -> Result<()> {
    let is_first = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | ':');
    let is_legal = name.starts_with(is_first) && name.chars().all(|c| is_first(c) || c.is_ascii_digit());
    ensure!(is_legal, "`{name}` is no name of a metric");
    Ok(())
}

fn label_name(name: &str) -> Result<()> {
    ensure!(!name.contains(':') && !name.starts_with("__"), "`{name}` is no name of a label");
    metric_name(name)
}

/// A help text: a backslash begins an escape.
pub(super) fn help(text: &str) -> Result<()> {
    unescaped(text).map(drop)
}

fn unescaped(text: &str) -> Result<String> {
    let (mut plain, mut chars) = (String::new(), text.chars());
    while let Some(next) = chars.next() {
        plain.push(match next {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(known @ ('\\' | '"')) => known,
                _ => bail!("an escape that there is not"),
            },
            other => other,
        });
    }
    Ok(plain)
}

/// A value: what Rust reads is a superset of what is legal, but for the names of infinity.
fn number(text: &str) -> Result<f64> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        _ => {
            let is_plain = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
            ensure!(is_plain, "`{text}` is no number");
            text.parse().with_context(|| format!("`{text}` is no number"))
        }
    }
}

/// A sample with its example.
pub(super) fn sample(line: &str) -> Result<Sample> {
    let name_end = line.find(['{', ' ']).context("a name without a value")?;
    let (name, rest) = line.split_at(name_end);
    metric_name(name)?;
    let (labels, rest) = labels(rest)?;
    let rest = rest.strip_prefix(' ').context("one space before the value")?;
    let (value, example) = match rest.split_once(" # ") {
        Some((value, text)) => (value, Some(example(text)?)),
        None => (rest, None),
    };
    // None of ours has a time of its own, so whatever follows the value is too much.
    Ok(Sample { name: name.to_owned(), labels, value: number(value)?, example })
}

fn example(text: &str) -> Result<Example> {
    ensure!(text.starts_with('{'), "an example begins with its labels");
    let (labels, rest) = labels(text)?;
    let chars: usize = labels.iter().map(|(name, value)| name.chars().count() + value.chars().count()).sum();
    ensure!(chars <= EXAMPLE_CHARS_MAX, "the labels of an example have {chars} characters");
    let rest = rest.strip_prefix(' ').context("one space before the value")?;
    let (value, at) = match rest.split_once(' ') {
        Some((value, at)) => (number(value)?, Some(number(at)?)),
        None => (number(rest)?, None),
    };
    ensure!(at.is_none_or(|at| at.is_finite() && at > 0.0), "the time of an example is none");
    Ok(Example { labels, value, at })
}

type Labels = Vec<(String, String)>;

/// The labels that a text begins with, if it does, and what follows.
fn labels(text: &str) -> Result<(Labels, &str)> {
    let Some(mut rest) = text.strip_prefix('{') else { return Ok((Vec::new(), text)) };
    let mut labels: Labels = Vec::new();
    if let Some(rest) = rest.strip_prefix('}') {
        return Ok((labels, rest));
    }
    loop {
        let (name, quoted) = rest.split_once("=\"").context("a label without a quoted value")?;
        label_name(name)?;
        ensure!(labels.iter().all(|(known, _)| known != name), "label `{name}` twice");
        let mut is_escaped = false;
        let end = quoted.bytes().position(|byte| {
            let ends = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            ends
        });
        let end = end.context("a quote without its end")?;
        labels.push((name.to_owned(), unescaped(&quoted[..end])?));
        rest = &quoted[end + 1..];
        match rest.split_at_checked(1) {
            Some((",", more)) => rest = more,
            Some(("}", more)) => return Ok((labels, more)),
            _ => bail!("labels without their end"),
        }
    }
}
