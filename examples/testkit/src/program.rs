//! A built program of the lab as a process.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

use crate::disk::Disk;

const READY_WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// Of a program that has closed its output.
const EXITS_WITHIN: Duration = Duration::from_secs(1);
const LINES_KEPT: usize = 20;

/// A running program. Killed when the value goes.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it said when it was ready.
    pub ready: Value,
}

/// Where cargo put an example: beside the test that is running.
///
/// # Errors
/// When it has not been built.
pub fn built(example: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("no path of the running test")?;
    let profile = test.ancestors().nth(2).context("the test is not in a target directory")?;
    let program = profile.join("examples").join(example);
    if program.exists() {
        return Ok(program);
    }
    bail!("{example} has not been built: run `cargo build -p pim-lab --examples`, or `cargo xtask test`")
}

impl Program {
    /// Starts an example and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it has not been built, or ends or stays silent instead of being ready.
    pub async fn start(example: &str, arguments: &[&str]) -> Result<Self> {
        Self::launch(Command::new(built(example)?), arguments, log()).await.with_context(|| example.to_owned())
    }

    /// The same, with its log lines going somewhere.
    ///
    /// # Errors
    /// When it has not been built, or ends or stays silent instead of being ready.
    pub async fn start_logging(example: &str, arguments: &[&str], log: Stdio) -> Result<Self> {
        Self::launch(Command::new(built(example)?), arguments, log).await.with_context(|| example.to_owned())
    }

    /// The same, on a disk that forgets.
    ///
    /// # Errors
    /// When it has not been built, or ends or stays silent instead of being ready.
    pub async fn start_on(disk: &Disk, example: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(built(example)?);
        command.envs(disk.environment());
        Self::launch(command, arguments, log()).await.with_context(|| example.to_owned())
    }

    async fn launch(mut command: Command, arguments: &[&str], log: Stdio) -> Result<Self> {
        command.args(arguments).kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().context("cannot start the program")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let complaints = child.stderr.take().map(last_lines).transpose()?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = timeout(READY_WITHIN, event(&mut lines, "ready")).await;
        match ready.context("the program was not ready in time").flatten() {
            Ok(ready) => Ok(Self { child, lines, ready }),
            Err(error) => Err(why_it_is_not_ready(child, complaints).await).context(error),
        }
    }

    /// A text of the ready line.
    #[must_use]
    pub fn told(&self, member: &str) -> &str {
        self.ready[member].as_str().unwrap_or_default()
    }

    /// SIGKILL: no drain, no flush, nothing.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.context("cannot kill the program")
    }

    /// SIGTERM, and no more: it goes on for as long as it drains.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn terminate(&self) -> Result<()> {
        let pid = self.child.id().context("the program has ended already")?;
        let told = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        if !told.success() {
            bail!("cannot tell process {pid} to stop");
        }
        Ok(())
    }

    /// SIGTERM, then waits: the exit code, and the summary line if there was one.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop(mut self) -> Result<(Option<i32>, Option<Value>)> {
        self.terminate().await?;
        let summary = timeout(ENDS_WITHIN, event(&mut self.lines, "summary")).await.context("it does not drain")?.ok();
        let status = timeout(ENDS_WITHIN, self.child.wait()).await.context("it does not end")??;
        Ok((status.code(), summary))
    }
}

/// Kept for whoever asks why it did not start.
fn log() -> Stdio {
    if std::env::var_os("LAB_TEST_LOG").is_some() { Stdio::inherit() } else { Stdio::piped() }
}

/// Reads to the end on a thread of its own: a program never waits for a test that reads nothing.
fn last_lines(stderr: ChildStderr) -> Result<JoinHandle<Vec<String>>> {
    let lines = io::BufReader::new(File::from(stderr.into_owned_fd()?)).lines();
    Ok(thread::spawn(move || {
        let mut last = VecDeque::new();
        for line in lines.map_while(io::Result::ok) {
            if last.len() == LINES_KEPT {
                last.pop_front();
            }
            last.push_back(line);
        }
        last.into()
    }))
}

async fn why_it_is_not_ready(mut child: Child, complaints: Option<JoinHandle<Vec<String>>>) -> anyhow::Error {
    let ended = match timeout(EXITS_WITHIN, child.wait()).await {
        Ok(Ok(status)) => status.to_string(),
        _ => "it still runs".to_owned(),
    };
    let _killed = child.kill().await;
    match complaints.map(JoinHandle::join) {
        Some(Ok(lines)) => anyhow!("{ended}: {}", lines.join("\n")),
        _ => anyhow!("{ended}: its log is elsewhere"),
    }
}

async fn event(lines: &mut Lines<BufReader<ChildStdout>>, kind: &str) -> Result<Value> {
    while let Some(line) = lines.next_line().await? {
        if let Ok(value) = serde_json::from_str::<Value>(&line)
            && value["event"] == kind
        {
            return Ok(value);
        }
    }
    bail!("the program ended without a line that says {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_ends_says_why() {
        let error = Program::start("gateway", &["--no-such-flag"]).await.expect_err("it is no flag");
        let told = format!("{error:#}");
        assert!(told.contains("exit status: 2") && told.contains("--no-such-flag"), "{told}");
    }
}
