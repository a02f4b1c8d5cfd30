//! What the running lab left on disk: its state, its event lines, its log.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::Failure;
use crate::shell::target_dir;

/// Where the lab that this checkout started can be reached.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct State {
    pub(super) pid: u32,
    pub(super) gateway: String,
    pub(super) broker: String,
    pub(super) ready: Value,
}

/// The folder of the background lab.
pub(super) fn folder() -> PathBuf {
    target_dir().join("lab")
}

/// Standard output of `services --json`.
pub(super) fn events_file() -> PathBuf {
    folder().join("events.jsonl")
}

/// Standard error of `services`.
pub(super) fn log_file() -> PathBuf {
    folder().join("services.log")
}

fn state_file() -> PathBuf {
    folder().join("state.json")
}

impl State {
    /// From the `ready` line of `services --json`.
    pub(super) fn of_ready(ready: Value) -> Result<Self> {
        let text = |member: &str| {
            let value = ready[member].as_str().with_context(|| format!("the ready line has no `{member}`"))?;
            Ok::<_, anyhow::Error>(value.to_owned())
        };
        let pid =
            ready["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("the ready line has no `pid`")?;
        Ok(Self { pid, gateway: text("gateway")?, broker: text("broker")?, ready })
    }

    /// Remembers it for later calls.
    pub(super) fn keep(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(state_file(), text).context("cannot write the state of the lab")
    }

    /// The running lab's state.
    pub(super) fn load() -> Result<Self> {
        let text = fs::read_to_string(state_file()).unwrap_or_default();
        let state: Option<Self> = serde_json::from_str(&text).ok();
        match state {
            Some(state) if super::process::is_alive(state.pid) => Ok(state),
            _ => Err(Failure::Precondition.because("no lab is running: start one with `cargo xtask lab up`")),
        }
    }

    /// Forgets the lab.
    pub(super) fn forget() {
        let _absent = fs::remove_file(state_file());
    }
}

/// The last event line of the given kind.
pub(super) fn last_event(kind: &str) -> Option<Value> {
    let text = fs::read_to_string(events_file()).ok()?;
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.into_iter().find(|line| line["event"] == kind)
}

/// The last lines of the log.
pub(super) fn log_tail(lines: usize) -> Result<String> {
    let text = fs::read_to_string(log_file()).with_context(|| "no lab has been started from this checkout")?;
    let all: Vec<_> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

/// Prints the last lines of the log.
pub(super) fn print_logs(lines: usize) -> Result<()> {
    println!("{}", log_tail(lines)?);
    Ok(())
}
