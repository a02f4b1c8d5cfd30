//! The run itself: seed, start, show, drain, sum up.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pim_core::clock::Clock;
use pim_data::cluster::Access;
use pim_telemetry::LogSettings;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::flags::{Flags, Settings, Traffic};
use super::page::Ready;
use super::restore;
use super::status::StatusLine;
use super::summary::Summary;
use crate::compose::{Lab, LabSettings, settle_until};
use crate::persona::{Drive, DriveReport, DriveSettings};
use crate::rig::{Drain, EXIT_PRECONDITION, EXIT_USAGE};
use crate::runs::summarize;
use crate::seed::{Seeded, seed};
use crate::signals::{self, Hub};
use crate::workers::{Place, Stores};

/// How long after the beginning of seeding read models are waited for; what they have not folded then is told.
const FOLDED_WITHIN: Duration = Duration::from_secs(4);
/// Most lines of progress where there is no terminal to draw on.
const PLAIN_LINES: u64 = 4;

/// Runs `services` and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    let flags = Flags::parse();
    let settings = match flags.settings() {
        Ok(settings) => settings,
        Err(error) => return refused(EXIT_USAGE, &error.into()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime");
    let outcome = runtime.and_then(|runtime| {
        runtime.block_on(async {
            match (&flags.restore, &flags.check_backup) {
                (Some(backup), _) => Ok(restore::put_back(backup, &flags.restore_point(), &settings, flags.json).await),
                (None, Some(backup)) => Ok(restore::check(backup, flags.json).await),
                (None, None) => run(&flags, settings).await,
            }
        })
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => refused(EXIT_PRECONDITION, &error),
    }
}

fn refused(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

/// A directory that goes away with the value, when it was made for this run alone.
#[derive(Debug)]
struct DataDir {
    path: PathBuf,
    is_ephemeral: bool,
}

impl DataDir {
    fn of(flags: &Flags, settings: &Settings) -> Self {
        if !flags.is_ephemeral() {
            return Self { path: settings.data_dir.clone(), is_ephemeral: false };
        }
        let name = format!("pim-lab-{}", uuid::Uuid::new_v4().as_simple());
        Self { path: std::env::temp_dir().join(name), is_ephemeral: true }
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.is_ephemeral {
            let _absent = std::fs::remove_dir_all(&self.path);
        }
    }
}

async fn run(flags: &Flags, settings: Settings) -> anyhow::Result<u8> {
    let begun = Instant::now();
    // A person at a terminal sees the status line; lines of every request would bury it.
    let is_terminal = std::io::stderr().is_terminal();
    let filter = if is_terminal { "warn" } else { "info" };
    let logs = LogSettings { filter: filter.to_owned(), ..LogSettings::default() };
    let (_telemetry, hub) = signals::install("services", logs, !is_terminal)?;
    let drain = Drain::new();
    drain.on_signal();
    let data_dir = DataDir::of(flags, &settings);
    if flags.seed_only {
        return seed_alone(flags, &settings, &data_dir.path, &hub, &drain).await;
    }
    let parts = LabSettings {
        data_dir: data_dir.path.clone(),
        listen: settings.listen,
        shards: Some(settings.shards),
        postgres: settings.postgres.clone(),
        in_flight_max: settings.in_flight_max,
        persona_calls_per_second: settings.persona_calls_per_second,
        upkeep: settings.upkeep.clone(),
        hub,
    };
    // Nobody folds what is being seeded, and nobody asks for what is not there yet.
    let fill = async |stores| {
        let seeding = Instant::now();
        Ok((seed_with_progress(flags, &settings, &stores, &drain).await?, seeding))
    };
    let (lab, (seeded, seeding)) = Lab::start_filled(parts, fill).await?;
    let seeded_ms = match seeded.patients {
        0 => 0,
        _ => {
            tokio::select! {
                settled = settle_until(&lab.stores, seeding + FOLDED_WITHIN) => settled?,
                () = drain.begun() => {}
            }
            millis(seeding.elapsed())
        }
    };
    let ready = Ready::of(&lab, millis(begun.elapsed()).saturating_sub(seeded_ms)).await?;
    if flags.json {
        let mut line = ready.as_json();
        line["shards"] = Value::from(lab.stores.cluster.map().serving().count());
        line["seeded_patients"] = Value::from(seeded.patients);
        line["seeded_ms"] = Value::from(seeded_ms);
        println!("{line}");
    } else {
        println!("{}", ready.as_text());
    }
    let since = lab.stores.cluster.clock().now();
    let report = drive(flags, &settings, &lab, &drain).await?;
    let (stores, settled) = lab.stop().await;
    let summary = Summary::of(summarize(&stores, since).await?, report, settled, since);
    drop(stores);
    if flags.json {
        println!("{}", summary.as_json());
    } else {
        println!("{}", summary.as_text());
    }
    Ok(summary.verdict.exit_code())
}

/// Makes the data set for programs that are started later.
async fn seed_alone(
    flags: &Flags,
    settings: &Settings,
    data_dir: &Path,
    hub: &Hub,
    drain: &Drain,
) -> anyhow::Result<u8> {
    let place = Place { data_dir, shards: Some(settings.shards), postgres: &settings.postgres };
    let stores = Stores::open_at(place, Access::Exclusive, Clock::system(), hub).await?;
    let seeding = Instant::now();
    let seeded = seed_with_progress(flags, settings, &stores, drain).await?;
    let (patients, seeded_ms) = (seeded.patients, millis(seeding.elapsed()));
    if flags.json {
        let shards = stores.cluster.map().serving().count();
        println!(
            "{}",
            json!({"event": "seeded", "shards": shards, "seeded_patients": patients, "seeded_ms": seeded_ms})
        );
    } else {
        println!("seeded {patients} patients in {seeded_ms} ms");
    }
    Ok(0)
}

/// A bar on a terminal, a line now and then elsewhere. Whoever stops the program meanwhile need not wait for the end.
async fn seed_with_progress(
    flags: &Flags,
    settings: &Settings,
    stores: &Stores,
    drain: &Drain,
) -> anyhow::Result<Seeded> {
    // Standard output stays for the lines that programs read.
    let bar = ProgressBar::with_draw_target(Some(u64::from(settings.patients)), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("seeding  {bar:40} {pos}/{len} patients  {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let is_plain = bar.is_hidden() && !flags.json;
    let told = AtomicU64::new(0);
    let progress = |done: u32| {
        bar.set_position(u64::from(done));
        let step = u64::from(done) * PLAIN_LINES / u64::from(settings.patients.max(1));
        if is_plain && told.fetch_max(step, Ordering::Relaxed) < step {
            eprintln!("seeding {done}/{} patients on {} shards", settings.patients, settings.shards);
        }
    };
    let asked = settings.dataset();
    let seeded = tokio::select! {
        seeded = seed(stores, &asked, progress) => seeded?,
        () = drain.begun() => anyhow::bail!("stopped while seeding: the next start goes on where this one was"),
    };
    bar.finish_and_clear();
    Ok(seeded)
}

/// Lets personas call until the time is over or the process is told to stop.
async fn drive(flags: &Flags, settings: &Settings, lab: &Lab, drain: &Drain) -> anyhow::Result<DriveReport> {
    let traffic = match settings.traffic {
        Traffic::Off => None,
        Traffic::Rate(rate) => Some(Drive::start(&DriveSettings {
            gateway: lab.gateway.clone(),
            rate,
            seed: settings.seed,
            profile: settings.personas,
            spans: lab.stores.hub.traces().spans("persona-simulator"),
            duration: flags.duration(),
        })),
    };
    let end = flags.duration().map(|duration| Instant::now() + duration);
    let told = drain.begun();
    tokio::pin!(told);
    let mut line = StatusLine::new(flags.json);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let over = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut told => break,
            () = over => break,
            _ = second.tick() => {
                let snapshot = traffic.as_ref().map(Drive::snapshot);
                line.show(&lab.stores, snapshot.as_ref()).await;
            }
        }
    }
    line.end();
    Ok(match traffic {
        Some(traffic) => traffic.stop().await,
        None => DriveReport::silent(),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
