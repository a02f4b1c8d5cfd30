//! Starting and stopping the programs of the lab.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use super::journal::{self, Running, State};
use super::programs::built;
use super::{api, claim, document, nine};
use crate::exit::Failure;
use crate::shell::{pause, root};

const READY_WITHIN: Duration = Duration::from_secs(60);
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Tells `lab load` that Ctrl-C does not end it any more, and which program to run.
const OUTLIVES: &str = "LAB_LOAD_PROGRAM";
/// How much of the log goes into an error.
const LOG_LINES: usize = 20;

/// Arguments of `lab up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// `embedded`: everything in one process, on files. `process`: each program by itself, on PostgreSQL primaries with standbys.
    #[arg(long, value_parser = ["embedded", "process"], default_value = "embedded")]
    mode: String,
    /// A YAML profile.
    #[arg(long, value_name = "FILE")]
    pub(super) profile: Option<PathBuf>,
    /// Seed of dataset and traffic.
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// Number of shards of a new data directory [default: 4; 2 in mode process, each with two servers].
    #[arg(long)]
    pub(super) shards: Option<u16>,
    /// Number of synthetic patients of a new data directory [default: 10000; 1000 in mode process].
    #[arg(long)]
    pub(super) patients: Option<u32>,
    /// How many patients in a hundred have a visit and its claim behind them.
    #[arg(long, value_name = "PERCENT")]
    pub(super) history: Option<u8>,
    /// Sessions a second, or `off`.
    #[arg(long, value_parser = traffic)]
    pub(super) traffic: Option<String>,
    /// Where the gateway listens.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<String>,
    /// The data directory [default: target/pim-data]; in mode process one that `lab restore` has made, which stays.
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// How long to wait until it is ready, such as `60s` or `5m` [default: 60s; 5m in mode process].
    #[arg(long, value_name = "DURATION", value_parser = patience)]
    pub(super) wait: Option<Duration>,
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
    /// Sessions a second.
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
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
    /// How many patients in a hundred have a visit and its claim behind them.
    #[arg(long, value_name = "PERCENT")]
    history: Option<u8>,
    /// Seed of the dataset.
    #[arg(long)]
    seed: Option<u64>,
}

/// Arguments of `lab load`.
#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// A YAML profile, of which traffic and personas count.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Sessions a second.
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// How long, for example `30s`.
    #[arg(long = "for", value_name = "DURATION", default_value = "30s")]
    duration: String,
    /// Seed of the traffic.
    #[arg(long)]
    seed: Option<u64>,
}

/// A duration such as `500ms`, `60s` or `5m`; a bare number is seconds.
fn patience(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit_ms: u64 = match &text[digits..] {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        _ => 0,
    };
    let number: Option<u64> = text[..digits].parse().ok().filter(|_| unit_ms > 0);
    let ms = number.and_then(|number| number.checked_mul(unit_ms));
    ms.map(Duration::from_millis).ok_or_else(|| "must be a duration such as 500ms, 60s or 5m".to_owned())
}

/// What the lab takes for traffic. It is said before anything is built or made.
fn traffic(text: &str) -> Result<String, &'static str> {
    let is_rate = text.parse().is_ok_and(|rate: f64| rate > 0.0 && rate <= 10_000.0);
    let rule = "must be `off` or sessions a second, above 0 and at most 10000";
    if is_rate || text == "off" { Ok(text.to_owned()) } else { Err(rule) }
}

