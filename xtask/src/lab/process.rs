//! Starting and stopping the programs of the lab.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use super::journal::{self, State};
use crate::exit::Failure;
use crate::shell::{cargo, must, target_dir};

const POLL: Duration = Duration::from_millis(50);
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// Arguments of `lab up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// What stands below the services.
    #[arg(long, value_parser = ["embedded"], default_value = "embedded")]
    mode: String,
    /// A YAML profile.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Seed of dataset and traffic.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of shards of a new data directory.
    #[arg(long)]
    shards: Option<u16>,
    /// Number of synthetic patients of a new data directory.
    #[arg(long)]
    patients: Option<u32>,
    /// Sessions a second, or `off`.
    #[arg(long)]
    traffic: Option<String>,
    /// Where the gateway listens.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// How long to wait until it is ready, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

/// Arguments of `lab plan`.
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// A YAML profile.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Seed of dataset and traffic.
    #[arg(long)]
    seed: Option<u64>,
}

/// Arguments of `lab seed`.
#[derive(Args, Debug)]
pub(crate) struct SeedArgs {
    /// The data directory; the lab's own when absent.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Number of shards.
    #[arg(long)]
    shards: Option<u16>,
    /// Number of synthetic patients.
    #[arg(long)]
    patients: Option<u32>,
    /// Seed of the dataset.
    #[arg(long)]
    seed: Option<u64>,
}

/// Arguments of `lab load`.
#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// Sessions a second.
    #[arg(long, default_value_t = 5.0)]
    rate: f64,
    /// How long, for example `30s`.
    #[arg(long = "for", value_name = "DURATION", default_value = "30s")]
    duration: String,
    /// Seed of the traffic.
    #[arg(long)]
    seed: Option<u64>,
}

/// Whether a process with this id exists and has not ended.
pub(super) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.is_empty() && !state.starts_with('Z')
}

/// Starts the lab and waits until it is ready.
pub(super) fn up(args: &UpArgs, json: bool) -> Result<()> {
    if let Ok(state) = State::load() {
        let sentence = format!("a lab is running already at {} (process {})", state.gateway, state.pid);
        return Err(Failure::Precondition.because(sentence));
    }
    let program = built("services")?;
    fs::create_dir_all(journal::folder()).context("cannot create the lab's folder")?;
    let mut command = Command::new(program);
    command.arg("--json");
    option(&mut command, "--config", args.profile.as_ref().map(|path| path.display()));
    option(&mut command, "--seed", args.seed);
    option(&mut command, "--shards", args.shards);
    option(&mut command, "--patients", args.patients);
    option(&mut command, "--traffic", args.traffic.as_ref());
    option(&mut command, "--listen", args.listen.as_ref());
    // A group of its own, so that Ctrl-C in this terminal does not stop the lab.
    command.process_group(0).stdin(Stdio::null());
    command.stdout(File::create(journal::events_file())?).stderr(File::create(journal::log_file())?);
    let mut child = command.spawn().context("cannot start services")?;
    let state = State::of_ready(wait_until_ready(&mut child, Duration::from_secs(args.wait))?)?;
    state.keep()?;
    if json {
        let document = json!({"schema": "pim.lab.up/v1", "mode": args.mode, "lab": state.ready});
        println!("{document}");
    } else {
        println!("the lab is ready at {} after {} ms", state.gateway, state.ready["ready_ms"]);
        println!("next: cargo xtask lab status · cargo xtask lab token clinician · cargo xtask lab down");
    }
    Ok(())
}

fn wait_until_ready(child: &mut Child, patience: Duration) -> Result<Value> {
    let give_up = Instant::now() + patience;
    while Instant::now() < give_up {
        if let Some(ready) = journal::last_event("ready") {
            return Ok(ready);
        }
        if let Some(status) = child.try_wait()? {
            let failure = Failure::of_code(status.code().unwrap_or_default());
            return Err(failure.because(format!("services ended ({status}):\n{}", journal::log_tail(10)?)));
        }
        pause();
    }
    // Nobody could reach it later: do not leave it behind.
    let _gone = child.kill();
    Err(Failure::Precondition.because(format!("services was not ready within {} s", patience.as_secs())))
}

