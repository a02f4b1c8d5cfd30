//! What decides whether work lands.

use anyhow::Result;
use clap::Args;

use crate::shell::{cargo, must};
use crate::{generate, suite, tidy};

/// Arguments of `cargo xtask ci`.
#[derive(Args, Debug)]
pub(crate) struct CiArgs {
    #[command(flatten)]
    required: suite::RequireArgs,
    /// Skips `cargo deny`, for machines without it.
    #[arg(long)]
    no_deny: bool,
}

/// Runs the checks, cheapest first.
pub(crate) fn run(args: &CiArgs) -> Result<()> {
    tidy::run()?;
    must(&mut cargo(&["fmt", "--all", "--check"]))?;
    if !args.no_deny {
        // The advisory database is fetched from a public host: where that is out of reach, the other three still hold.
        must(&mut cargo(&["deny", "--locked", "check", "bans", "licenses", "sources"]))?;
    }
    suite::run_all(&args.required)?;
    // As a newcomer builds it, and with every backend.
    must(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    let everything = ["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "-D", "warnings"];
    must(&mut cargo(&everything))?;
    let mut doc = cargo(&["doc", "--workspace", "--all-features", "--no-deps", "--locked"]);
    must(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    generate::check()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::CiArgs;

    #[derive(Debug, Parser)]
    struct Ci {
        #[command(flatten)]
        _args: CiArgs,
    }

    /// Guard: what decides runs every suite, whatever else `test` would do.
    #[test]
    fn nothing_takes_the_place_of_the_suites() {
        Ci::try_parse_from(["ci", "--require", "postgres,docker", "--no-deny"]).expect("is what it takes");
        for other in ["--crash=3", "--failovers=3", "--mutants", "--release", "a_name"] {
            Ci::try_parse_from(["ci", other]).expect_err(other);
        }
    }
}
