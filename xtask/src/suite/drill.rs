//! Harnesses that run alone, as often as somebody asks: kills, failovers, moves, pairs of a write and a read.

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::built::{Built, Profile};
use super::{lacks_postgres, lacks_programs};
use crate::exit::Failure;

/// Where rows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// In files of a data directory.
    Files,
    /// On PostgreSQL primaries with synchronous standbys.
    Postgres,
}

/// Which harness runs instead of the suites, and how long; one of them at a time.
#[derive(Args, Debug)]
#[group(id = "drill", multiple = false)]
pub(crate) struct DrillArgs {
    /// Runs the crash suites alone: this many kills, and as many power cuts; on servers, kills of service, primary and standby
    /// in turn.
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..))]
    crash: Option<u32>,
    /// Runs the failover harness alone, on servers: kills and freezes the primary this many times under load, promotes the
    /// standby, and prints for how long writes and reads stopped and what was lost; fails when either took too long.
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..))]
    failovers: Option<u32>,
    /// Runs the read-your-writes harness alone, on servers: this many pairs of a write and a read that carries its token, against
    /// a standby that lags up to two seconds; prints the share of reads that the standby answered.
    #[arg(long, value_name = "PAIRS", value_parser = clap::value_parser!(u32).range(1..))]
    pairs: Option<u32>,
    /// Runs the harness of moves alone, on servers: this many moves of buckets of a lab that everybody writes to, whose mover is
    /// killed at another step each time; prints for how long writers were kept, fails when that was too long, and looks for whatever
    /// was lost.
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..))]
    moves: Option<u32>,
}

impl DrillArgs {
    /// Runs the harness that was asked for; `false` when none was.
    pub(super) fn run(&self, engine: Engine, profile: Profile) -> Result<bool> {
        if let Some(kills) = self.crash {
            crash(kills, engine, profile)?;
        } else if let Some(failovers) = self.failovers {
            on_servers("failovers_under_load", "LAB_TEST_FAILOVERS", failovers, profile)?;
        } else if let Some(pairs) = self.pairs {
            on_servers("nothing_stale_with_a_token", "LAB_TEST_PAIRS", pairs, profile)?;
        } else if let Some(times) = self.moves {
            moves(times, profile)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

fn crash(kills: u32, engine: Engine, profile: Profile) -> Result<()> {
    let kills = ("LAB_TEST_CRASH_KILLS", kills.to_string());
    if engine == Engine::Postgres {
        lacks_programs().map_err(|why| Failure::Precondition.because(why))?;
        let tests = ["--ignored", "--nocapture", "kills_lose_nothing"];
        return drill(&Built::on_servers(profile)?, "testkit", &tests, kills);
    }
    let tests = ["--nocapture", "crash_loses_nothing", "power_cuts_lose_nothing"];
    drill(&Built::of_workspace(profile)?, "testkit", &tests, kills)
}

fn moves(times: u32, profile: Profile) -> Result<()> {
    lacks_postgres().map_err(|why| Failure::Precondition.because(why))?;
    let times = ("LAB_TEST_MOVES", times.to_string());
    drill(&Built::on_servers(profile)?, "testkit", &["--nocapture", "moves_lose_nothing"], times)
}

/// A harness of pim-data that starts a primary and a standby of its own.
fn on_servers(harness: &str, variable: &str, times: u32, profile: Profile) -> Result<()> {
    lacks_programs().map_err(|why| Failure::Precondition.because(why))?;
    let times = (variable, times.to_string());
    drill(&Built::on_servers(profile)?, "pim-data", &["--ignored", "--nocapture", harness], times)
}

fn drill(built: &Built, package: &str, tests: &[&str], times: (&str, String)) -> Result<()> {
    built.has(package, tests)?;
    built.run(package, tests, Some(times))
}
