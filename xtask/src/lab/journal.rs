//! What the running lab left on disk: its state, its event lines, its log.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use pim_servers::signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::alive::{birth_of, printing_to};
use super::document;
use crate::exit::Failure;
use crate::shell::{pause, target_dir};

/// Most of the log's end that is looked at.
const TAIL_BYTES_MAX: u64 = 16 << 20;

/// The folder that was named, instead of the checkout's own.
static NAMED: OnceLock<PathBuf> = OnceLock::new();

/// From now on the background lab is the one of this folder.
pub(super) fn keep_in(folder: PathBuf) {
    let _once = NAMED.set(folder);
}

/// Where the lab that was started in the background can be reached.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct State {
    pub(super) pid: u32,
    /// When that process began: an id alone may be another's by now.
    birth: String,
    pub(super) gateway: String,
    pub(super) broker: String,
    pub(super) ready: Value,
    /// The processes, in the order of their start, when the parts are programs of their own.
    #[serde(default)]
    pub(super) programs: Vec<Running>,
}

/// One of several programs.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Running {
    pub(super) name: String,
    pub(super) pid: u32,
    birth: String,
}

impl Running {
    /// `None` when it has ended already.
    pub(super) fn of(name: &str, pid: u32) -> Option<Self> {
        Some(Self { name: name.to_owned(), pid, birth: birth_of(pid)? })
    }

    /// Those that print into a file, whether anybody has noted them or not.
    pub(super) fn printing_into(file: &Path) -> Vec<Self> {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        printing_to(file).into_iter().filter_map(|pid| Self::of(&name, pid)).collect()
    }

    /// Whether the very process that was started is still running.
    pub(super) fn is_alive(&self) -> bool {
        birth_of(self.pid).as_ref() == Some(&self.birth)
    }

    /// Whether it is one that runs until it is told to stop.
    pub(super) fn should_run(&self) -> bool {
        self.name != "services"
    }

    /// Sends a signal, if it is running.
    ///
    /// # Errors
    /// When it cannot be told anything, as where it is another user's; to have ended meanwhile is no error.
    pub(super) fn signal(&self, signal: &str) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        let failed = || format!("cannot send {signal} to {} (process {})", self.name, self.pid);
        let status = signal::send(signal, &[self.pid]).with_context(failed)?;
        // Looked at once more behind it: whoever ended in between could not be told either.
        if !status.success() && self.is_alive() {
            bail!("{}: `kill` ended with {status}; is it another user's?", failed());
        }
        Ok(())
    }
}

/// The folder of the background lab.
pub(super) fn folder() -> PathBuf {
    NAMED.get().cloned().unwrap_or_else(|| target_dir().join("lab"))
}

/// What a lab of several programs makes; it goes with the lab.
pub(super) fn process_folder() -> PathBuf {
    process_folder_in(&folder())
}

/// The same of another lab's folder.
pub(super) fn process_folder_in(folder: &Path) -> PathBuf {
    folder.join("process")
}

/// Standard output of `services --json`.
pub(super) fn events_file() -> PathBuf {
    folder().join("events.jsonl")
}

/// Standard error of `services`, or of all programs.
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
        let birth = birth_of(pid).context("services has ended already")?;
        Ok(Self { pid, birth, gateway: text("gateway")?, broker: text("broker")?, ready, programs: Vec::new() })
    }

    /// Of programs of their own, none of which has been started yet; the process that stands for all is the one that starts them.
    pub(super) fn of_processes() -> Self {
        let pid = std::process::id();
        let (birth, text) = (birth_of(pid).unwrap_or_default(), String::new());
        Self { pid, birth, gateway: text.clone(), broker: text, ready: Value::Null, programs: Vec::new() }
    }

    /// What was kept, whether it is running or not.
    pub(super) fn kept() -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(state_file()).ok()?).ok()
    }

    /// Remembers it for later calls, which find this one or the one before it, whatever happens meanwhile.
    pub(super) fn keep(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        replace(&state_file(), &text).context("cannot write the state of the lab")
    }

    /// The process that stands for it.
    pub(super) fn process(&self) -> Running {
        Running { name: "services".to_owned(), pid: self.pid, birth: self.birth.clone() }
    }

    /// The id of the process that serves: of several programs the gateway's, as the one that started them has ended.
    pub(super) fn serving_pid(&self) -> u32 {
        self.gateway_program().map_or(self.pid, |gateway| gateway.pid)
    }

    fn gateway_program(&self) -> Option<&Running> {
        self.programs.iter().find(|program| program.name == "gateway")
    }

    /// The running lab's state.
    pub(super) fn load() -> Result<Self> {
        match Self::kept() {
            Some(state) if state.is_alive() => Ok(state),
            Some(state) if state.is_any_alive() => Err(Failure::Precondition.because(
                "programs of a lab run here, and no gateway leads to them: `cargo xtask lab down` stops them",
            )),
            _ => Err(Failure::Precondition.because("no lab is running: start one with `cargo xtask lab up`")),
        }
    }

    /// Whether the very process that was started is still running; of several, the gateway, which leads to all others.
    pub(super) fn is_alive(&self) -> bool {
        match self.gateway_program() {
            Some(gateway) => gateway.is_alive(),
            None => birth_of(self.pid).as_ref() == Some(&self.birth),
        }
    }

    /// Whether anything of it is still running, be it led to or not.
    pub(super) fn is_any_alive(&self) -> bool {
        self.process().is_alive() || self.programs.iter().any(Running::is_alive)
    }

    /// Whether a lab was started here and not taken down, however it is by now. One in files that is gone, as with its machine, has
    /// left nothing that goes on.
    pub(super) fn is_noted() -> bool {
        process_folder().exists() || Self::kept().is_some_and(|state| state.is_any_alive())
    }

    /// Forgets the lab.
    pub(super) fn forget() {
        let _absent = fs::remove_file(state_file());
    }
}

