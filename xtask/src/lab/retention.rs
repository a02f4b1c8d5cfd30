//! Retention: what would go, and letting it go.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Role;
use super::api::Api;
use super::document::{print, say};
use crate::exit::Failure;

/// Most requests of one run; each removes a bounded number of rows.
const ROUNDS_MAX: u32 = 1_000;

/// What can be done about retention.
#[derive(Debug, Subcommand)]
pub(crate) enum RetentionVerb {
    /// Counts what a run would remove; removes nothing.
    Plan(Kept),
    /// Signs tombstones and removes what is past its time, until nothing is left.
    Run {
        #[command(flatten)]
        kept: Kept,
        /// Only counts, as `plan` does.
        #[arg(long)]
        dry_run: bool,
    },
}

/// How long things are kept.
#[derive(Args, Debug)]
pub(crate) struct Kept {
    /// Days that audit records are kept: 90 or more [default: 90].
    #[arg(long, value_name = "DAYS")]
    audit_days: Option<u32>,
    /// Days that periods of history are kept after their end: 1 or more [default: 365].
    #[arg(long, value_name = "DAYS")]
    history_days: Option<u32>,
}

/// Plans, or runs to the end.
pub(super) fn run(verb: &RetentionVerb, json: bool) -> Result<()> {
    let (kept, dry_run) = match verb {
        RetentionVerb::Plan(kept) => (kept, true),
        RetentionVerb::Run { kept, dry_run } => (kept, *dry_run),
    };
    let asked = json!({"audit_days": kept.audit_days, "history_days": kept.history_days, "dry_run": dry_run});
    let (mut rounds, mut gone) = (Vec::new(), 0);
    for _round in 0..ROUNDS_MAX {
        // Signed in anew: each round may take longer than a token is good for.
        let round = Api::of(Role::Sre)?.patient().post("/v1/admin/retention", &asked)?;
        gone += sum(&round, "rows");
        let left = if dry_run { 0 } else { sum(&round, "left") };
        rounds.push(round);
        if left == 0 {
            let name = if dry_run { "retention-plan" } else { "retention-run" };
            print(name, &json!({"rows": gone, "rounds": rounds}), json);
            return Ok(());
        }
        if !json {
            say(&format!("{gone} rows have gone, {left} are left"));
        }
    }
    Err(Failure::Threshold.because("rows are still left: run it again"))
}

fn sum(round: &Value, what: &str) -> u64 {
    round["items"].as_array().into_iter().flatten().filter_map(|item| item[what].as_u64()).sum()
}