#[expect(clippy::disallowed_methods, reason = "there is no runtime here that it could block")]
fn pause() {
    thread::sleep(POLL);
}

/// Drains and stops the lab.
pub(super) fn down(json: bool) -> Result<()> {
    let state = State::load()?;
    must(Command::new("kill").args(["-TERM", &state.pid.to_string()]))?;
    let give_up = Instant::now() + DRAIN_MAX;
    while is_alive(state.pid) {
        if Instant::now() > give_up {
            let sentence = format!("process {} has not drained within {} s", state.pid, DRAIN_MAX.as_secs());
            return Err(Failure::Threshold.because(sentence));
        }
        pause();
    }
    State::forget();
    let Some(summary) = journal::last_event("summary") else {
        return Err(Failure::Threshold.because("the lab stopped without a summary: see `cargo xtask lab logs`"));
    };
    if json {
        println!("{}", json!({"schema": "pim.lab.down/v1", "summary": summary}));
    } else {
        println!("{summary:#}");
    }
    match summary["verdict"].as_str() {
        Some("ok") => Ok(()),
        Some("invalid") => Err(Failure::RunInvalid.because("the traffic run is invalid")),
        _ => Err(Failure::Threshold.because("an invariant of the run did not hold")),
    }
}

/// Prints the manifest.
pub(super) fn plan(args: &PlanArgs, json: bool) -> Result<()> {
    let mut command = Command::new(built("persona-simulator")?);
    command.arg("plan");
    option(&mut command, "--profile", args.profile.as_ref().map(|path| path.display()));
    option(&mut command, "--seed", args.seed);
    flag(&mut command, "--json", json);
    end_like(&mut command)
}

/// Seeds a data directory.
pub(super) fn seed(args: &SeedArgs, json: bool) -> Result<()> {
    let mut command = Command::new(built("services")?);
    command.args(["--traffic", "off", "--for", "0s", "--listen", "127.0.0.1:0"]);
    option(&mut command, "--data-dir", args.data_dir.as_ref().map(|path| path.display()));
    option(&mut command, "--shards", args.shards);
    option(&mut command, "--patients", args.patients);
    option(&mut command, "--seed", args.seed);
    flag(&mut command, "--json", json);
    end_like(&mut command)
}

/// Drives load at the running lab.
pub(super) fn load(args: &LoadArgs, json: bool) -> Result<()> {
    let state = State::load()?;
    let mut command = Command::new(built("persona-simulator")?);
    command.args(["load", "--gateway", &state.gateway, "--broker", &state.broker]);
    command.args(["--rate", &args.rate.to_string(), "--for", &args.duration]);
    option(&mut command, "--seed", args.seed);
    flag(&mut command, "--json", json);
    end_like(&mut command)
}

/// Builds an example and says where it is.
fn built(example: &str) -> Result<PathBuf> {
    must(&mut cargo(&["build", "--quiet", "--locked", "-p", "pim-lab", "--example", example]))?;
    Ok(target_dir().join("debug/examples").join(example))
}

fn option(command: &mut Command, name: &str, value: Option<impl ToString>) {
    if let Some(value) = value {
        command.arg(name).arg(value.to_string());
    }
}

fn flag(command: &mut Command, name: &str, given: bool) {
    if given {
        command.arg(name);
    }
}

/// Runs a program of the lab to its end and takes over the meaning of its exit code.
fn end_like(command: &mut Command) -> Result<()> {
    let status = command.current_dir(crate::shell::root()).status().context("cannot start the program")?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::of_code(status.code().unwrap_or_default()).because(format!("the program ended with {status}")))
}
