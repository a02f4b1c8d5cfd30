//! A built program at a terminal, as a person has it before them.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::program::built;

const SHOWS_WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(60);
const SIZE: Winsize = Winsize { ws_row: 50, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };

/// A program at a pseudo terminal of 160 columns. Killed when the value goes.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts an example; its input, output and log are the terminal.
    ///
    /// # Errors
    /// When there is no terminal to be had, or the example has not been built.
    pub fn start(example: &str, arguments: &[&str]) -> Result<Self> {
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("no pseudo terminal")?;
        grantpt(&screen)?;
        unlockpt(&screen)?;
        tcsetwinsize(&screen, SIZE)?;
        let name = ptsname(&screen, Vec::new())?;
        let keyboard = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
        let end = || Ok::<Stdio, std::io::Error>(keyboard.try_clone()?.into());
        let mut command = Command::new(built(example)?);
        command.args(arguments).env("TERM", "xterm").env_remove("NO_COLOR");
        command.kill_on_drop(true).stdin(end()?).stdout(end()?).stderr(end()?);
        let child = command.spawn().with_context(|| format!("cannot start {example}"))?;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&shown);
        std::thread::spawn(move || watch(screen, &seen));
        Ok(Self { child, shown })
    }

    /// Everything that has been shown so far, with its control sequences.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).replace("\r\n", "\n")
    }

    /// Waits until something is shown, and tells all that has been.
    ///
    /// # Errors
    /// When it is not shown in time; the error holds what was.
    pub async fn shows(&self, wanted: &str) -> Result<String> {
        let give_up = Instant::now() + SHOWS_WITHIN;
        loop {
            let text = self.text();
            if text.contains(wanted) {
                return Ok(text);
            }
            if Instant::now() > give_up {
                bail!("the terminal never showed `{wanted}`, but:\n{text}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGINT, which is what Ctrl-C is to a program; then the exit code, and everything that was shown.
    ///
    /// # Errors
    /// When the program does not end in time.
    pub async fn interrupt(mut self) -> Result<(Option<i32>, String)> {
        let pid = self.child.id().context("the program has ended already")?;
        let told = Command::new("kill").args(["-INT", &pid.to_string()]).status().await?;
        if !told.success() {
            bail!("cannot interrupt process {pid}");
        }
        let status = timeout(ENDS_WITHIN, self.child.wait()).await.context("it does not end")??;
        self.shows("verdict").await?;
        Ok((status.code(), self.text()))
    }
}

/// Reads until nobody holds the other end any more.
fn watch(screen: OwnedFd, seen: &Mutex<Vec<u8>>) {
    let mut screen = File::from(screen);
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = screen.read(&mut bytes) {
        seen.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..count]);
    }
}
