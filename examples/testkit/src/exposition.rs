//! A strict reader of `/metrics`: OpenMetrics 1.0.0 and the text format 0.0.4, each refused for what a scraper may refuse it for.

mod line;
mod rules;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};

/// A form of exposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// OpenMetrics 1.0.0.
    Open,
    /// The text format 0.0.4.
    Plain,
}

/// One metric with everything that was shown of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Its name; in plain text a counter's has `_total` behind it.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Its unit, where one was told.
    pub unit: Option<String>,
    /// Its samples, in order.
    pub samples: Vec<Sample>,
}

/// One line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The family's name with the suffix of the sample.
    pub name: String,
    /// Its labels, in order.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
    /// Its example, if it has one.
    pub example: Option<Example>,
}

/// What a sample names as an instance of what it counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// What was observed.
    pub value: f64,
    /// When, in seconds.
    pub at: Option<f64>,
}

impl Sample {
    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Every example of an exposition, with its sample.
pub fn examples(families: &[Family]) -> impl Iterator<Item = (&Sample, &Example)> {
    let samples = families.iter().flat_map(|family| &family.samples);
    samples.filter_map(|sample| Some((sample, sample.example.as_ref()?)))
}

/// Reads an exposition.
///
/// # Errors
/// When it breaks a rule of its form: says which, with the line.
pub fn read(text: &str, form: Form) -> Result<Vec<Family>> {
    ensure!(text.ends_with('\n') && !text.contains('\r'), "every line ends with a line feed alone");
    let body = match form {
        Form::Open => text.strip_suffix("# EOF\n").context("the last line is no end mark")?,
        Form::Plain => text,
    };
    let (mut families, mut names): (Vec<Family>, _) = (Vec::new(), BTreeSet::new());
    let mut told = Told::default();
    for (number, line) in body.lines().enumerate() {
        let mut read = || -> Result<()> {
            if let Some(comment) = line.strip_prefix("# ") {
                return told.comment(comment, form, &mut families, &mut names);
            }
            let sample = line::sample(line)?;
            let family = families.last_mut().context("a sample before any family")?;
            ensure!(form == Form::Open || sample.example.is_none(), "an example in a form that knows none");
            rules::belongs(&sample, family, form)?;
            family.samples.push(sample);
            Ok(())
        };
        read().with_context(|| format!("line {}: {line}", number + 1))?;
    }
    for family in &families {
        rules::check(family).with_context(|| format!("family {}", family.name))?;
    }
    Ok(families)
}

/// What was told of the family that the current lines belong to.
#[derive(Default)]
struct Told(BTreeSet<&'static str>);

impl Told {
    fn comment(
        &mut self,
        comment: &str,
        form: Form,
        families: &mut Vec<Family>,
        names: &mut BTreeSet<String>,
    ) -> Result<()> {
        let mut parts = comment.splitn(3, ' ');
        let (Some(what), Some(name), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            bail!("neither help nor type nor unit");
        };
        let what = match (what, form) {
            ("HELP", _) => "HELP",
            ("TYPE", _) => "TYPE",
            ("UNIT", Form::Open) => "UNIT",
            _ => bail!("a comment that this form does not know"),
        };
        line::metric_name(name)?;
        if families.last().is_none_or(|family| family.name != name) {
            ensure!(names.insert(name.to_owned()), "the family was shown before");
            self.0.clear();
            families.push(Family { name: name.to_owned(), kind: String::new(), unit: None, samples: Vec::new() });
        }
        ensure!(self.0.insert(what), "told twice");
        let family = families.last_mut().context("a family was just put there")?;
        ensure!(family.samples.is_empty(), "told behind a sample");
        match what {
            "TYPE" => {
                ensure!(matches!(rest, "counter" | "gauge" | "histogram"), "a type that we do not have");
                rest.clone_into(&mut family.kind);
            }
            "UNIT" => {
                ensure!(!rest.is_empty() && name.ends_with(&format!("_{rest}")), "the name does not end in the unit");
                family.unit = Some(rest.to_owned());
            }
            _ => line::help(rest)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