/// Starts the lab and waits until it is ready.
pub(super) fn up(args: &UpArgs, json: bool) -> Result<()> {
    fs::create_dir_all(journal::folder()).context("cannot create the lab's folder")?;
    // Until its state is kept nothing else says that one is being started.
    let _claim = claim::alone()?;
    if let Ok(state) = State::load() {
        let sentence = format!("a lab is running already at {} (process {})", state.gateway, state.serving_pid());
        return Err(Failure::Precondition.because(sentence));
    }
    if journal::process_folder().exists() {
        let sentence = "a lab of processes was broken off here: `cargo xtask lab down` cleans up";
        return Err(Failure::Precondition.because(sentence));
    }
    if !Running::printing_into(&journal::events_file()).is_empty() {
        let sentence = "a lab is being started here, or was broken off: `cargo xtask lab down` stops it";
        return Err(Failure::Precondition.because(sentence));
    }
    if args.mode == "process" {
        return nine::up(args, json);
    }
    let program = built("services")?;
    let mut command = Command::new(program);
    command.arg("--json").current_dir(root());
    place(&mut command, "--config", args.profile.as_deref())?;
    place(&mut command, "--data-dir", args.data_dir.as_deref())?;
    option(&mut command, "--seed", args.seed);
    option(&mut command, "--shards", args.shards);
    option(&mut command, "--patients", args.patients);
    option(&mut command, "--history", args.history);
    option(&mut command, "--traffic", args.traffic.as_ref());
    option(&mut command, "--listen", args.listen.as_ref());
    // A group of its own, so that Ctrl-C in this terminal does not stop the lab.
    command.process_group(0).stdin(Stdio::null());
    command.stdout(File::create(journal::events_file())?).stderr(File::create(journal::log_file())?);
    let mut child = command.spawn().context("cannot start services")?;
    let ready = wait_until_ready(&mut child, args.wait.unwrap_or(READY_WITHIN))?;
    let noted = State::of_ready(ready).and_then(|state| state.keep().map(|()| state));
    let state = noted.inspect_err(|_| stop(&mut child))?;
    if json {
        document::print("up", &json!({"mode": args.mode, "lab": state.ready}), true);
    } else {
        document::say(&format!("the lab is ready at {} after {} ms", state.gateway, state.ready["ready_ms"]));
        document::say("next: cargo xtask lab status · cargo xtask lab token clinician · cargo xtask lab down");
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
            return Err(failure.because(format!("services ended ({status}):\n{}", journal::log_tail(LOG_LINES))));
        }
        pause();
    }
    stop(child);
    let (tail, log) = (journal::log_tail(LOG_LINES), journal::log_file());
    let fix = "more time: `--wait 5m`; fewer `--patients`";
    let sentence = format!("services was not ready within {patience:?} and has been stopped ({fix}); its log,");
    Err(Failure::Precondition.because(format!("{sentence} {}, ends with:\n{tail}", log.display())))
}

/// Nobody could reach it later: does not leave it behind.
fn stop(child: &mut Child) {
    let _gone = child.kill().and_then(|()| child.wait());
}

/// Drains and stops the lab, also one whose start was broken off before its state was kept.
pub(super) fn down(json: bool) -> Result<()> {
    let _claim = claim::alone()?;
    if journal::process_folder().exists() {
        return nine::down(&State::kept().unwrap_or_else(State::of_processes), json);
    }
    let unnoted = |none| Running::printing_into(&journal::events_file()).pop().ok_or(none);
    let services = State::load().map(|state| state.process()).or_else(unnoted)?;
    services.signal("-TERM")?;
    let give_up = Instant::now() + DRAIN_MAX;
    while services.is_alive() {
        if Instant::now() > give_up {
            let sentence = format!("process {} has not drained within {} s", services.pid, DRAIN_MAX.as_secs());
            return Err(Failure::Threshold.because(sentence));
        }
        pause();
    }
    State::forget();
    let Some(summary) = journal::last_event("summary") else {
        return Err(Failure::Threshold.because("the lab stopped without a summary: see `cargo xtask lab logs`"));
    };
    document::print("down", &summary, json);
    match summary["verdict"].as_str() {
        Some("ok") => Ok(()),
        Some("invalid") => Err(Failure::RunInvalid.because("the traffic run is invalid")),
        _ => Err(Failure::Threshold.because("an invariant of the run did not hold")),
    }
}

/// Prints the manifest.
pub(super) fn plan(args: &PlanArgs, json: bool) -> Result<()> {
    let mut command = Command::new(built("persona-simulator")?);
    command.args(["plan", "--json"]);
    place(&mut command, "--profile", args.profile.as_deref())?;
    option(&mut command, "--seed", args.seed);
    option(&mut command, "--rate", args.rate.as_ref());
    let (told, outcome) = run_to_end(&mut command)?;
    if let Ok(manifest) = serde_json::from_str(&told) {
        document::print("plan", &manifest, json);
    }
    outcome
}