/// Writes a file beside the old one and in its place, whole or not at all.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let part = path.with_extension("part");
    let written =
        File::create(&part).and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.and_then(|()| fs::rename(&part, path)).inspect_err(|_| {
        let _absent = fs::remove_file(&part);
    })
}

/// The last event line of the given kind.
pub(super) fn last_event(kind: &str) -> Option<Value> {
    event_in(&fs::read_to_string(events_file()).ok()?, kind)
}

/// The last line of a text that is an event of the given kind.
pub(super) fn event_in(text: &str, kind: &str) -> Option<Value> {
    let mut lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find(|line| line["event"] == kind)
}

/// What the log holds from a byte on, as whole lines, and where they end.
fn log_from(start: u64) -> Result<(Vec<String>, u64)> {
    let absent = || Failure::Precondition.because("no lab has been started here: `cargo xtask lab up` starts one");
    let mut file = File::open(log_file()).map_err(|_| absent())?;
    let length = file.metadata()?.len();
    // A new lab begins its log anew.
    let start = if start > length { 0 } else { start };
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect();
    Ok((lines, start + whole as u64))
}

/// The last lines of the log, and where they end.
fn log_end(count: usize) -> Result<(Vec<String>, u64)> {
    let length = fs::metadata(log_file()).map_or(0, |it| it.len());
    let (mut lines, end) = log_from(length.saturating_sub(TAIL_BYTES_MAX))?;
    lines.drain(..lines.len().saturating_sub(count));
    Ok((lines, end))
}

/// The last lines of the log, for an error's text.
pub(super) fn log_tail(count: usize) -> String {
    log_end(count).map(|(lines, _)| lines.join("\n")).unwrap_or_default()
}

/// Prints the last lines of the log; when following also those that come, until the lab has ended.
///
/// As JSON one document holds the lines; when following each line is a document.
pub(super) fn logs(count: usize, follow: bool, json: bool) -> Result<()> {
    let (lines, mut end) = log_end(count)?;
    if !follow && json {
        document::print("logs", &lines.iter().map(|line| entry(line)).collect(), true);
        return Ok(());
    }
    let show = |line: &String| document::say(&if json { document::wrapped("log", &entry(line)) } else { line.clone() });
    let mut is_read = lines.iter().all(show);
    while follow && is_read {
        // Looked at before the log is, so that the last lines of one that ends are shown.
        let is_running = State::load().is_ok();
        let (lines, next) = log_from(end)?;
        is_read = lines.iter().all(show);
        end = next;
        if !is_running {
            break;
        }
        pause();
    }
    Ok(())
}

/// A line as the log's own JSON, or as text when it is none.
fn entry(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|_| Value::from(line))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    use super::{Running, replace};

    /// Guard: who was told nothing is not waited for as if it would end.
    #[test]
    fn a_signal_that_cannot_be_sent_is_an_error() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().expect("starts");
        let running = Running::of("patient-service", child.id()).expect("runs");
        // Whoever runs tests may be root, whose signals are all permitted: the shell refuses this one.
        let failed = running.signal("-NONE_SUCH").map_err(|error| format!("{error:#}"));
        let ends = running.signal("-KILL");
        child.wait().expect("ends");
        let sentence = failed.expect_err("nobody was told");
        assert!(sentence.contains("patient-service") && sentence.contains(&running.pid.to_string()), "{sentence}");
        ends.expect("was told");
        running.signal("-TERM").expect("has ended, and needs none");
    }

    /// Guard: what could not be written whole leaves what was there before.
    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("xtask-journal-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let (path, part) = (folder.join("state.json"), folder.join("state.part"));
        replace(&path, "old").expect("writes");
        // A disk that is full.
        symlink("/dev/full", &part).expect("a link");
        assert!(replace(&path, "new").is_err());
        assert_eq!(fs::read_to_string(&path).expect("is there"), "old");
        assert!(fs::symlink_metadata(&part).is_err(), "nothing is left beside it");
        replace(&path, "new").expect("writes");
        assert_eq!(fs::read_to_string(&path).expect("is there"), "new");
        fs::remove_dir_all(&folder).expect("goes");
    }
}
