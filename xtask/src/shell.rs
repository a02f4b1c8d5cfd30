//! Running programs, and where things are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::exit::Failure;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    root().join(named_target_dir().unwrap_or_else(|| "target".into()))
}

/// Whether the environment names that place.
pub(crate) fn is_target_dir_named() -> bool {
    named_target_dir().is_some()
}

fn named_target_dir() -> Option<OsString> {
    // Both names are cargo's, and the first one counts.
    let named = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"].into_iter().find_map(std::env::var_os);
    named.filter(|dir| !dir.is_empty())
}

/// Waits a moment before looking again.
#[expect(clippy::disallowed_methods, reason = "there is no runtime here that it could block")]
pub(crate) fn pause() {
    std::thread::sleep(LOOK_EVERY);
}

/// A cargo command in the root of the checkout.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// Runs a command to its end, showing what it prints; an exit code other than zero is an error.
pub(crate) fn must(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Threshold.because(format!("`{line}` failed ({status})")))
}

/// Runs a command and returns what it printed on standard output.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Threshold.because(format!("`{line}` failed ({}): {why}", output.status)));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed what is not UTF-8"))
}

fn line_of(command: &Command) -> String {
    let mut line = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