/// Seeds a data directory.
pub(super) fn seed(args: &SeedArgs, json: bool) -> Result<()> {
    let mut command = Command::new(built("services")?);
    command.args(["--traffic", "off", "--for", "0s", "--listen", "127.0.0.1:0", "--json"]);
    place(&mut command, "--data-dir", args.data_dir.as_deref())?;
    option(&mut command, "--shards", args.shards);
    option(&mut command, "--patients", args.patients);
    option(&mut command, "--history", args.history);
    option(&mut command, "--seed", args.seed);
    let (told, outcome) = run_to_end(&mut command)?;
    if let (Some(ready), Some(summary)) = (journal::event_in(&told, "ready"), journal::event_in(&told, "summary")) {
        let mut seeded = json!({});
        for member in ["data_dir", "shards", "seeded_patients", "seeded_ms"] {
            seeded[member] = ready[member].clone();
        }
        for member in ["facts", "lost", "duplicated", "audit_records", "audit_verified", "verdict"] {
            seeded[member] = summary[member].clone();
        }
        document::print("seed", &seeded, json);
    }
    outcome
}

/// Drives load at the running lab.
pub(super) fn load(args: &LoadArgs, json: bool) -> Result<()> {
    let state = if api::named().is_some() { None } else { Some(State::load()?) };
    let Some(program) = env::var_os(OUTLIVES) else { return Err(outlive_ctrl_c(&built("persona-simulator")?)) };
    let mut command = Command::new(program);
    command.args(["load", "--json"]);
    place(&mut command, "--profile", args.profile.as_deref())?;
    option(&mut command, "--rate", args.rate.as_ref());
    option(&mut command, "--for", Some(&args.duration));
    option(&mut command, "--gateway", state.as_ref().map(|it| it.gateway.as_str()).or(api::named()));
    option(&mut command, "--broker", state.as_ref().map(|it| &it.broker));
    option(&mut command, "--seed", args.seed);
    let (told, outcome) = run_to_end(&mut command)?;
    if let Some(summary) = journal::event_in(&told, "summary") {
        document::print("load", &summary, json);
    }
    outcome
}

/// Goes on as a process that Ctrl-C does not end: the personas, which it tells to stop as well, sum up what they have done, and
/// somebody has to read that. Only from here on: a build may be broken off.
fn outlive_ctrl_c(program: &Path) -> anyhow::Error {
    let again = || -> Result<std::io::Error> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", r#"trap "" INT; exec "$@""#, "sh"]).arg(env::current_exe()?).args(env::args_os().skip(1));
        Ok(shell.env(OUTLIVES, program).exec())
    };
    again().map_or_else(|error| error, anyhow::Error::from).context("cannot start the load")
}

fn option(command: &mut Command, name: &str, value: Option<impl ToString>) {
    if let Some(value) = value {
        // In one word: a value may begin with a dash.
        command.arg(format!("{name}={}", value.to_string()));
    }
}

/// A path of the caller's, who may stand elsewhere than the program will.
pub(super) fn place(command: &mut Command, name: &str, path: Option<&Path>) -> Result<()> {
    if let Some(path) = path {
        command.arg(name).arg(std::path::absolute(path)?);
    }
    Ok(())
}

/// Runs a program of the lab to its end: what it printed, and what its exit code means.
pub(super) fn run_to_end(command: &mut Command) -> Result<(String, Result<()>)> {
    let output = command.current_dir(root()).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("cannot start the program")?;
    let told = String::from_utf8(output.stdout).context("the program printed what is not UTF-8")?;
    let outcome = if output.status.success() {
        Ok(())
    } else {
        let failure = Failure::of_code(output.status.code().unwrap_or_default());
        Err(failure.because(format!("the program ended with {}", output.status)))
    };
    Ok((told, outcome))
}
