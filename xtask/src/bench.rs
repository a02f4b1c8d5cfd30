//! `cargo xtask bench`: every side of a ratio measured in the same run, in release.

mod server;

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use self::server::BenchServer;
use crate::exit::Failure;
use crate::shell::{cargo, output_of};

/// Arguments of `cargo xtask bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Which area to measure; all of them when absent. `data` measures PostgreSQL too: on the server that
    /// `LAB_TEST_POSTGRES_DSN` names, a part of it only where that takes 400 connections, else on one that it starts.
    #[arg(value_parser = ["core", "data", "events", "edge"])]
    area: Option<String>,
    /// One JSON object a measure: name, ours, peer, ratio, spread, goal, holds.
    #[arg(long)]
    json: bool,
    /// Rows of the shard that has many, for what a request of pim-data costs there: a million unless told.
    #[arg(long, value_parser = clap::value_parser!(u64).range(5_000..))]
    rows: Option<u64>,
    /// Measures a part of `data` alone; those of files take no server.
    #[arg(long, value_name = "PART", requires = "area", value_parser = ["files", "files-growth", "server", "server-growth"])]
    only: Option<String>,
}

/// Packages with a `ratios` bench, which prints one JSON object a line.
const AREAS: &[(&str, &str)] =
    &[("core", "pim-core"), ("data", "pim-data"), ("events", "pim-events"), ("edge", "pim-lab")];

/// What has not gone well in the areas so far.
#[derive(Default)]
struct Shortfall {
    missed: usize,
    broken: Vec<String>,
    /// Why there is no server to measure on.
    absent: Option<String>,
}

/// Runs the benches of an area.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if args.only.is_some() && args.area.as_deref() != Some("data") {
        return Err(Failure::Usage.because("--only names a part of `data`: cargo xtask bench data --only PART"));
    }
    let ignores_rows = |part: &str| !part.ends_with("growth");
    if args.rows.is_some()
        && (args.area.as_deref().is_some_and(|area| area != "data") || args.only.as_deref().is_some_and(ignores_rows))
    {
        let sentence = "--rows is of the growth of `data`: cargo xtask bench data --only files-growth --rows ROWS";
        return Err(Failure::Usage.because(sentence));
    }
    let mut shortfall = Shortfall::default();
    for (area, package) in AREAS {
        if args.area.as_deref().is_some_and(|wanted| wanted != *area) {
            continue;
        }
        let mut bench = cargo(&["bench", "--locked", "--quiet", "-p", package, "--bench", "ratios"]);
        if *area != "data" {
            shortfall.measure(area, &mut bench, args.json)?;
        } else if let Some(server) = shortfall.server(args) {
            server.give(&mut bench);
            args.narrow(&mut bench);
            shortfall.measure(area, &mut bench, args.json)?;
        }
    }
    shortfall.verdict()
}

impl BenchArgs {
    fn narrow(&self, bench: &mut Command) {
        bench.arg("--");
        if let Some(rows) = self.rows {
            bench.args(["--rows", &rows.to_string()]);
        }
        if let Some(only) = &self.only {
            bench.args(["--only", only]);
        }
    }
}

impl Shortfall {
    /// What `data` is measured on; none where what is asked for cannot be measured at all.
    fn server(&mut self, args: &BenchArgs) -> Option<BenchServer> {
        match BenchServer::of(args.only.as_deref()) {
            Ok(server) => Some(server),
            Err(why) => {
                // The files are measured even so, unless the server's part was asked for: said now, not minutes later.
                let goes_on = args.only.is_none();
                if goes_on {
                    eprintln!("{why}");
                }
                self.absent = Some(why);
                goes_on.then_some(BenchServer::Without)
            }
        }
    }

    /// What breaks one area leaves the others to be measured. What a bench says on standard error is seen as it says it: also
    /// one that ends well says there what it could not measure.
    fn measure(&mut self, area: &str, bench: &mut Command, json: bool) -> Result<()> {
        match output_of(bench.stderr(Stdio::inherit())) {
            Ok(text) => {
                let measures: Vec<_> = text.lines().filter(|line| line.starts_with('{')).collect();
                if measures.is_empty() {
                    self.broken.push(format!("{area}: nothing was measured"));
                }
                for line in measures {
                    self.missed += usize::from(!print(line, json)?);
                }
            }
            Err(error) => self.broken.push(format!("{area}: {error:#}")),
        }
        Ok(())
    }

    /// Measures that could not be made come first: whatever the others say, they do not say it of these.
    fn verdict(mut self) -> Result<()> {
        if self.missed > 0 {
            self.broken.push(format!("{} measures miss their goal on this machine", self.missed));
        }
        if let Some(why) = self.absent {
            self.broken.insert(0, why);
            return Err(Failure::Precondition.because(self.broken.join("\n")));
        }
        if self.broken.is_empty() { Ok(()) } else { Err(Failure::Threshold.because(self.broken.join("\n"))) }
    }
}

fn print(line: &str, json: bool) -> Result<bool> {
    let measure: Value = serde_json::from_str(line).context("a bench printed a line that is no JSON")?;
    if json {
        println!("{line}");
    } else {
        let text = |member: &str| match &measure[member] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        println!(
            "{:<40} ours {:>14}  peer {:>14}  ratio {:>8} ± {:<8} goal {:<10} {}",
            text("name"),
            text("ours"),
            text("peer"),
            text("ratio"),
            text("spread"),
            text("goal"),
            if measure["holds"] == true { "holds" } else { "MISSED" },
        );
    }
    Ok(measure["holds"] == true)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::Shortfall;
    use crate::exit::Failure;

    /// Guard: a bench that ends well and measures nothing has shown nothing.
    #[test]
    fn an_area_without_a_measure_is_broken() {
        let mut shortfall = Shortfall::default();
        let measure = r#"echo '{"name": "a", "holds": true}'"#;
        shortfall.measure("core", Command::new("/bin/sh").args(["-c", measure]), true).expect("is JSON");
        assert!(shortfall.broken.is_empty() && shortfall.missed == 0);
        shortfall
            .measure("edge", Command::new("/bin/sh").args(["-c", "echo 'no server' >&2"]), true)
            .expect("ends well");
        let error = shortfall.verdict().expect_err("nothing was measured");
        assert!(Failure::Threshold.is(&error) && error.to_string() == "edge: nothing was measured", "{error}");
    }

    #[test]
    fn what_was_not_measured_is_said_before_what_was_missed() {
        let all =
            || Shortfall { missed: 2, broken: vec!["edge: broke".to_owned()], absent: Some("no server".to_owned()) };
        let error = all().verdict().expect_err("something is absent");
        assert!(Failure::Precondition.is(&error));
        assert_eq!(error.to_string(), "no server\nedge: broke\n2 measures miss their goal on this machine");
        let error = Shortfall { absent: None, ..all() }.verdict().expect_err("something is missed");
        assert!(Failure::Threshold.is(&error));
        assert!(Shortfall::default().verdict().is_ok());
    }
}
