//! `cargo xtask bench`: every side of a ratio measured in the same run, in release.

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use crate::exit::Failure;
use crate::shell::{cargo, output_of};

/// Arguments of `cargo xtask bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Which area to measure; all of them when absent. `data` measures PostgreSQL too where `LAB_TEST_POSTGRES_DSN` names a
    /// server; a part of it only where that takes 400 connections.
    #[arg(value_parser = ["core", "data", "events", "edge"])]
    area: Option<String>,
    /// One JSON object a measure: name, ours, peer, ratio, spread, goal, holds.
    #[arg(long)]
    json: bool,
    /// Rows of the shard that has many, for what a request of pim-data costs there: a million unless told.
    #[arg(long, value_parser = clap::value_parser!(u64).range(5_000..))]
    rows: Option<u64>,
}

/// Packages with a `ratios` bench, which prints one JSON object a line.
const AREAS: &[(&str, &str)] =
    &[("core", "pim-core"), ("data", "pim-data"), ("events", "pim-events"), ("edge", "pim-lab")];

const NO_SERVER: &str = "data: nothing is measured on PostgreSQL, name a server's superuser by LAB_TEST_POSTGRES_DSN \
    (postgres://user:password@host:port/postgres)";

/// Runs the benches of an area.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let (mut missed, mut broken) = (0, Vec::new());
    for (area, package) in AREAS {
        if args.area.as_deref().is_some_and(|wanted| wanted != *area) {
            continue;
        }
        // What breaks one area leaves the others to be measured.
        let mut bench = cargo(&["bench", "--locked", "--quiet", "-p", package, "--bench", "ratios"]);
        // Against a server too, when there is one.
        match (*area, std::env::var_os("LAB_TEST_POSTGRES_DSN")) {
            ("data", Some(_)) => drop(bench.args(["--features", "postgres"])),
            ("data", None) => eprintln!("{NO_SERVER}"),
            _ => {}
        }
        if let (true, Some(rows)) = (*area == "data", args.rows) {
            bench.args(["--", "--rows", &rows.to_string()]);
        }
        match output_of(&mut bench) {
            Ok(text) => {
                for line in text.lines().filter(|line| line.starts_with('{')) {
                    missed += usize::from(!print(line, args.json)?);
                }
            }
            Err(error) => broken.push(format!("{area}: {error:#}")),
        }
    }
    if !broken.is_empty() {
        return Err(Failure::Threshold.because(broken.join("\n")));
    }
    if missed == 0 {
        return Ok(());
    }
    Err(Failure::Threshold.because(format!("{missed} measures miss their goal on this machine")))
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
